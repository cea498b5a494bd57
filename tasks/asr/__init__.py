"""Speech recognition: a recording in, its words and when they were said out.

>>> import tasks.asr
>>> recogniser = tasks.asr.load()  # doctest: +SKIP
>>> recogniser.predict([{"audio": "speech.wav"}])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ASRModel": "model",
    "ASRHead": "model",
    "Recogniser": "predict",
    "Transcript": "predict",
    "load": "predict",
    "ASRModule": "module",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
