"""From a picture to the classes of its pixels, with the processor that training used."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.files import named_pictures
from mmattn.data.image.processor import load_image
from mmattn.tasks.common.files import atomic_write
from mmattn.tasks.common.predictor import Predictor, check_source, listed, load_parts, picture_sample
from mmattn.tasks.segmentation.data import SegmentationDataset, SegmentationProcessor, SegmentationSample, collate
from mmattn.tasks.segmentation.model import SegmentationModel, best_classes, enlarge
from mmattn.tasks.segmentation.tiles import segment

Item = Mapping[str, Any] | SegmentationSample
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
    classes: Any  # the ClassList

    def save(self, path: str | Path) -> None:
        """Write a PNG: the picture, its classes, each gate's map, and the relevance."""
        from mmattn.tasks.segmentation.picture import draw

        # Gates are seldom far from open or shut: what differs is drawn, and how much it differs said.
        shown = [gate - gate.min() for gate in self.gates]
        titles = [f"{g.shape[1]} x {g.shape[0]}, {float(g.min()):.2g} to {float(g.max()):.2g}" for g in self.gates]
        titles = [f"looked at: {title}" for title in titles] + [f"speaks for {self.class_name}"]
        shares = ", ".join(f"{name} {share:.2f}" for name, share in list(self.answer.shares.items())[:4])
        draw(self.image, self.answer.labels, self.classes, [*shown, self.relevance], titles, shares, path)


class SegmentationPredictor(Predictor):
    """A segmentation model with its processor, ready to answer.

    Args:
        model: on its device, in evaluation mode.
        processor: the one it was trained with.
    """

    def __init__(self, model: SegmentationModel, processor: SegmentationProcessor) -> None:
        super().__init__(model, processor)
        self.model.to(memory_format=torch.channels_last)
        self.tile: int | None = TILE  # side of the tiles of larger pictures
        self.flip = False  # the mean of a picture and its mirror image
        self.masks: Path | None = None  # where `predict` writes PNGs of class ids
        self.overlays: Path | None = None  # where `predict` writes pictures with the classes over them
        self.class_name: str | None = None  # what `explain` asks about; none: the rarest class found
        self._written: dict[str, str] = {}

    # Answering --------------------------------------------------------------------------------------------------------

    def predict(self, items: Sequence[Item], batch_size: int = 32) -> list[SegmentationAnswer]:
        """Find the class of each pixel of each item; pictures of one size go through the model together.

        Args:
            items: mappings with `image` (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)) and, if
                wanted, `id`.
            batch_size: items at a time.

        Returns:
            An answer for each item, in order.

        Raises:
            DataError: a picture cannot be read; names the item.
        """
        items = listed(items)
        answers: list[SegmentationAnswer] = []
        for start in range(0, len(items), batch_size):
            samples = [
                picture_sample(item, start + n, SegmentationSample)
                for n, item in enumerate(items[start : start + batch_size])
            ]
            answers += self._answers(samples)
        return answers

    def _answers(self, samples: Sequence[SegmentationSample]) -> list[SegmentationAnswer]:
        batch = collate([SegmentationSample(s.id, s.image) for s in samples], self.processor)
        found: dict[int, np.ndarray] = {}
        for rows in batch.alike():
            (height, width), own = batch.sizes[rows[0]], batch.label_sizes[rows[0]]
            step = max(1, (TILE * TILE) // (height * width))  # large pictures one by one
            for part in (rows[i : i + step] for i in range(0, len(rows), step)):
                pixels = batch.pixel_values[part, :, :height, :width].to(self.device)
                with torch.inference_mode():
                    logits = segment(lambda x: self.model.scores(x)[0], pixels, self.tile, flip=self.flip)
                    classes = best_classes(logits, own).cpu().numpy()
                found |= dict(zip(part, classes, strict=True))
        return [self._answer(sample, found[n]) for n, sample in enumerate(samples)]

    def _answer(self, sample: SegmentationSample, labels: np.ndarray) -> SegmentationAnswer:
        names = self.processor.classes.names
        counts = np.bincount(labels.reshape(-1), minlength=len(names)) / labels.size
        shares = {names[k]: round(float(counts[k]), 4) for k in np.argsort(-counts, kind="stable") if counts[k] > 0}
        answer = SegmentationAnswer(sample.id, (labels.shape[1], labels.shape[0]), shares, labels)
        if self.masks is not None:
            from mmattn.tasks.segmentation.picture import mask_image

            answer.mask = self._write(self.masks, sample, mask_image(labels, self.processor.classes))
        if self.overlays is not None:
            from mmattn.tasks.segmentation.picture import coloured

            pixels = coloured(load_image(sample.image, f"item {sample.id}"), labels, len(names))
            answer.overlay = self._write(self.overlays, sample, pixels)
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

    def line(self, record: Mapping[str, Any]) -> str:
        """What `predict` prints of an answer: JSON without the pixels."""
        return json.dumps({key: value for key, value in record.items() if key != "labels"}, ensure_ascii=False)

    # Explaining -------------------------------------------------------------------------------------------------------

    def explain(self, item: Item) -> SegmentationExplanation:
        """Find the classes of one item's pixels and tell where the model looked."""
        sample = picture_sample(item, 0, SegmentationSample)
        answer = self._answers([sample])[0]
        names = list(self.processor.classes.names)
        name = self.class_name or list(answer.shares)[-1]
        if name not in names:
            raise DataError("--class_name", f"one of {', '.join(names)}", repr(name))
        pixels = collate([SegmentationSample(sample.id, sample.image)], self.processor).pixel_values
        gates, relevance = self.relevance(pixels.to(self.device), [names.index(name)])
        image = load_image(sample.image, f"item {sample.id}")
        first = [gate[0].cpu() for gate in gates]
        return SegmentationExplanation(answer, image, name, first, relevance[0].cpu(), self.processor.classes)

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

    def items(self, options: argparse.Namespace) -> list[SegmentationSample]:
        """The items that `predict` and `explain` are asked about.

        `--image`; `--input` a folder of pictures, found at any depth, or one with `images/` as for training;
        `--input demo`, eight scenes of the built-in test part.

        Raises:
            DataError: neither or both are given, or what is given cannot be read.
        """
        for name in ("masks", "overlays"):
            given = getattr(options, name, None)
            setattr(self, name, None if given is None else Path(given))
        self.flip, self.class_name = bool(getattr(options, "flip", False)), getattr(options, "class_name", None)
        if getattr(options, "tile", None) is not None:
            if options.tile < 32:
                raise DataError("--tile", "32 pixels or more", str(options.tile))
            self.tile = options.tile
        check_source(options, "image")
        if options.input is None:
            return [SegmentationSample(Path(options.image).name, options.image)]
        path = Path(options.input)
        if options.input == "demo" and not path.exists():
            from mmattn.tasks.segmentation.demo import make

            return make("test", 8)
        if not path.is_dir():
            raise DataError(str(path), "a folder of pictures", "a file" if path.exists() else "no such folder")
        if (path / "images").is_dir():
            return SegmentationDataset(path, on_error=options.on_error, require_masks=False).samples
        return [SegmentationSample(*picture) for picture in named_pictures(path)]

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


def load(
    directory: str | Path | None = None, device: str = "auto", precision: str | None = None
) -> SegmentationPredictor:
    """Load a shipped segmentation model: the one in the package, or that of a folder.

    Args:
        directory: a `model/` folder of a run, or any copy of one; a public SegFormer's; or hf:owner/name.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: as of `tasks.load`.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    parts = load_parts("segmentation", directory, device, SegmentationModel, SegmentationProcessor, precision)
    return SegmentationPredictor(*parts)
