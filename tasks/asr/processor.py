"""Speech recognition: the processor, batches, and how one becomes the other. Samples are in ``data/asr_files.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from mmattn.data.audio.mel import LogMel
from mmattn.data.batching import Batch
from mmattn.data.errors import DataError, nearest
from mmattn.data.text.tokenizer import SPECIAL_TOKENS, UNK, TextProcessor
from mmattn.tasks.asr.data import ASRDataset, ASRSample, normalise
from mmattn.tasks.asr.speech import NO_LIMIT, SpeechProcessor

if TYPE_CHECKING:
    from mmattn.tasks.asr.augment import SpeechAugment

__all__ = ["ASRBatch", "ASRDataset", "ASRProcessor", "ASRSample", "collate", "normalise"]
TOKENIZERS = ("characters", "bpe")
NORMALIZE = ("utterance", "train")
FLOOR = 1e-2  # added to a variance of log energies: a band that does not change stays at zero
OWN = ("units", "normalize", "mean", "std", "max_seconds", "search", "delay")  # of the settings, as they are
VIEW = 0xD1342543DE82EF95  # sets the draws of a clip's views apart
FIT_CLIPS = 500  # whose mean and deviation stand for the training set's


@dataclass
class ASRBatch(Batch):
    """Tensors for the model, and what the metric needs."""

    features: Tensor  # (B, T, M) float: log-mel frames, normalised; or (B, n), samples
    feature_mask: Tensor  # (B, T) bool, True = of the recording
    target_ids: Tensor  # (B, L) long: what a decoder reads, the start token first
    labels: Tensor  # (B, L) long: what it should say at each place, the end last
    label_mask: Tensor  # (B, L) bool, True = counts
    ids: list[str]
    references: list[str]  # normalised texts
    is_repeat: bool = False  # repeated only to give every rank the same number of batches: not to be counted


class ASRProcessor(SpeechProcessor):
    """What turns sound into features, texts into ids and ids into text; shipped with the model.

    A wave loses its mean and is scaled to a peak of one, since loudness varies greatly and says nothing; its log-mel
    frames then lose their mean, a band at a time, and are divided by their deviation.

    Args:
        mel: The front end.
        tokenizer: Of texts as ``normalise`` has them. Its padding, id 0, is CTC's blank, too.
        units: ``characters`` or ``bpe``, for the record.
        normalize: Mean and deviation of the ``utterance`` or of the ``train``ing set.
        mean: Of the training set, a band; needed by ``train``.
        std: Likewise.
        max_seconds: The longest clip it is meant for; what is longer is heard in windows.
        search: How the model was measured, for whoever loads it (beams and the like).
        delay: Seconds by which CTC says things later than they are heard; word times are earlier by it.

    >>> clips = ASRDataset([ASRSample("1", (torch.randn(8000), 8000), "yes no")])
    >>> processor = ASRProcessor.fit(clips)
    >>> processor.features(clips[0].read(8000)).shape, processor.decode(processor.encode("No, yes!"))
    (torch.Size([101, 40]), 'no yes')
    """

    KEYS = frozenset({"mel", "tokenizer", "lm_order", *OWN})
    LATER: ClassVar = {"delay": 0.0, "lm_order": 0}

    def __init__(
        self,
        mel: LogMel,
        tokenizer: TextProcessor,
        units: str = "characters",
        normalize: str = "utterance",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        max_seconds: float = 20.0,
        search: Mapping[str, Any] | None = None,
        delay: float = 0.0,
    ) -> None:
        for name, value, known in (("tokenizer", units, TOKENIZERS), ("normalize", normalize, NORMALIZE)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}{nearest(value, known)}")
        if normalize == "train" and (mean is None or std is None or {len(mean), len(std)} != {mel.n_mels}):
            raise ValueError(f"mean and std: expected {mel.n_mels} numbers each, found {mean} and {std}")
        if max_seconds <= 0:
            raise ValueError(f"max_seconds: expected more than 0, found {max_seconds}")
        self.mel, self.tokenizer, self.units, self.normalize = mel, tokenizer, units, normalize
        self.mean, self.std = (None if v is None else [float(x) for x in v] for v in (mean, std))
        self.max_seconds, self.search, self.delay = float(max_seconds), dict(search or {}), float(delay)
        if tokenizer.pad_id != 0:
            raise ValueError(f"tokenizer: expected the padding, CTC's blank, to be id 0, found {tokenizer.pad_id}")

    @classmethod
    def fit(
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
            sample_rate: In Hz; what comes at another rate is resampled.
            n_mels: Bands.
            tokenizer: ``characters``, or ``bpe``: pieces of words, merged from characters.
            vocab_size: Most ids, special ones included, of ``bpe``.
            max_seconds: See the class, as the next.
            normalize: ``utterance`` or ``train``.
            f_min: Lowest frequency in Hz.
            f_max: Highest; None: half the sample rate.

        Raises:
            DataError: No text in the training data.
            ValueError: A value out of range, by name.
        """
        texts = [normalise(sample.text) for sample in train.samples]
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

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.mel.sample_rate

    @property
    def frame_seconds(self) -> float:
        """From one frame's middle to the next one's."""
        return self.mel.hop / self.mel.sample_rate

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": self.tokenizer.vocab_size, "num_mels": self.mel.n_mels}

    def num_frames(self, num_samples: int) -> int:
        return self.mel.num_frames(num_samples)

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Samples (n,) each -> features (B, T, M), zero beyond a clip's end, and mask (B, T), True = a real frame."""
        counts = torch.tensor([self.mel.num_frames(len(wave)) for wave in waves])
        padded = torch.zeros(len(waves), max(map(len, waves)))
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = level(wave)
        frames = self.mel(padded)  # (B, T, M)
        mask = torch.arange(frames.shape[1]) < counts[:, None]  # (B, T)
        real = mask[:, :, None]
        if self.normalize == "train":
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        else:
            frames = frames * real
            mean = frames.sum(1, keepdim=True) / counts[:, None, None]
            variance = ((frames - mean) * real).square().sum(1, keepdim=True) / counts[:, None, None]
            std = (variance + FLOOR).sqrt()
        return (frames - mean) / std * real, mask

    def learnt(self, text: str) -> str:
        return normalise(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids if int(i) >= len(SPECIAL_TOKENS)])

    def said(self, ids: Sequence[int]) -> str:
        return normalise(self.decode(ids))

    def settings(self) -> dict[str, Any]:
        return {
            "mel": self.mel.config(),
            "tokenizer": self.tokenizer.config(),
            "lm_order": self.lm_order,
            **{name: getattr(self, name) for name in OWN},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        tokenizer = TextProcessor.load(folder, config["tokenizer"])
        processor = cls(LogMel.from_config(config["mel"]), tokenizer, **{name: config[name] for name in OWN})
        return processor.with_lm(folder, config["lm_order"])


def level(wave: Tensor) -> Tensor:
    """A wave (n,) without its mean, its peak at one; silence stays silence."""
    wave = wave - wave.mean()
    peak = wave.abs().amax()
    return wave / peak if float(peak) > 1e-7 else torch.zeros_like(wave)


def fit_tokenizer(texts: Sequence[str], kind: str = "characters", vocab_size: int = 200) -> TextProcessor:
    """Characters, or pieces of words merged from them (byte pair encoding: Sennrich et al. 2016, section 3.2).

    Ids 0 to 3 are padding (CTC's blank), unknown, start and end.

    Args:
        texts: Normalised.
        kind: ``characters`` or ``bpe``.
        vocab_size: Most ids of ``bpe``.

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


def collate(
    samples: Sequence[ASRSample],
    processor: SpeechProcessor,
    augment: SpeechAugment | None = None,
    seeds: Sequence[int] | None = None,
    is_repeat: bool = False,
    views: int = 1,
) -> ASRBatch:
    """Makes a batch.

    Args:
        samples: The recordings.
        processor: Sound to features, texts to ids.
        augment: Random change of waves and features, in training.
        seeds: One integer a sample, needed by ``augment``.
        is_repeat: See ``ASRBatch``.
        views: How often each sample is in the batch: the same wave, hidden behind masks of its own each time. All first
            views come before all second ones.

    Raises:
        DataError: A recording cannot be read; names it.
    """
    waves = [sample.read(processor.sample_rate) for sample in samples]
    texts = [sample.text for sample in samples]
    if augment is not None:
        if seeds is None:
            raise ValueError("collate: augment needs seeds")
        waves, texts = augment.waves(waves, texts, [s.speaker for s in samples], seeds, processor.sample_rate)
    features, feature_mask = processor.features_batch(waves)
    if views > 1:
        features, feature_mask = torch.cat([features] * views), torch.cat([feature_mask] * views)
        samples, texts = [*samples] * views, [*texts] * views
    if augment is not None and seeds is not None:
        seeds = [seed + view * VIEW for view in range(views) for seed in seeds]
        features = augment.features(features, feature_mask, seeds)
    target_ids, labels, label_mask = processor.targets(texts)
    return ASRBatch(
        features=features,
        feature_mask=feature_mask,
        target_ids=target_ids,
        labels=labels,
        label_mask=label_mask,
        ids=[sample.id for sample in samples],
        references=[normalise(text) for text in texts],
        is_repeat=is_repeat,
    )
