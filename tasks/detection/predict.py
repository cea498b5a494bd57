"""Predictions and explanations of detection from images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest
from mmattn.data.image.processor import image_size, load_image
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.images import claim_pngs, image_files, image_sample
from mmattn.tasks.common.items import listed
from mmattn.tasks.common.outputs import save_png
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.detection.boxes import Detections, Truth
from mmattn.tasks.detection.data import DetectionBatch, DetectionDataset, DetectionSample
from mmattn.tasks.detection.detect import detect, detections, in_sizes, in_tiles
from mmattn.tasks.detection.matching import match
from mmattn.tasks.detection.model import DetectionModel
from mmattn.tasks.detection.plot import DetectedBox, DetectionExplanation, DetectionPrediction, Reading, drawn, summary
from mmattn.tasks.detection.processor import DetectionProcessor

Item = Any  # see `image_sample`
FORMATS = ("jsonl", "coco")


class DetectionPredictor(Predictor[Item, DetectionPrediction]):
    """Predictor of object detection.

    Items are images (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), or mappings with `image` and,
    optionally, `id`.
    """

    task = "detection"
    batch_size = 8
    graded_by = "F1 of boxes at IoU 0.5"

    def __init__(
        self, model: DetectionModel, processor: DetectionProcessor, parts: CheckpointParts | None = None
    ) -> None:
        super().__init__(model.to(memory_format=torch.channels_last), processor, parts)

    def to_sample(self, item: Item, number: int) -> DetectionSample:
        # Annotations may be of other classes.
        return replace(image_sample(item, number, DetectionSample), boxes_xyxy=None, labels=[], crowd=None, area=None)

    def truth(self, item: Item) -> Truth | None:
        if not isinstance(item, DetectionSample) or item.boxes_xyxy is None:
            return None
        with suppress(DataError):  # boxes of other classes are none
            return self.processor.truth(self.processor.prepare(item))
        return None

    def grade(self, item: Item, truth: Truth, prediction: DetectionPrediction) -> float:
        names = self.processor.labels
        boxes = torch.tensor([box.box_xyxy for box in prediction.boxes], dtype=torch.float64).reshape(-1, 4)
        labels = torch.tensor([names.index(box.label) for box in prediction.boxes], dtype=torch.long)
        scores = torch.tensor([box.score for box in prediction.boxes], dtype=torch.float64)
        found, ignored = match(Detections(boxes, scores, labels), truth)
        hits, count = int((found >= 0).sum()), int((~ignored).sum()) + int((~truth.crowd).sum())
        return 2 * hits / count if count else 1.0

    def words_of(self, truth: Truth) -> str:
        names = self.processor.labels
        boxes = [
            DetectedBox(names[label], 1.0, tuple(box))
            for label, box, crowd in zip(truth.labels, truth.boxes_xyxy.tolist(), truth.crowd, strict=True)
            if not crowd
        ]
        return summary(DetectionPrediction("", (0, 0), boxes))

    def answer_of(self, prediction: DetectionPrediction) -> str:
        return summary(prediction)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        least = self.processor.multiple
        if (options.get("tile") or least) < least:
            raise DataError("--tile", f"{least} pixels or more", str(options["tile"]))
        if not 0 <= (options.get("threshold") or 0) <= 1:
            raise DataError("--threshold", "a score from 0 to 1", str(options["threshold"]))
        kind = options.get("format") or FORMATS[0]
        if kind not in FORMATS:
            raise DataError("--format", f"one of {', '.join(FORMATS)}", f"{kind!r}{nearest(str(kind), FORMATS)}")
        return super().check_options(options)

    def extent(self, sample: DetectionSample) -> tuple[int, int]:
        with suppress(DataError):  # reported when the image is read
            width, height = self.processor.working_size(*image_size(sample.image))
            return height, width
        return 0, 0

    def predict_batch(
        self,
        samples: Sequence[DetectionSample],
        batch: DetectionBatch,
        *,
        threshold: float | None = None,
        tile: int | None = None,
        format: str = FORMATS[0],
    ) -> list[DetectionPrediction]:
        """Find the objects of each image.

        Args:
            samples: See `Predictor.predict_batch`.
            batch: See `Predictor.predict_batch`.
            threshold: Score of all classes from which boxes are kept; None: each class's own, see the processor.
            tile: Side of the tiles into which larger images are split, in pixels of the original images; their boxes
                are joined with those of the whole image. None: images are not split.
            format: "coco" keeps all boxes, of which COCO's evaluation makes a curve, unless there is a threshold.
        """
        if format == "coco" and threshold is None:
            threshold = 0.0
        found = self.detect(batch)
        for n, sample in enumerate(samples):
            if tile is not None and max(batch.original_sizes[n]) > tile:
                image = np.asarray(load_image(sample.image, f"item {sample.id}"))
                found[n] = in_tiles(image, tile, self._detect_images)
        sizes = batch.original_sizes
        return [self._answer(sample, found[n], sizes[n], threshold) for n, sample in enumerate(samples)]

    def detect(self, batch: DetectionBatch) -> list[Detections]:
        """The boxes of each image of a batch in pixels of the original ones, without a threshold."""
        return detect(self.model, self.processor, batch)

    def _detect_images(self, images: list[np.ndarray]) -> list[Detections]:
        found = []
        for start in range(0, len(images), self.batch_size):
            samples = [
                DetectionSample(str(n), image) for n, image in enumerate(images[start : start + self.batch_size])
            ]
            found += self.detect(self.processor.collate(samples).to(self.device))
        return found

    def _kept(self, found: Detections, threshold: float | None) -> Tensor:
        """Indices of the boxes whose scores reach the threshold, the best first."""
        least = self.processor.thresholds if threshold is None else [threshold] * len(self.processor.labels)
        return (found.scores >= found.scores.new_tensor(least)[found.labels]).nonzero()[:, 0]

    def _answer(
        self, sample: DetectionSample, found: Detections, size: tuple[int, int], threshold: float | None
    ) -> DetectionPrediction:
        names, kept = self.processor.labels, self._kept(found, threshold)
        rows = zip(*(part[kept].tolist() for part in found[:3]), strict=True)
        boxes = [
            DetectedBox(names[label], round(score, 4), tuple(round(value, 2) for value in box))  # type: ignore[arg-type]
            for box, score, label in rows
        ]
        return DetectionPrediction(sample.id, (size[1], size[0]), boxes)

    def stream(
        self,
        items: Sequence[Item],
        batch_size: int | None = None,
        on_error: str = "raise",
        *,
        save_images: str | Path | None = None,
        **options: Any,
    ) -> Iterator[DetectionPrediction | Exception]:
        """Yield the predictions one by one, see `Predictor.stream`, and write PNGs named after the items.

        Args:
            items: See `Predictor.predict`.
            batch_size: See `Predictor.predict`.
            on_error: See `Predictor.predict`.
            save_images: Folder for PNGs of the images with their boxes.
            options: Options of `predict_batch`.
        """
        items = listed(items)
        files = claim_pngs(self, items, {"image": save_images})
        for number, found in enumerate(super().stream(items, batch_size, on_error, **options)):
            for kind, path in files.get(number, {}).items():
                if not isinstance(found, Exception):
                    image = load_image(self.to_sample(items[number], number).image, f"item {found.id}")
                    save_png(path, drawn(image, found, self.processor.labels).save)
                    setattr(found, kind, str(path))
            yield found

    def lines(self, records: Iterable[Mapping[str, Any]], options: Mapping[str, Any]) -> Iterator[str]:
        """Lines of JSON; with the format "coco", those of one array of boxes, COCO's format of results."""
        if options.get("format", FORMATS[0]) != "coco":
            yield from super().lines(records, options)
            return
        numbers = dict(zip(self.processor.labels, self.processor.classes.ids, strict=True))
        before = "["
        for record in records:
            for box in record.get("boxes", ()):
                x1, y1, x2, y2 = box["box_xyxy"]
                name = str(record["id"])
                row = {"image_id": int(name) if name.isdecimal() else name, "category_id": numbers[box["label"]]}
                row |= {"bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "score": box["score"]}
                yield f"{before}\n{json.dumps(row, ensure_ascii=False)}"
                before = ","
        yield "[]\n" if before == "[" else "\n]\n"

    def explain_batch(
        self,
        samples: Sequence[DetectionSample],
        batch: DetectionBatch,
        *,
        threshold: float | None = None,
        tile: int | None = None,
    ) -> list[DetectionExplanation]:
        """Find the objects of each image, and the positions that the query of each read; images are not split.

        See `predict_batch` for `threshold`.

        Raises:
            DataError: `tile` is given.
        """
        if tile is not None:
            raise DataError("--tile", "no tiles for explain, which shows one pass over the image", str(tile))
        answers = []
        for n, (found, readings) in enumerate(self.read(batch)):
            kept, size = self._kept(found, threshold), batch.original_sizes[n]
            answer = self._answer(samples[n], found, size, threshold)
            image = load_image(samples[n].image, f"item {answer.id}")
            shown = [readings[k] for k in kept.tolist()]
            answers.append(DetectionExplanation(answer, image, shown, self.processor.labels))
        return answers

    def read(self, batch: DetectionBatch) -> list[tuple[Detections, list[Reading]]]:
        """The boxes of each image as by `detect`, and the positions that were read for each."""
        from mmattn.explain import capture

        rows: dict[int, tuple[Detections, list[Reading]]] = {}
        for alike, pixels, mask in in_sizes(self.processor, batch):
            with torch.no_grad(), capture(self.model) as maps:
                output = self.model(pixels, mask)
            sizes = [batch.original_sizes[row] for row in alike]
            answers = zip(
                alike, sizes, detections(self.processor, output, sizes), *self.model.reading(maps), strict=True
            )
            for row, (height, width), found, points_xy, weights in answers:  # (Q, n, 2), (Q, n)
                assert found.queries is not None
                points = points_xy * points_xy.new_tensor([width, height])
                read = [Reading(points[q].cpu(), weights[q].cpu()) for q in found.queries.tolist()]
                rows[row] = found, read
        return [rows[row] for row in range(len(batch))]

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> list[DetectionSample]:
        """Read an image, a folder's at any depth, or annotations as for training, whose boxes are optional."""
        folder = Path(path)
        annotated = folder.is_dir() and any(
            (folder / name).exists() for name in ("annotations", "Annotations", "labels")
        )
        if not annotated and (images := image_files(path)):
            return [DetectionSample(*image) for image in images]
        return DetectionDataset(path, on_error=on_error, require_labels=False).samples

    def demo_samples(self) -> list[DetectionSample]:
        """Eight scenes of the built-in test split."""
        from mmattn.tasks.detection.demo import make

        return make("test", 8)

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic batch and image sizes, compared with the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        unit = self.model.unit
        sizes = {1: unit * Dim("rows", min=2, max=512), 2: unit * Dim("columns", min=2, max=512)}
        batch = {0: Dim("batch", max=4096)}
        dynamic = {"pixel_values": batch | {2: sizes[1], 3: sizes[2]}, "pixel_mask": batch | sizes}
        examples = [self._example(*shape) for shape in ((2, 4, 5), (1, 5, 4), (3, 4, 7))]
        lines = export_model(self.model, examples, dynamic, folder, "detection", formats)
        return [*lines, f"The programs accept images whose sides are multiples of {unit} pixels."]

    def _example(self, batch: int, rows: int, columns: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        height, width = rows * self.model.unit, columns * self.model.unit
        pixel_mask = torch.ones(batch, height, width, dtype=torch.bool)
        pixel_mask[-1, height - self.model.unit // 2 :] = False
        pixel_values = torch.randn(batch, 3, height, width, generator=generator) * pixel_mask[:, None]
        return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


load = DetectionPredictor.load
