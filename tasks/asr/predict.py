"""Predictor for speech recognition: transcripts and word timings of recordings of any length."""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mmattn.data.audio.reading import AUDIO_EXTENSIONS, AudioSource, audio_seconds, stream_audio
from mmattn.data.errors import DataError, Problems, is_user_error
from mmattn.data.files import files_below, some_below
from mmattn.explain import capture
from mmattn.tasks.asr.alignment import Window, Word, align, place_words, windows
from mmattn.tasks.asr.data import TRANSCRIPTS, ASRSample, read_recordings
from mmattn.tasks.asr.decoding import check_lm, check_ranges, score, write
from mmattn.tasks.asr.model import PublicCTC
from mmattn.tasks.asr.plot import ASRExplanation, ASRPrediction
from mmattn.tasks.asr.processor import SpeechProcessor
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.items import listed, mapping_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.progress import progress

logger = logging.getLogger(__name__)
OVERLAP = 0.2  # fraction of a window that the next one repeats
SILENCE = 1e-4  # peak to peak, about 3/32768: quieter windows return an empty transcript
Item = AudioSource | Mapping[str, Any] | ASRSample


class ASRPredictor(Predictor[Item, ASRPrediction]):
    """Predictor of a speech recognizer: an `ASRModel`, or a public one with CTC.

    Items are recordings (a path, the bytes of a file, an open file, or samples and their rate), or mappings with the
    key `audio`, one of these, and optionally `id`. A recording longer than a window is transcribed in overlapping
    windows while it is read; at most one batch of windows, of one or of several recordings, is in memory.
    """

    task = "asr"
    answer, graded_by = "text", "1 - word error rate"
    batch_size = 16  # windows

    def __init__(self, model: Any, processor: SpeechProcessor, parts: CheckpointParts | None = None) -> None:
        super().__init__(model, processor, parts)
        self.window = processor.max_seconds  # seconds; longer recordings are split into windows of this length
        self.long = False  # whether any recording was longer than a window

    @classmethod
    def from_parts(cls, parts: CheckpointParts, device: str = "auto", precision: str | None = None) -> Self:
        """Return the predictor of a model from its checkpoint parts, of the class that its adapter names."""
        kind: Any = getattr(parts.adapter, "predictor", cls)
        if kind is cls:
            return super().from_parts(parts, device, precision)
        return kind.from_parts(parts, device, precision)  # type: ignore[no-any-return]

    @property
    def frame_seconds(self) -> float:
        """Seconds of one encoded frame."""
        return self.processor.frame_seconds * self.model.subsampling

    def to_sample(self, item: Item, number: int) -> ASRSample:
        if isinstance(item, ASRSample):
            return item
        item = mapping_of(item, "audio")
        name, audio = str(item.get("id", number)), item.get("audio")
        if audio is None:
            raise DataError(f"item {name}", "the key audio, a recording", ", ".join(sorted(item)) or "none")
        if isinstance(audio, (str, Path)) and Path(audio).is_dir():
            raise DataError(f"--audio {audio}", "a recording", "a folder; --input takes folders")
        return ASRSample(name, str(audio) if isinstance(audio, Path) else audio)

    def truth(self, item: Item) -> str | None:
        return item.text or None if isinstance(item, ASRSample) else None

    def grade(self, item: Any, truth: str, prediction: ASRPrediction) -> float:
        return max(0.0, 1.0 - score([prediction.text], [[truth]])["wer"])

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if value is not None}
        check_ranges("--", **given)
        self.check_search(given)
        return given

    def check_search(self, given: dict[str, Any]) -> None:
        """Check that this model supports the given search options.

        Raises:
            ConfigError: The model does not support an option.
        """
        for name in [name for name in ("language", "task") if name in given]:
            found = f"found {given[name]!r}; Whisper has this option."
            raise ConfigError(f"{name}: expected none, since this model has no languages; {found}")
        weight, attends = given.get("ctc_weight", 1.0), self.model.head.decoder is not None
        if weight < 1.0 and not attends:
            raise ConfigError(f"ctc_weight: expected 1, since this model has CTC and no decoder; found {weight}.")
        check_lm({**self.processor.search, **given}, given, self.processor, attends)

    # Transcription ----------------------------------------------------------------------------------------------------

    def stream(
        self, items: Sequence[Item], batch_size: int | None = None, on_error: str = "raise", **options: Any
    ) -> Iterator[ASRPrediction | Exception]:
        """Yield each transcript as soon as it is finished; batch_size counts windows. Otherwise as `predict`."""
        batch_size = batch_size or self.batch_size
        options = self.check_options(self._known(self.predict_batch, options))
        items = listed(items)
        pending: list[ASRPrediction | Exception] = []
        waiting: list[tuple[ASRPrediction, Window]] = []
        for number, item in enumerate(items):
            entry = ASRPrediction(str(number), "")
            pending.append(entry)
            try:
                sample = self.to_sample(item, number)
                entry.id = sample.id
                for window in self.windows(sample, len(items) < 64, **options):
                    entry.duration = round(window.end, 3)
                    self.long |= not window.whole
                    if window.prediction is not None or audible(window.wave):
                        waiting.append((entry, window))
                    if len(waiting) == batch_size:
                        self._transcribe(waiting, options)
                        waiting = []
                        yield from pending[:-1]
                        pending = [entry]
            except Exception as error:
                if on_error != "skip" or not is_user_error(error):
                    raise
                pending[-1], waiting = error, [pair for pair in waiting if pair[0] is not entry]
        self._transcribe(waiting, options)
        yield from pending

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        return True

    def stream_text(self, item: Item, **options: Any) -> Generator[str, None, ASRPrediction]:
        """Yield the transcript of one recording a window at a time, while it is read; return the prediction.

        Args:
            item: See `predict`.
            options: Those of `predict_batch`.
        """
        options = self.check_options(self._known(self.predict_batch, options))
        sample, shown = self.to_sample(item, 0), ""
        entry = ASRPrediction(sample.id, "")
        for window in self.windows(sample, False, **options):
            entry.duration = round(window.end, 3)
            self.long |= not window.whole
            if window.prediction is not None or audible(window.wave):
                self._transcribe([(entry, window)], options)
            text = entry.text if window.so_far is None else window.so_far
            if text != shown and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        return entry

    def windows(
        self, sample: ASRSample, shown: bool = True, *, window: float | None = None, **search: Any
    ) -> Iterator[Window]:
        """Yield the windows of a recording, read on demand: one that covers all of it, or several that overlap.

        `shown` enables a progress bar; the other options are those of `predict`.
        """
        seconds = window or self.window
        total, read = self.open(sample, seconds)
        cut = windows(read(), self.processor.sample_rate, seconds, OVERLAP * seconds)
        return progress(cut, int(total / (seconds * (1 - OVERLAP))), f"transcribing {sample.id}", shown)

    def open(self, sample: ASRSample, window: float) -> tuple[float, Callable[[], Iterator[Tensor]]]:
        """The duration of a recording in seconds, and a function that reads it from its start in blocks of a window."""
        name, rate = f"item {sample.id}", self.processor.sample_rate
        if sample.segment is None:
            return audio_seconds(sample.audio, name), lambda: stream_audio(sample.audio, rate, name, window)
        return sample.duration, lambda: iter(sample.read(rate).split(round(window * rate)))

    def _transcribe(self, waiting: Sequence[tuple[ASRPrediction, Window]], options: Mapping[str, Any]) -> None:
        """Append the predictions of windows to the transcripts of their recordings."""
        pieces = [window for _, window in waiting if window.prediction is None]
        if pieces:
            features, mask = self.processor.features_batch([window.wave for window in pieces])
            for window, prediction in zip(
                pieces,
                self.predict_batch(pieces, (features.to(self.device), mask.to(self.device)), **options),
                strict=True,
            ):
                window.prediction = prediction
        for entry, window in waiting:
            entry.text = f"{entry.text} {window.prediction.text}".strip()
            entry.words += window.prediction.words
            entry.score += window.prediction.score

    @torch.inference_mode()
    def predict_batch(
        self,
        samples: Sequence[Window],
        batch: tuple[Tensor, Tensor],
        *,
        num_beams: int | None = None,
        ctc_weight: float | None = None,
        lm_weight: float | None = None,
        lm_bonus: float | None = None,
        language: str | None = None,
        task: str | None = None,
        window: float | None = None,
    ) -> list[ASRPrediction]:
        """Predict the text of each window, without the words that belong to neighboring windows.

        Args:
            samples: B windows.
            batch: Features (B, T, ...) and their mask (B, T).
            num_beams: Number of beams, 1 = greedy; here and below None: as the model was measured.
            ctc_weight: Weight of CTC in joint decoding, 0 = attention alone, 1 = CTC alone.
            lm_weight: Weight of the language model in shallow fusion, if the model has one.
            lm_bonus: Score added for each token in shallow fusion.
            language: Language of the recordings, such as "de" or "German"; Whisper only.
            task: "transcribe" or "translate"; Whisper only.
            window: Length of a window in seconds; not for Whisper.
        """
        search: dict[str, Any] = {"num_beams": num_beams, "ctc_weight": ctc_weight}
        search |= {"lm_weight": lm_weight, "lm_bonus": lm_bonus}
        found = []
        for piece, best in zip(samples, write(self.model, *batch, self.processor, **search), strict=True):
            assert best.log_p is not None
            words, peaks = place_words(
                best.text, best.log_p, piece.wave, self.processor, self.frame_seconds, piece.start
            )
            times = map(statistics.median, peaks)
            own = [word for word, time in zip(words, times, strict=True) if piece.low <= time < piece.high]
            text = best.text if piece.whole else " ".join(word.word for word in own)
            found.append(ASRPrediction("", text, own, score=best.score))
        return found

    @torch.inference_mode()
    def aligned(self, samples: Sequence[ASRSample]) -> list[list[Word]]:
        """Word timings of the samples' own texts, by forced alignment."""
        found = []
        for sample in samples:
            wave = sample.read(self.processor.sample_rate)
            memory, mask = self.model.encode(*(x.to(self.device) for x in self.processor.features_batch([wave])))
            log_p, text = (
                self.model.head.log_probs(memory)[0, mask[0]].cpu(),
                self.processor.normalize_target(sample.text),
            )
            found.append(place_words(text, log_p, wave, self.processor, self.frame_seconds)[0])
        return found

    # Explanations -----------------------------------------------------------------------------------------------------

    def explain_all(self, items: Sequence[Item], **options: Any) -> list[ASRExplanation]:
        """Explain the word timings and the source frames of each token; options as for `predict`.

        Raises:
            DataError: An item cannot be read, is longer than a window, or has an empty transcript.
        """
        options = self.check_options(self._known(self.predict_batch, options))
        samples = [self.to_sample(item, number) for number, item in enumerate(listed(items))]
        return self.with_truth(self.explain_batch(samples, None, **options), items)  # opens none that is too long

    def explain_batch(self, samples: Sequence[ASRSample], batch: None, **options: Any) -> list[ASRExplanation]:
        return [self._explain(sample, options) for sample in samples]

    def _explain(self, sample: ASRSample, options: Mapping[str, Any]) -> ASRExplanation:
        transcript = self(sample, **options)
        check_explainable(transcript, options.get("window") or self.window)
        rate, decode = self.processor.sample_rate, self.processor.decode
        wave = sample.read(rate)
        batch = self.processor.collate([ASRSample(sample.id, (wave, rate), transcript.text)]).to(self.device)
        with torch.no_grad(), capture(self.model) as maps:
            output = self.model(batch.features, batch.feature_mask, batch.target_ids)
        ids = batch.labels[0, : int(batch.label_mask[0].sum()) - 1].tolist()
        attention = None if output.logits is None else self.model.alignment(maps)[0, : len(ids)].float().cpu()
        log_p = output.ctc_logits[0].float().log_softmax(-1).cpu()
        alignment, late = torch.zeros(len(ids), len(log_p)), round(self.processor.delay / self.frame_seconds)
        for row, span in enumerate(align(log_p, ids, blank=self.processor.tokenizer.pad_id)):
            first, last = (min(max(frame - late, 0), len(log_p) - 1) for frame in span)
            alignment[row, first : last + 1] = 1.0
        tokens = [decode([i]) or " " for i in ids]
        features, seconds = self.processor.spectrogram(wave)
        return ASRExplanation(transcript, features, seconds, tokens, attention, alignment, list(sample.words))

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export the encoder with CTC and, if there is a decoder, its step with a cache of flat tensors."""
        from mmattn.tasks.asr.export import export_asr, export_ctc

        export = export_ctc if isinstance(self.model, PublicCTC) else export_asr
        return export(self.model, folder, formats)

    # The command line -------------------------------------------------------------------------------------------------

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """List recordings: one file, all files of a folder at any depth, or a manifest, CSV or LibriSpeech tree."""
        place = Path(path)
        if place.suffix.lower() in AUDIO_EXTENSIONS:
            return [ASRSample(place.name, path)]
        if place.is_dir() and not files_below(place, (TRANSCRIPTS,)):
            files = some_below(place, AUDIO_EXTENSIONS, f"recordings or LibriSpeech's *{TRANSCRIPTS}")
            return [ASRSample(name, str(file)) for name, file in files]
        problems = Problems(on_error)
        samples = [sample for _, sample in read_recordings(place, problems, require_text=False)]
        if problems.items:
            logger.warning("%s", problems.summary(path, len(samples)))
        return samples

    def demo_samples(self) -> list[ASRSample]:
        from mmattn.tasks.asr.demo import make

        return make("test", 6)

    def remark(self) -> str:
        return f"at most {self.peak():.2f} GB of memory in use." if self.long else ""

    @staticmethod
    def peak() -> float:
        """The peak memory of this process in GB of 2^30 bytes."""
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kB, on macOS in bytes
        return size / (1 << (30 if sys.platform == "darwin" else 20))


def audible(wave: Tensor) -> bool:
    """Whether the peak-to-peak amplitude of a wave (n,) exceeds `SILENCE`."""
    return float(wave.amax() - wave.amin()) > SILENCE


def check_explainable(transcript: ASRPrediction, window: float) -> None:
    """Check that a transcript can be explained.

    Raises:
        DataError: The recording is longer than a window, in seconds, or its transcript is empty.
    """
    if transcript.duration > window:
        found = f"{transcript.duration:.1f} s: cut out the part to explain"
        raise DataError(f"item {transcript.id}", f"at most {window:g} s to explain", found)
    if not transcript.text:
        raise DataError(f"item {transcript.id}", "speech to explain", "an empty transcript")


load = ASRPredictor.load
