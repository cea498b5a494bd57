r"""Answers from the scores of their first and last tokens, as by the pipeline of transformers 4.

In each window the probabilities of a first and of a last token, over the context's tokens and the first special token,
are softmaxes of the scores; a span has the product of both, and is at most `max_answer_len` tokens long. The first
special token stands for no answer: \(p_0 = \min_w p^{start}_w(0)\, p^{end}_w(0)\) over the windows w, since a window
without the answer also has none. Spans of all windows are gathered before the best are taken.

A context has no answer if \(\min_w (s^{start}_w(0) + s^{end}_w(0)) - \max_{span} (s^{start} + s^{end})\), the
difference of the scores, exceeds a threshold (Devlin et al. 2019, section 4.3), which is chosen on the validation data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmattn.data.text.scripts import UNSPACED, script_of
from mmattn.tasks.qa.data import QABatch, Window

LOW = -1e30  # in place of the scores of what is no answer
AT_ONCE = 64  # windows of which the scores are computed together
Scores = tuple[Tensor, Tensor, list[Window]]  # of first and of last tokens, (W, L) each, in the windows of a question


@dataclass(frozen=True)
class Span:
    """A possible answer: characters of the context."""

    start: int
    end: int
    score: float  # probability of its first and of its last token in its window
    logit: float  # sum of both scores
    window: int = 0  # index of its window among those of its question


@dataclass(frozen=True)
class Candidates:
    """The best spans of a question, and the scores of no answer."""

    spans: list[Span]
    null_score: float
    null_logit: float

    @property
    def null_difference(self) -> float:
        """By how much the score of no answer exceeds that of the best span."""
        return self.null_logit - max((span.logit for span in self.spans), default=LOW)


def score_windows(model: Any, batch: QABatch) -> list[Scores]:
    """Compute the scores of each question of a batch. A long context has many windows: few are in memory at a time."""
    size = len(batch.windows)
    parts = []
    for start in range(0, size, AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        output = model(batch.input_ids[rows], batch.key_mask[rows], batch.token_types[rows])
        parts.append((output.start_logits.float().cpu(), output.end_logits.float().cpu()))
    starts, ends = (torch.cat(side) for side in zip(*parts, strict=True))
    own: list[list[int]] = [[] for _ in batch.samples]
    for row, window in enumerate(batch.windows):
        own[window.question].append(row)
    return [(starts[rows], ends[rows], [batch.windows[row] for row in rows]) for rows in own]


def candidates(
    text: str,
    start_logits: Tensor,
    end_logits: Tensor,
    windows: Sequence[Window],
    top_k: int = 1,
    max_answer_len: int = 30,
    log_total: tuple[float, float] | None = None,
) -> Candidates:
    """Find the best spans of one question over all of its windows.

    Args:
        text: The context.
        start_logits: (W, L), scores of the first token.
        end_logits: (W, L), of the last one.
        windows: The W windows of the question.
        top_k: Number of spans; those that are the same words of the context are one.
        max_answer_len: Maximum number of tokens.
        log_total: Result of `log_normalizers`, if several texts are compared; None: each window is normalized alone.

    Returns:
        The spans, the most probable first.
    """
    found: dict[tuple[int, int], Span] = {}
    nulls: list[tuple[float, float]] = []
    for number, (window, starts, ends) in enumerate(zip(windows, start_logits, end_logits, strict=True)):
        first, last = _kept(starts, window), _kept(ends, window)  # (1 + S,): none, then the context's tokens
        totals = (first.logsumexp(0), last.logsumexp(0)) if log_total is None else log_total
        p, q = (first - totals[0]).exp(), (last - totals[1]).exp()
        nulls.append((float(p[0] * q[0]), float(first[0] + last[0])))
        products = torch.tril(torch.triu(p[1:, None] * q[None, 1:]), max_answer_len - 1)  # (S, S)
        best = products.flatten().topk(min(4 * top_k, products.numel()))  # several may be the same words
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            a, b = divmod(place, len(window.spans))
            if a > b or b - a >= max_answer_len:
                continue  # a product that is zero
            words = whole_words(text, window.spans[a][0], window.spans[b][1])
            one = Span(*words, score, float(first[1 + a] + last[1 + b]), number)
            if words[0] < words[1] and (words not in found or found[words].score < score):
                found[words] = one
    ranked = sorted(found.values(), key=lambda span: -span.score)[:top_k]
    scores, logits = zip(*nulls, strict=True)
    return Candidates(ranked, min(scores), min(logits))


def whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Extend a span to whole words: letters and digits without a space or punctuation mark between them.

    >>> whole_words("the teapots", 4, 7)
    (4, 11)
    """
    while start > 0 and start < end and _joined(text[start - 1], text[start]):
        start -= 1
    while end > start and end < len(text) and _joined(text[end - 1], text[end]):
        end += 1
    return start, end


def _joined(left: str, right: str) -> bool:
    return all(c.isalnum() and script_of(c) not in UNSPACED for c in (left, right))


def log_normalizers(scores: Sequence[Scores]) -> tuple[float, float]:
    """Log of the sums by which the probabilities of first and of last tokens are normalized over several texts.

    Windows are compared by their scores only if they are normalized together (Clark and Gardner 2018, section 3.2).

    Args:
        scores: Those of each text.
    """
    both: tuple[list[Tensor], list[Tensor]] = ([], [])
    for starts, ends, windows in scores:
        for n, window in enumerate(windows):
            for rows, logits in zip(both, (starts, ends), strict=True):
                rows.append(_kept(logits[n], window))
    first, last = (float(torch.cat(rows).logsumexp(0)) for rows in both)
    return first, last


def _kept(logits: Tensor, window: Window) -> Tensor:
    """A window's scores (L,) of no answer, and of the context's tokens: (1 + S,)."""
    return torch.cat([logits[:1], window.part(logits)])
