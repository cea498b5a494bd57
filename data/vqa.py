"""Visual question answering: samples, data set, processor and batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.batching import Batch
from data.errors import DataError, Problems, is_broken, shorten
from data.image import FULL, Box, ImageAugment, ImageProcessor, ImageSource, compose, load_image, move_box
from data.vqa_processor import AnswerCoverage, VQAProcessor, pad_boxes

__all__ = ["AnswerCoverage", "VQABatch", "VQADataset", "VQAProcessor", "VQASample", "collate", "drop_uncovered"]

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


@dataclass
class VQASample:
    """One question about a picture, as a person would describe it."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, or a PIL image
    question: str
    answers: list[str] = field(default_factory=list)  # one to ten people's answers; empty when unlabelled
    image_id: str = ""  # questions that share it share the picture: it is loaded and encoded once a batch
    question_type: str = ""
    answer_type: str = ""
    regions: list[Box] = field(default_factory=list)  # boxes_xyxy in 0..1 of the picture, on which the answer rests
    phrases: list[int] = field(
        default_factory=list
    )  # of each region: 0 where the question's first phrase names it, ...
    objects: list[tuple[Box, tuple[str, ...]]] = field(default_factory=list)  # what is where, with its labels

    def image_key(self) -> str:
        """What tells whether two questions ask about the same picture."""
        if self.image_id:
            return self.image_id
        return str(self.image) if isinstance(self.image, (str, Path)) else f"object {id(self.image)}"


@dataclass
class VQABatch(Batch):
    """Tensors for the model, and what the metric and the reports need. B questions about N distinct pictures."""

    pixel_values: Tensor  # (N, 3, H, W) float
    image_index: Tensor  # (B,) long: which picture each question asks about
    input_ids: Tensor  # (B, L) long
    key_mask: Tensor  # (B, L) bool, True = a real token
    targets: Tensor  # (B, V) float: soft scores in 0..1 over the answer vocabulary
    regions: Tensor  # (B, R, 4) float: boxes_xyxy in 0..1 of the model's input
    region_mask: Tensor  # (B, R) bool, True = a region
    region_phrases: Tensor  # (B, R) long: which of the question's phrases names it, from 0
    object_boxes: Tensor  # (N, O, 4) float: boxes_xyxy in 0..1 of the model's input
    object_mask: Tensor  # (N, O) bool, True = an object
    object_labels: Tensor  # (N, O, K) float: 1 for each of its labels, of the processor's object_labels
    ids: list[str]
    answers: list[list[str]]
    question_types: list[str]
    answer_types: list[str]
    is_repeat: bool = False  # repeated only to give every rank the same number of batches: not to be counted


