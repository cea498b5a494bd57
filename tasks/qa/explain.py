"""Relevance of a context's words for an answer, by integrated gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.data.text.tokenizer import words_of
from mmattn.tasks.common.shading import join_tokens
from mmattn.tasks.qa.data import QABatch, Window

STEPS = 8  # on the way from no input to the text


def token_relevance(model: Any, batch: QABatch, targets: Sequence[tuple[int, int, int]]) -> Tensor:
    r"""Relevance of each token for an answer's score, \((x_i \cdot \int_0^1 \nabla_{x_i} s(\alpha x) d\alpha)^+\).

    Integrated gradients (Sundararajan et al. 2017, section 3) from embeddings x of zero, for every encoder, with
    attention or without. The score s is that of the answer's first and last token less that of no answer.

    Args:
        model: The `QAModel`.
        batch: The batch.
        targets: For each question the row of a window, and the positions of the answer's first and last token.

    Returns:
        (N, L), zeros in the windows without a target.
    """
    embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    rows, starts, ends = torch.tensor(targets, device=batch.input_ids.device).T
    total = torch.zeros(batch.input_ids.shape, device=batch.input_ids.device)
    for step in range(STEPS):
        with torch.enable_grad(), _scaled(embedding, (step + 0.5) / STEPS) as found:
            output = model(batch.input_ids, batch.key_mask, batch.token_types)
            score = output.start_logits[rows, starts] + output.end_logits[rows, ends]
            null = output.start_logits[rows, 0] + output.end_logits[rows, 0]
            (gradient,) = torch.autograd.grad((score - null * (starts > 0)).sum(), found[1:])
        total += (found[0] * gradient).sum(-1) / STEPS
    return total.clamp_min(0.0)


@contextmanager
def _scaled(embedding: nn.Module, scale: float) -> Iterator[list[Tensor]]:
    """Scales an embedding's output; yields a list that it fills with the output, and with the scaled one."""
    found: list[Tensor] = []

    def replace(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        found.extend([output.detach(), (scale * output.detach()).requires_grad_()])
        return found[1]

    hook = embedding.register_forward_hook(replace)
    try:
        yield found
    finally:
        hook.remove()


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
