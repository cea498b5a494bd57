"""ROUGE by rouge-score, against the best of several references and against the first alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mmattn.data.text.sentences import split_sentences

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def sentences_on_lines(text: str) -> str:
    """The text with one sentence per line, as ROUGE-Lsum requires."""
    return "\n".join(text[start:end].replace("\n", " ") for start, end in split_sentences(text))


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2, -L and -Lsum (Lin 2004), 0..1, Porter-stemmed, for each the best of the references.

    Names ending in ``_first`` are scores against the first reference alone: in AESLC the original subject.

    Args:
        hypotheses: One text per sample.
        references: One or more references per sample.

    >>> found = score(["ships sailed"], [["a ship sails", "nothing"]])
    >>> round(found["rouge1"], 3), round(found["rouge1_first"], 3)
    (0.8, 0.8)
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(KINDS), tokenizer=_tokenizer())
    sums = dict.fromkeys([*KINDS, *(f"{kind}_first" for kind in KINDS)], 0.0)
    for hypothesis, given in zip(hypotheses, references, strict=True):
        lines = sentences_on_lines(hypothesis)
        found = [scorer.score(sentences_on_lines(reference), lines) for reference in given]
        for kind in KINDS:
            sums[kind] += max(one[kind].fmeasure for one in found)
            sums[f"{kind}_first"] += found[0][kind].fmeasure
    return {name: total / max(len(hypotheses), 1) for name, total in sums.items()}


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    """The tokenizer of rouge-score with a cache, since four scores tokenize the same texts."""
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    tokenizer.tokenize = lru_cache(maxsize=100_000)(tokenizer.tokenize)
    return tokenizer


def signature() -> dict[str, str]:
    """The scorer's version and options, for comparison."""
    from importlib.metadata import version

    what = "F1, Porter stemming, lower-cased, best reference by each measure; _first: the first reference alone"
    return {"rouge_signature": f"rouge-score {version('rouge-score')}: {what}"}
