"""BLEU and chrF by sacreBLEU, on plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _metrics() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU(), "chrf": CHRF()}


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al. 2002) and chrF2 (Popović 2015), 0..100, cased, on untokenized text (Post 2018).

    Args:
        hypotheses: One text per sample.
        references: One or more references per sample.

    >>> score(["the cat sat on the mat"], [["the cat sat on the mat"]])
    {'bleu': 100.00000000000004, 'chrf': 100.0}
    """
    most = max((len(given) for given in references), default=1)
    # One stream per reference; samples with fewer references have None, which sacreBLEU ignores.
    streams = [[given[n] if n < len(given) else None for given in references] for n in range(most)]
    return {name: metric.corpus_score(list(hypotheses), streams).score for name, metric in _metrics().items()}


def signatures() -> dict[str, str]:
    """sacreBLEU signatures for comparison: tokenizer, case, smoothing, version."""
    found = {}
    for name, metric in _metrics().items():
        metric.corpus_score(["a"], [["a"]])  # the signature includes the number of references
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
