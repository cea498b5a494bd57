"""Processor of summarization; saved with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmattn.data.text.sentences import Span, split_sentences
from mmattn.tasks.common.seq2seq.processor import PairProcessor
from mmattn.tasks.summarization.data import SummaryBatch


class SummaryProcessor(PairProcessor):
    """Documents to ids with sentence starts, and ids to summaries; saved with the model."""

    batch_class = SummaryBatch

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.target.vocab_size}

    def encode_sources(self, texts: Sequence[str]) -> dict[str, Any]:
        """Encode documents as fields of a batch: those of pairs, sentence starts, and truncated token counts."""
        found = super().encode_sources(texts)
        rows = [self._starts(text) for text in texts]
        most = max(map(len, rows))
        return found | {
            "sentence_starts": torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.long),
            "copy_ids": found["source_ids"],
            "cut": torch.tensor([self.tokens_cut(text) for text in texts]),
        }

    def document_tokens(self, text: str) -> list[Span]:
        """Character spans of the document's tokens after truncation, without leading spaces and the end token."""
        return self.source.spans(text)[: self.max_source_len - 1 - len(self.source.prefix_ids)]

    def _starts(self, text: str) -> list[int]:
        """Index of the first token of each sentence."""
        tokens = self.document_tokens(text)
        found, place = [0], 0
        for start, _ in split_sentences(text)[1:]:
            while place < len(tokens) and tokens[place][1] <= start:
                place += 1
            if place < len(tokens) and place > found[-1]:
                found.append(place)
        return found
