"""Translation: a sentence in, its translation and what it was read off out.

>>> import tasks.translation
>>> translator = tasks.translation.load()  # doctest: +SKIP
>>> translator.predict(["the old dog carries a basket"])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "TranslationModel": "model",
    "TranslationHead": "model",
    "Translator": "predict",
    "Translation": "predict",
    "load": "predict",
    "TranslationModule": "module",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
