"""What turns sound into features, texts into ids and ids into text: the interface, and what our own models have."""

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
from mmattn.data.readers import read_json
from mmattn.data.text.ngram import Counted, Ids, Mixture, NGram, load_lm
from mmattn.data.text.tokenizer import SPECIAL_TOKENS, UNK, TextProcessor, TokenIds
from mmattn.tasks.asr.data import ASRBatch, ASRDataset, ASRSample, normalize
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.task import tasks

if TYPE_CHECKING:
    from mmattn.tasks.asr.augment import SpeechAugment

KINDS = {  # of processor.json, where it has one: of a public model
    "ctc": "mmattn.tasks.asr.public_processors:CTCProcessor",
    "whisper": "mmattn.tasks.asr.public_processors:WhisperProcessor",
}
LM = "ngrams.safetensors"  # the language model's file, where there is one
NO_LIMIT = 1 << 30  # of tokens: a text is never cut, as the sound is not
VIEW = 0xD1342543DE82EF95  # sets the draws of a clip's views apart
TOKENIZERS = ("characters", "bpe")
NORMALIZE = ("utterance", "train")
FLOOR = 1e-2  # added to a variance of log energies: a band that does not change stays at zero
OWN = ("units", "normalize", "mean", "std", "max_seconds", "search", "delay")  # of the settings, as they are
FIT_CLIPS = 500  # whose mean and deviation stand for the training set's


