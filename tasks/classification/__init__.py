"""Image classification: a picture in, its class and where the model looked out.

>>> import tasks.classification
>>> predictor = tasks.classification.load()  # doctest: +SKIP
>>> predictor.predict([{"image": "photo.jpg"}])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ClassificationModel": "model",
    "ClassificationHead": "model",
    "ClassificationOutput": "model",
    "ClassificationPredictor": "predict",
    "ClassificationAnswer": "predict",
    "load": "predict",
    "ClassificationModule": "module",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
