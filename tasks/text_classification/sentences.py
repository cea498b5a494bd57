"""Texts as sentences of words, for hierarchical models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mmattn.data.text.sentences import split_sentences
from mmattn.data.text.tokenizer import words_of
from mmattn.tasks.text_classification.data import Span, TextBatch, TextSample

LONGEST = 64  # tokens of a sentence; the rest is another one
Encode = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


class _Sentence(NamedTuple):
    ids: list[int]
    kind: int  # 1: of the second text
    spans: list[tuple[int, int]]  # characters of each token in its text


def by_sentence(
    samples: Sequence[TextSample], encode: Encode, pad_id: int, unk_id: int, max_len: int
) -> tuple[TextBatch, list[list[str]], int]:
    """Makes a batch of sentences of words, (B, n, w); those of a second text follow the first's.

    Args:
        samples: The samples.
        encode: Returns the ids and characters of a text's tokens.
        pad_id: Id of the padding.
        unk_id: Id of an unknown token, for a text without any.
        max_len: Maximum number of tokens of all sentences of a sample.

    Returns:
        The batch without targets; the characters of each token of the flattened sentences; the number of samples that
        were truncated.
    """
    documents = [_sentences(sample, encode, max_len) for sample in samples]
    cut = sum(is_cut for _, is_cut in documents)
    rows = [sentences or [_Sentence([unk_id], 0, [(0, 0)])] for sentences, _ in documents]
    width = max(len(one.ids) for sentences in rows for one in sentences)
    count = max(map(len, rows))
    ids = torch.full((len(rows), count, width), pad_id)
    mask, types = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    texts = [[""] * (count * width) for _ in rows]
    spans = []
    for row, (sample, sentences) in enumerate(zip(samples, rows, strict=True)):
        words, pair_words = (words_of(text or "", [])[0] for text in (sample.text, sample.text_pair))
        places: list[list[list[int]]] = [[[] for _ in words], [[] for _ in pair_words]]
        for n, one in enumerate(sentences):
            size = len(one.ids)
            ids[row, n, :size], mask[row, n, :size], types[row, n, :size] = torch.tensor(one.ids), True, one.kind
            text = (sample.text_pair if one.kind else sample.text) or ""
            texts[row][n * width : n * width + size] = [text[a:b] for a, b in one.spans]
            for k, owner in enumerate(words_of(text, one.spans)[1] if text.strip() else []):
                places[one.kind][owner].append(n * width + k)
        spans.append(Span(row, words, places[0], 0, pair_words, places[1]))
    batch = TextBatch(ids, mask, types, ids.flatten(1)[:, :0], {}, spans, [], [])
    return batch, texts, cut


def _sentences(sample: TextSample, encode: Encode, max_len: int) -> tuple[list[_Sentence], bool]:
    """The sentences of a sample's texts, and whether tokens were left out."""
    found: list[_Sentence] = []
    left = max_len
    for kind, text in enumerate((sample.text, sample.text_pair)):
        for start, end in split_sentences(text) if text is not None else []:
            ids, spans = encode((text or "")[start:end])
            for first in range(0, len(ids), LONGEST):
                part = ids[first : first + LONGEST][:left]
                if not part:
                    return found, True
                own = [(start + a, start + b) for a, b in spans[first : first + len(part)]]
                found.append(_Sentence(part, kind, own))
                left -= len(part)
                if len(part) < len(ids[first : first + LONGEST]):
                    return found, True
    return found, False
