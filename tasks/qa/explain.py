"""Relevance of a context's words for an answer: the gradient of its score, times the embedding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.data.text.tokenizer import words_of
from mmattn.tasks.common.shading import join_tokens
from mmattn.tasks.qa.data import QABatch, Window


def token_relevance(model: Any, batch: QABatch, targets: Sequence[tuple[int, int, int]]) -> Tensor:
    r"""Relevance of each token for an answer's score: \(|x_i \cdot \partial s / \partial x_i|\).

    Gradient times input (Denil et al. 2014, section 3; Li et al. 2016, section 4, have the gradient alone), with the
    embeddings as x and the score s of the answer's first and last token less that of no answer: it works for every
    encoder, with attention or without.

    Args:
        model: The `QAModel`.
        batch: The batch.
        targets: For each question the row of a window, and the positions of the answer's first and last token.

    Returns:
        (N, L), zeros in the windows without a target.
    """
    embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        output = output.detach().requires_grad_()
        found.append(output)
        return output

    hook = embedding.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            output = model(batch.input_ids, batch.key_mask, batch.token_types)
            rows, starts, ends = torch.tensor(targets, device=batch.input_ids.device).T
            score = output.start_logits[rows, starts] + output.end_logits[rows, ends]
            null = output.start_logits[rows, 0] + output.end_logits[rows, 0]
            gradients = torch.autograd.grad((score - null * (starts > 0)).sum(), found)
    finally:
        hook.remove()
    return (found[0].detach() * gradients[0]).sum(-1).abs()


def word_relevance(model: Any, batch: QABatch, answers: Sequence[Any]) -> list[tuple[list[tuple[int, int]], Tensor]]:
    """The relevance of each word of each context.

    Args:
        model: The `QAModel`.
        batch: The batch.
        answers: The predicted answer of each question, with `start` and `end` in its context.

    Returns:
        For each question its context's words, by characters, and their relevance, which sums to one.
    """
    targets, rows = [], []
    for number, answer in enumerate(answers):
        own = [row for row, window in enumerate(batch.windows) if window.question == number]
        targets.append(next((t for row in own if (t := _target(row, batch.windows[row], answer))), (own[0], 0, 0)))
        rows.append(targets[-1][0])
    weights = token_relevance(model, batch, targets).cpu()
    found = []
    for sample, row in zip(batch.samples, rows, strict=True):
        window = batch.windows[row]
        words = [match.span() for match in re.finditer(r"\S+", sample.context)]
        _, owners = words_of(sample.context, window.spans)
        values = join_tokens(words, owners, weights[row, window.first : window.first + len(window.spans)])
        found.append((words, values / values.sum().clamp_min(1e-12)))
    return found


def _target(row: int, window: Window, answer: Any) -> tuple[int, int, int] | None:
    """The window's row and the positions of the answer's ends, if it is in this window."""
    inside = [n for n, (start, end) in enumerate(window.spans) if start < answer.end and end > answer.start]
    if not answer.answer or not inside or window.spans[0][0] > answer.start or window.spans[-1][1] < answer.end:
        return None
    return row, window.first + inside[0], window.first + inside[-1]
