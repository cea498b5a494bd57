"""Predictions and explanations of classification from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.processor import Box, load_image
from mmattn.tasks.classification.data import ClassificationBatch, ClassificationDataset, ClassificationSample
from mmattn.tasks.classification.model import classify
from mmattn.tasks.common.images import image_files, image_sample
from mmattn.tasks.common.labels.processor import LabelPrediction
from mmattn.tasks.common.predictor import Predictor

Item = Any  # see `image_sample`
ClassificationPrediction = LabelPrediction


@dataclass
class ClassificationExplanation:
    """The relevance of image regions for the predicted class."""

    prediction: ClassificationPrediction
    image: Any  # a PIL image
    relevance: Tensor  # (gh, gw) over the model's grid, sums to one
    attention: Tensor | None  # attention of the pooling over its grid, sums to one; None without attention pooling
    window: Box  # the part of the image that the grid covers, xyxy in 0..1
    regions: list[Box] = field(default_factory=list)  # the regions that determine the class, if annotated
    truth: str | None = None  # its class, if it is known

    def save(self, path: str | Path) -> None:
        """Write a PNG of the image and of the relevance overlaid on it."""
        from mmattn.plot import caption, overlay

        title = caption(self.prediction.id, f"{self.prediction.label} ({self.prediction.score:.2f})", self.truth)
        maps = {"relevance": self.relevance} | ({} if self.attention is None else {"attention": self.attention})
        boxes = self.regions or None
        overlay(self.image, list(maps.values()), path, title, boxes, titles=list(maps), window=self.window)


class ClassificationPredictor(Predictor[Item, ClassificationPrediction]):
    """Predictor of image classification.

    Items are images (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), or mappings with `image` and,
    optionally, `id`.
    """

    task = "classification"

    def to_sample(self, item: Item, number: int) -> ClassificationSample:
        return replace(image_sample(item, number, ClassificationSample), labels=[])  # they may be unknown classes

    def grade(self, item: Item, truth: str, prediction: ClassificationPrediction) -> float:
        if prediction.labels is None:
            return super().grade(item, truth, prediction)
        true, found = set(item.labels), set(prediction.labels)
        return len(true & found) / len(true | found)

    def answer_of(self, prediction: ClassificationPrediction) -> str:
        return prediction.label if prediction.labels is None else ", ".join(prediction.labels)

    def predict_batch(
        self, samples: Sequence[ClassificationSample], batch: ClassificationBatch, *, top_k: int = 1, flip: bool = False
    ) -> list[ClassificationPrediction]:
        """Predict the class of each image, with `top_k - 1` alternatives; with `flip` of it and its mirror image."""
        logits = classify(self.model, batch.pixel_values, flip)
        return self.processor.named(samples, logits, top_k)  # type: ignore[no-any-return]

    def explain_batch(
        self, samples: Sequence[ClassificationSample], batch: ClassificationBatch
    ) -> list[ClassificationExplanation]:
        """Compute the relevance of each image's regions for its predicted class."""
        with torch.no_grad():
            logits = self.model(batch.pixel_values).logits
        try:
            relevance = self.model.relevance(batch.pixel_values, logits.argmax(-1)).detach().cpu()  # (B, gh, gw)
        except ValueError as error:
            raise DataError("explain", "a model that attends to the image", str(error)) from None
        attention = self.model.attention_map(batch.pixel_values)
        explanations = []
        for n, answer in enumerate(self.processor.named(samples, logits)):
            image = load_image(samples[n].image, name=f"item {answer.id}")
            attention_map = None if attention is None else attention[n].cpu()
            window, regions = self.processor.image.window(image.size), list(samples[n].regions)
            explanations.append(ClassificationExplanation(answer, image, relevance[n], attention_map, window, regions))
        return explanations

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> list[ClassificationSample]:
        """Read an image, or a folder's at any depth; or a tar or a table as for training, whose labels are optional."""
        if images := image_files(path):
            return [ClassificationSample(*image) for image in images]
        multi_label = self.processor.multi_label
        return ClassificationDataset(path, multi_label=multi_label, on_error=on_error, require_labels=False).samples

    def demo_samples(self) -> list[ClassificationSample]:
        """Two images of each class of the built-in test split."""
        from mmattn.tasks.classification.demo import CLASSES, make

        return make("test", 2 * len(CLASSES))

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic batch size, compared with the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        dynamic = {"pixel_values": {0: Dim("batch", max=4096)}}
        examples = [self._example(batch) for batch in (2, 1, 5)]
        return export_model(self.model, examples, dynamic, folder, "classification", formats)

    def _example(self, batch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        return {"pixel_values": torch.randn(batch, 3, *self.processor.image.size, generator=generator)}


load = ClassificationPredictor.load
