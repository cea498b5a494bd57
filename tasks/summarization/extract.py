"""From scores of sentences to a summary: the best sentences without repeated trigrams, in document order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmattn.data.text.sentences import Span
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.summarization.data import SummaryBatch
from mmattn.tasks.summarization.metrics import sentence_scores

NUM_SENTENCES = 3  # by default, as for the news of Liu and Lapata 2019


class Extract(NamedTuple):
    """Chosen sentences of a document."""

    summary: str
    score: float  # mean log-probability of the sentences
    spans: list[Span]  # characters of the sentences in the document, in its order
    probabilities: list[float]  # of each sentence of the document


def choose(sentences: Sequence[str], scores: Sequence[float], count: int) -> list[int]:
    """Indices of the best sentences, in order; a sentence that shares three words in a row with a better one is left
    out (Liu and Lapata 2019, section 3.2, trigram blocking).

    Args:
        sentences: The sentences of a document.
        scores: The score of each.
        count: Maximum number of chosen sentences.

    >>> choose(["The old pump broke.", "Rain fell.", "Then the old pump stopped."], [0.9, 0.1, 0.8], 2)
    [0, 1]
    """
    chosen: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for index in sorted(range(len(sentences)), key=lambda index: -scores[index]):
        words = re.findall(r"\w+", sentences[index].lower())
        trigrams = set(zip(words, words[1:], words[2:], strict=False))
        if seen.isdisjoint(trigrams):
            chosen.append(index)
            seen |= trigrams
        if len(chosen) == count:
            break
    return sorted(chosen)


def extract(logits: Tensor, batch: SummaryBatch, count: int) -> list[Extract]:
    """The chosen sentences of each document of a batch.

    Args:
        logits: (B, n), of `ExtractiveModel`.
        batch: The batch.
        count: Maximum number of sentences.
    """
    log_p = logits.double().masked_fill(batch.sentence_starts < 0, -torch.inf).log_softmax(-1).cpu()  # (B, n)
    found = []
    for document, spans, row in zip(batch.documents, batch.sentences, log_p.tolist(), strict=True):
        sentences, row = [document[start:end] for start, end in spans], row[: len(spans)]
        chosen = choose(sentences, row, count)
        score = sum(row[index] for index in chosen) / len(chosen)
        probabilities = torch.tensor(row).exp().tolist()
        summary = " ".join(sentences[index] for index in chosen)
        found.append(Extract(summary, score, [spans[index] for index in chosen], probabilities))
    return found


def sentence_gains(batch: SummaryBatch) -> Tensor:
    """How good each sentence of a batch is alone, by ROUGE against the references: (B, n), zero in the padding."""
    rows = zip(batch.documents, batch.sentences, batch.references, strict=True)
    found = torch.zeros(batch.sentence_starts.shape)
    for row, (document, spans, references) in zip(found, rows, strict=True):
        row[: len(spans)] = torch.tensor(_gains(document, tuple(spans), tuple(references)))
    return found.to(batch.sentence_starts.device)


@lru_cache(maxsize=100_000)
def _gains(document: str, spans: tuple[Span, ...], references: tuple[str, ...]) -> list[float]:
    return sentence_scores([document[start:end] for start, end in spans], references)


def check_extractive(options: Mapping[str, Any], form: str) -> int | None:
    """The number of sentences in the decoding options of an extractive model; None: not given.

    Args:
        options: Options of decoding.
        form: How an option is written, with {} for its name.

    Raises:
        ConfigError: An option is of models that generate text.
    """
    others = sorted(name for name, value in options.items() if value is not None and name != "num_sentences")
    if others:
        reason = "which chooses sentences and has no beams"
        raise ConfigError(f"{form.format(others[0])}: expected none with an extractive model, {reason}; leave it out.")
    count = options.get("num_sentences")
    if count is not None and count < 1:
        raise ConfigError(f"{form.format('num_sentences')}: expected 1 or more, found {count}.")
    return count
