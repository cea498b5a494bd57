"""From a picture to the classes of its pixels, with the processor that training used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.files import named_pictures
from mmattn.data.image.masks import ClassList
from mmattn.data.image.processor import load_image
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.files import atomic_write
from mmattn.tasks.common.images import image_sample
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.segmentation.data import SegmentationBatch, SegmentationDataset, SegmentationSample
from mmattn.tasks.segmentation.model import SegmentationModel, best_classes, enlarge
from mmattn.tasks.segmentation.processor import SegmentationProcessor
from mmattn.tasks.segmentation.tiles import segment

Item = Any  # see `image_sample`
TILE = 1024  # pictures larger than this are cut into tiles, unless told otherwise


@dataclass
class SegmentationAnswer:
    """The classes of a picture's pixels."""

    id: str
    size: tuple[int, int]  # width and height of the picture
    shares: dict[str, float]  # the share of the pixels of each class that was found, the largest first
    labels: np.ndarray  # (H, W) uint8, places in the processor's class list
    mask: str | None = None  # the PNG that was written, if one was wanted
    overlay: str | None = None  # likewise


@dataclass
class SegmentationExplanation:
    """Where the model looked."""

    answer: SegmentationAnswer
    image: Any  # a PIL image
    class_name: str  # what `relevance` is about
    gates: list[Tensor]  # (h, w) each: how far each gate was open, the finest first; or how much keys were looked at
    relevance: Tensor  # (h, w) at the model's size: what of it spoke for the class
    classes: ClassList

    def save(self, path: str | Path) -> None:
        """Write a PNG: the picture, its classes, each gate's map, and the relevance."""
        from mmattn.tasks.segmentation.picture import draw

        # Gates are seldom far from open or shut: what differs is drawn, and how much it differs said.
        shown = [gate - gate.min() for gate in self.gates]
        titles = [f"{g.shape[1]} x {g.shape[0]}, {float(g.min()):.2g} to {float(g.max()):.2g}" for g in self.gates]
        titles = [f"looked at: {title}" for title in titles] + [f"speaks for {self.class_name}"]
        shares = ", ".join(f"{name} {share:.2f}" for name, share in list(self.answer.shares.items())[:4])
        draw(self.image, self.answer.labels, self.classes, [*shown, self.relevance], titles, shares, path)


