"""Whisper in the place of the task's own model: how it writes, and when it says each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.backbones.whisper import Whisper
from mmattn.explain import capture
from mmattn.generate.speech import STAMP_FRAMES, SpeechConfig
from mmattn.generate.warping import spoken_from
from mmattn.tasks.asr.decoding import Heard
from mmattn.tasks.asr.model import ASROutput
from mmattn.tasks.asr.processor import ASRBatch
from mmattn.tasks.asr.public_processors import WhisperProcessor
from mmattn.tasks.asr.words import Word
from mmattn.tasks.common.errors import ConfigError


@dataclass
class Spoken:
    """What Whisper has written of one window."""

    ids: list[int]  # without the prompt and the end; timestamps where they were asked for
    prompt: list[int]
    memory: Tensor  # (1, S, E)
    score: float


@dataclass
class Stretch:
    """Ids that are said between two states of the encoder."""

    ids: list[int]  # of text alone
    first: int
    last: int
    closed: bool  # whether its end is told, by a timestamp


class PublicModel(nn.Module):
    """Windows of log-mel frames to text, called as `ASRModel` is. There is no CTC.

    Args:
        keywords: of `mmattn.backbones.whisper.Whisper`.
    """

    subsampling = STAMP_FRAMES

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.net = Whisper(**keywords)

    def forward(self, features: Tensor, feature_mask: Tensor, target_ids: Tensor) -> ASROutput:
        """Teacher forcing.

        Args:
            features: (B, T, M), whole windows.
            feature_mask: (B, T) bool, True = of the recording; the network hears the silence behind it, too.
            target_ids: (B, L) long, the prompt first.
        """
        return ASROutput(None, self.net.halved(feature_mask), self.net(features, None, target_ids))

    def hear(self, features: Tensor, config: SpeechConfig) -> list[Spoken]:
        """What each window (B, T, M) says."""
        with torch.inference_mode():
            memory = self.net.encode(features)
            prompt = self.net.prompt(memory, None, config)
            found = self.net.write(memory, None, prompt, config)
        rows = zip(found.tokens(without=config.eos), prompt.tolist(), memory.split(1), found.scores[:, 0], strict=True)
        return [Spoken(ids[0], given, states, float(score)) for ids, given, states, score in rows]

    def write(self, batch: ASRBatch, processor: WhisperProcessor, **search: Any) -> list[Heard]:
        """What each clip of a batch says; search as `speech_config` takes it."""
        found = self.hear(batch.features, speech_config(processor, **search))
        return [Heard(processor.said(spoken.ids), spoken.score, None) for spoken in found]

    @torch.inference_mode()
    def attention(
        self, memory: Tensor, prompt: Sequence[int], ids: Sequence[int], heads: Sequence[Sequence[int]] | None
    ) -> Tensor:
        """What each place of a text looks at in the sound, by heads that follow it: (h, L + 1, S), the end the last.

        Args:
            memory: (1, S, E) of the window.
            prompt: what stands before the text.
            ids: L ids of text.
            heads: layer and head of each that follows the sound; none: all in the upper half of the layers.
        """
        net = self.net
        forced = torch.tensor([[*prompt, *ids]], device=memory.device)
        with capture(net.decoder) as maps:
            net.decode(forced, memory)
        layers = [maps[f"layers.{n}.cross_attention"][0][0] for n in range(len(net.decoder.layers))]  # (h, P + L, S)
        if heads:
            weights = torch.stack([layers[layer][head] for layer, head in heads])
        else:
            weights = torch.cat(layers[len(layers) // 2 :])
        return weights[:, len(prompt) - 1 :].float().cpu()

    def words(
        self,
        spoken: Spoken,
        stretches: Sequence[Stretch],
        processor: WhisperProcessor,
        start: float = 0.0,
    ) -> list[Word]:
        """When each word was said, by the attention of the heads that follow the sound.

        Args:
            spoken: of the window.
            stretches: its text, in order.
            processor: parts ids into words.
            start: seconds before the window.
        """
        seconds, found, done = processor.frame_seconds * self.subsampling, [], 0
        whole = [token for stretch in stretches for token in stretch.ids]
        if not whole:
            return []
        prompt = spoken.prompt
        without = processor.tokenizer.no_timestamps_id
        if prompt[-1] != without and len(prompt) + len(whole) < self.net.max_len:
            prompt = [*prompt, without]
        weights = self.attention(spoken.memory, prompt, whole, processor.generation.get("alignment_heads"))
        for stretch in stretches:
            rows = len(stretch.ids) + (not stretch.closed)
            part = weights[:, done : done + rows, stretch.first : max(stretch.last, stretch.first + 1)]
            done += len(stretch.ids)
            if not stretch.ids:
                continue
            places = [stretch.first + n for n in spoken_from(part / part.sum(-1, keepdim=True).clamp_min(1e-9))]
            places += [stretch.last] * stretch.closed
            for word, first, end in processor.words(stretch.ids, spoken.prompt):
                times = (start + places[n] * seconds for n in (first, end))
                found.append(Word(word, *(round(time, 3) for time in times)))
        return found


def speech_config(processor: WhisperProcessor, *, ctc_weight: float | None = None, **search: Any) -> SpeechConfig:
    """How to write: as the model's folder says, then as it was measured, then as is asked for.

    Args:
        processor: of the model.
        ctc_weight: refused: there is no CTC.
        search: num_beams, language, task and whatever else `SpeechConfig` has; None leaves it to the model.

    Raises:
        ConfigError: a language or task that the model has not, values that do not go together.
    """
    if ctc_weight is not None:
        raise ConfigError(f"ctc_weight: expected none, since Whisper has no CTC; found {ctc_weight}.")
    given = {name: value for name, value in search.items() if value is not None}
    try:
        return SpeechConfig(**{**processor.generation, **processor.search, **given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"generation: {error}.") from None


def with_timestamps(config: SpeechConfig, processor: WhisperProcessor) -> SpeechConfig:
    """The same for long recordings, whose windows begin where timestamps say."""
    known = config.no_timestamps_token_id
    known = processor.tokenizer.no_timestamps_id if known is None else known
    return replace(config, return_timestamps=True, no_timestamps_token_id=known)


def own_names(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The network's keywords, as `ASRModel` calls them."""
    names = {"num_layers": "encoder_layers", "num_decoder_layers": "decoder_layers"}
    fixed = {"encoder": "transformer", "decoder": "transformer", "memory": "frames"}
    return fixed | {names.get(key, key): value for key, value in keywords.items()}
