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
        rows = [self.sentences(text) for text in texts]
        most = max(map(len, rows))
        starts = [[start for start, _ in row] + [-1] * (most - len(row)) for row in rows]
        return found | {
            "sentence_starts": torch.tensor(starts, dtype=torch.long),
            "copy_ids": found["source_ids"],
            "cut": torch.tensor([self.tokens_cut(text) for text in texts]),
            "documents": list(texts),
            "sentences": [[span for _, span in row] for row in rows],
        }

    def document_tokens(self, text: str) -> list[Span]:
        """Character spans of the document's tokens after truncation, without leading spaces and the end token."""
        return self.source.spans(text)[: self.max_source_len - 1 - len(self.source.prefix_ids)]

    def sentences(self, text: str) -> list[tuple[int, Span]]:
        """First token and characters of each sentence, without those that begin behind the last token of the input.

        Tokens of the tokenizer's prefix, such as [CLS], are those of the first sentence.
        """
        tokens, lead = self.document_tokens(text), len(self.source.prefix_ids)
        first, *others = split_sentences(text) or [(0, len(text))]
        found, place, last = [(0, first)], 0, 0
        for span in others:
            while place < len(tokens) and tokens[place][1] <= span[0]:
                place += 1
            if last < place < len(tokens):
                found.append((lead + place, span))
                last = place
        return found
