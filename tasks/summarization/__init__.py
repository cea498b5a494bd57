"""Summarization: a long document in, what matters of it and where that stands out.

>>> import tasks.summarization
>>> summarizer = tasks.summarization.load()  # doctest: +SKIP
>>> summarizer.predict(["Log of the harbour, day 42. ..."])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "SummarizationModel": "model",
    "SummaryOutput": "model",
    "CopyHead": "copying",
    "HierarchicalEncoder": "hierarchy",
    "Summarizer": "predict",
    "Summary": "predict",
    "load": "predict",
    "SummarizationModule": "module",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
