"""From a recording of any length to its words and when they were said, with the processor that training used."""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.audio.reading import AUDIO_EXTENSIONS, audio_seconds, stream_audio
from mmattn.data.errors import DataError, Problems
from mmattn.tasks.asr.data import read_recordings
from mmattn.tasks.asr.decoding import check_lm, write
from mmattn.tasks.asr.model import ASRModel
from mmattn.tasks.asr.processor import ASRSample, collate
from mmattn.tasks.asr.public_processors import CTCProcessor, WhisperProcessor
from mmattn.tasks.asr.speech import SpeechProcessor
from mmattn.tasks.asr.windows import Window, windows
from mmattn.tasks.asr.words import Word, align, fit_to_sound, sure_frames, surest, widened, words_at
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.predictor import Predictor, check_source, listed, load_parts, progress

logger = logging.getLogger(__name__)
OVERLAP = 0.2  # of a window, shared with the next one
SILENCE = 1e-4  # from the lowest to the highest sample: three steps of 16 bits; nothing is said in less
Item = str | Path | Mapping[str, Any] | ASRSample


@dataclass
class Transcript:
    """What is said in one recording."""

    id: str
    text: str
    words: list[Word] = field(default_factory=list)  # with seconds from the recording's beginning
    duration: float = 0.0  # seconds heard
    score: float = 0.0  # log p / length^length_penalty, summed over windows


@dataclass
class ASRExplanation:
    """When each word was said, and which frames each character was read off."""

    transcript: Transcript
    features: Tensor  # (T, M), the log-mel frames heard
    frame_seconds: float  # of one of them
    tokens: list[str]  # what was written
    attention: Tensor | None  # (tokens, S) over the encoded frames, rows sum to one; none without a decoder
    alignment: Tensor | None  # (tokens, S), CTC's: where each token is said, less the model's delay; none without CTC
    words: list[tuple[str, float, float]] = field(default_factory=list)  # the true borders, where known

    def save(self, path: str | Path) -> None:
        """Write a PNG: the spectrogram with the words over it, below it the frames that each token was read off."""
        from mmattn.tasks.asr.picture import draw

        draw(self, path)


