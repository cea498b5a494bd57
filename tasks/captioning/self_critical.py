"""Self-critical training: drawn captions are rewarded by how much better they are than others of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmattn.generate import Generated
from mmattn.tasks.captioning.data import CaptionBatch
from mmattn.tasks.common.seq2seq.model import decode_options

# Captions are drawn from the distribution that the loss differentiates, whatever a public model's options are.
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
PLAIN |= {"presence_penalty": 0.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}
PLAIN |= {"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0}
Reward = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]  # captions, references of each: scores


def draw(
    model: Any, batch: CaptionBatch, processor: Any, reward: Reward, draws: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw captions for each image, and compare the reward of each with a baseline.

    The baseline is the mean reward of the image's other drawn captions (Luo 2020, section 3), which is fair where drawn
    captions are much worse than greedy ones: these would make almost every advantage negative. With a single draw, the
    greedy caption is the baseline (Rennie et al. 2017, equation 8).

    Args:
        model: The model, in evaluation mode.
        batch: N images and their references.
        processor: Their processor.
        reward: Scores captions by their references.
        draws: Number of captions for each image, D.

    Returns:
        The drawn ids (N D, L) long, those of an image in succession; their mask (N D, L) bool, True = counts; and the
        advantages (N D,).
    """

    def write(**options: Any) -> tuple[Generated, Tensor]:
        found = model.generate(*batch.inputs, decode_options(processor, None, **PLAIN, **options))
        texts = [processor.decode(ids) for image in found.tokens() for ids in image]
        n = options["num_return_sequences"]
        references = [given for given in batch.references for _ in range(n)]
        return found, torch.tensor(reward(texts, references), dtype=torch.float32).view(-1, n)  # (N, n)

    drawn, rewards = write(do_sample=True, num_return_sequences=draws)
    if draws == 1:
        baseline = write(do_sample=False, num_return_sequences=1)[1]
    else:
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (draws - 1)
    ids = drawn.ids.flatten(0, 1).clone()  # a tensor of inference mode has no place in a graph
    mask = torch.arange(ids.shape[1], device=ids.device) < drawn.lengths.flatten()[:, None].clone()  # (N D, L)
    return ids, mask, (rewards - baseline).flatten().to(ids.device)


def self_critical_loss(
    model: Any, batch: CaptionBatch, processor: Any, ids: Tensor, mask: Tensor, advantage: Tensor
) -> Tensor:
    """``-sum (r(w) - b) log p(w)`` per drawn word, b the baseline (Rennie et al. 2017, equation 8); a scalar.

    Args:
        model: The model, in training mode.
        batch: The images.
        processor: Their processor.
        ids: See `draw`, as the other arguments.
        mask: See `draw`.
        advantage: See `draw`.
    """
    start = torch.full_like(ids[:, :1], processor.target.start_id)
    images = torch.arange(len(batch.pixel_values), device=ids.device)
    images = images.repeat_interleave(len(ids) // len(images))
    logits = model(batch.pixel_values, torch.cat([start, ids[:, :-1]], dim=1), images).logits.float()
    never = decode_options(processor, None).suppress_tokens
    if never:  # they were not drawn
        logits = logits.index_fill(2, torch.tensor(never, device=ids.device), -torch.inf)
    log_p = logits.log_softmax(-1).gather(2, ids.masked_fill(~mask, 0)[:, :, None])[:, :, 0]
    log_p = log_p.masked_fill(~mask, 0.0)
    return -(advantage[:, None] * log_p).sum() / mask.sum().clamp_min(1)
