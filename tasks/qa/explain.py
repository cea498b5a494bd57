"""Relevance of a context's words for an answer, by integrated gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.data.text.tokenizer import words_of
from mmattn.tasks.common.integrated import integrated_gradients
from mmattn.tasks.common.shading import join_tokens
from mmattn.tasks.qa.data import Answer, QABatch
from mmattn.tasks.qa.processor import target

STEPS = 8  # on the way from no input to the text


def token_relevance(model: Any, ids: Tensor, key_mask: Tensor, types: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    r"""Relevance of each token for an answer's score, \((x_i \cdot \int_0^1 \nabla_{x_i} s(\alpha x) d\alpha)^+\).

    Integrated gradients (Sundararajan et al. 2017, section 3) from embeddings x of zero, for every encoder, with
    attention or without. The score s is that of the answer's first and last token less that of no answer.

    Args:
        model: The `QAModel`.
        ids: (N, L), one window of each question.
        key_mask: (N, L).
        types: (N, L).
        starts: (N,), positions of the answers' first tokens; 0: no answer.
        ends: (N,), of their last ones.

    Returns:
        (N, L).
    """
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    rows = torch.arange(len(ids), device=ids.device)

    def score() -> Tensor:
        output = model(ids, key_mask, types)
        null = output.start_logits[:, 0] + output.end_logits[:, 0]
        found: Tensor = output.start_logits[rows, starts] + output.end_logits[rows, ends] - null * (starts > 0)
        return found

    return integrated_gradients(embedding, score, STEPS).clamp_min(0.0)


def word_relevance(model: Any, batch: QABatch, answers: Sequence[Any]) -> list[tuple[list[tuple[int, int]], Tensor]]:
    """The relevance of each word of each context.

    Args:
        model: The `QAModel`.
        batch: The batch.
        answers: The predicted answer of each question, with `start` and `end` in its context.

    Returns:
        For each question its context's words, by characters, and their relevance, which sums to one.
    """
    targets = []
    for number, found in enumerate(answers):
        answer = Answer(found.answer, found.start) if found.answer else None
        own = [(row, *target(window, answer)) for row, window in enumerate(batch.windows) if window.question == number]
        targets.append(max(own, key=lambda place: place[1] > 0))  # the first window that holds the answer
    rows, starts, ends = torch.tensor(targets, device=batch.input_ids.device).T
    given = (batch.input_ids[rows], batch.key_mask[rows], batch.token_types[rows])
    weights = token_relevance(model, *given, starts, ends).cpu()
    relevant = []
    for number, sample in enumerate(batch.samples):
        window = batch.windows[targets[number][0]]
        words = [match.span() for match in re.finditer(r"\S+", sample.context)]
        _, owners = words_of(sample.context, window.spans)
        values = join_tokens(words, owners, window.part(weights[number]))
        relevant.append((words, values / values.sum().clamp_min(1e-12)))
    return relevant
