"""Whisper as the model of the task: generation, long recordings and word timings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.backbones.whisper import FRAME_SECONDS, Whisper, WindowPrediction
from mmattn.data.audio.mel import WhisperFeatures
from mmattn.data.errors import DataError
from mmattn.explain import capture
from mmattn.generate.dtw import spoken_from
from mmattn.generate.speech import STAMP_FRAMES, SpeechConfig
from mmattn.tasks.asr.alignment import Window, Word
from mmattn.tasks.asr.data import ASRSample
from mmattn.tasks.asr.decoding import Hypothesis, check_lm
from mmattn.tasks.asr.model import ASROutput
from mmattn.tasks.asr.predict import SILENCE, ASRExplanation, ASRPrediction, ASRPredictor, audible, check_explainable
from mmattn.tasks.asr.public_processors import WhisperProcessor
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.progress import progress
from mmattn.tasks.common.seq2seq.model import below


@dataclass
class WindowHypothesis:
    """Whisper's hypothesis for one window."""

    ids: list[int]  # without prompt and end token; with timestamps if these were requested
    prompt: list[int]
    memory: Tensor  # (1, S, E)
    score: float


@dataclass
class TextSegment:
    """Ids that lie between two encoder states."""

    ids: list[int]  # text tokens only
    first: int
    last: int
    closed: bool  # whether a timestamp gives its end


