"""The processor of captioning: images to tensors, captions to ids and ids to captions; shipped with the model."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmattn.data.image.objects import object_names, object_tensors, pad_boxes
from mmattn.data.image.processor import FULL, Box, ImageAugment, ImageProcessor, compose
from mmattn.data.image.public import make_image_processor
from mmattn.data.processor import Processor
from mmattn.data.text.pretrained import load_tokenizer
from mmattn.data.text.tokenizer import TextProcessor, TokenIds
from mmattn.generate import GenerationConfig
from mmattn.tasks.captioning.data import CaptionBatch, CaptionDataset, CaptionSample, Grounding, move_groundings
from mmattn.tasks.common.images import resized
from mmattn.tasks.common.options import check_search
from mmattn.tasks.common.seq2seq.processor import LIMITS, check_kept, encode_targets, known_options

# Spaces that the tokens have and the text has not: around apostrophes and hyphens, and before other punctuation.
_SPACE = re.compile(r" (?=[.,;:!?])|(?<=\w) (?=['’] ?(?:s|t|re|ve|ll|m|d)\b)|(?<=['’]) (?=(?:s|t|re|ve|ll|m|d)\b)")
_HYPHEN = re.compile(r"(?<=\w) - (?=\w)")


class CaptionProcessor(Processor[CaptionSample, CaptionBatch]):
    """Converts images to tensors, captions to ids and ids to captions; shipped with the model.

    Args:
        image: Image processor.
        target: Tokenizer of the captions.
        max_target_len: Maximum number of tokens of a caption, including the end token.
        options: Additional JSON values: decoding defaults, a public model's generation config.
        object_labels: The vocabulary of ``CaptionSample.objects``; empty if they are not used.
    """

    KEYS = frozenset({"image", "target", "max_target_len", "options", "object_labels"})

    def __init__(
        self,
        image: ImageProcessor,
        target: TokenIds,
        max_target_len: int = 40,
        options: Mapping[str, Any] | None = None,
        object_labels: Sequence[str] = (),
    ) -> None:
        self.image, self.target, self.max_target_len = image, target, max_target_len
        self.options, self.object_labels = dict(options or {}), list(object_labels)
        self._label_id = {label: index for index, label in enumerate(self.object_labels)}
        if not isinstance(max_target_len, int) or max_target_len < 2:
            raise ValueError(f"max_target_len: expected at least 2, found {max_target_len!r}")

    @classmethod
    def fit(
        cls,
        dataset: CaptionDataset,
        image_size: int | Sequence[int] = 64,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resize: str = "squash",
        tokenizer: str = "word",
        vocab_size: int = 10_000,
        min_count: int = 1,
        lowercase: bool = True,
        max_target_len: int = 40,
    ) -> Self:
        """Fit a processor to the training data.

        Args:
            dataset: The training data.
            image_size: Input size of images, see ``ImageProcessor``.
            mean: Mean of pixel values per channel.
            std: Standard deviation of pixel values per channel.
            resize: Resizing mode, see ``ImageProcessor``.
            tokenizer: ``word``, ``bpe`` or ``unigram``.
            vocab_size: Maximum size of the vocabulary.
            min_count: Minimum number of occurrences of a word; rarer ones are unknown.
            lowercase: Lower-case all captions.
            max_target_len: See the class.
        """
        texts = [text for sample in dataset.samples for text in sample.captions]
        target = TextProcessor.fit(texts, tokenizer, vocab_size, min_count, lowercase, max_target_len)
        image = ImageProcessor(image_size, mean, std, resize)
        return cls(image, target, max_target_len, object_labels=object_names(dataset.samples))

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.target.vocab_size, "image_size": self.image.size[0]}

    def collate(
        self,
        samples: Sequence[CaptionSample],
        *,
        augment: ImageAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
        captions: int | None = None,
    ) -> CaptionBatch:
        """Collate a batch.

        Args:
            samples: The samples.
            augment: Augmentation of the images, in training.
            seeds: One integer per sample, required by ``augment`` and ``captions``.
            is_repeat: See ``Processor.collate``.
            captions: Number of captions that are drawn of each image; None: all.
        """
        if (augment is not None or captions is not None) and seeds is None:
            raise ValueError("collate: augment and captions need seeds")
        pixels: list[np.ndarray] = []
        texts: list[str] = []
        index: list[int] = []
        grounded: list[list[Grounding]] = []
        windows: list[Box] = []
        for n, sample in enumerate(samples):
            array, window = self.image.pixels(sample.image, name=f"item {sample.id}")
            inner = FULL
            if augment is not None and seeds is not None:
                array, inner = augment(array, seeds[n])
            pixels.append(array)
            windows.append(compose(window, inner))
            for k in _drawn(len(sample.right_targets()), captions, None if seeds is None else seeds[n]):
                texts.append(sample.right_targets()[k])
                index.append(n)
                given = sample.groundings[k] if sample.groundings else []
                grounded.append(move_groundings(given, windows[-1]))
        regions, region_mask, region_tokens = self._regions(texts, grounded)
        objects = [sample.objects for sample in samples]
        object_boxes, object_mask, object_labels = object_tensors(objects, windows, self._label_id)
        return CaptionBatch(
            pixel_values=self.image.normalize(pixels),
            image_index=torch.tensor(index, dtype=torch.long),
            **encode_targets(self.target, texts, self.max_target_len),
            regions=regions,
            region_mask=region_mask,
            region_tokens=region_tokens,
            object_boxes=object_boxes,
            object_mask=object_mask,
            object_labels=object_labels,
            objects=objects,
            ids=[sample.id for sample in samples],
            references=[list(sample.captions) for sample in samples],
            is_repeat=is_repeat,
        )

    def _regions(
        self, texts: Sequence[str], groundings: Sequence[Sequence[Grounding]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, R, 4) of the tokens, mask (B, R) and the token of each (B, R); R is the longest row, possibly 0."""
        rows = []
        for text, words in zip(texts, groundings, strict=True):
            spans = list(enumerate(self.target.spans(text)[: self.max_target_len - 1])) if words else []
            rows.append(
                [
                    (n + len(self.target.prefix_ids), box)
                    for (start, end), boxes in words
                    for n, (first, last) in spans
                    if first < end and last > start
                    for box in boxes
                ]
            )
        regions, mask = pad_boxes([[box for _, box in row] for row in rows])
        tokens = torch.zeros(mask.shape, dtype=torch.long)
        tokens[mask] = torch.tensor([n for row in rows for n, _ in row], dtype=torch.long)
        return regions, mask, tokens

    def ablate(self, batch: CaptionBatch, what: str, seeds: Sequence[int] | None = None) -> CaptionBatch:
        """Replace the "image" by a grey image."""
        batch.pixel_values.zero_()
        return batch

    def decode(self, ids: Sequence[int]) -> str:
        """Plain, detokenized text of ids."""
        if not isinstance(self.target, TextProcessor):  # a public tokenizer has rules of its own
            return self.target.decode(ids)
        return _HYPHEN.sub("-", _SPACE.sub("", self.target.decode(ids)))

    def retarget(self, train: CaptionDataset, given: Mapping[str, Any]) -> Self:
        """A processor for other data: the same tokenizer, with the given image size and maximum length.

        Raises:
            ConfigError: A keyword would change the tokenizer.
        """
        given = {key: value for key, value in given.items() if value is not None}
        check_kept(known_options(self.target), given)
        other = copy.copy(self)
        other.image = resized(self.image, given)
        other.max_target_len = given.get("max_target_len", self.max_target_len)
        generation = self.options.get("generation")
        if generation is not None and "max_target_len" in given:  # which replaces the limits of the other data
            other.options = self.options | {"generation": {k: v for k, v in generation.items() if k not in LIMITS}}
        return other

    # Saving -----------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "image": self.image.config(),
            "target": self.target.config(),
            "max_target_len": self.max_target_len,
            "options": self.options,
            "object_labels": self.object_labels,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        check_search(config["options"].get("search", {}))
        GenerationConfig(**config["options"].get("generation") or {})  # raises a ValueError for what it cannot use
        image, target = make_image_processor(config["image"]), load_tokenizer(folder, config["target"])
        return cls(image, target, config["max_target_len"], config["options"], config["object_labels"])

    def save_parts(self, folder: Path) -> None:
        self.target.save(folder)

    def parts_text(self) -> str:
        return self.target.to_json()


def _drawn(number: int, captions: int | None, seed: int | None) -> list[int]:
    """The indices of the captions that are drawn of an image by its seed; all without one."""
    if captions is None or captions >= number or seed is None:
        return list(range(number))
    rng = random.Random(seed)
    return sorted(sorted(range(number), key=lambda _: rng.random())[:captions])


@dataclass(frozen=True)
class PublicInputs:
    """What a public image encoder expects; the tokenizer is fitted to the data.

    Args:
        image: Image processor of the encoder.
    """

    image: ImageProcessor

    def retarget(self, train: CaptionDataset, given: Mapping[str, Any]) -> CaptionProcessor:
        """The processor of the data with these inputs; see `Processor.retarget`."""
        given = {key: value for key, value in given.items() if value is not None}
        fitted = CaptionProcessor.fit(train, **given)
        fitted.image = resized(self.image, given)
        return fitted
