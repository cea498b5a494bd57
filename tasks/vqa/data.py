"""Visual question answering: samples, data set and batches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, is_broken, located, shorten
from mmattn.data.image.processor import Box, ImageProcessor, ImageSource, load_image, move_box, size_facts
from mmattn.data.table import Table
from mmattn.tasks.vqa.formats import read_vqa


@dataclass
class VQASample:
    """A question about an image, with its answers and annotations."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, or a PIL image
    question: str
    answers: list[str] = field(default_factory=list)  # answers of one to ten annotators; empty when unlabeled
    image_id: str = ""  # identifies the image: questions that share it are encoded with one copy per batch
    question_type: str = ""
    answer_type: str = ""
    regions: list[Box] = field(default_factory=list)  # regions that determine the answer, boxes_xyxy in 0..1
    # The phrase of the question that names each region, from 0.
    phrases: list[int] = field(default_factory=list)
    objects: list[tuple[Box, tuple[str, ...]]] = field(default_factory=list)  # boxes of objects and their labels

    def image_key(self) -> str:
        """A key that is equal for questions about the same image."""
        if self.image_id:
            return self.image_id
        return str(self.image) if isinstance(self.image, (str, Path)) else f"object {id(self.image)}"


@dataclass
class VQABatch(Batch):
    """A batch of B questions about N distinct images: the model's inputs and the data of the metric."""

    pixel_values: Tensor  # (N, 3, H, W) float
    image_index: Tensor  # (B,) long: which image each question asks about
    input_ids: Tensor  # (B, L) long
    key_mask: Tensor  # (B, L) bool, True = a real token
    targets: Tensor  # (B, V) float: soft scores in 0..1 over the answer vocabulary
    regions: Tensor  # (B, R, 4) float: boxes_xyxy in 0..1 of the model's input
    region_mask: Tensor  # (B, R) bool, True = a region
    region_phrases: Tensor  # (B, R) long: which of the question's phrases names it, from 0
    object_boxes: Tensor  # (N, O, 4) float: boxes_xyxy in 0..1 of the model's input
    object_mask: Tensor  # (N, O) bool, True = an object
    object_labels: Tensor  # (N, O, K) float: 1 for each label of an object, in the order of the processor's
    ids: list[str]
    answers: list[list[str]]
    question_types: list[str]
    answer_types: list[str]
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics
    pixel_mask: Tensor | None = None  # (N, H, W) bool, True = a pixel of the image; None: all, of one size
    # Of models that write A answers, those of the annotators; None for all others.
    target_ids: Tensor | None = None  # (A, T) long, the start token first
    labels: Tensor | None = None  # (A, T) long, the end token last
    label_mask: Tensor | None = None  # (A, T) bool, True = counts
    answer_index: Tensor | None = None  # (A,) long: the question of each answer
    answer_weights: Tensor | None = None  # (A,) float: shares of a question's soft scores

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of the model's `forward`."""
        given = (self.pixel_values, self.input_ids, self.key_mask, self.image_index)
        return given if self.pixel_mask is None else (*given, self.pixel_mask)


