"""From a recording of any length to its words and when they were said, with the processor that training used."""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mmattn.data.audio.reading import AUDIO_EXTENSIONS, AudioSource, audio_seconds, stream_audio
from mmattn.data.errors import DataError, Problems, is_user_error
from mmattn.explain import capture
from mmattn.tasks.asr.alignment import Window, Word, align, place_words, windows
from mmattn.tasks.asr.data import ASRSample, read_recordings
from mmattn.tasks.asr.decoding import check_lm, check_ranges, write
from mmattn.tasks.asr.model import PublicCTC
from mmattn.tasks.asr.processor import SpeechProcessor
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.predictor import Predictor, listed, mapping_of
from mmattn.tasks.common.progress import progress

logger = logging.getLogger(__name__)
OVERLAP = 0.2  # of a window, shared with the next one
SILENCE = 1e-4  # from the lowest to the highest sample: three steps of 16 bits; nothing is said in less
Item = AudioSource | Mapping[str, Any] | ASRSample


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
        """Write a PNG: log-mel frames with the words at their times; below, on the same axis, a row a token.

        Where the true borders are known, they are dashed lines.
        """
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure

        total, count = len(self.features) * self.frame_seconds, len(self.tokens)
        named = (("attention", self.attention), ("CTC's alignment", self.alignment))
        maps = [(name, weights) for name, weights in named if weights is not None]
        tall = min(0.16 * count + 0.6, 7.0)
        figure = Figure(figsize=(min(4 + 2.2 * total, 20), 2.2 + tall * len(maps)), layout="constrained")
        axes = figure.subplots(1 + len(maps), 1, sharex=True, gridspec_kw={"height_ratios": [2.2] + [tall] * len(maps)})
        top, shown = axes[0], {"aspect": "auto"}
        top.imshow(self.features.T.numpy(), origin="lower", cmap="magma", extent=(0, total, 0, 1), **shown)
        top.set_yticks([])
        top.set_ylabel("log-mel bands, low to high")
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 9, "annotation_clip": False}
        for word in self.transcript.words:
            for axis in axes:
                axis.axvspan(word.start, word.end, facecolor="none", edgecolor="tab:cyan", linewidth=1.0)
            top.annotate(_shown(word.word), ((word.start + word.end) / 2, 1.02), **above)
        for border in (time for _, *borders in self.words for time in borders):
            top.axvline(border, color="white", linestyle="--", linewidth=0.9)
        for axis, (name, weights) in zip(axes[1:], maps, strict=True):
            shades = PowerNorm(0.5, vmin=0.0)
            axis.imshow(weights.numpy(), cmap="Blues", norm=shades, extent=(0, total, count, 0), **shown)
            axis.set_yticks([n + 0.5 for n in range(count)], [_shown(token) for token in self.tokens], fontsize=7)
            axis.set_ylabel(name)
        figure.suptitle(_shown(self.transcript.id), fontsize=9)
        dashed = "; dashed: their true borders" if self.words else ""
        lines = f"lines: where words start and end{dashed}; \N{MIDDLE DOT}: the blank between words"
        axes[-1].set_xlabel(f"seconds ({lines})")
        figure.savefig(path, dpi=110)


def _shown(token: str) -> str:
    """A token as an axis shows it: the blank between words is a dot."""
    return "\N{MIDDLE DOT}" if token == " " else token.replace("$", r"\$")


