"""Answers that a model writes: their loss and their search."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmattn.generate import GenerationConfig
from mmattn.tasks.vqa.data import VQABatch


def writing_loss(model: Any, batch: VQABatch, label_smoothing: float = 0.0) -> Tensor:
    """``-sum_a w_a log p(a | question, image)``, mean over the questions (Li et al. 2022, section 5.3); a scalar.

    Args:
        model: A `PublicAnswerer`.
        batch: Its answers, whose weights w are shares of the question's soft scores.
        label_smoothing: Probability mass spread evenly over the tokens.
    """
    assert batch.labels is not None
    assert batch.label_mask is not None
    assert batch.answer_weights is not None
    logits = model(*batch.inputs, batch.target_ids, batch.answer_index)  # (A, T, V)
    losses = F.cross_entropy(logits.mT.float(), batch.labels, reduction="none", label_smoothing=label_smoothing)
    return ((losses * batch.label_mask).sum(1) * batch.answer_weights).sum() / len(batch)


def write_answers(
    model: Any, batch: VQABatch, processor: Any, top_k: int = 1, num_beams: int | None = None
) -> list[list[tuple[str, float]]]:
    """The most probable answers that a search finds to each question, with their probabilities.

    Args:
        model: A `PublicAnswerer`.
        batch: The questions.
        processor: Their processor.
        top_k: Maximum number of answers to a question; a search of as many beams finds them.
        num_beams: Number of beams; None: the model's own.
    """
    given = {**processor.options["generation"]}
    beams = max(num_beams or given.get("num_beams", 1), top_k)
    config = GenerationConfig(**given | {"num_beams": beams, "num_return_sequences": top_k})
    found = model.generate(*batch.inputs, config)
    likely = (found.scores * found.lengths**config.length_penalty).exp().tolist()  # [B][K]
    rows = []
    for tokens, values in zip(found.tokens(), likely, strict=True):
        texts: dict[str, float] = {}  # several sequences of tokens may be one text
        for ids, value in zip(tokens, values, strict=True):
            text = processor.writer.decode(ids)
            texts[text] = texts.get(text, 0.0) + value
        rows.append(list(texts.items()))
    return rows