class Recogniser(Predictor):
    """A speech recogniser with its processor, ready to listen.

    Args:
        model: an `ASRModel`, or a public one with CTC; on its device, in evaluation mode.
        processor: the one it was trained with.
    """

    def __init__(self, model: Any, processor: SpeechProcessor) -> None:
        super().__init__(model, processor)
        self.search: dict[str, Any] = {}  # what the command line says of searching, in place of the model's own
        self.window = processor.max_seconds  # what is longer is heard in windows of so many seconds
        self.long = False  # whether a recording was longer than a window

    # Listening --------------------------------------------------------------------------------------------------------

    def predict(self, items: Sequence[Item], batch_size: int = 16, **search: Any) -> list[Transcript]:
        """Transcribe each item; what is longer than `window`, in overlapping windows as it is read.

        Args:
            items: paths, or mappings with `audio` (a path, the file's bytes, or samples and their rate) and, if wanted,
                `id`.
            batch_size: windows at a time.
            search: num_beams, ctc_weight, lm_weight and lm_bonus, in place of the model's own; of Whisper num_beams,
                language ("de", "German"; by default it is heard), task ("transcribe", "translate") and other fields of
                `SpeechConfig`.

        Returns:
            A transcript for each, in order.

        Raises:
            DataError: a recording cannot be read; names the item.
            ConfigError: what the model cannot do is asked for.
        """
        found: list[Any] = list(self.answers(items, batch_size, **search))
        return found

    def answers(
        self, items: Sequence[Item], batch_size: int = 16, on_error: str = "raise", **search: Any
    ) -> Iterator[Transcript | Exception]:
        """As `predict`, each as soon as it is known; no more than a batch of windows is in memory.

        Args:
            items: as in `predict`.
            batch_size: windows at a time, of one recording or of several.
            on_error: "skip" gives the error in the place of what cannot be read.
            search: as in `predict`.
        """
        samples = [as_sample(item, number) for number, item in enumerate(listed(items))]
        search = self.checked({**self.search, **search})
        pending: list[Transcript | Exception] = []
        waiting: list[tuple[Transcript, Window]] = []
        for sample in samples:
            entry = Transcript(sample.id, "")
            pending.append(entry)
            try:
                for window in self.windows(sample, shown=len(samples) < 64, **self.reading(search)):
                    entry.duration = round(window.end, 3)
                    self.long |= not window.whole
                    if window.said is not None or audible(window.wave):
                        waiting.append((entry, window))
                    if len(waiting) == batch_size:
                        self._listen(waiting, search)
                        waiting = []
                        yield from pending[:-1]
                        pending = [entry]
            except (DataError, OSError) as error:
                if on_error != "skip":
                    raise
                pending[-1], waiting = error, [pair for pair in waiting if pair[0] is not entry]
        self._listen(waiting, search)
        yield from pending

    def checked(self, search: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of the search, without what is left to the model.

        Raises:
            ConfigError: it is nothing that this model can do.
        """
        given = {name: value for name, value in search.items() if value is not None}
        for name in ("language", "task"):
            if name in given:
                raise ConfigError(
                    f"{name}: expected none, since this model knows no languages; found {given[name]!r}. Whisper does."
                )
        if given.get("ctc_weight", 1.0) < 1.0 and self.model.head.decoder is None:
            raise ConfigError(
                f"ctc_weight: expected 1, since this model has CTC and no decoder; found {given['ctc_weight']}."
            )
        attends = self.model.head.decoder is not None
        check_lm({**self.processor.search, **given}, given, self.processor, attends)
        return given

    def reading(self, search: Mapping[str, Any]) -> dict[str, Any]:
        """What `windows` must know of the search."""
        return {}

    def open(self, sample: ASRSample) -> tuple[float, Callable[[], Iterator[Tensor]]]:
        """A recording's seconds, and what reads it from its beginning, in blocks of a window; read when asked for."""
        name, rate = f"item {sample.id}", self.processor.sample_rate
        if sample.segment is None:
            total = audio_seconds(sample.audio, name)
            return total, lambda: stream_audio(sample.audio, rate, name, self.window)
        return sample.duration, lambda: iter(sample.read(rate).split(round(self.window * rate)))

    def windows(self, sample: ASRSample, shown: bool = True) -> Iterator[Window]:
        """A recording as it is heard: whole, or in overlapping windows, read as they are asked for.

        Args:
            sample: the recording.
            shown: whether there may be a bar of progress.
        """
        total, read = self.open(sample)
        cut = windows(read(), self.processor.sample_rate, self.window, OVERLAP * self.window)
        return progress(cut, int(total / (self.window * (1 - OVERLAP))), f"listening to {sample.id}", shown)

    @torch.inference_mode()
    def _listen(self, waiting: Sequence[tuple[Transcript, Window]], search: Mapping[str, Any]) -> None:
        """Adds what windows say to the transcripts of the recordings they are of."""
        if not waiting:
            return
        pieces = [ASRSample("", (window.wave, self.processor.sample_rate)) for _, window in waiting]
        batch = collate(pieces, self.processor).to(self.device)
        heard = write(self.model, batch, self.processor, **search)
        for (entry, window), said in zip(waiting, heard, strict=True):
            assert said.log_p is not None
            words, sure = self._placed(said.text, said.log_p, window.wave, window.start)
            times = (statistics.median(own) for own in sure)
            own = [word for word, time in zip(words, times, strict=True) if window.low <= time < window.high]
            entry.text = said.text if window.whole else " ".join([entry.text, *(w.word for w in own)]).strip()
            entry.words += own
            entry.score += said.score

    def words(self, text: str, log_p: Tensor, wave: Tensor, start: float = 0.0) -> list[Word]:
        """When each word of a text was said.

        Args:
            text: as the processor's `said` has it.
            log_p: (S, V), CTC's log-probabilities of a clip.
            wave: (n,), the clip.
            start: seconds before it.
        """
        return self._placed(text, log_p, wave, start)[0]

    def _placed(self, text: str, log_p: Tensor, wave: Tensor, start: float) -> tuple[list[Word], list[list[float]]]:
        """The words, and of each the seconds at which CTC says its ids."""
        ids, blank, frame = self.processor.encode(text), self.processor.pad_id, self.frame_seconds
        rate, late, S = self.processor.sample_rate, self.processor.delay, len(log_p)
        spans = align(log_p, ids, blank)
        words = words_at(text, widened(log_p, ids, spans, blank), self.processor, frame, start, S)
        words = [word.moved(-late, start, start + len(wave) / rate) for word in words]
        frames = sure_frames(text, surest(log_p, ids, spans), self.processor, S)
        sure = [[start + max(0.0, n * frame - late) for n in own] for own in frames]
        return fit_to_sound(words, wave, rate, start, sure), sure

    @torch.inference_mode()
    def aligned(self, samples: Sequence[ASRSample]) -> list[list[Word]]:
        """When each word of the samples' own texts was said, whatever the model would hear."""
        rate, found = self.processor.sample_rate, []
        for sample in samples:
            wave = sample.read(rate)
            memory, mask = self.model.encode(*(x.to(self.device) for x in self.processor.features_batch([wave])))
            log_p = self.model.head.log_probs(memory)[0, mask[0]].cpu()
            found.append(self.words(self.processor.learnt(sample.text), log_p, wave))
        return found

    @property
    def frame_seconds(self) -> float:
        """Of one encoded frame."""
        return self.processor.frame_seconds * self.model.subsampling

    def explain(self, item: Item) -> ASRExplanation:
        """Transcribe one item and tell when each word was said and what each character was read off.

        Raises:
            DataError: it cannot be read, is longer than a window, or nothing is heard in it.
        """
        from mmattn.explain import capture

        sample = as_sample(item, 0)
        transcript = self.predict([sample])[0]
        self.explainable(transcript)
        rate = self.processor.sample_rate
        wave = sample.read(rate)
        forced = ASRSample(sample.id, (wave, rate), transcript.text)
        batch = collate([forced], self.processor).to(self.device)
        with torch.no_grad(), capture(self.model) as maps:
            output = self.model(batch.features, batch.feature_mask, batch.target_ids)
        count = int(batch.label_mask[0].sum()) - 1
        attention = None if output.logits is None else self.model.alignment(maps)[0, :count].float().cpu()
        log_p = output.ctc_logits[0].float().log_softmax(-1).cpu()
        alignment = torch.zeros(count, len(log_p))
        late = round(self.processor.delay / self.frame_seconds)
        for row, (first, last) in enumerate(
            align(log_p, batch.labels[0, :count].tolist(), blank=self.processor.pad_id)
        ):
            first, last = (min(max(frame - late, 0), len(log_p) - 1) for frame in (first, last))
            alignment[row, first : last + 1] = 1.0
        tokens = [self.processor.decode([i]) or " " for i in batch.labels[0, :count].tolist()]
        return ASRExplanation(
            transcript, *self.processor.picture(wave), tokens, attention, alignment, list(sample.words)
        )

    def explainable(self, transcript: Transcript) -> None:
        """Raises a DataError where there is too much to explain, or nothing."""
        if transcript.duration > self.window:
            raise DataError(
                f"item {transcript.id}",
                f"at most {self.window:g} s to explain",
                f"{transcript.duration:.1f} s: cut out what is to be looked at",
            )
        if not transcript.text:
            raise DataError(f"item {transcript.id}", "speech to explain", "none was heard")

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the encoder with CTC, and the decoder's step, where there is one, with its cache as flat tensors."""
        from mmattn.tasks.asr.export import export_recogniser
        from mmattn.tasks.asr.export_public import export_ctc

        if isinstance(self.processor, CTCProcessor):
            return export_ctc(self.model, folder, formats)
        return export_recogniser(self.model, folder, formats)

    # The command line -------------------------------------------------------------------------------------------------

    def items(self, options: argparse.Namespace) -> list[ASRSample]:
        """The recordings that `predict` and `explain` are asked about.

        `--audio`; `--input` a recording, a folder of them at any depth, a manifest or CSV in the format for training
        (texts may be missing) or a LibriSpeech tree; `--input demo`, the first of the built-in test part.

        Raises:
            DataError: neither or both are given, or what is given cannot be read.
        """
        if options.num_beams is not None and options.num_beams < 1:
            raise ConfigError(f"--num_beams: expected 1 or more, found {options.num_beams}.")
        if options.ctc_weight is not None and not 0.0 <= options.ctc_weight <= 1.0:
            raise ConfigError(f"--ctc_weight: expected a value from 0 to 1, found {options.ctc_weight}.")
        if options.lm_weight is not None and options.lm_weight < 0.0:
            raise ConfigError(f"--lm_weight: expected 0 or more, found {options.lm_weight}.")
        if options.window is not None and not 0.5 <= options.window <= 600.0:
            raise ConfigError(f"--window: expected seconds from 0.5 to 600, found {options.window}.")
        self.hear_at_once(options.window)
        given = {name: getattr(options, name) for name in ("num_beams", "ctc_weight", "lm_weight", "language", "task")}
        self.search = self.checked({**self.search, **given})
        check_source(options, "audio")
        if options.input is None:
            if Path(options.audio).is_dir():
                raise DataError(f"--audio {options.audio}", "a recording", "a folder; --input takes folders")
            return [ASRSample(Path(options.audio).name, options.audio)]
        if options.input == "demo" and not Path("demo").exists():
            from mmattn.tasks.asr.demo import make

            return make("test", 6)
        path = Path(options.input)
        if path.suffix.lower() in AUDIO_EXTENSIONS:
            return [ASRSample(path.name, str(path))]
        if path.is_dir() and next(path.rglob("*.trans.txt"), None) is None:
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_EXTENSIONS)
            if not files:
                raise DataError(str(path), "recordings (.wav, .flac, ...) or LibriSpeech's *.trans.txt in it", "none")
            return [ASRSample(str(file.relative_to(path)), str(file)) for file in files]
        problems = Problems(options.on_error)
        samples = [sample for _, sample in read_recordings(path, problems, require_text=False)]
        if problems.items:
            logger.warning("%s", problems.summary(str(path), len(samples)))
        return samples

    def hear_at_once(self, seconds: float | None) -> None:
        """What `--window` says; none: as the model was trained."""
        self.window = seconds or self.window

    def remark(self) -> str:
        """How much memory it took, where a recording was long."""
        return f"at most {self.peak():.2f} GB of memory in use." if self.long else ""

    @staticmethod
    def peak() -> float:
        """The most memory that this process has had, in GB of 2^30 bytes."""
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kB, on macOS in bytes
        return size / (1 << (30 if sys.platform == "darwin" else 20))