class Recogniser(Predictor[Item, Transcript]):
    """A speech recogniser with its processor, ready to listen: an `ASRModel`, or a public one with CTC.

    Items are recordings (a path, a file's bytes, an open file, or samples and their rate), or mappings with `audio`,
    one of these, and, if wanted, `id`. What is longer than a window is heard in overlapping ones as it is read; no more
    than a batch of windows, of one recording or of several, is in memory.
    """

    task = "asr"
    batch_size = 16  # windows

    def __init__(self, model: Any, processor: SpeechProcessor, parts: CheckpointParts | None = None) -> None:
        super().__init__(model, processor, parts)
        self.window = processor.max_seconds  # what is longer is heard in windows of so many seconds
        self.long = False  # whether a recording was longer than a window

    @classmethod
    def from_parts(cls, parts: CheckpointParts, device: str = "auto", precision: str | None = None) -> Self:
        """The recogniser of a model in its parts, of the kind that its adapter names."""
        kind: Any = getattr(parts.adapter, "predictor", cls)
        if kind is cls:
            return super().from_parts(parts, device, precision)
        return kind.from_parts(parts, device, precision)  # type: ignore[no-any-return]

    @property
    def frame_seconds(self) -> float:
        """Of one encoded frame."""
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

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if value is not None}
        check_ranges("--", **given)
        self.check_search(given)
        return given

    def check_search(self, given: dict[str, Any]) -> None:
        """Raises a ConfigError where something is asked for that this model cannot do."""
        for name in [name for name in ("language", "task") if name in given]:
            found = f"found {given[name]!r}. Whisper does."
            raise ConfigError(f"{name}: expected none, since this model knows no languages; {found}")
        weight, attends = given.get("ctc_weight", 1.0), self.model.head.decoder is not None
        if weight < 1.0 and not attends:
            raise ConfigError(f"ctc_weight: expected 1, since this model has CTC and no decoder; found {weight}.")
        check_lm({**self.processor.search, **given}, given, self.processor, attends)

    # Listening --------------------------------------------------------------------------------------------------------

    def stream(
        self, items: Sequence[Item], batch_size: int | None = None, on_error: str = "raise", **options: Any
    ) -> Iterator[Transcript | Exception]:
        """As `predict`, each transcript as soon as it is known; batch_size counts windows."""
        batch_size = batch_size or self.batch_size
        options = self.check_options(self._known(self.predict_batch, options))
        items = listed(items)
        pending: list[Transcript | Exception] = []
        waiting: list[tuple[Transcript, Window]] = []
        for number, item in enumerate(items):
            entry = Transcript(str(number), "")
            pending.append(entry)
            try:
                sample = self.to_sample(item, number)
                entry.id = sample.id
                for window in self.windows(sample, len(items) < 64, **options):
                    entry.duration = round(window.end, 3)
                    self.long |= not window.whole
                    if window.said is not None or audible(window.wave):
                        waiting.append((entry, window))
                    if len(waiting) == batch_size:
                        self._listen(waiting, options)
                        waiting = []
                        yield from pending[:-1]
                        pending = [entry]
            except Exception as error:
                if on_error != "skip" or not is_user_error(error):
                    raise
                pending[-1], waiting = error, [pair for pair in waiting if pair[0] is not entry]
        self._listen(waiting, options)
        yield from pending

    def windows(
        self, sample: ASRSample, shown: bool = True, *, window: float | None = None, **search: Any
    ) -> Iterator[Window]:
        """A recording as it is heard: whole, or in overlapping windows, read as they are asked for.

        There may be a bar of progress where that is to be `shown`; the other options are those of `predict`.
        """
        seconds = window or self.window
        total, read = self.open(sample, seconds)
        cut = windows(read(), self.processor.sample_rate, seconds, OVERLAP * seconds)
        return progress(cut, int(total / (seconds * (1 - OVERLAP))), f"listening to {sample.id}", shown)

    def open(self, sample: ASRSample, window: float) -> tuple[float, Callable[[], Iterator[Tensor]]]:
        """A recording's seconds, and what reads it from its beginning, in blocks of a window; read when asked for."""
        name, rate = f"item {sample.id}", self.processor.sample_rate
        if sample.segment is None:
            return audio_seconds(sample.audio, name), lambda: stream_audio(sample.audio, rate, name, window)
        return sample.duration, lambda: iter(sample.read(rate).split(round(window * rate)))

    def _listen(self, waiting: Sequence[tuple[Transcript, Window]], options: Mapping[str, Any]) -> None:
        """Adds what windows say to the transcripts of the recordings they are of."""
        pieces = [window for _, window in waiting if window.said is None]
        if pieces:
            features, mask = self.processor.features_batch([window.wave for window in pieces])
            for window, said in zip(
                pieces,
                self.predict_batch(pieces, (features.to(self.device), mask.to(self.device)), **options),
                strict=True,
            ):
                window.said = said
        for entry, window in waiting:
            entry.text = f"{entry.text} {window.said.text}".strip()
            entry.words += window.said.words
            entry.score += window.said.score

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
    ) -> list[Transcript]:
        """What each window says of its own, the words that are its neighbours' left out.

        Args:
            samples: B windows.
            batch: features (B, T, ...) and their mask (B, T).
            num_beams: 1 = greedy; here and below None leaves it to the model.
            ctc_weight: 0 = attention alone, 1 = CTC alone.
            lm_weight: of the language model, where there is one.
            lm_bonus: for each id written, where a language model is asked.
            language: that is spoken, such as "de" or "German"; of Whisper.
            task: "transcribe" or "translate"; of Whisper.
            window: seconds that are heard at once; not of Whisper.
        """
        search: dict[str, Any] = {"num_beams": num_beams, "ctc_weight": ctc_weight}
        search |= {"lm_weight": lm_weight, "lm_bonus": lm_bonus}
        found = []
        for piece, said in zip(samples, write(self.model, *batch, self.processor, **search), strict=True):
            assert said.log_p is not None
            words, sure = place_words(
                said.text, said.log_p, piece.wave, self.processor, self.frame_seconds, piece.start
            )
            times = map(statistics.median, sure)
            own = [word for word, time in zip(words, times, strict=True) if piece.low <= time < piece.high]
            text = said.text if piece.whole else " ".join(word.word for word in own)
            found.append(Transcript("", text, own, score=said.score))
        return found

    @torch.inference_mode()
    def aligned(self, samples: Sequence[ASRSample]) -> list[list[Word]]:
        """When each word of the samples' own texts was said, whatever the model would hear."""
        found = []
        for sample in samples:
            wave = sample.read(self.processor.sample_rate)
            memory, mask = self.model.encode(*(x.to(self.device) for x in self.processor.features_batch([wave])))
            log_p, text = self.model.head.log_probs(memory)[0, mask[0]].cpu(), self.processor.learnt(sample.text)
            found.append(place_words(text, log_p, wave, self.processor, self.frame_seconds)[0])
        return found

    # Explaining -------------------------------------------------------------------------------------------------------

    def explain_all(self, items: Sequence[Item], **options: Any) -> list[ASRExplanation]:
        """When each word was said and what each character was read off; options as of `predict`.

        Raises:
            DataError: an item cannot be read, is longer than a window, or nothing is heard in it.
        """
        options = self.check_options(self._known(self.predict_batch, options))
        samples = [self.to_sample(item, number) for number, item in enumerate(listed(items))]
        return self.explain_batch(samples, None, **options)  # what is too long to be a batch is not read

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
        features, seconds = self.processor.picture(wave)
        return ASRExplanation(transcript, features, seconds, tokens, attention, alignment, list(sample.words))

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the encoder with CTC, and the decoder's step, where there is one, with its cache as flat tensors."""
        from mmattn.tasks.asr.export import export_ctc, export_recogniser

        export = export_ctc if isinstance(self.model, PublicCTC) else export_recogniser
        return export(self.model, folder, formats)

    # The command line -------------------------------------------------------------------------------------------------

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """A recording; those of a folder at any depth; those of a manifest, CSV or LibriSpeech tree, texts or none."""
        place = Path(path)
        if place.suffix.lower() in AUDIO_EXTENSIONS:
            return [ASRSample(place.name, path)]
        if place.is_dir() and next(place.rglob("*.trans.txt"), None) is None:
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in AUDIO_EXTENSIONS)
            if not files:
                raise DataError(path, "recordings (.wav, .flac, ...) or LibriSpeech's *.trans.txt in it", "none")
            return [ASRSample(str(file.relative_to(place)), str(file)) for file in files]
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
        """The most memory that this process has had, in GB of 2^30 bytes."""
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kB, on macOS in bytes
        return size / (1 << (30 if sys.platform == "darwin" else 20))


def audible(wave: Tensor) -> bool:
    """Whether something may be said in a wave (n,)."""
    return float(wave.amax() - wave.amin()) > SILENCE


def check_explainable(transcript: Transcript, window: float) -> None:
    """Raises a DataError where there is more to explain than a window of so many seconds, or nothing."""
    if transcript.duration > window:
        found = f"{transcript.duration:.1f} s: cut out what is to be looked at"
        raise DataError(f"item {transcript.id}", f"at most {window:g} s to explain", found)
    if not transcript.text:
        raise DataError(f"item {transcript.id}", "speech to explain", "none was heard")


load = Recogniser.load
