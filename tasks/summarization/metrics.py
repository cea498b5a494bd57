"""ROUGE by rouge-score, against the best of several references and against the first alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from mmattn.data.errors import shorten
from mmattn.data.text.scripts import is_latin, split_words
from mmattn.data.text.sentences import split_sentences

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def sentences_on_lines(text: str) -> str:
    """The text with one sentence per line, as ROUGE-Lsum requires."""
    return "\n".join(text[start:end].replace("\n", " ") for start, end in split_sentences(text))


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2, -L and -Lsum (Lin 2004), 0..1, Porter-stemmed, for each the best of the references.

    Names ending in ``_first`` are scores against the first reference alone: in AESLC the original subject. Words are
    those of rouge-score, which knows the letters a to z alone, or, where most words of the references are of another
    script, those of `split_words`. References without any words score 0, with a warning.

    Args:
        hypotheses: One text per sample.
        references: One or more references per sample.

    >>> found = score(["ships sailed"], [["a ship sails", "nothing"]])
    >>> round(found["rouge1"], 3), round(found["rouge1_first"], 3)
    (0.8, 0.8)
    """
    wordless = []
    sums = dict.fromkeys([*KINDS, *(f"{kind}_first" for kind in KINDS)], 0.0)
    for hypothesis, given in zip(hypotheses, references, strict=True):
        lines, latin = sentences_on_lines(hypothesis), is_latin(given)
        wordless += [reference for reference in given if not _tokenizer(latin).tokenize(reference)]
        found = [_scorer(latin).score(sentences_on_lines(reference), lines) for reference in given]
        for kind in KINDS:
            sums[kind] += max(one[kind].fmeasure for one in found)
            sums[f"{kind}_first"] += found[0][kind].fmeasure
    if wordless:
        warnings.warn(
            f"ROUGE sees no words in {len(wordless)} references, such as {shorten(wordless[0])}", stacklevel=2
        )
    return {name: total / max(len(hypotheses), 1) for name, total in sums.items()}


def sentence_scores(sentences: Sequence[str], references: Sequence[str]) -> list[float]:
    """How good a summary each sentence is alone: the mean F1 of ROUGE-1, -2 and -L, the best of the references.

    Args:
        sentences: The sentences of a document.
        references: One or more references.

    >>> [round(value, 3) for value in sentence_scores(["a ship sails", "rain"], ["ships sailed", "a ship"])]
    [0.756, 0.0]
    """
    scorer = _scorer(is_latin(references), KINDS[:3])
    found = [[scorer.score(reference, sentence) for reference in references] for sentence in sentences]
    return [sum(max(one[kind].fmeasure for one in row) for kind in KINDS[:3]) / 3 for row in found]


@lru_cache(maxsize=4)
def _scorer(latin: bool, kinds: tuple[str, ...] = KINDS) -> Any:
    """A scorer of rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), tokenizer=_tokenizer(latin))


@lru_cache(maxsize=2)
def _tokenizer(latin: bool) -> Any:
    """The tokenizer of rouge-score, or of other scripts, with a cache, since four scores tokenize the same texts."""
    from rouge_score.tokenizers import DefaultTokenizer

    split = DefaultTokenizer(use_stemmer=True).tokenize if latin else split_words
    return SimpleNamespace(tokenize=lru_cache(maxsize=100_000)(split))


def signature() -> dict[str, str]:
    """The scorer's version and options, for comparison."""
    from importlib.metadata import version

    what = "F1, Porter stemming, lower-cased, best reference by each measure; _first: the first reference alone; "
    what += "where most words are not Latin: Unicode words, each letter of scripts without spaces"
    return {"rouge_signature": f"rouge-score {version('rouge-score')}: {what}"}
