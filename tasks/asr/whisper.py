"""Whisper as a recogniser: windows of its own, languages, and words at the times that its attention tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.backbones.whisper import FRAME_SECONDS, HeardWindow
from mmattn.data.errors import DataError
from mmattn.generate.speech import STAMP_FRAMES, SpeechConfig
from mmattn.tasks.asr.decoding import check_lm
from mmattn.tasks.asr.predict import SILENCE, ASRExplanation, Item, Recogniser, Transcript, as_sample, audible
from mmattn.tasks.asr.processor import ASRSample
from mmattn.tasks.asr.public_whisper import Spoken, Stretch, speech_config, with_timestamps
from mmattn.tasks.asr.whisper_stream import WhisperStream
from mmattn.tasks.asr.windows import Window
from mmattn.tasks.asr.words import Word
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.predictor import progress


class WhisperRecogniser(Recogniser):
    """Whisper with its processor, ready to listen; what it says is as transformers writes it.

    What fits a window is heard whole, without timestamps where its folder says so. What is longer is heard window by
    window, each beginning at the last timestamp of the one before (`Whisper.hear`), as it is read; what it says so far
    comes with each.
    """

    def checked(self, search: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in search.items() if value is not None}
        check_lm(given, given, self.processor, attends=True)
        speech_config(self.processor, **given)
        return given

    def reading(self, search: Mapping[str, Any]) -> dict[str, Any]:
        return {"config": speech_config(self.processor, **search)}

    def hear_at_once(self, seconds: float | None) -> None:
        if seconds not in (None, self.window):
            raise ConfigError(
                f"--window: expected {self.window:g} s, which this model always hears; found {seconds:g}."
            )

    def windows(self, sample: ASRSample, shown: bool = True, config: SpeechConfig | None = None) -> Iterator[Window]:
        """A recording as it is heard: whole and still to be listened to, or what was heard in each of its windows."""
        total, read = self.open(sample)
        blocks = read()
        first, second = next(blocks), next(blocks, None)
        if second is None:
            yield Window(first, 0.0, 0.0, float("inf"), len(first) / self.processor.sample_rate)
            return
        config = with_timestamps(speech_config(self.processor) if config is None else config, self.processor)
        top = WhisperStream(self.processor.front, read()).loudest()
        stream = WhisperStream(self.processor.front, read(), top, SILENCE)

        def frames(frame: int) -> tuple[int, Tensor]:
            begin, found = stream.read(frame)
            return begin, found.to(self.device)

        ids: list[int] = []
        heard = self.model.net.hear(frames, config)
        for window in progress(heard, int(total / self.window), f"listening to {sample.id}", shown):
            start = window.first * FRAME_SECONDS
            ids += [token for segment in window.segments for token in segment.ids]
            said = Transcript(sample.id, self.processor.said(ids), self._words_of(window, config), score=window.score)
            yield Window(torch.empty(0), start, start, start, start + window.frames * FRAME_SECONDS, said)
        seconds = stream.total / self.processor.sample_rate
        yield Window(torch.zeros(1), seconds, seconds, seconds, seconds)  # the end: silence may have been passed over

    def _words_of(self, window: HeardWindow, config: SpeechConfig) -> list[Word]:
        start, ids = window.first * FRAME_SECONDS, [token for segment in window.segments for token in segment.ids]
        spoken = Spoken(ids, window.prompt[0].tolist(), window.memory, window.score)
        seconds, states, stretches = self.frame_seconds, -(-window.frames // STAMP_FRAMES), []
        for segment in window.segments:  # whose timestamps may lie beyond the recording's end
            low, high = (min(round((time - start) / seconds), states) for time in (segment.start, segment.end))
            closed = segment.ids[-1:] > [config.no_timestamps_token_id]
            stretches.append(Stretch(self._text(segment.ids), low, high, closed))
        found: list[Word] = self.model.words(spoken, stretches, self.processor, start)
        return found

    def _text(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token < self.processor.eos_id]

    def _listen(self, waiting: Sequence[tuple[Transcript, Window]], search: Mapping[str, Any]) -> None:
        waves = [window.wave for _, window in waiting if window.said is None]
        heard = iter(self._hear(waves, speech_config(self.processor, **search)))
        for entry, window in waiting:
            said: Transcript = next(heard) if window.said is None else window.said
            entry.text = said.text
            entry.words += said.words
            entry.score += said.score

    def _hear(self, waves: Sequence[Tensor], config: SpeechConfig) -> list[Transcript]:
        """What recordings (n,) of at most a window say."""
        return [self._told(*pair) for pair in zip(waves, self._spoken(waves, config), strict=True)]

    def _told(self, wave: Tensor, spoken: Spoken, name: str = "") -> Transcript:
        """What one recording (n,) of at most a window says."""
        words = self.model.words(spoken, [self._stretch(wave, self._text(spoken.ids))], self.processor)
        seconds = round(len(wave) / self.processor.sample_rate, 3)
        return Transcript(name, self.processor.said(spoken.ids), words, seconds, spoken.score)

    def _spoken(self, waves: Sequence[Tensor], config: SpeechConfig) -> list[Spoken]:
        if not waves:
            return []
        features, _ = self.processor.features_batch(waves)
        found: list[Spoken] = self.model.hear(features.to(self.device), config)
        return found

    def _stretch(self, wave: Tensor, ids: list[int]) -> Stretch:
        """All of a recording, and what is said in it."""
        return Stretch(ids, 0, -(-self.processor.real_frames(len(wave)) // STAMP_FRAMES), closed=False)

    @torch.inference_mode()
    def aligned(self, samples: Sequence[ASRSample]) -> list[list[Word]]:
        """When each word of the samples' own texts was said, whatever the model would hear.

        Raises:
            DataError: a recording or a text is longer than a window holds; names the item.
        """
        config, found, net = speech_config(self.processor, **self.search), [], self.model.net
        for sample in samples:
            wave, ids = sample.read(self.processor.sample_rate), self.processor.encode(sample.text)
            memory = net.encode(self.processor.features(wave)[None].to(self.device))
            prompt = net.prompt(memory, None, config)[0].tolist()
            seconds, room = len(wave) / self.processor.sample_rate, net.max_len - len(prompt) - 1
            if seconds > self.window or len(ids) > room:
                limits = f"at most {self.window:g} s and {room} tokens to align"
                raise DataError(f"item {sample.id}", limits, f"{seconds:.1f} s and {len(ids)}")
            spoken = Spoken(ids, prompt, memory, 0.0)
            found.append(self.model.words(spoken, [self._stretch(wave, ids)], self.processor))
        return found

    def explain(self, item: Item) -> ASRExplanation:
        """Transcribe one item and tell when each word was said and where the heads that follow the sound looked.

        Raises:
            DataError: it cannot be read, is longer than a window, or nothing is heard in it.
        """
        sample = as_sample(item, 0)
        seconds, _ = self.open(sample)
        unheard = Transcript(sample.id, "", duration=seconds)
        if seconds > self.window:
            self.explainable(unheard)
        wave = sample.read(self.processor.sample_rate)
        if not audible(wave):
            self.explainable(unheard)
        (spoken,) = self._spoken([wave], speech_config(self.processor, **self.search))
        transcript = self._told(wave, spoken, sample.id)
        self.explainable(transcript)
        ids = self._text(spoken.ids)
        heads = self.processor.generation.get("alignment_heads")
        weights = self.model.attention(spoken.memory, spoken.prompt, ids, heads).mean(0)  # (L + 1, S)
        weights = weights[: len(ids), : self._stretch(wave, ids).last]
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-9)
        tokens = [self.processor.decode([token]) or " " for token in ids]
        return ASRExplanation(transcript, *self.processor.picture(wave), tokens, weights, None, list(sample.words))

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write what listens and a step of what writes, with its cache as flat tensors."""
        from mmattn.tasks.asr.export_public import export_whisper

        return export_whisper(self.model, self.processor.window_frames, folder, formats)
