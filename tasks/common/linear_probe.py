"""The linear probe from which the fine-tuning of few samples begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 1000  # training samples, up to which it is fitted: features of many take long, and need no such start
DECAY = 0.01  # weight of the squared norm of the weights, relative to that of the features
STEPS = 500  # of L-BFGS, at most


def probe(features: Tensor, targets: Tensor, multi_label: bool = False) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier by regularized logistic regression, with L-BFGS.

    Args:
        features: (N, D) float.
        targets: (N, K) float, the share of each class.
        multi_label: Whether classes are not mutually exclusive.

    Returns:
        The weight (K, D) and the bias (K,), in float64 on the CPU.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, y = features.cpu().double(), targets.cpu().double()
        weight = x.new_zeros(y.shape[1], x.shape[1], requires_grad=True)
        bias = x.new_zeros(y.shape[1], requires_grad=True)
        decay = DECAY * float(x.square().sum(1).mean())
        loss_of = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, tolerance_change=0, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            loss = loss_of(x @ weight.mT + bias, y) + decay * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def start_from_probe(
    layer: nn.Linear, batches: Iterable[Any], run: Callable[[Any], Any], multi_label: bool = False
) -> None:
    """Let a new last layer begin as the probe of what it reads, so that it does not distort pretrained features.

    From random weights, the first steps of fine-tuning change the features to suit a layer that is not trained yet;
    with a probe first, few samples generalize better (Kumar et al. 2022, "LP-FT").

    Args:
        layer: The layer, in a model in evaluation mode.
        batches: The training data, with `targets` (B, K).
        run: Runs the model on a batch.
        multi_label: Whether classes are not mutually exclusive.
    """
    read, targets = list[Tensor](), list[Tensor]()
    handle = layer.register_forward_pre_hook(lambda module, given: read.append(given[0].detach()))
    try:
        with torch.no_grad():
            for batch in batches:
                run(batch)
                targets.append(batch.targets)
    finally:
        handle.remove()
    weight, bias = probe(torch.cat(read), torch.cat(targets), multi_label)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
