"""Predictions and explanations of segmentation from images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import ConfigError, DataError
from mmattn.data.image.masks import VOID, load_mask
from mmattn.data.image.processor import image_size, load_image
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.images import claim_pngs, image_files, image_sample
from mmattn.tasks.common.items import listed
from mmattn.tasks.common.outputs import save_png
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.segmentation.data import Prepared, SegmentationBatch, SegmentationDataset, SegmentationSample
from mmattn.tasks.segmentation.model import SegmentationModel, best_classes, enlarge
from mmattn.tasks.segmentation.plot import (
    SegmentationExplanation,
    SegmentationPrediction,
    colored,
    mask_image,
    with_legend,
)
from mmattn.tasks.segmentation.processor import SegmentationProcessor
from mmattn.tasks.segmentation.tiles import bands

Item = Any  # see `image_sample`
TILE = 1024  # default side of the tiles into which larger images are split, in pixels


class SegmentationPredictor(Predictor[Item, SegmentationPrediction]):
    """Predictor of segmentation.

    Items are images (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), or mappings with `image` and,
    optionally, `id`.
    """

    task = "segmentation"
    graded_by = "pixel accuracy"

    def __init__(
        self, model: SegmentationModel, processor: SegmentationProcessor, parts: CheckpointParts | None = None
    ) -> None:
        super().__init__(model.to(memory_format=torch.channels_last), processor, parts)

    def to_sample(self, item: Item, number: int) -> SegmentationSample:
        return replace(image_sample(item, number, SegmentationSample), mask=None)

    def truth(self, item: Item) -> np.ndarray | None:
        if not isinstance(item, SegmentationSample) or item.mask is None:
            return None
        if isinstance(item, Prepared):
            return np.asarray(item.mask)
        with suppress(DataError):  # a mask of other classes is none
            return self.processor.classes.labels(load_mask(item.mask))
        return None

    def grade(self, item: Item, truth: np.ndarray, prediction: SegmentationPrediction) -> float:
        labeled = truth != VOID
        return float((truth == prediction.labels)[labeled].mean()) if labeled.any() else 1.0

    def words_of(self, truth: np.ndarray) -> str:
        labeled = truth[truth != VOID][None]
        return self.answer_of(self._answer(SegmentationSample("", None), labeled)) if labeled.size else ""

    def answer_of(self, prediction: SegmentationPrediction) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in list(prediction.shares.items())[:4])

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if options.get("tile", TILE) < 32:
            raise DataError("--tile", "32 pixels or more", str(options["tile"]))
        if options.get("class_name", self.processor.labels[0]) not in self.processor.labels:
            known = ", ".join(self.processor.labels)
            raise DataError("--class_name", f"one of {known}", repr(options["class_name"]))
        return super().check_options(options)

    def extent(self, sample: SegmentationSample) -> tuple[int, int]:
        with suppress(DataError):  # reported when the image is read
            width, height = self.processor.working_size(*image_size(sample.image))
            return height, width
        return 0, 0

    def predict_batch(
        self,
        samples: Sequence[SegmentationSample],
        batch: SegmentationBatch,
        *,
        tile: int = TILE,
        flip: bool = False,
    ) -> list[SegmentationPrediction]:
        """Predict the class of each pixel; images of the same size are run through the model together.

        Args:
            samples: See `Predictor.predict_batch`.
            batch: See `Predictor.predict_batch`.
            tile: Side of the tiles into which larger images are split, in pixels.
            flip: Whether to average the logits of an image and of its mirror image.
        """
        found: dict[int, np.ndarray] = {}
        for rows in batch.alike():
            (height, width), own = batch.sizes[rows[0]], batch.label_sizes[rows[0]]
            step = max(1, (TILE * TILE) // (height * width))  # large images are processed one by one
            for part in (rows[i : i + step] for i in range(0, len(rows), step)):
                pixels = batch.pixel_values[part, :, :height, :width]
                logits = bands(lambda x: self.model.scores(x)[0], pixels, tile, flip=flip)
                if own == (height, width) and max(own) > tile:  # neither resized nor of lower resolution
                    labels = torch.cat([best_classes(band, band.shape[2:]) for band in logits], 1)
                else:
                    labels = best_classes(torch.cat(list(logits), 2), own)
                found |= dict(zip(part, labels.cpu().numpy(), strict=True))
        return [self._answer(sample, found[n]) for n, sample in enumerate(samples)]

    def _answer(self, sample: SegmentationSample, labels: np.ndarray) -> SegmentationPrediction:
        names = self.processor.classes.names
        counts = np.bincount(labels.reshape(-1), minlength=len(names)) / labels.size
        shares = {names[k]: round(float(counts[k]), 4) for k in np.argsort(-counts, kind="stable") if counts[k] > 0}
        return SegmentationPrediction(sample.id, (labels.shape[1], labels.shape[0]), shares, labels)

    def stream(
        self,
        items: Sequence[Item],
        batch_size: int | None = None,
        on_error: str = "raise",
        *,
        masks: str | Path | None = None,
        overlays: str | Path | None = None,
        **options: Any,
    ) -> Iterator[SegmentationPrediction | Exception]:
        """Yield the predictions one by one, see `Predictor.stream`, and write PNGs named after the items.

        Args:
            items: See `Predictor.predict`.
            batch_size: See `Predictor.predict`.
            on_error: See `Predictor.predict`.
            masks: Folder for PNGs of class ids, one per image.
            overlays: Folder for images overlaid with the predicted classes, with a legend below; another one.
            options: Options of `predict_batch`.
        """
        items = listed(items)
        named = {"mask": masks, "overlay": overlays}
        if masks is not None and overlays is not None and os.path.realpath(masks) == os.path.realpath(overlays):
            raise ConfigError(f"--overlays {overlays}: expected another folder than that of --masks.")
        files = claim_pngs(self, items, named)
        for number, found in enumerate(super().stream(items, batch_size, on_error, **options)):
            for kind, path in files.get(number, {}).items():
                if not isinstance(found, Exception):
                    save_png(path, self._image(kind, found, self.to_sample(items[number], number)).save)
                    setattr(found, kind, str(path))
            yield found

    def _image(self, kind: str, answer: SegmentationPrediction, sample: SegmentationSample) -> Any:
        if kind == "mask":
            return mask_image(answer.labels, self.processor.classes)
        image = load_image(sample.image, f"item {answer.id}")
        overlay = colored(image, answer.labels, len(self.processor.labels))
        return with_legend(
            overlay, [self.processor.labels.index(name) for name in answer.shares], self.processor.classes
        )

    def explain_batch(
        self,
        samples: Sequence[SegmentationSample],
        batch: SegmentationBatch,
        *,
        tile: int = TILE,
        flip: bool = False,
        class_name: str | None = None,
    ) -> list[SegmentationExplanation]:
        """Compute the attention of each image and its relevance for one class.

        The class is `class_name`, by default the rarest in the image; see `predict_batch` for `tile` and `flip`.
        """
        with torch.inference_mode():
            answers = self.predict_batch(samples, batch, tile=tile, flip=flip)
        explanations = []
        for n, answer in enumerate(answers):
            name = class_name or list(answer.shares)[-1]
            height, width = batch.sizes[n]
            pixels = batch.pixel_values[n : n + 1, :, :height, :width]
            gates, relevance = self.relevance(pixels, [self.processor.labels.index(name)])
            maps = ([gate[0].cpu() for gate in gates], relevance[0].cpu())
            image = load_image(samples[n].image, f"item {answer.id}")
            known = (self.processor.classes, self.model.encoder is not None)
            explanations.append(SegmentationExplanation(answer, image, name, *maps, *known))
        return explanations

    def relevance(self, pixel_values: Tensor, classes: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Attention maps, and their relevance for a class.

        The score of a class is the sum of its logits over the pixels for which it is predicted. The relevance is the
        positive part of each map times its gradient, interpolated to the image and summed over the maps.

        Args:
            pixel_values: (B, 3, H, W).
            classes: The class to explain, one for each image.

        Returns:
            The maps (B, h, w), the finest first, and the relevance (B, H, W).

        Raises:
            DataError: The model has neither gates nor attention.
        """
        from mmattn.explain import capture

        with capture(self.model, differentiable=True) as maps:
            logits = self.model(pixel_values).logits  # (B, K, H, W)
            for calls in maps.values():
                calls[0].retain_grad()
            chosen = torch.as_tensor(classes, device=logits.device)[:, None, None]
            own = logits.take_along_dim(chosen[:, None], 1)[:, 0]  # (B, H, W)
            there = logits.argmax(1) == chosen  # (B, H, W)
            # If the class is predicted for no pixel, its logits are summed over all pixels.
            there = there | ~there.flatten(1).any(1)[:, None, None]
            (own * there).sum().backward()
        size = pixel_values.shape[2:]
        try:
            gates = self.model.attention_maps(maps, size)
        except ValueError as error:
            raise DataError("explain", "a model with gates or attention", str(error)) from None
        evidence = self.model.attention_maps(maps, size, gradients=True)
        self.model.zero_grad(set_to_none=True)
        return gates, torch.stack([enlarge(level[:, None], size)[:, 0] for level in evidence]).sum(0)

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> list[SegmentationSample]:
        """Read an image, or a folder's at any depth, or a folder with `images/` as for training."""
        folder = Path(path)
        if (folder / "images").is_dir():
            return SegmentationDataset(path, on_error=on_error, require_labels=False).samples
        if not (images := image_files(folder)):
            raise DataError(path, "a folder of images", "another file" if folder.exists() else "no such folder")
        return [SegmentationSample(*image) for image in images]

    def demo_samples(self) -> list[SegmentationSample]:
        """Eight scenes of the built-in test split."""
        from mmattn.tasks.segmentation.demo import make

        return make("test", 8)

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic batch and image sizes, compared with the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        unit = self.model.unit
        sizes = {2: unit * Dim("rows", min=2, max=512), 3: unit * Dim("columns", min=2, max=512)}
        dynamic = {"pixel_values": {0: Dim("batch", max=4096), **sizes}}
        examples = [self._example(*shape) for shape in ((2, 3, 4), (1, 5, 2), (3, 2, 7))]
        lines = export_model(self.model, examples, dynamic, folder, "segmentation", formats)
        return [*lines, f"The programs accept images whose sides are multiples of {unit} pixels."]

    def _example(self, batch: int, rows: int, columns: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        unit = self.model.unit
        return {"pixel_values": torch.randn(batch, 3, rows * unit, columns * unit, generator=generator)}


load = SegmentationPredictor.load
