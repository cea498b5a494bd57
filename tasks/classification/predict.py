"""From a picture to its class, with the processor that training used."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.files import named_pictures
from mmattn.tasks.classification.data import (
    ClassificationDataset,
    ClassificationProcessor,
    ClassificationSample,
    collate,
    image_source,
)
from mmattn.tasks.classification.model import ClassificationModel
from mmattn.tasks.common.predictor import Predictor, check_source, listed, load_parts, picture_sample

Item = Mapping[str, Any] | ClassificationSample


@dataclass
class ClassificationAnswer:
    """What the model says of one picture."""

    id: str
    label: str  # the likeliest class
    score: float  # its probability, 0..1
    alternatives: list[tuple[str, float]] = field(default_factory=list)  # the next best, with theirs
    labels: list[str] | None = None  # where classes do not exclude each other: all of at least one half


@dataclass
class ClassificationExplanation:
    """Where the model read a class off its picture."""

    answer: ClassificationAnswer
    image: Any  # a PIL image
    relevance: Tensor  # (gh, gw) over the model's grid, sums to one
    attention: Tensor | None  # likewise, where the pooling looks, over its own grid; none where none attends
    window: tuple[float, float, float, float]  # the part of the picture that the grid covers, xyxy in 0..1
    regions: list[tuple[float, float, float, float]] = field(
        default_factory=list
    )  # where the class does rest, if known

    def save(self, path: str | Path) -> None:
        """Write a PNG: the picture, and the relevance laid over it."""
        from mmattn.plot import overlay

        title = f"{self.answer.label} ({self.answer.score:.2f})"
        maps = {"relevance": self.relevance} | ({} if self.attention is None else {"attention": self.attention})
        boxes = self.regions or None
        overlay(self.image, list(maps.values()), path, title, boxes, titles=list(maps), window=self.window)


class ClassificationPredictor(Predictor):
    """A classification model with its processor, ready to answer.

    Args:
        model: on its device, in evaluation mode.
        processor: the one it was trained with.
    """

    def __init__(self, model: ClassificationModel, processor: ClassificationProcessor) -> None:
        super().__init__(model, processor)
        self.top_k = 1  # how many classes `predict` gives to a picture

    # Answering --------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, items: Sequence[Item], batch_size: int = 32) -> list[ClassificationAnswer]:
        """Name the class of each item.

        Args:
            items: mappings with `image` (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)) and, if
                wanted, `id`.
            batch_size: items at a time.

        Returns:
            An answer for each item, in order, with `self.top_k - 1` alternatives.

        Raises:
            DataError: a picture cannot be read; names the item.
        """
        items = listed(items)
        answers: list[ClassificationAnswer] = []
        for start in range(0, len(items), batch_size):
            samples = [
                picture_sample(item, start + n, ClassificationSample)
                for n, item in enumerate(items[start : start + batch_size])
            ]
            batch = collate(samples, self.processor).to(self.device)
            answers += self._answers(samples, self.model(batch.pixel_values).logits)
        return answers

    def _answers(self, samples: Sequence[ClassificationSample], logits: Tensor) -> list[ClassificationAnswer]:
        multi_label = self.processor.multi_label
        scores = logits.float().sigmoid() if multi_label else logits.float().softmax(-1)
        best, order = scores.topk(min(self.top_k, scores.shape[1]))
        answers = []
        for sample, row, top, ids in zip(samples, scores.tolist(), best.tolist(), order.tolist(), strict=True):
            named = [(self.processor.labels[i], round(score, 4)) for i, score in zip(ids, top, strict=True)]
            found = [label for label, score in zip(self.processor.labels, row, strict=True) if score >= 0.5]
            answers.append(ClassificationAnswer(sample.id, *named[0], named[1:], found if multi_label else None))
        return answers

    def explain(self, item: Item) -> ClassificationExplanation:
        """Name the class of one item and tell where it was read off."""
        from mmattn.data.image.processor import load_image

        return self.explain_batch([item], image=load_image)[0]

    def explain_batch(self, items: Sequence[Item], image: Any = None) -> list[ClassificationExplanation]:
        """Explain several items in one pass; `image` loads the pictures to draw on (none: they are left out).

        Raises:
            DataError: a picture cannot be read; or this model attends to nothing.
        """
        samples = [picture_sample(item, n, ClassificationSample) for n, item in enumerate(items)]
        batch = collate(samples, self.processor).to(self.device)
        with torch.no_grad():
            logits = self.model(batch.pixel_values).logits
        try:
            relevance = self.model.relevance(batch.pixel_values, logits.argmax(-1)).detach().cpu()  # (B, gh, gw)
        except ValueError as error:
            raise DataError("explain", "a model that attends to the picture", str(error)) from None
        attention = self.model.attention_map(batch.pixel_values)
        explanations = []
        for n, (sample, answer) in enumerate(zip(samples, self._answers(samples, logits), strict=True)):
            picture = image(image_source(sample), name=f"item {sample.id}") if image else None
            window = self.processor.image.window(picture.size) if picture else (0.0, 0.0, 1.0, 1.0)
            looked = None if attention is None else attention[n].cpu()
            regions = list(sample.regions)
            explanations.append(ClassificationExplanation(answer, picture, relevance[n], looked, window, regions))
        return explanations

    # The command line -------------------------------------------------------------------------------------------------

    def items(self, options: argparse.Namespace) -> list[ClassificationSample]:
        """The items that `predict` and `explain` are asked about.

        `--image`; `--input` a folder, whose pictures are found at any depth; `--input` a tar or a table in a format
        for training (labels may be missing); `--input demo`, two pictures of each class of the built-in test.

        Raises:
            DataError: neither or both are given, or what is given cannot be read.
        """
        self.top_k = getattr(options, "top_k", 1)
        check_source(options, "image")
        if options.input is None:
            return [ClassificationSample(str(options.image), options.image)]
        path = Path(options.input)
        if options.input == "demo" and not path.exists():
            return demo_samples()
        if not path.is_dir():
            labels = {"multi_label": self.processor.multi_label, "require_labels": False}
            return ClassificationDataset(path, on_error=options.on_error, **labels).samples
        return [ClassificationSample(*picture) for picture in named_pictures(path)]

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the model as torch.export and ONNX programs, the batch free, checked against it."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        dynamic = {"pixel_values": {0: Dim("batch", max=4096)}}
        examples = [self._example(batch) for batch in (2, 1, 5)]
        return export_model(self.model, examples, dynamic, folder, "classification", formats)

    def _example(self, batch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        return {"pixel_values": torch.randn(batch, 3, *self.processor.image.size, generator=generator)}


def demo_samples() -> list[ClassificationSample]:
    """Two pictures of each class of the built-in test part."""
    from mmattn.tasks.classification.demo import CLASSES, make

    return make("test", 2 * len(CLASSES))


def load(
    directory: str | Path | None = None, device: str = "auto", precision: str | None = None
) -> ClassificationPredictor:
    """Load a shipped classification model: the one in the package, or that of a folder.

    Args:
        directory: a `model/` folder of a run, or any copy of one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: as of `tasks.load`.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    parts = load_parts("classification", directory, device, ClassificationModel, ClassificationProcessor, precision)
    return ClassificationPredictor(*parts)