class VQADataset(SampleDataset[VQASample]):
    """Questions from a file or from samples in memory, validated.

    Formats (`formats.py` has the details): a VQA v2 questions JSON with its annotations in the same folder; CSV, TSV
    or JSONL with the columns image, question, answer (or answers). Each image is validated once.

    Args:
        source: A path; samples; or rows of an image, a question and its answer.
        image_root: Folder of the images; by default they are searched for near the file.
        options: Keywords of ``SampleDataset``.
    """

    item: ClassVar[str] = "question"
    columns = ("image", "question", "answer")

    def __init__(
        self, source: str | Path | Iterable[Any], image_root: str | Path | None = None, **options: Any
    ) -> None:
        self.image_root = image_root
        self._verdicts: dict[str, DataError | None] = {}  # by image
        self._images: dict[str, ImageSource] = {}
        super().__init__(source, **options)

    @property
    def groups(self) -> list[int]:
        """The index of each question's image."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(sample.image_key(), len(numbers)) for sample in self.samples]

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, VQASample]]:
        for where, fields in read_vqa(path, self.image_root, self.require_labels, problems):
            yield where, VQASample(**fields)

    def check(self, sample: VQASample) -> tuple[str, str] | None:
        if not isinstance(sample.question, str) or not sample.question.strip():
            return "a question that is not empty", shorten(sample.question)
        if sample.image is None or (isinstance(sample.image, (str, bytes)) and not sample.image):
            return "an image", "none"
        if any(not isinstance(answer, str) for answer in sample.answers):
            return "answers that are strings", shorten(sample.answers)
        bad = next((text for text in (sample.question, *sample.answers) if is_broken(text)), None)
        if bad is not None:
            return "valid Unicode", shorten(bad)
        if self.require_labels and not any(answer.strip() for answer in sample.answers):
            return "at least one answer that is not empty", shorten(sample.answers)
        for box in [*sample.regions, *(box for box, _ in sample.objects)]:
            # Boxes slightly beyond the edge result from rounding; larger values from another unit.
            if len(box) != 4 or not (-0.01 <= box[0] < box[2] <= 1.01 and -0.01 <= box[1] < box[3] <= 1.01):
                return "boxes (x1, y1, x2, y2) in 0..1 of the image, x1 < x2 and y1 < y2", shorten(box)
        if sample.phrases and (len(sample.phrases) != len(sample.regions) or min(sample.phrases) < 0):
            return f"a phrase number from 0 for each of the {len(sample.regions)} regions", shorten(sample.phrases)
        return other_image(self._images.setdefault(sample.image_key(), sample.image), sample)

    def decode(self, sample: VQASample, where: str) -> None:
        key = sample.image_key()
        if key not in self._verdicts:
            try:
                load_image(sample.image)
                self._verdicts[key] = None
            except DataError as error:
                self._verdicts[key] = error
        if (verdict := self._verdicts[key]) is not None:
            with located(where):
                raise verdict

    def identity(self, sample: VQASample) -> tuple[list[Any], list[Any]]:
        row = [sample.id, sample.image_id, sample.question, sample.answers, sample.question_type, sample.answer_type]
        return [*row, sample.regions, sample.objects], [sample.image]

    def inputs(self, sample: VQASample) -> tuple[list[Any], list[Any]]:
        return [sample.question], [sample.image]

    def facts(self, sample: VQASample, files: bool = True) -> dict[str, Any]:
        found = {"answer": sample.answers, "words of the question": len(sample.question.split())}
        return (
            found
            | (size_facts(sample.image) if files else {})
            | ({"type": sample.question_type} if sample.question_type else {})
        )

    def preload(self, image: ImageProcessor, max_bytes: int = 2 << 30) -> bool:
        """Decode every image once, at the model's input size; regions and objects are transformed with the images.

        Args:
            image: The processor's image part.
            max_bytes: Upper bound of the memory.

        Returns:
            Whether the images were decoded; False if they exceed ``max_bytes``, and the data set is unchanged.
        """
        if len(set(self.groups)) * image.size[0] * image.size[1] * 3 > max_bytes:
            return False
        if all(is_decoded(sample.image, image.size) for sample in self.samples):
            return True
        cache: dict[str, tuple[np.ndarray, Box]] = {}

        def load(sample: VQASample, where: str) -> VQASample:
            key = sample.image_key()
            if key not in cache:
                cache[key] = image.pixels(sample.image, name=f"question {sample.id}")
            pixels, window = cache[key]
            regions, phrases = move_regions(sample, window)
            objects = [(moved, labels) for box, labels in sample.objects if (moved := move_box(box, window))]
            sample = dataclasses.replace(sample, image=pixels, image_id=key)
            return dataclasses.replace(sample, regions=regions, phrases=phrases, objects=objects)

        self.preloaded(load)
        return True


def other_image(first: ImageSource, sample: VQASample) -> tuple[str, str] | None:
    """What is expected and found if a sample's file is not the first one with its `image_id`; otherwise None."""
    if not isinstance(first, (str, Path)) or not isinstance(sample.image, (str, Path)):
        return None
    one, other = os.fspath(first), os.fspath(sample.image)
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return None
    return f"one image with the image_id {sample.image_id!r}, {one} as before", other


def is_decoded(image: ImageSource, size: tuple[int, int]) -> bool:
    """Whether an image is in memory at the model's size, (H, W)."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (*size, 3)


def move_regions(sample: VQASample, window: Box) -> tuple[list[Box], list[int]]:
    """The regions relative to a window of the image, and the phrase of each; regions outside are excluded."""
    phrases = sample.phrases or [0] * len(sample.regions)
    kept = [(moved, n) for box, n in zip(sample.regions, phrases, strict=True) if (moved := move_box(box, window))]
    return [box for box, _ in kept], [n for _, n in kept]
