"""Hidden tokens of a masked language model, by whole words."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from mmattn.tasks.text_classification.data import TextBatch

SHARE = 0.15  # of the words that are hidden
KEPT, RANDOM = 0.1, 0.1  # shares of these that stay, or become a random token (Devlin et al. 2019, section 3.1)
SPECIAL = 4  # ids before the first word of our tokenizers


def hide(batch: TextBatch, seeds: Sequence[int], mask_id: int, vocab_size: int) -> None:
    """Hide whole words of a batch, in place: `masked` gets the ids that were hidden, -1 elsewhere.

    Of each text 15 % of the words are chosen, at least one: all their tokens become the mask token (80 %), a random one
    (10 %) or stay (10 %); Devlin et al. 2019, section 3.1, and whole words as in their later code.

    Args:
        batch: The batch.
        seeds: One integer per sample.
        mask_id: The mask token.
        vocab_size: V.
    """
    masked = torch.full_like(batch.input_ids, -1)
    for row, span in enumerate(batch.spans):
        random = Random(seeds[span.sample])
        words = [places for places in span.every_place if places]
        count = max(1, round(SHARE * len(words))) if words else 0
        order = sorted(range(len(words)), key=lambda _: random.random())
        for index in order[:count]:
            draw = random.random()
            for place in words[index]:
                masked[row, place] = batch.input_ids[row, place]
                if draw < 1 - KEPT - RANDOM:
                    batch.input_ids[row, place] = mask_id
                elif draw < 1 - KEPT:
                    batch.input_ids[row, place] = SPECIAL + int(random.random() * (vocab_size - SPECIAL))
    batch.masked = masked