class SegmentationPredictor(Predictor[Item, SegmentationAnswer]):
    """A segmentation model with its processor, ready to answer.

    Items are images (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), or mappings with `image` and,
    if wanted, `id`.
    """

    task = "segmentation"

    def __init__(
        self, model: SegmentationModel, processor: SegmentationProcessor, parts: CheckpointParts | None = None
    ) -> None:
        super().__init__(model.to(memory_format=torch.channels_last), processor, parts)
        self._written: dict[str, str] = {}

    def to_sample(self, item: Item, number: int) -> SegmentationSample:
        return replace(image_sample(item, number, SegmentationSample), mask=None)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if options.get("tile", TILE) < 32:
            raise DataError("--tile", "32 pixels or more", str(options["tile"]))
        if options.get("class_name", self.processor.labels[0]) not in self.processor.labels:
            known = ", ".join(self.processor.labels)
            raise DataError("--class_name", f"one of {known}", repr(options["class_name"]))
        return super().check_options(options)

    # Answering --------------------------------------------------------------------------------------------------------

    def predict_batch(
        self,
        samples: Sequence[SegmentationSample],
        batch: SegmentationBatch,
        *,
        tile: int = TILE,
        flip: bool = False,
        masks: str | Path | None = None,
        overlays: str | Path | None = None,
    ) -> list[SegmentationAnswer]:
        """The class of each pixel of each picture; pictures of one size go through the model together.

        Args:
            samples: the pictures.
            batch: their tensors.
            tile: side of the tiles of larger pictures, in pixels.
            flip: the mean of a picture and its mirror image.
            masks: folder for PNGs of class ids, one a picture.
            overlays: folder for pictures with the classes laid over them.
        """
        found: dict[int, np.ndarray] = {}
        for rows in batch.alike():
            (height, width), own = batch.sizes[rows[0]], batch.label_sizes[rows[0]]
            step = max(1, (TILE * TILE) // (height * width))  # large pictures one by one
            for part in (rows[i : i + step] for i in range(0, len(rows), step)):
                pixels = batch.pixel_values[part, :, :height, :width]
                logits = segment(lambda x: self.model.scores(x)[0], pixels, tile, flip=flip)
                found |= dict(zip(part, best_classes(logits, own).cpu().numpy(), strict=True))
        return [self._answer(sample, found[n], masks, overlays) for n, sample in enumerate(samples)]

    def _answer(
        self, sample: SegmentationSample, labels: np.ndarray, masks: Any = None, overlays: Any = None
    ) -> SegmentationAnswer:
        names = self.processor.classes.names
        counts = np.bincount(labels.reshape(-1), minlength=len(names)) / labels.size
        shares = {names[k]: round(float(counts[k]), 4) for k in np.argsort(-counts, kind="stable") if counts[k] > 0}
        answer = SegmentationAnswer(sample.id, (labels.shape[1], labels.shape[0]), shares, labels)
        if masks is not None:
            from mmattn.tasks.segmentation.picture import mask_image

            answer.mask = self._write(Path(masks), sample, mask_image(labels, self.processor.classes))
        if overlays is not None:
            from mmattn.tasks.segmentation.picture import coloured

            pixels = coloured(load_image(sample.image, f"item {sample.id}"), labels, len(names))
            answer.overlay = self._write(Path(overlays), sample, pixels)
        return answer

    def _write(self, folder: Path, sample: SegmentationSample, picture: Any) -> str:
        """Writes a PNG under the item's name; one that another item has already gets its ending too."""
        from PIL import Image

        name = Path(sample.id)
        target = folder / name.with_suffix(".png")
        if self._written.setdefault(str(target), sample.id) != sample.id:
            target = folder / f"{name}.png"
        with atomic_write(target) as file:
            (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, "PNG")
        return str(target)

    # Explaining -------------------------------------------------------------------------------------------------------

    def explain_batch(
        self,
        samples: Sequence[SegmentationSample],
        batch: SegmentationBatch,
        *,
        tile: int = TILE,
        flip: bool = False,
        class_name: str | None = None,
    ) -> list[SegmentationExplanation]:
        """The classes of each picture's pixels, where the model looked, and what spoke for a class.

        Args:
            samples: the pictures.
            batch: their tensors.
            tile: as of `predict_batch`.
            flip: likewise.
            class_name: the class to explain; none: the rarest in the picture.
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
            explanations.append(SegmentationExplanation(answer, image, name, *maps, self.processor.classes))
        return explanations

    def relevance(self, pixel_values: Tensor, classes: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Where the model looked, and what of it spoke for a class.

        The score of a class is the sum of its logits where it is the best; each gate's map times its gradient, where
        positive, says which cells let pass what raised it; the levels are enlarged and added.

        Args:
            pixel_values: (B, 3, H, W).
            classes: one a picture.

        Returns:
            The maps (B, h, w), the finest first, and the relevance (B, H, W).

        Raises:
            DataError: the model has nothing to look with.
        """
        from mmattn.explain import capture

        with capture(self.model, differentiable=True) as maps:
            logits = self.model(pixel_values).logits  # (B, K, H, W)
            for calls in maps.values():
                calls[0].retain_grad()
            best = logits.argmax(1)  # (B, H, W)
            rows = torch.arange(len(classes), device=logits.device)
            own = logits[rows, torch.as_tensor(classes, device=logits.device)]  # (B, H, W)
            there = best == torch.as_tensor(classes, device=logits.device)[:, None, None]
            # Where the class is nowhere the best, all its scores count: what would have spoken for it.
            there = there | ~there.flatten(1).any(1)[:, None, None]
            (own * there).sum().backward()
        size = pixel_values.shape[2:]
        try:
            gates = self.model.looked_at(maps, size)
        except ValueError as error:
            raise DataError("explain", "a model that looks somewhere", str(error)) from None
        spoke = self.model.looked_at(maps, size, gradients=True)
        self.model.zero_grad(set_to_none=True)
        return gates, torch.stack([enlarge(level[:, None], size)[:, 0] for level in spoke]).sum(0)

    # The command line -------------------------------------------------------------------------------------------------

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> list[SegmentationSample]:
        """A folder of pictures, found at any depth; or one with `images/` as for training."""
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(path, "a folder of pictures", "a file" if folder.exists() else "no such folder")
        if (folder / "images").is_dir():
            return SegmentationDataset(path, on_error=on_error, require_labels=False).samples
        return [SegmentationSample(*picture) for picture in named_pictures(folder)]

    def demo_samples(self) -> list[SegmentationSample]:
        """Eight scenes of the built-in test part."""
        from mmattn.tasks.segmentation.demo import make

        return make("test", 8)

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the model as torch.export and ONNX programs, batch and picture size free, checked against it."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        unit = self.model.unit
        sizes = {2: unit * Dim("rows", min=2, max=512), 3: unit * Dim("columns", min=2, max=512)}
        dynamic = {"pixel_values": {0: Dim("batch", max=4096), **sizes}}
        examples = [self._example(*shape) for shape in ((2, 3, 4), (1, 5, 2), (3, 2, 7))]
        lines = export_model(self.model, examples, dynamic, folder, "segmentation", formats)
        return [*lines, f"The programs take pictures whose sides are multiples of {unit} pixels."]

    def _example(self, batch: int, rows: int, columns: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        unit = self.model.unit
        return {"pixel_values": torch.randn(batch, 3, rows * unit, columns * unit, generator=generator)}


load = SegmentationPredictor.load