class VQADataset(Dataset[VQASample]):
    """Questions from a file or from samples in memory, checked.

    Formats (``data/vqa_files.py`` has the details): a VQA v2 questions JSON with its annotations beside it; CSV, TSV
    or JSONL with the columns image, question, answer (or answers).

    Args:
        source: A path, or samples.
        image_root: Where the pictures are; by default they are searched for beside the file.
        on_error: ``raise`` ends at the first bad item. ``skip`` checks every item once, pictures included, leaves the
            bad ones out and reports them in ``skipped`` and in the log; it never puts something else in their place.
        cache_images: Keep each decoded picture in memory from its first use on (see also ``preload``).
        require_answers: Whether an unlabelled question is an error, as in training and evaluation.
        progress: Called as ``progress(done, total)`` while pictures are being checked.

    Raises:
        DataError: Names the file and the line or item, what was expected and what was found.
    """

    def __init__(
        self,
        source: str | Path | Iterable[VQASample],
        image_root: str | Path | None = None,
        on_error: str = "raise",
        cache_images: bool = False,
        require_answers: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        problems = Problems(on_error)
        if isinstance(source, (str, Path)):
            from data.vqa_files import read_vqa

            self.name = str(source)
            found: Iterable[tuple[str, VQASample]] = read_vqa(source, image_root, require_answers, problems)
        else:
            self.name = "samples"
            found = ((f"sample {index} (id {sample.id!r})", sample) for index, sample in enumerate(source))
        self.cache_images = cache_images
        self._cache: dict[str, np.ndarray] = {}
        checked = list(_check(found, require_answers, problems))
        if on_error == "skip":
            checked = _check_images(checked, problems, progress)
        self.skipped = problems.items  # (item, reason)
        if problems.items:
            logger.warning("%s", problems.summary(self.name, len(checked)))
        self._set([sample for _, sample in checked])
        if not self.samples:
            left = f"none ({len(self.skipped)} left out as bad)" if self.skipped else "none"
            raise DataError(self.name, "at least one question", left)

    def _set(self, samples: list[VQASample]) -> None:
        self.samples = samples
        numbers: dict[str, int] = {}
        self.groups = [numbers.setdefault(sample.image_key(), len(numbers)) for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> VQASample:
        sample = self.samples[index]
        if not self.cache_images:
            return sample
        key = sample.image_key()
        if key not in self._cache:
            self._cache[key] = np.asarray(load_image(sample.image, name=f"question {sample.id}"))
        return dataclasses.replace(sample, image=self._cache[key], image_id=key)

    def filter(self, keep: Callable[[VQASample], bool]) -> VQADataset:
        """The data set with only those questions; its cache is shared."""
        other = VQADataset.__new__(VQADataset)
        other.__dict__.update(self.__dict__)
        other._set([sample for sample in self.samples if keep(sample)])
        return other

    def preload(
        self,
        image: ImageProcessor,
        max_bytes: int = 2 << 30,
        progress: Callable[[int, int], None] | None = None,
    ) -> bool:
        """Decodes every picture once, at the model's size, so that no batch waits for a file.

        Workers that are forked afterwards share the memory. Regions and objects are moved with the pictures.

        Args:
            image: The processor's image part.
            max_bytes: The most memory to take.
            progress: Called as ``progress(done, total)``.

        Returns:
            Whether it was done; False when ``max_bytes`` is too little (nothing is changed then).
        """
        total = len(set(self.groups))
        if total * image.size[0] * image.size[1] * 3 > max_bytes:
            return False
        windows: dict[str, Box] = {}
        cache: dict[str, np.ndarray] = {}
        for sample in self.samples:
            key = sample.image_key()
            if key not in cache:
                cache[key], windows[key] = image.pixels(sample.image, name=f"question {sample.id}")
                if progress:
                    progress(len(cache), total)
        self._cache, self.cache_images = cache, True
        keys = [sample.image_key() for sample in self.samples]
        self._set([_in_window(s, windows[k], cache[k], k) for s, k in zip(self.samples, keys, strict=True)])
        return True

    def fingerprint(self) -> str:
        """SHA-256 over every question, its labels and its picture (a file counts by name and size)."""
        digest, seen = hashlib.sha256(), set()
        for sample in self.samples:
            row = [sample.id, sample.image_id, sample.question, sample.answers, sample.question_type]
            digest.update(json.dumps([*row, sample.answer_type, sample.regions, sample.objects]).encode())
            if sample.image_key() not in seen:
                seen.add(sample.image_key())
                if isinstance(sample.image, (str, Path)):
                    path = Path(sample.image)
                    digest.update(f"{path.name} {path.stat().st_size if path.exists() else -1}".encode())
                else:
                    image = sample.image
                    digest.update(image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()


def _in_window(sample: VQASample, window: Box, pixels: np.ndarray, key: str) -> VQASample:
    regions, phrases = _move_regions(sample, window)
    objects = [(moved, labels) for box, labels in sample.objects if (moved := move_box(box, window))]
    return dataclasses.replace(sample, image=pixels, image_id=key, regions=regions, phrases=phrases, objects=objects)


def _move_regions(sample: VQASample, window: Box) -> tuple[list[Box], list[int]]:
    """The regions within a window of the picture, and the phrase of each; those outside are left out."""
    phrases = sample.phrases or [0] * len(sample.regions)
    kept = [(moved, n) for box, n in zip(sample.regions, phrases, strict=True) if (moved := move_box(box, window))]
    return [box for box, _ in kept], [n for _, n in kept]


def _check(
    found: Iterable[tuple[str, VQASample]], require_answers: bool, problems: Problems
) -> Iterator[tuple[str, VQASample]]:
    """Passes on the samples that are right."""
    seen: dict[str, str] = {}
    for where, sample in found:
        problem = _problem(sample, require_answers)
        if problem is None and sample.id in seen:
            problem = ("a question id of its own", f"{sample.id!r}, which {seen[sample.id]} has already")
        if problem is None:
            seen[sample.id] = where
            yield where, sample
        else:
            problems.add(where, *problem)


def _problem(sample: VQASample, require_answers: bool) -> tuple[str, str] | None:
    if not isinstance(sample.question, str) or not sample.question.strip():
        return "a question that is not empty", shorten(sample.question)
    if sample.image is None or (isinstance(sample.image, (str, bytes)) and not sample.image):
        return "an image", "none"
    if any(not isinstance(answer, str) for answer in sample.answers):
        return "answers that are strings", shorten(sample.answers)
    bad = next((text for text in (sample.question, *sample.answers) if is_broken(text)), None)
    if bad is not None:
        return "valid Unicode", shorten(bad)
    if require_answers and not any(answer.strip() for answer in sample.answers):
        return "at least one answer that is not empty", shorten(sample.answers)
    for box in [*sample.regions, *(box for box, _ in sample.objects)]:
        # A little beyond the edge is rounding in someone's conversion; more is another unit.
        if len(box) != 4 or not (-0.01 <= box[0] < box[2] <= 1.01 and -0.01 <= box[1] < box[3] <= 1.01):
            return "boxes (x1, y1, x2, y2) in 0..1 of the picture, x1 < x2 and y1 < y2", shorten(box)
    if sample.phrases and (len(sample.phrases) != len(sample.regions) or min(sample.phrases) < 0):
        return f"a phrase number from 0 for each of the {len(sample.regions)} regions", shorten(sample.phrases)
    return None


def _check_images(
    checked: list[tuple[str, VQASample]], problems: Problems, progress: Callable[[int, int], None] | None
) -> list[tuple[str, VQASample]]:
    """Decodes each picture once, and leaves out the questions whose picture is bad."""
    verdicts: dict[str, DataError | None] = {}
    total = len({sample.image_key() for _, sample in checked})
    good = []
    for where, sample in checked:
        key = sample.image_key()
        if key not in verdicts:
            try:
                load_image(sample.image)
                verdicts[key] = None
            except DataError as error:
                verdicts[key] = error
            if progress:
                progress(len(verdicts), total)
        verdict = verdicts[key]
        if verdict is None:
            good.append((where, sample))
        else:
            problems.add(where, "a readable picture", str(verdict))
    return good


def drop_uncovered(dataset: VQADataset, processor: VQAProcessor) -> VQADataset:
    """The training data without the questions that the vocabulary cannot answer; how many is logged.

    For training only: such a question has no target. Evaluation keeps it, as wrong.
    """
    coverage = processor.coverage(dataset)
    if coverage.covered == coverage.total:
        return dataset
    logger.warning("%s: left out of training: %s", dataset.name, coverage)
    kept = dataset.filter(processor.covers)
    if not kept.samples:
        raise DataError(dataset.name, "at least one question with an answer in the vocabulary", "none")
    return kept


def collate(
    samples: Sequence[VQASample],
    processor: VQAProcessor,
    augment: ImageAugment | None = None,
    seeds: Sequence[int] | None = None,
    is_repeat: bool = False,
) -> VQABatch:
    """Makes a batch; each distinct picture is loaded once.

    Args:
        samples: The questions.
        processor: Picture and text to tensors.
        augment: Random change of the pictures, in training; boxes follow it.
        seeds: One integer a question, needed by ``augment``; the first question about a picture decides.
        is_repeat: See ``VQABatch``.

    Raises:
        DataError: A picture cannot be read; names the question and the file.
    """
    if augment is not None and seeds is None:
        raise ValueError("collate: augment needs seeds")
    slots: dict[str, int] = {}
    image_index = [slots.setdefault(sample.image_key(), len(slots)) for sample in samples]
    firsts = [image_index.index(slot) for slot in range(len(slots))]  # the first question about each picture
    pixels: list[np.ndarray] = []
    windows: list[Box] = []
    for first in firsts:
        array, window = processor.image.pixels(samples[first].image, name=f"question {samples[first].id}")
        inner = FULL
        if augment is not None and seeds is not None:
            array, inner = augment(array, seeds[first])
        pixels.append(array)
        windows.append(compose(window, inner))
    input_ids, key_mask = processor.tokenizer.encode_batch([sample.question for sample in samples])
    moved = [_move_regions(sample, windows[slot]) for sample, slot in zip(samples, image_index, strict=True)]
    regions, region_mask = pad_boxes([boxes for boxes, _ in moved])
    region_phrases = torch.zeros(region_mask.shape, dtype=torch.long)
    region_phrases[region_mask] = torch.tensor([n for _, phrases in moved for n in phrases], dtype=torch.long)
    object_boxes, object_mask, object_labels = processor.objects([samples[first] for first in firsts], windows)
    return VQABatch(
        pixel_values=processor.image.normalize(pixels),
        image_index=torch.tensor(image_index, dtype=torch.long),
        input_ids=input_ids,
        key_mask=key_mask,
        targets=processor.targets(samples),
        regions=regions,
        region_mask=region_mask,
        region_phrases=region_phrases,
        object_boxes=object_boxes,
        object_mask=object_mask,
        object_labels=object_labels,
        ids=[sample.id for sample in samples],
        answers=[list(sample.answers) for sample in samples],
        question_types=[sample.question_type for sample in samples],
        answer_types=[sample.answer_type for sample in samples],
        is_repeat=is_repeat,
    )
