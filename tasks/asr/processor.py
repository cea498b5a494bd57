"""Processors of speech models: waves to features, texts to ids and back. The interface, and that of our own models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from mmattn.data.audio.mel import FrontEnd, LogMel, level
from mmattn.data.errors import DataError, nearest
from mmattn.data.processor import SETTINGS, Processor
from mmattn.data.readers import read_settings
from mmattn.data.text.ngram import Ids, InterpolatedNGram, NGram, NGramModel, load_lm
from mmattn.data.text.tokenizer import SPECIAL_TOKENS, UNK, TextProcessor, TokenIds
from mmattn.tasks.asr.data import ASRBatch, ASRDataset, ASRSample, normalize_text
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.options import check_search
from mmattn.tasks.common.task import tasks

if TYPE_CHECKING:
    from mmattn.tasks.asr.augment import SpeechAugment

KINDS = {  # the field "kind" of processor.json, which public models have
    "ctc": "mmattn.tasks.asr.public_processors:CTCProcessor",
    "whisper": "mmattn.tasks.asr.public_processors:WhisperProcessor",
}
LM = "ngrams.safetensors"  # file of the language model, if there is one
NO_LIMIT = 1 << 30  # tokens: texts are not truncated, since recordings are not
VIEW = 0xD1342543DE82EF95  # separates the random draws of a clip's views
TOKENIZERS = ("characters", "bpe")
NORMALIZE = ("utterance", "train")
FLOOR = 1e-2  # added to a variance of log energies, so that a constant band remains zero
OWN = ("units", "normalize", "mean", "std", "max_seconds", "search", "delay")  # settings that are saved unchanged
FIT_CLIPS = 500  # from which the mean and standard deviation of the training set are estimated


class SpeechProcessor(Processor[ASRSample, ASRBatch]):
    """Interface of speech processors: ``ASRProcessor`` for our own models, ``CTCProcessor`` and ``WhisperProcessor``.

    ``SpeechProcessor.load`` reads any of them, ``SpeechProcessor.fit`` makes one for our own models.
    """

    front: FrontEnd
    tokenizer: TokenIds  # its padding is the CTC blank
    search: dict[str, Any]  # search options that the model was measured with (beams and others)
    max_seconds: float  # longest clip; longer recordings are split into windows
    lm: NGramModel | None = None  # n-gram language model for shallow fusion with CTC beams
    delay: float = 0.0  # emission delay of CTC in seconds, which word timings subtract

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        if cls is not SpeechProcessor:
            return super().load(directory)
        config = read_settings(Path(directory, SETTINGS))
        kind = config.get("kind") if isinstance(config, Mapping) else None
        found: Any = tasks()["asr"].resolve(KINDS[kind]) if kind in KINDS else ASRProcessor
        return found.load(directory)  # type: ignore[no-any-return]

    @classmethod
    def fit(cls, train: ASRDataset, **options: Any) -> SpeechProcessor:
        """See ``ASRProcessor.fit``."""
        return ASRProcessor.fit(train, **options)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        return self.front.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Seconds from one feature frame to the next."""
        return self.front.frame_seconds

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size}

    def lengths(self, samples: Sequence[ASRSample]) -> list[tuple[int, int]]:
        """Frames, and tokens with the end token, of each sample: for batches of similar lengths."""
        frames = [self.front.num_frames(round(sample.seconds() * self.sample_rate)) for sample in samples]
        tokens = [self.tokenizer.length(self.normalize_target(sample.text)) + 1 for sample in samples]
        return list(zip(frames, tokens, strict=True))

    def features(self, wave: Tensor) -> Tensor:
        """Compute the features (T, ...) of samples (n,) at ``sample_rate``, n >= 1."""
        return self.features_batch([wave])[0][0]

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute features (B, T, ...) and their mask (B, T), True = of the recording, from samples (n,) each."""
        return self.front.batch(waves)

    def spectrogram(self, wave: Tensor) -> tuple[Tensor, float]:
        """Compute a spectrogram (T, M) for plots from samples (n,), and the seconds of one of its frames."""
        return self.features(wave), self.frame_seconds

    def normalize_target(self, text: str) -> str:
        """Normalize a text of the data to the form that the model is trained on."""
        return normalize_text(text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end tokens."""
        return self.tokenizer.encode(self.normalize_target(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are ignored."""
        return self.tokenizer.decode(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The transcript of ids that the model predicted, as users see it."""
        return self.decode(ids)

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode texts as training targets.

        Returns:
            target_ids: (B, L) long, the decoder's input, the start token first.
            labels: (B, L) long, the target at each position, the end token last.
            label_mask: (B, L) bool, True = counts.
        """
        labels, label_mask = self.tokenizer.encode_batch(
            [self.normalize_target(text) for text in texts], NO_LIMIT, eos=True
        )
        start = torch.full_like(labels[:, :1], self.tokenizer.start_id)
        return torch.cat([start, labels[:, :-1]], dim=1), labels, label_mask

    def collate(
        self,
        samples: Sequence[ASRSample],
        *,
        augment: SpeechAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
        views: int = 1,
    ) -> ASRBatch:
        """Make a batch; see ``Processor.collate``.

        With several ``views`` the batch holds each sample that many times, all first views before all second ones: the
        same wave with different masks.
        """
        waves = [sample.read(self.sample_rate) for sample in samples]
        texts = [sample.text for sample in samples]
        if augment is not None:
            if seeds is None:
                raise ValueError("collate: augment needs seeds")
            waves, texts = augment.waves(waves, texts, [s.speaker for s in samples], seeds, self.sample_rate)
        features, feature_mask = self.features_batch(waves)
        if views > 1:
            features, feature_mask = torch.cat([features] * views), torch.cat([feature_mask] * views)
            samples, texts = [*samples] * views, [*texts] * views
        if augment is not None and seeds is not None:
            seeds = [seed + view * VIEW for view in range(views) for seed in seeds]
            features = augment.features(features, feature_mask, seeds)
        ids, references = [sample.id for sample in samples], [normalize_text(text) for text in texts]
        return ASRBatch(features, feature_mask, *self.targets(texts), ids, references, is_repeat)

    def ablate(self, batch: ASRBatch, what: str, seeds: Sequence[int] | None = None) -> ASRBatch:
        """Ablate the "audio": replace it by silence."""
        batch.features = torch.zeros_like(batch.features)
        return batch

    def with_language(self, language: str | None, task: str | None) -> Self:
        """The processor for data in a language, to be transcribed or translated; None: as in the model's folder.

        Raises:
            ConfigError: The model has no languages, or not this one.
        """
        for name, value in (("language", language), ("task", task)):
            if value is not None:
                raise ConfigError(f"data.{name}: expected none, since the model has no languages; found {value!r}.")
        return self

    @property
    def lm_order(self) -> int:
        """Order of the language model; 0: there is none."""
        return 0 if self.lm is None else self.lm.order

    def with_lm(self, folder: Path, order: int) -> Self:
        """Load the language model from a folder, unless the order is 0, and return self."""
        if order:
            self.lm = load_lm(folder / LM, self._ids())
        return self

    def _ids(self) -> Ids:
        return Ids(self.tokenizer.vocab_size, self.tokenizer.start_id, self.tokenizer.eos_id)

    def search_without_lm(self) -> dict[str, Any]:
        """The search options without those of the language model, which was made from other texts."""
        return {name: value for name, value in self.search.items() if not name.startswith("lm_")}

    def count(self, texts: Iterable[str], order: int, additional: Iterable[str] = ()) -> int:
        """Make the n-gram language model; returns the number of excluded texts, with characters that have no id.

        Args:
            texts: The task's own texts, not normalized.
            order: Length of the longest n-grams in ids.
            additional: Additional texts, for a second model; the mixture weights are estimated.

        Raises:
            ValueError: No text remains, or the tokenizer has no start and end tokens.
        """
        ids, encoded, excluded = self.tokenizer, [], []
        if len({ids.pad_id, ids.start_id, ids.eos_id}) < 3:
            raise ValueError("expected a tokenizer with start and end tokens, found none")
        for given in (texts, additional):
            rows = [ids.encode(self.normalize_target(text)) for text in given]
            encoded.append([row for row in rows if row and ids.unk_id not in row])
            excluded.append(len(rows) - len(encoded[-1]))
        own, others = encoded
        if not own or (excluded[1] and not others):
            raise ValueError(
                f"expected texts of characters that have an id, found none among {excluded[1 if own else 0]}"
            )
        self.lm = (
            InterpolatedNGram.fit(own, others, order, self._ids()) if others else NGram.fit(own, order, self._ids())
        )
        return sum(excluded)

    def save_parts(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        if self.lm is None:
            (folder / LM).unlink(missing_ok=True)  # of an earlier save
        else:
            self.lm.save(folder / LM)

    def parts_text(self) -> str:
        return self.tokenizer.to_json() + ("" if self.lm is None else self.lm.fingerprint())


@dataclass(eq=False)
class ASRProcessor(SpeechProcessor):
    """Waves to features, texts to ids and back; saved with the model.

    A wave is centerd and scaled to a peak of one, since loudness varies greatly and carries no information; its log-mel
    frames are then standardized, each band by its mean and standard deviation.

    >>> clips = ASRDataset([ASRSample("1", (torch.randn(8000), 8000), "yes no")])
    >>> processor = ASRProcessor.fit(clips)
    >>> processor.features(clips[0].read(8000)).shape, processor.decode(processor.encode("No, yes!"))
    (torch.Size([101, 40]), 'no yes')
    """

    KEYS: ClassVar = frozenset({"mel", "tokenizer", "lm_order", *OWN})
    LATER: ClassVar = {"delay": 0.0, "lm_order": 0}
    mel: LogMel
    tokenizer: TextProcessor  # of normalized texts; its padding, id 0, is also the CTC blank
    units: str = "characters"  # or ``bpe``; informative
    normalize: str = "utterance"  # whose mean and deviation standardize features; or ``train``, the training set's
    mean: Sequence[float] | None = None  # per band, of the training set; required by ``train``
    std: Sequence[float] | None = None  # likewise
    max_seconds: float = 20.0  # this and the next two: see ``SpeechProcessor``
    search: dict[str, Any] = field(default_factory=dict)
    delay: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("tokenizer", self.units, TOKENIZERS), ("normalize", self.normalize, NORMALIZE)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}{nearest(value, known)}")
        if self.normalize == "train" and [len(given or ()) for given in (self.mean, self.std)] != 2 * [self.mel.n_mels]:
            raise ValueError(f"mean and std: expected {self.mel.n_mels} numbers each, found {self.mean} and {self.std}")
        check_search(self.search)
        if self.max_seconds <= 0:
            raise ValueError(f"max_seconds: expected more than 0, found {self.max_seconds}")
        if self.tokenizer.pad_id != 0:
            raise ValueError(f"tokenizer: expected the padding, CTC's blank, to be id 0, found {self.tokenizer.pad_id}")
        self.front, self.max_seconds, self.delay = self.mel, float(self.max_seconds), float(self.delay)

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        train: ASRDataset,
        sample_rate: int = 8_000,
        n_mels: int = 40,
        tokenizer: str = "characters",
        vocab_size: int = 200,
        max_seconds: float = 20.0,
        normalize: str = "utterance",
        f_min: float = 0.0,
        f_max: float | None = None,
    ) -> Self:
        """Make a processor from the training data, and only from them.

        Args:
            train: The training data.
            sample_rate: In Hz; other rates are resampled. See ``LogMel``, also for n_mels, f_min and f_max.
            n_mels: Number of mel bands.
            tokenizer: ``characters``, or ``bpe``: pieces of words, merged from characters.
            vocab_size: Maximum number of ids of ``bpe``, including special ones.
            max_seconds: See the class.
            normalize: ``utterance`` or ``train``, see the class.
            f_min: Lowest frequency in Hz.
            f_max: Highest frequency in Hz.

        Raises:
            DataError: The training data have no text.
            ValueError: A value is out of range; names it.
        """
        texts = [normalize_text(sample.text) for sample in train.samples]
        if not any(texts):
            raise DataError(train.name, "at least one text with a letter or digit", f"{len(texts)} without")
        fitted = fit_tokenizer(texts, tokenizer, vocab_size)
        mel = LogMel(sample_rate, n_mels, f_min=f_min, f_max=f_max)
        mean = std = None
        if normalize == "train":
            step = max(1, len(train) // FIT_CLIPS)
            frames = torch.cat([mel(level(sample.read(sample_rate))) for sample in train.samples[::step]]).double()
            mean, std = frames.mean(0).tolist(), (frames.var(0, correction=0) + FLOOR).sqrt().tolist()
        return cls(mel, fitted, tokenizer, normalize, mean, std, max_seconds)

    def retarget(self, train: ASRDataset, given: Mapping[str, Any]) -> Self:
        """A processor with the same front end; it keeps its tokenizer if that covers the alphabet of the data."""
        fresh = type(self).fit(train, **{name: value for name, value in given.items() if value is not None})
        wanted, had = (p.tokenizer.tokenizer.get_vocab() for p in (fresh, self))
        texts = self if self.units == fresh.units and wanted.keys() <= had.keys() else fresh
        own = {name: getattr(self, name) for name in ("normalize", "mean", "std")}
        own |= {"max_seconds": fresh.max_seconds, "search": self.search_without_lm()}
        return type(self)(self.mel, texts.tokenizer, texts.units, **own)

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"num_mels": self.mel.n_mels}

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Samples (n,) each -> features (B, T, M), zero in the padding, and mask (B, T), True = a real frame."""
        frames, mask = self.mel.batch([level(wave) for wave in waves])
        real, counts = mask[:, :, None], mask.sum(1)[:, None, None]
        if self.normalize == "train":
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        else:
            frames = frames * real
            mean = frames.sum(1, keepdim=True) / counts
            variance = ((frames - mean) * real).square().sum(1, keepdim=True) / counts
            std = (variance + FLOOR).sqrt()
        return (frames - mean) / std * real, mask

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids if int(i) >= len(SPECIAL_TOKENS)])

    def detokenize(self, ids: Sequence[int]) -> str:
        return normalize_text(self.decode(ids))

    def settings(self) -> dict[str, Any]:
        parts = {"mel": self.mel.config(), "tokenizer": self.tokenizer.config(), "lm_order": self.lm_order}
        return parts | {name: getattr(self, name) for name in OWN}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        tokenizer = TextProcessor.load(folder, config["tokenizer"])
        processor = cls(LogMel(**config["mel"]), tokenizer, **{name: config[name] for name in OWN})
        return processor.with_lm(folder, config["lm_order"])


def fit_tokenizer(texts: Sequence[str], kind: str = "characters", vocab_size: int = 200) -> TextProcessor:
    """Fit a tokenizer to normalized texts: characters, or ``bpe`` (Sennrich et al. 2016, section 3.2).

    Ids 0 to 3 are padding (the CTC blank), unknown, start and end; ``bpe`` has at most ``vocab_size`` ids.

    Raises:
        ValueError: The kind is unknown, or the vocabulary is smaller than the alphabet.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(set("".join(texts)) | {" "})  # augmentation and recordings may join single words
    if kind == "characters":
        vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return TextProcessor(tokenizer, "word", max_len=NO_LIMIT)
    if kind != "bpe":
        raise ValueError(
            f"tokenizer: expected one of {', '.join(TOKENIZERS)}, found {kind!r}{nearest(kind, TOKENIZERS)}"
        )
    least = len(SPECIAL_TOKENS) + len(alphabet)  # the word-start marker replaces the space
    if vocab_size < least:
        raise ValueError(f"vocab_size: expected at least {least}, the alphabet's, found {vocab_size}")
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return TextProcessor(tokenizer, "bpe", max_len=NO_LIMIT)
