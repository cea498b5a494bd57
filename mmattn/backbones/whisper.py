"""Whisper: speech recognition and translation from log-mel frames, with languages, tasks and timestamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import AttentionConfig
from ..generate import CachedState, Generated, GenerationConfig, generate
from ..generate.speech import STAMP_FRAMES, Segment, SpeechConfig, split_segments
from ..masks import Mask
from ..positions import LearnedPositions, sinusoidal_1d
from .seq2seq import Seq2Seq

FRAME_SECONDS = 0.01


class WindowPrediction(NamedTuple):
    """The prediction for one window of a long recording."""

    first: int  # first frame in the recording
    frames: int
    segments: list[Segment]
    memory: Tensor  # (1, S, E)
    prompt: Tensor  # (1, P) long
    score: float  # log p / length^length_penalty


class Whisper(Seq2Seq):
    """An encoder-decoder transformer over log-mel frames, which convolutions halve (Radford et al. 2022, section 2.2).

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of encoder layers.
        num_heads: h, of both sides.
        num_mels: M.
        num_decoder_layers: None = num_layers.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        max_frames: Frames of a window of 30 seconds; longer ones raise.
        max_len: Number of the decoder's positions.
        tied_output: Whether the output projection is the embedding table.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options} of the encoder's self-attention.
        decoder_attention: Kind and options of the decoder's self-attention.
        cross_attention: Kind and options of the decoder's attention to the audio.

    >>> model = Whisper(100, 32, 1, 4, num_mels=8, max_frames=40).eval()
    >>> features, target = torch.randn(2, 40, 8), torch.randint(100, (2, 5))
    >>> model(features, None, target).shape
    torch.Size([2, 5, 100])
    >>> config = SpeechConfig(decoder_start_token_id=0, eos_token_id=1, max_new_tokens=6)
    >>> model.generate(features, None, config).scores.shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        num_mels: int = 80,
        num_decoder_layers: int | None = None,
        ffn_dim: int | None = None,
        max_frames: int = 3000,
        max_len: int = 448,
        tied_output: bool = True,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        decoder_attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
    ) -> None:
        super().__init__(
            vocab_size,
            embed_dim,
            num_layers,
            num_heads,
            num_decoder_layers=num_decoder_layers,
            ffn_dim=ffn_dim,
            positions="learned",
            max_len=max_len,
            tied_output=tied_output,
            scale_embeddings=False,
            bias=("q", "v", "out"),
            activation=activation,
            dropout=dropout,
            attention=attention,
            decoder_attention=decoder_attention,
            cross_attention=cross_attention,
        )
        self.max_frames, self.max_len = max_frames, max_len
        self.conv1 = nn.Conv1d(num_mels, embed_dim, 3, padding=1)
        self.conv2 = nn.Conv1d(embed_dim, embed_dim, 3, stride=2, padding=1)
        self.positions = LearnedPositions(-(-max_frames // 2), embed_dim)  # fixed sinusoids, but saved in checkpoints
        half = embed_dim // 2
        base = 10000.0 ** (half / max(half - 1, 1))  # the ratio of the highest to the lowest frequency is 10000
        places = torch.arange(self.positions.max_len)
        self.positions.weight.requires_grad_(False).copy_(sinusoidal_1d(places, embed_dim, base))

    def encode(self, features: Tensor, feature_mask: Tensor | None = None) -> Tensor:
        """Encodes log-mel frames.

        Args:
            features: (B, T, M). Public checkpoints were trained on windows of 30 seconds, padded with silence.
            feature_mask: (B, T) bool, True = a real frame, padded at the right; silence is real.

        Returns:
            The memory (B, ceil(T / 2), E); values at padding are undefined.

        Raises:
            ValueError: T exceeds max_frames.
        """
        x = self._without_padding(features.mT, feature_mask)  # (B, M, T)
        x = self._without_padding(F.gelu(self.conv1(x)), feature_mask)  # (B, E, T): zeros, as for a clip alone
        x = self.positions(F.gelu(self.conv2(x)).mT)  # (B, T / 2, E)
        halved = self.halved(feature_mask)
        return self.encoder(self.dropout(x), None if halved is None else Mask(halved))

    def forward(self, features: Tensor, feature_mask: Tensor | None, decoder_input_ids: Tensor) -> Tensor:
        """Returns the logits of each next token under teacher forcing.

        Args:
            features: (B, T, M).
            feature_mask: (B, T) bool, True = a real frame.
            decoder_input_ids: (B, L) long, the start token first; padded at the right, where the loss is masked.

        Returns:
            (B, L, V).
        """
        memory = self.encode(features, feature_mask)
        return self.output(self.decode(decoder_input_ids, memory, self.halved(feature_mask)))

    def start(self, features: Tensor, feature_mask: Tensor | None = None) -> CachedState:
        """Encodes log-mel frames and makes the state that `step` continues from."""
        return self.start_from(self.encode(features, feature_mask), self.halved(feature_mask))

    def generate(  # type: ignore[override]  # the inputs are features
        self, features: Tensor, feature_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Transcribes windows; other keywords are those of `mmattn.generate.generate`.

        Args:
            features: (B, T, M).
            feature_mask: (B, T) bool, True = a real frame.
            config: Generation options; a `SpeechConfig` for models with languages, tasks or timestamps. The language is
                detected if none is given.

        Returns:
            The new tokens, without the prompt (see `prompt`), with timestamps if requested.

        Raises:
            ValueError: The config has no decoder_start_token_id.
        """
        with torch.inference_mode():
            memory, mask = self.encode(features, feature_mask), self.halved(feature_mask)
            return self.write(memory, mask, self.prompt(memory, mask, config), config, **keywords)

    def write(
        self, memory: Tensor, memory_mask: Tensor | None, prompt: Tensor, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Continues a prompt, see `generate`.

        Args:
            memory: (B, S, E), the result of `encode`.
            memory_mask: (B, S) bool.
            prompt: (B, P) long, the result of `prompt`.
            config: Generation options.
        """
        room = self.max_len - prompt.shape[1]
        wanted = config.max_new_tokens or config.max_length or room  # here max_length excludes the prompt
        return generate(
            self.step,
            self.start_from(memory, memory_mask),
            prompt,
            replace(config, max_new_tokens=min(wanted, room)),
            **keywords,
        )

    def prompt(self, memory: Tensor, memory_mask: Tensor | None, config: GenerationConfig) -> Tensor:
        """Returns the prompt (B, P) long: start, language, task; detects the language if none is given.

        Args:
            memory: (B, S, E), the result of `encode`.
            memory_mask: (B, S) bool.
            config: Generation options.
        """
        if not isinstance(config, SpeechConfig):
            config = SpeechConfig(max_new_tokens=1, decoder_start_token_id=config.decoder_start_token_id)
        detected = None
        if config.detects:
            detected = self._language_logits(memory, memory_mask, config).argmax(1).tolist()
            ids = list((config.lang_to_id or {}).values())
            detected = [ids[place] for place in detected]
        return torch.tensor(config.prompts(len(memory), detected), device=memory.device)

    def detect_language(
        self, features: Tensor, feature_mask: Tensor | None, config: SpeechConfig
    ) -> list[dict[str, float]]:
        """Returns the probabilities of languages by code for each window, the most probable first.

        Args:
            features: (B, T, M).
            feature_mask: (B, T) bool, True = a real frame.
            config: Generation options; lang_to_id gives the languages.

        Raises:
            ValueError: The model has no languages.
        """
        if not config.lang_to_id:
            raise ValueError("the model has no languages: expected lang_to_id in the config, found none")
        with torch.inference_mode():
            memory, mask = self.encode(features, feature_mask), self.halved(feature_mask)
            shares = self._language_logits(memory, mask, config).softmax(1).tolist()
        names = [name.strip("<|>") for name in config.lang_to_id]
        return [dict(sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])) for row in shares]

    def transcribe(self, features: Tensor, config: SpeechConfig, **keywords: Any) -> Iterator[Segment]:
        """Transcribes a recording of any length, window by window; see `transcribe_windows`.

        Args:
            features: (T, M), of the whole recording.
            config: Generation options; timestamps are always predicted. The language is detected in the first window.
            keywords: Keywords of `mmattn.generate.generate`.

        Yields:
            Segments in order, as soon as their window is finished.

        Raises:
            ValueError: The config has no timestamps.
        """
        for window in self.transcribe_windows(
            lambda frame: (frame, features[frame : frame + self.max_frames]), config, **keywords
        ):
            yield from window.segments

    def transcribe_windows(
        self, read: Callable[[int], tuple[int, Tensor]], config: SpeechConfig, **keywords: Any
    ) -> Iterator[WindowPrediction]:
        """Transcribes a stream; each window begins at the last timestamp of the preceding one.

        Radford et al. 2022, section 3.8, at one temperature and without the preceding text as a prompt.

        Args:
            read: Maps a frame to the frames (T, M) from there on, at most a window, and their first frame, which is
                later if silence is skipped; no frames end the stream. Its arguments never decrease.
            config: As in `transcribe`, like keywords.

        Yields:
            The prediction of each window, as soon as it is available.
        """
        config = replace(config, return_timestamps=True)
        begin, prompt, seek = config.timestamp_begin, None, 0
        assert begin is not None
        while len((found := read(seek))[1]):
            seek, window = found
            frames = len(window)
            with torch.inference_mode():
                memory = self.encode(F.pad(window, (0, 0, 0, self.max_frames - frames))[None])
                prompt = self.prompt(memory, None, config) if prompt is None else prompt
                generated = self.write(memory, None, prompt, config, **keywords)
            parts, moved = split_segments(generated.tokens(without=config.eos)[0][0], begin, frames)
            segments = []
            for low, high, ids in parts:
                start, end = (seek + STAMP_FRAMES * place for place in (low, high))
                segments.append(Segment(start * FRAME_SECONDS, end * FRAME_SECONDS, ids))
            yield WindowPrediction(seek, frames, segments, memory, prompt, float(generated.scores[0, 0]))
            seek += moved

    @staticmethod
    def halved(feature_mask: Tensor | None) -> Tensor | None:
        """Returns the mask (B, ceil(T / 2)) of the memory."""
        return None if feature_mask is None else feature_mask[:, ::2]

    @staticmethod
    def _without_padding(x: Tensor, feature_mask: Tensor | None) -> Tensor:
        return x if feature_mask is None else x.masked_fill(~feature_mask[:, None], 0.0)

    def _language_logits(self, memory: Tensor, memory_mask: Tensor | None, config: SpeechConfig) -> Tensor:
        """Returns the languages' logits (B, number of languages), in the order of lang_to_id."""
        start = config.start_prompt(len(memory), memory.device)
        logits = self.output(self.decode(start, memory, memory_mask)[:, -1])  # (B, V)
        return logits[:, list((config.lang_to_id or {}).values())]
