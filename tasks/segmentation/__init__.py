"""Segmentation: a picture in, the class of each of its pixels and where the model looked out.

>>> import tasks.segmentation
>>> predictor = tasks.segmentation.load()  # doctest: +SKIP
>>> predictor.predict([{"image": "photo.jpg"}])[0].shares  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "SegmentationModel": "model",
    "SegmentationHead": "model",
    "SegmentationOutput": "model",
    "SegmentationPredictor": "predict",
    "SegmentationAnswer": "predict",
    "load": "predict",
    "SegmentationModule": "module",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
