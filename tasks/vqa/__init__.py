"""Visual question answering: a picture and a question in, an answer and where the model looked out.

>>> import tasks.vqa
>>> predictor = tasks.vqa.load()  # doctest: +SKIP
>>> predictor.predict([{"image": "photo.jpg", "question": "What colour is the circle?"}])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "VQAModel": "model",
    "VQAHead": "model",
    "VQAOutput": "model",
    "VQAPredictor": "predict",
    "VQAAnswer": "predict",
    "load": "predict",
    "VQAModule": "module",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
