"""Summarization: a long document in, what matters of it and where that stands out.

>>> import tasks.summarization
>>> summarizer = tasks.summarization.load()  # doctest: +SKIP
>>> summarizer.predict(["Log of the harbour, day 42. ..."])  # doctest: +SKIP
"""

from __future__ import annotations

from tasks.common.lazy import lazy

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
__all__, __getattr__ = lazy(__name__, _EXPORTS)
