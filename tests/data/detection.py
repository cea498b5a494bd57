"""Helpers of the tests of detection data: images, and the boxes of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmattn.tasks.detection.data import DetectionDataset
from tests.data.files import write
from tests.image_files import encoded

SIZE = (40, 30)  # width, height


def image(path: Path, size: tuple[int, int] = SIZE, **options: Any) -> Path:
    """Writes a PNG of noise."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(len(path.name)).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    return write(path, encoded(Image.fromarray(pixels), "PNG", **options))


def boxes(dataset: DetectionDataset) -> list[list[list[float]]]:
    """The boxes xyxy of each image."""
    return [np.asarray(sample.boxes_xyxy).tolist() for sample in dataset.samples]