def audible(wave: Tensor) -> bool:
    """Whether something may be said in a wave (n,)."""
    return float(wave.amax() - wave.amin()) > SILENCE


def as_sample(item: Item, number: int) -> ASRSample:
    """A sample from what a user gives.

    Raises:
        DataError: no recording; names the item.
    """
    if isinstance(item, ASRSample):
        return item
    if isinstance(item, (str, Path)):
        return ASRSample(str(item), str(item))
    if "audio" not in item:
        raise DataError(
            f"item {item.get('id', number)}", "the key audio, a recording", ", ".join(sorted(item)) or "none"
        )
    return ASRSample(str(item.get("id", number)), item["audio"])


def load(directory: str | Path | None = None, device: str = "auto", precision: str | None = None) -> Recogniser:
    """Load a speech recogniser: the one in the package, that of a folder, or a public Whisper, wav2vec 2.0 or HuBERT.

    Args:
        directory: a `model/` folder of a run, or any copy of one; a public model's folder; or hf:owner/name.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16", "int8" or None; see `tasks.load`.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    model, processor = load_parts("asr", directory, device, ASRModel, SpeechProcessor, precision)
    if isinstance(processor, WhisperProcessor):
        from mmattn.tasks.asr.whisper import WhisperRecogniser

        return WhisperRecogniser(model, processor)
    return Recogniser(model, processor)