class PublicWhisper(nn.Module):
    """Whisper, windows of log-mel frames to text, with the interface of `ASRModel`. It has no CTC.

    Args:
        keywords: Of `mmattn.backbones.whisper.Whisper`.
    """

    subsampling = STAMP_FRAMES

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.net = Whisper(**keywords)

    def forward(self, features: Tensor, feature_mask: Tensor, target_ids: Tensor) -> ASROutput:
        """Teacher forcing on whole windows, including their silence; see `ASRModel.forward`."""
        mask: Any = self.net.halved(feature_mask)
        return ASROutput(None, mask, self.net(features, None, target_ids))

    @torch.inference_mode()
    def decode(self, features: Tensor, config: SpeechConfig) -> list[WindowHypothesis]:
        """Decode each window of features (B, T, M)."""
        memory = self.net.encode(features)
        prompt = self.net.prompt(memory, None, config)
        found = self.net.write(memory, None, prompt, config)
        rows = zip(found.tokens(without=config.eos), prompt.tolist(), memory.split(1), found.scores[:, 0], strict=True)
        return [WindowHypothesis(ids[0], given, states, float(score)) for ids, given, states, score in rows]

    def write(self, features: Tensor, processor: WhisperProcessor, **search: Any) -> list[Hypothesis]:
        """Transcribe each clip of a batch; search options as for `WhisperProcessor.speech_config`."""
        found = self.decode(features, processor.speech_config(**search))
        return [Hypothesis(processor.detokenize(hypothesis.ids), hypothesis.score, None) for hypothesis in found]

    @torch.inference_mode()
    def attention(
        self, memory: Tensor, prompt: Sequence[int], ids: Sequence[int], heads: Sequence[Sequence[int]] | None
    ) -> Tensor:
        """Cross-attention of the alignment heads for each text token and the end token, (h, L + 1, S).

        Args:
            memory: (1, S, E), the encoded window.
            prompt: Ids before the text.
            ids: L ids of the text.
            heads: Layer and head of each alignment head; None or empty: all heads of the upper half of the layers.
        """
        with capture(self.net.decoder) as maps:
            self.net.decode(torch.tensor([[*prompt, *ids]], device=memory.device), memory)
        layers = [found[0] for found in below(maps, "cross_attention")]  # (h, P + L, S) each
        upper = torch.cat(layers[len(layers) // 2 :])
        weights = torch.stack([layers[layer][head] for layer, head in heads]) if heads else upper
        return weights[:, len(prompt) - 1 :].float().cpu()

    def words(
        self,
        hypothesis: WindowHypothesis,
        segments: Sequence[TextSegment],
        processor: WhisperProcessor,
        start: float = 0.0,
    ) -> list[Word]:
        """Word timings of a window, by dynamic time warping of the alignment heads' attention.

        Args:
            hypothesis: The hypothesis of the window.
            segments: Its text in parts, in order.
            processor: Of the model.
            start: Start of the window in seconds.
        """
        seconds, found, done = processor.frame_seconds * self.subsampling, [], 0
        whole = [token for segment in segments for token in segment.ids]
        if not whole:
            return []
        prompt, without = hypothesis.prompt, processor.tokenizer.no_timestamps_id
        if prompt[-1] != without and len(prompt) + len(whole) < self.net.max_len:
            prompt = [*prompt, without]
        weights = self.attention(hypothesis.memory, prompt, whole, processor.generation.get("alignment_heads"))
        for segment in segments:
            rows = len(segment.ids) + (not segment.closed)
            part = weights[:, done : done + rows, segment.first : max(segment.last, segment.first + 1)]
            done += len(segment.ids)
            if not segment.ids:
                continue
            places = [segment.first + n for n in spoken_from(part / part.sum(-1, keepdim=True).clamp_min(1e-9))]
            places += [segment.last] * segment.closed
            for word, first, end in processor.words(segment.ids, hypothesis.prompt):
                found.append(Word(word, *(round(start + places[n] * seconds, 3) for n in (first, end))))
        return found


class WhisperStream:
    """Windows of a recording's log-mel frames, equal to those of the whole; one window and one block are in memory.

    Frames are scaled by the loudest frame of the recording. A recording is therefore read twice: once for that frame
    (``loudest``), and once to be transcribed.

    Args:
        front: The feature extractor.
        blocks: The recording, in pieces (n,), together longer than half a frame.
        loudest: log10 of the greatest energy of a band; None: not known yet.
        silence: Windows with a peak-to-peak amplitude of at most this are skipped.

    >>> front, wave = WhisperFeatures(), torch.randn(40 * 16_000)
    >>> top = WhisperStream(front, wave.split(50_000)).loudest()
    >>> first, frames = WhisperStream(front, wave.split(50_000), top).read(2_000)
    >>> first, frames.shape, torch.allclose(frames, front(wave, whole=True)[2_000:], atol=1e-4)
    (2000, torch.Size([2000, 80]), True)
    """

    def __init__(
        self, front: WhisperFeatures, blocks: Iterable[Tensor], loudest: float | None = None, silence: float = 0.0
    ) -> None:
        self.front, self.top, self.silence = front, loudest, silence
        self.blocks = iter(blocks)
        self.half, self.window = front.n_fft // 2, front.window_frames
        self.wave = torch.empty(0)  # buffered samples, from sample `begin` of the recording on
        self.begin, self.total = 0, 0  # total: number of samples read
        self.mirrored, self.ended = False, False  # whether `wave` has the reflection padding; whether all is read

    def read(self, frame: int) -> tuple[int, Tensor]:
        """Read the window at a frame, or the next one that is not silent; see ``Whisper.transcribe_windows``.

        Returns:
            Its first frame, and its frames (T, M); T = 0 at the end.
        """
        if self.top is None:
            raise ValueError("the loudest frame is not known: call loudest() first")
        while count := self._fill(frame):
            wave = self.wave[max(0, frame * self.front.hop - self.begin) :][: count * self.front.hop]
            if float(wave.amax() - wave.amin()) > self.silence:
                return frame, self.front.scaled(self._log(frame, count), self.top)
            frame += count
        return frame, torch.empty(0, self.front.n_mels)

    def loudest(self) -> float:
        """log10 of the greatest energy of a band; reads the whole recording."""
        frame, top = 0, -torch.inf
        while count := self._fill(frame):
            top = max(top, float(self._log(frame, count).amax()))
            frame += count
        return top

    def _log(self, frame: int, count: int) -> Tensor:
        first = frame * self.front.hop - self.half - self.begin
        return self.front.log_mel(self.wave[first : first + (count - 1) * self.front.hop + self.front.n_fft])

    def _fill(self, frame: int) -> int:
        """Read what the window at a frame needs, drop earlier samples, and return the number of frames available."""
        hop = self.front.hop
        low, high = frame * hop - self.half, (frame + self.window) * hop + self.half
        while not self.ended and self.begin + len(self.wave) < high:
            block = next(self.blocks, None)
            if block is None:
                self.ended = True
                # Reflection padding, as at the start.
                self.wave = torch.cat([self.wave, self.wave[-self.half - 1 : -1].flip(0)])
            else:
                self.wave = torch.cat([self.wave, block])
                self.total += len(block)
                if not self.mirrored and self.begin == 0 and len(self.wave) > self.half:
                    self.wave = torch.cat([self.wave[1 : self.half + 1].flip(0), self.wave])
                    self.begin, self.mirrored = -self.half, True
            if low > self.begin:
                self.wave, self.begin = self.wave[low - self.begin :], min(low, self.begin + len(self.wave))
        if low > self.begin:
            self.wave, self.begin = self.wave[low - self.begin :].clone(), low
        frames = self.total // hop if self.ended else frame + self.window
        return max(0, min(self.window, frames - frame))


class WhisperPredictor(ASRPredictor):
    """Predictor of Whisper; its transcripts equal those of transformers.

    A recording that fits in a window is transcribed at once, without timestamps if the model's folder says so. A longer
    one is transcribed while it is read, each window starting at the last timestamp of the previous one
    (`Whisper.transcribe_windows`).
    """

    def check_search(self, given: dict[str, Any]) -> None:
        window = given.pop("window", self.window)
        if window != self.window:
            raise ConfigError(f"--window: expected {self.window:g} s, this model's only window; found {window:g}.")
        check_lm(given, given, self.processor, attends=True)
        self.processor.speech_config(**given)

    def windows(self, sample: ASRSample, shown: bool = True, **options: Any) -> Iterator[Window]:
        """Yield the windows of a recording: one to be transcribed, or several with their predictions."""
        total, read = self.open(sample, self.window)
        blocks = read()
        first, second = next(blocks), next(blocks, None)
        if second is None:
            yield Window(first, 0.0, 0.0, float("inf"), len(first) / self.processor.sample_rate)
            return
        config = self.processor.speech_config(**options)
        known = config.no_timestamps_token_id
        known = self.processor.tokenizer.no_timestamps_id if known is None else known  # old folders lack it
        config = replace(config, return_timestamps=True, no_timestamps_token_id=known)
        top = WhisperStream(self.processor.front, read()).loudest()
        stream = WhisperStream(self.processor.front, read(), top, SILENCE)

        def frames(frame: int) -> tuple[int, Tensor]:
            begin, found = stream.read(frame)
            return begin, found.to(self.device)

        ids: list[int] = []
        segmented = self.model.net.transcribe_windows(frames, config)
        for window in progress(segmented, int(total / self.window), f"transcribing {sample.id}", shown):
            start, own = window.first * FRAME_SECONDS, [token for segment in window.segments for token in segment.ids]
            ids += own
            hypothesis = WindowHypothesis(own, window.prompt[0].tolist(), window.memory, window.score)
            words = self.model.words(hypothesis, self._segments(window, known), self.processor, start)
            prediction, text = ASRPrediction(sample.id, "", words, score=window.score), self.processor.detokenize(ids)
            yield Window(torch.empty(0), start, start, start, start + window.frames * FRAME_SECONDS, prediction, text)
        seconds = stream.total / self.processor.sample_rate  # the stream may have skipped silence
        # The text is detokenized at once, since words may span windows.
        whole = ASRPrediction(sample.id, self.processor.detokenize(ids))
        yield Window(torch.empty(0), seconds, seconds, seconds, seconds, whole)

    def _segments(self, window: WindowPrediction, known: int) -> list[TextSegment]:
        """Returns the segments of a window, with timestamps clipped to the end of the recording."""
        start, states, found = window.first * FRAME_SECONDS, -(-window.frames // STAMP_FRAMES), []
        for segment in window.segments:
            times = (segment.start, segment.end)
            low, high = (min(round((time - start) / self.frame_seconds), states) for time in times)
            found.append(TextSegment(self._text(segment.ids), low, high, segment.ids[-1:] > [known]))
        return found

    def _text(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token < self.processor.tokenizer.eos_id]

    def _whole(self, wave: Tensor, ids: Sequence[int]) -> TextSegment:
        """The hypothesis of a whole recording (n,) as one segment."""
        states = -(-self.processor.front.real_frames(len(wave)) // STAMP_FRAMES)
        return TextSegment(self._text(ids), 0, states, closed=False)

    def predict_batch(
        self, samples: Sequence[Window], batch: tuple[Tensor, Tensor], **search: Any
    ) -> list[ASRPrediction]:  # type: ignore[override]
        """Transcribe recordings of at most a window each; see `ASRPredictor.predict_batch`.

        Options are num_beams, language ("de", "German"; None: detected), task ("transcribe", "translate") and the other
        fields of `SpeechConfig`.
        """
        hypothesis = self.model.decode(batch[0], self.processor.speech_config(**search))
        return [self._prediction(window.wave, found) for window, found in zip(samples, hypothesis, strict=True)]

    def _prediction(self, wave: Tensor, hypothesis: WindowHypothesis, name: str = "") -> ASRPrediction:
        """The prediction for one recording (n,) of at most a window."""
        words = self.model.words(hypothesis, [self._whole(wave, hypothesis.ids)], self.processor)
        seconds = round(len(wave) / self.processor.sample_rate, 3)
        return ASRPrediction(name, self.processor.detokenize(hypothesis.ids), words, seconds, hypothesis.score)

    @torch.inference_mode()
    def aligned(self, samples: Sequence[ASRSample]) -> list[list[Word]]:
        """Word timings of the samples' own texts, by dynamic time warping.

        Raises:
            DataError: A recording or a text is longer than a window allows; names the item.
        """
        config, found, net = self.processor.speech_config(), [], self.model.net
        for sample in samples:
            wave, ids = sample.read(self.processor.sample_rate), self.processor.encode(sample.text)
            memory = net.encode(self.processor.features(wave)[None].to(self.device))
            prompt = net.prompt(memory, None, config)[0].tolist()
            seconds, room = len(wave) / self.processor.sample_rate, net.max_len - len(prompt) - 1
            if seconds > self.window or len(ids) > room:
                limits = f"at most {self.window:g} s and {room} tokens to align"
                raise DataError(f"item {sample.id}", limits, f"{seconds:.1f} s and {len(ids)}")
            hypothesis = WindowHypothesis(ids, prompt, memory, 0.0)
            found.append(self.model.words(hypothesis, [self._whole(wave, ids)], self.processor))
        return found

    def _explain(self, sample: ASRSample, options: Mapping[str, Any]) -> ASRExplanation:
        """Explain the word timings of a recording by the attention of the alignment heads."""
        transcript = ASRPrediction(sample.id, "", duration=self.open(sample, self.window)[0])
        if transcript.duration <= self.window and audible(wave := sample.read(self.processor.sample_rate)):
            features, config = self.processor.features(wave)[None], self.processor.speech_config(**options)
            (hypothesis,) = self.model.decode(features.to(self.device), config)
            transcript = self._prediction(wave, hypothesis, sample.id)
        check_explainable(transcript, self.window)
        segment, heads = self._whole(wave, hypothesis.ids), self.processor.generation.get("alignment_heads")
        weights = self.model.attention(hypothesis.memory, hypothesis.prompt, segment.ids, heads).mean(0)  # (L + 1, S)
        weights = weights[: len(segment.ids), : segment.last]
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-9)
        tokens = [self.processor.decode([token]) or " " for token in segment.ids]
        features, seconds = self.processor.spectrogram(wave)
        return ASRExplanation(transcript, features, seconds, tokens, weights, None, list(sample.words))

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export the encoder and a step of the decoder, with its cache as flat tensors."""
        from mmattn.tasks.asr.export import export_whisper

        return export_whisper(self.model.net, self.processor.front.window_frames, folder, formats)
