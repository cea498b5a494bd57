"""Vectors of texts, and the words that a masked language model finds probable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.data.errors import DataError, shorten
from mmattn.data.text.tokenizer import pad_rows
from mmattn.tasks.text_classification.data import TextSample

BATCH = 32  # texts that are computed together


class Embedding:
    """Methods of the predictor that need no labels."""

    model: Any
    processor: Any
    device: Any
    length: Any

    def embed(self, texts: Sequence[str], batch_size: int = BATCH) -> Tensor:
        """The vectors of texts (N, E), of length one: the states that the model pools for its labels.

        Args:
            texts: The texts.
            batch_size: Number of texts in a batch.

        Raises:
            DataError: An item is no text, or empty.
        """
        if isinstance(texts, str):
            raise DataError("embed", "a list of texts", "a text alone")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"item {number}", "a text that is not empty", shorten(text))
        samples = [TextSample(str(number), text) for number, text in enumerate(texts)]
        found = torch.zeros(len(samples), self.model.embed_dim)
        order = sorted(range(len(samples)), key=lambda n: self.length(samples[n]))
        with torch.inference_mode():
            for first in range(0, len(order), batch_size):
                some = order[first : first + batch_size]
                batch = self.processor.collate([samples[n] for n in some]).to(self.device)
                states = self.model.states(batch.input_ids, batch.key_mask, batch.token_types, batch.characters)
                found[some] = nn.functional.normalize(self.model.pooled(states, batch.key_mask), dim=-1).float().cpu()
        return found

    def fill_mask(
        self, texts: Sequence[str], top_k: int = 5, mask: str = "[MASK]"
    ) -> list[list[list[tuple[str, float]]]]:
        """The most probable tokens in place of each `mask` in each text, with their probabilities.

        Raises:
            DataError: A text has no mask, or the model is no masked language model.
        """
        if isinstance(texts, str):
            raise DataError("fill_mask", "a list of texts", "a text alone")
        found = []
        for number, text in enumerate(texts):
            count = text.count(mask)
            if not count:
                raise DataError(f"item {number}", f"a text with {mask}", repr(text)[:60])
            parts = [self.processor.encode(part)[0] if part.strip() else [] for part in text.split(mask)]
            template, ids = self.processor.template, []
            for n, part in enumerate(parts):
                ids += ([self.processor.mask_id] if n else []) + part
            row = torch.tensor([[*template.before, *ids, *template.after]], device=self.device)
            places = [len(template.before) + sum(map(len, parts[: n + 1])) + n for n in range(count)]
            states = self._states_of(row)[0, places]
            scores, best = (
                self.model.token_logits(states).softmax(-1).topk(min(top_k, self.processor.tokenizer.vocab_size))
            )
            named = [[self.processor.tokenizer.decode([i]) for i in one] for one in best.tolist()]
            found.append(
                [
                    list(zip(a, [round(s, 4) for s in b], strict=True))
                    for a, b in zip(named, scores.tolist(), strict=True)
                ]
            )
        return found

    @torch.inference_mode()
    def _states_of(self, ids: Tensor) -> Tensor:
        if self.model.language is None:
            raise DataError("fill_mask", "a masked language model", "one with labels alone")
        found: Tensor = self.model.states(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
        return found

    def replacements(self, places: Sequence[tuple[str, int]], top_k: int = 5) -> list[list[str]]:
        """The words that a masked language model finds most probable in place of one word of each text.

        Args:
            places: Texts, each with the index of a word, split at white space. Of a word of several tokens the first is
                replaced, and the others are left out.
            top_k: Number of tokens that are considered; those that continue a word are left out.
        """
        rows, hidden = [], []
        for text, place in places:
            words = text.split()
            template = self.processor.template
            before = self.processor.encode(" ".join(words[:place]))[0] if place else []
            after = self.processor.encode(" ".join(words[place + 1 :]))[0] if place + 1 < len(words) else []
            room = self.processor.max_len - len(template.before) - len(template.after) - 1
            before, after = before[-(room // 2) :], after[: room // 2]
            rows.append([*template.before, *before, self.processor.mask_id, *after, *template.after])
            hidden.append(len(template.before) + len(before))
        found: list[list[str]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            ids, mask = (x.to(self.device) for x in pad_rows([rows[n] for n in some], self.processor.tokenizer.pad_id))
            with torch.inference_mode():
                if self.model.language is None:
                    raise DataError("data.augment.model", "a masked language model", "one with labels alone")
                states = self.model.states(ids, mask, torch.zeros_like(ids))
                own = states[torch.arange(len(some)), [hidden[n] for n in some]]
                best = self.model.token_logits(own).topk(top_k).indices.tolist()
            for n, tokens in zip(some, best, strict=True):
                named = [self.processor.tokenizer.decode([i]).strip() for i in tokens]
                found[n] = [word for word in named if word and not word.startswith("##")]
        return found