class SpeechProcessor(Processor[ASRSample, ASRBatch]):
    """The interface; ``ASRProcessor`` of our own models, ``CTCProcessor`` and ``WhisperProcessor`` of public ones.

    ``SpeechProcessor.load`` reads any of them, ``SpeechProcessor.fit`` makes one of our own.
    """

    front: FrontEnd
    tokenizer: TokenIds  # its padding is CTC's blank
    search: dict[str, Any]  # how the model was measured, for whoever loads it (beams and the like)
    max_seconds: float  # the longest clip it is meant for; what is longer is heard in windows
    lm: Counted | None = None  # how likely texts are to be written, for beams over CTC
    delay: float = 0.0  # seconds by which CTC says things later than they are heard; word times are earlier by it

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        if cls is not SpeechProcessor:
            return super().load(directory)
        config = read_json(Path(directory, SETTINGS))
        kind = config.get("kind") if isinstance(config, Mapping) else None
        found: Any = tasks()["asr"].resolve(KINDS[kind]) if kind in KINDS else ASRProcessor
        return found.load(directory)  # type: ignore[no-any-return]

    @classmethod
    def fit(cls, train: ASRDataset, **options: Any) -> SpeechProcessor:
        """See ``ASRProcessor.fit``."""
        return ASRProcessor.fit(train, **options)

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.front.sample_rate

    @property
    def frame_seconds(self) -> float:
        """From one step of the features to the next one."""
        return self.front.frame_seconds

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size}

    def lengths(self, samples: Sequence[ASRSample]) -> list[tuple[int, int]]:
        """Frames, and tokens with their end, of each sample: for batches of like lengths."""
        frames = [self.front.num_frames(round(sample.seconds() * self.sample_rate)) for sample in samples]
        tokens = [self.tokenizer.length(self.normalize_target(sample.text)) + 1 for sample in samples]
        return list(zip(frames, tokens, strict=True))

    def features(self, wave: Tensor) -> Tensor:
        """Samples (n,) at ``sample_rate``, n at least 1 -> (T, ...)."""
        return self.features_batch([wave])[0][0]

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Samples (n,) each -> features (B, T, ...) and mask (B, T), True = of the recording."""
        return self.front.batch(waves)

    def image(self, wave: Tensor) -> tuple[Tensor, float]:
        """Samples (n,) to a spectrogram (T, M) for people, and the seconds of one of its frames."""
        return self.features(wave), self.frame_seconds

    def normalize_target(self, text: str) -> str:
        """A text of the data as the model learns it."""
        return normalize(text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; neither start nor end among them."""
        return self.tokenizer.encode(self.normalize_target(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text from ids, what is special left out."""
        return self.tokenizer.decode(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        """What ids of the model say, as a user sees it."""
        return self.decode(ids)

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What training compares with.

        Returns:
            target_ids: (B, L) long, what a decoder reads, the start token first.
            labels: (B, L) long, what it should say at each place, the end last.
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
        """Makes a batch; see ``Processor.collate``.

        With several ``views`` each sample is in it so often, all first ones before all second ones: the same wave,
        hidden behind masks of its own each time.
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
        ids, references = [sample.id for sample in samples], [normalize(text) for text in texts]
        return ASRBatch(features, feature_mask, *self.targets(texts), ids, references, is_repeat)

    def ablate(self, batch: ASRBatch, what: str, seeds: Sequence[int] | None = None) -> ASRBatch:
        """Without the "sound": silence in its place."""
        batch.features = torch.zeros_like(batch.features)
        return batch

    def with_language(self, language: str | None, task: str | None) -> Self:
        """The processor for data in a language, to be transcribed or translated; None: as the model's folder says.

        Raises:
            ConfigError: The model knows no languages, or not this one.
        """
        for name, value in (("language", language), ("task", task)):
            if value is not None:
                raise ConfigError(f"data.{name}: expected none, since the model knows no languages; found {value!r}.")
        return self

    @property
    def lm_order(self) -> int:
        """Of the language model; 0: there is none."""
        return 0 if self.lm is None else self.lm.order

    def with_lm(self, folder: Path, order: int) -> Self:
        """Itself with the language model that lies in a folder; as it is where the order is 0."""
        if order:
            self.lm = load_lm(folder / LM, self._ids())
        return self

    def _ids(self) -> Ids:
        return Ids(self.tokenizer.vocab_size, self.tokenizer.start_id, self.tokenizer.eos_id)

    def search_without_lm(self) -> dict[str, Any]:
        """How the model searched, without its language model, which is of other texts."""
        return {name: value for name, value in self.search.items() if not name.startswith("lm_")}

    def count(self, texts: Iterable[str], order: int, further: Iterable[str] = ()) -> int:
        """Makes the language model; texts with characters that have no id are left out. Returns how many these are.

        Args:
            texts: The task's own, as people write them.
            order: Ids of the longest n-grams.
            further: Texts from elsewhere, which a model of their own counts; how much each weighs is found.

        Raises:
            ValueError: No text is left, or no ids stand for a text's beginning and end.
        """
        ids, spelt, left_out = self.tokenizer, [], []
        if len({ids.pad_id, ids.start_id, ids.eos_id}) < 3:
            raise ValueError("expected a tokenizer with ids for where a text begins and ends, found none")
        for given in (texts, further):
            rows = [ids.encode(self.normalize_target(text)) for text in given]
            spelt.append([row for row in rows if row and ids.unk_id not in row])
            left_out.append(len(rows) - len(spelt[-1]))
        own, others = spelt
        if not own or (left_out[1] and not others):
            raise ValueError(
                f"expected texts of characters that have an id, found none among {left_out[1 if own else 0]}"
            )
        self.lm = Mixture.fit(own, others, order, self._ids()) if others else NGram.fit(own, order, self._ids())
        return sum(left_out)

    def save_parts(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        if self.lm is None:
            (folder / LM).unlink(missing_ok=True)  # another's, that was written here before
        else:
            self.lm.save(folder / LM)

    def parts_text(self) -> str:
        return self.tokenizer.to_json() + ("" if self.lm is None else self.lm.fingerprint())


@dataclass(eq=False)
class ASRProcessor(SpeechProcessor):
    """What turns sound into features, texts into ids and ids into text; shipped with the model.

    A wave loses its mean and is scaled to a peak of one, since loudness varies greatly and says nothing; its log-mel
    frames then lose their mean, a band at a time, and are divided by their deviation.

    >>> clips = ASRDataset([ASRSample("1", (torch.randn(8000), 8000), "yes no")])
    >>> processor = ASRProcessor.fit(clips)
    >>> processor.features(clips[0].read(8000)).shape, processor.decode(processor.encode("No, yes!"))
    (torch.Size([101, 40]), 'no yes')
    """

    KEYS: ClassVar = frozenset({"mel", "tokenizer", "lm_order", *OWN})
    LATER: ClassVar = {"delay": 0.0, "lm_order": 0}
    mel: LogMel
    tokenizer: TextProcessor  # of texts as ``normalize`` has them; its padding, id 0, is CTC's blank, too
    units: str = "characters"  # or ``bpe``, for the record
    normalize: str = "utterance"  # whose mean and deviation features lose, or those of the ``train``ing set
    mean: Sequence[float] | None = None  # of the training set, a band; needed by ``train``
    std: Sequence[float] | None = None  # likewise
    max_seconds: float = 20.0  # see ``SpeechProcessor``, as the next
    search: dict[str, Any] = field(default_factory=dict)
    delay: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("tokenizer", self.units, TOKENIZERS), ("normalize", self.normalize, NORMALIZE)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}{nearest(value, known)}")
        if self.normalize == "train" and [len(given or ()) for given in (self.mean, self.std)] != 2 * [self.mel.n_mels]:
            raise ValueError(f"mean and std: expected {self.mel.n_mels} numbers each, found {self.mean} and {self.std}")
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
        """Makes a processor from the training data, and only from them.

        Args:
            train: The training data.
            sample_rate: In Hz, see ``LogMel``, as n_mels, f_min and f_max; what comes at another rate is resampled.
            n_mels: Bands.
            tokenizer: ``characters``, or ``bpe``: pieces of words, merged from characters.
            vocab_size: Most ids, special ones included, of ``bpe``.
            max_seconds: See the class, as the next.
            normalize: ``utterance`` or ``train``.
            f_min: In Hz.
            f_max: In Hz.

        Raises:
            DataError: No text in the training data.
            ValueError: A value out of range, by name.
        """
        texts = [normalize(sample.text) for sample in train.samples]
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
        """Sound as the model knows it, texts as the data have them: by its own alphabet, if that has all they need."""
        fresh = type(self).fit(train, **{name: value for name, value in given.items() if value is not None})
        wanted, had = (p.tokenizer.tokenizer.get_vocab() for p in (fresh, self))
        texts = self if self.units == fresh.units and wanted.keys() <= had.keys() else fresh
        own = {name: getattr(self, name) for name in ("normalize", "mean", "std")}
        own |= {"max_seconds": fresh.max_seconds, "search": self.search_without_lm()}
        return type(self)(self.mel, texts.tokenizer, texts.units, **own)

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"num_mels": self.mel.n_mels}

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Samples (n,) each -> features (B, T, M), zero beyond a clip's end, and mask (B, T), True = a real frame."""
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
        return normalize(self.decode(ids))

    def settings(self) -> dict[str, Any]:
        parts = {"mel": self.mel.config(), "tokenizer": self.tokenizer.config(), "lm_order": self.lm_order}
        return parts | {name: getattr(self, name) for name in OWN}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        tokenizer = TextProcessor.load(folder, config["tokenizer"])
        processor = cls(LogMel(**config["mel"]), tokenizer, **{name: config[name] for name in OWN})
        return processor.with_lm(folder, config["lm_order"])


def fit_tokenizer(texts: Sequence[str], kind: str = "characters", vocab_size: int = 200) -> TextProcessor:
    """Of normalized texts characters, or ``bpe``: pieces of words merged from them (Sennrich et al. 2016, section 3.2).

    Ids 0 to 3 are padding (CTC's blank), unknown, start and end; ``bpe`` has at most ``vocab_size``.

    Raises:
        ValueError: An unknown kind, or a vocabulary smaller than the alphabet.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(set("".join(texts)) | {" "})  # single words may be joined, or said one after the other
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
    least = len(SPECIAL_TOKENS) + len(alphabet)  # the mark of a word's beginning stands for the blank
    if vocab_size < least:
        raise ValueError(f"vocab_size: expected at least {least}, the alphabet's, found {vocab_size}")
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return TextProcessor(tokenizer, "bpe", max_len=NO_LIMIT)
