"""Samples, data set and batches of captioning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.image.objects import Objects
from mmattn.data.image.processor import Box, ImageProcessor, ImageSource, load_image, move_box, size_facts
from mmattn.data.table import Table
from mmattn.tasks.captioning.formats import read_captions
from mmattn.tasks.common.seq2seq.data import TextBatch

MOST_WORDS = 500  # of a caption; a longer one is another text, or a file of another format
Span = tuple[int, int]  # start and end in characters
Grounding = tuple[Span, list[Box]]  # a word of a caption, and the boxes of what it names


@dataclass
class CaptionSample:
    """An image and its captions."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, or a PIL image
    captions: list[str] = field(default_factory=list)  # all of them correct; empty when unlabeled
    objects: Objects = ()  # boxes of objects in 0..1 and their labels
    groundings: list[list[Grounding]] = field(default_factory=list)  # for each caption, boxes_xyxy in 0..1

    def right_targets(self) -> list[str]:
        """The references for evaluation."""
        return self.captions or [""]


@dataclass(kw_only=True)
class CaptionBatch(TextBatch):
    """A batch of N images with B captions, one or several for each image, and the data of the metric."""

    pixel_values: Tensor  # (N, 3, H, W) float
    image_index: Tensor  # (B,) long: the image of each caption
    regions: Tensor  # (B, R, 4) float: boxes_xyxy in 0..1 of the model's input
    region_mask: Tensor  # (B, R) bool, True = a region
    region_tokens: Tensor  # (B, R) long: the caption's token that names it
    object_boxes: Tensor  # (N, O, 4) float: boxes_xyxy in 0..1 of the model's input
    object_mask: Tensor  # (N, O) bool, True = an object
    object_labels: Tensor  # (N, O, K) float: 1 for each label of an object, in the order of the processor's
    objects: list[Objects]  # of each image, as annotated

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.pixel_values,)

    @property
    def forced(self) -> tuple[Tensor, ...]:
        return self.pixel_values, self.target_ids, self.image_index


class CaptionDataset(SampleDataset[CaptionSample]):
    """Images with their captions from a file (formats: `formats.py`) or from samples in memory, validated.

    Args:
        source: A path; samples; or rows of an image and a caption, where rows of one image are its references.
        split: Split of a file that has several, as Karpathy's: train, val or test; None: all.
        root: Folder of the images, if they are not near the file.
        options: Keywords of ``SampleDataset``.
    """

    item: ClassVar[str] = "image with captions"
    columns = ("image", "caption")

    def __init__(
        self,
        source: str | Path | Iterable[Any],
        split: str | None = None,
        root: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.split, self.root = split, root
        super().__init__(source, **options)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, CaptionSample]]:
        for where, fields in read_captions(path, self.split, self.root, self.require_labels, problems):
            yield where, CaptionSample(**fields)

    def check(self, sample: CaptionSample) -> tuple[str, str] | None:
        if sample.image is None or (isinstance(sample.image, (str, bytes)) and not sample.image):
            return "an image", "none"
        if self.require_labels and not sample.captions:
            return "at least one caption", "none"
        for number, text in enumerate(sample.captions, start=1):
            name = f"captions {{}} (caption {number} of {len(sample.captions)})"
            if not isinstance(text, str) or not text.strip():
                return name.format("that are texts and not empty"), shorten(text)
            if is_broken(text):
                return name.format("of valid Unicode"), shorten(text)
            if (words := len(text.split())) > MOST_WORDS:
                return name.format(f"of at most {MOST_WORDS} words"), f"{words:,} words, {shorten(text, 40)}"
        return None

    def decode(self, sample: CaptionSample, where: str) -> None:
        try:
            load_image(sample.image)
        except DataError as error:
            raise DataError(where, "a readable image", str(error)) from None

    def identity(self, sample: CaptionSample) -> tuple[list[Any], list[Any]]:
        return [sample.id, sample.captions, [*sample.objects], sample.groundings], [sample.image]

    def facts(self, sample: CaptionSample, files: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = {"captions": len(sample.captions)}
        if sample.captions:
            found["words of the caption"] = len(sample.captions[0].split())
        return found | (size_facts(sample.image) if files else {})

    def preload(self, image: ImageProcessor, max_bytes: int = 2 << 30) -> bool:
        """Decode every image once, at the model's input size; boxes are moved with it.

        Args:
            image: The processor's image part.
            max_bytes: Upper bound of the memory.

        Returns:
            Whether the images were decoded; False if they exceed ``max_bytes``, and the data set is unchanged.
        """
        if len(self) * image.size[0] * image.size[1] * 3 > max_bytes:
            return False

        def load(sample: CaptionSample, where: str) -> CaptionSample:
            pixels, window = image.pixels(sample.image, name=where)
            groundings = [move_groundings(one, window) for one in sample.groundings]
            objects = [(moved, labels) for box, labels in sample.objects if (moved := move_box(box, window))]
            return dataclasses.replace(sample, image=pixels, groundings=groundings, objects=objects)

        self.preloaded(load)
        return True


def move_groundings(groundings: list[Grounding], window: Box) -> list[Grounding]:
    """The groundings of a caption relative to a window of the image, without boxes outside."""
    kept = [(span, [m for box in boxes if (m := move_box(box, window))]) for span, boxes in groundings]
    return [(span, boxes) for span, boxes in kept if boxes]
