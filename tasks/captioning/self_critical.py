"""Self-critical training: drawn captions are rewarded by how much better they are than greedy ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmattn.tasks.captioning.data import CaptionBatch
from mmattn.tasks.common.seq2seq.model import decode_options

Reward = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]  # captions, references of each: scores


def draw(model: Any, batch: CaptionBatch, processor: Any, reward: Reward) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a caption for each image, and compare its reward with that of the greedy one.

    Args:
        model: The model, in evaluation mode.
        batch: The images and their references.
        processor: Their processor.
        reward: Scores captions by their references.

    Returns:
        The drawn ids (N, L) long, their mask (N, L) bool, True = counts, and the advantage of each (N,).
    """
    given: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1}
    greedy = model.generate(*batch.inputs, decode_options(processor, None, **given, do_sample=False))
    drawn = model.generate(*batch.inputs, decode_options(processor, None, **given, do_sample=True))
    scores = []
    for found in (drawn, greedy):
        texts = [processor.decode(ids[0]) for ids in found.tokens()]
        scores.append(torch.tensor(reward(texts, batch.references), dtype=torch.float32))
    ids = drawn.ids[:, 0].clone()  # a tensor of inference mode has no place in a graph
    mask = torch.arange(ids.shape[1], device=ids.device) < drawn.lengths.clone()  # (N, L)
    return ids, mask, (scores[0] - scores[1]).to(ids.device)


def self_critical_loss(
    model: Any, batch: CaptionBatch, processor: Any, ids: Tensor, mask: Tensor, advantage: Tensor
) -> Tensor:
    """``-sum (r(w) - r(greedy)) log p(w)`` per drawn word (Rennie et al. 2017, equation 8); a scalar.

    Args:
        model: The model, in training mode.
        batch: The images.
        processor: Their processor.
        ids: See `draw`, as the other arguments.
        mask: See `draw`.
        advantage: See `draw`.
    """
    start = torch.full_like(ids[:, :1], processor.target.start_id)
    images = torch.arange(len(ids), device=ids.device)
    logits = model(batch.pixel_values, torch.cat([start, ids[:, :-1]], dim=1), images).logits.float()
    never = decode_options(processor, None).suppress_tokens
    if never:  # they were not drawn
        logits = logits.index_fill(2, torch.tensor(never, device=ids.device), -torch.inf)
    log_p = logits.log_softmax(-1).gather(2, ids.masked_fill(~mask, 0)[:, :, None])[:, :, 0]
    log_p = log_p.masked_fill(~mask, 0.0)
    return -(advantage[:, None] * log_p).sum() / mask.sum().clamp_min(1)
