"""Low-rank adaptation of linear maps: fine-tuning of few weights, which can be merged into the frozen ones."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import PROJECTIONS, MultiHeadAttention
from .blocks import FeedForward

TARGETS = (*(f"{name}_proj" for name in PROJECTIONS), "fc1", "fc2")  # linear maps of attention and feed-forward layers


class LoRALinear(nn.Linear):
    """``x W^T + b + (alpha / rank) x A^T B^T`` with frozen W and b (Hu et al. 2022, section 4.1).

    A is random and B zero at initialization, so that the output is that of the frozen map. W and b keep their names, so
    that the frozen weights load as those of the map that it replaces.

    Args:
        linear: The linear map; its parameters are shared, and frozen.
        rank: Rank of the update, the rows of A and the columns of B.
        alpha: Scale of the update, relative to the rank.
        dropout: Dropout of the update's input.

    >>> adapted = LoRALinear(nn.Linear(6, 4), rank=2)
    >>> adapted.lora_a.shape, adapted.lora_b.shape, adapted(torch.randn(3, 6)).shape
    (torch.Size([2, 6]), torch.Size([4, 2]), torch.Size([3, 4]))
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float = 16.0, dropout: float = 0.0) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        linear.requires_grad_(False)
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.scale, self.dropout = rank, alpha / rank, nn.Dropout(dropout)
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear, and so uniform in +-1 / sqrt(in)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        update = F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b * self.scale)
        return F.linear(x, self.weight, self.bias) + update

    def merged(self) -> nn.Linear:
        """Returns the plain linear map with the weight ``W + (alpha / rank) B A``."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter((self.weight + self.scale * self.lora_b @ self.lora_a).detach())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach())
        return plain

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: Collection[str] = ("q_proj", "v_proj"),
    dropout: float = 0.0,
) -> list[str]:
    """Replaces linear maps of a model's attention and feed-forward layers by `LoRALinear`, in place.

    All other weights stay as they are: freeze those that are not to be trained.

    Args:
        model: Any model of `MultiHeadAttention` and `FeedForward` modules.
        rank: See `LoRALinear`.
        alpha: See `LoRALinear`.
        targets: Names of the maps: "q_proj", "k_proj", "v_proj", "out_proj" of attention, "fc1" and "fc2" of
            feed-forward layers. A kernel that shares queries and keys has no "k_proj".
        dropout: See `LoRALinear`.

    Returns:
        The paths of the replaced maps.

    Raises:
        ValueError: An invalid rank, an unknown target, or a model without one of them.

    >>> layer = nn.ModuleDict({"attention": MultiHeadAttention(32, 4)})
    >>> add_lora(layer, rank=2)
    ['attention.q_proj', 'attention.v_proj']
    """
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets or isinstance(targets, str):
        raise ValueError(f"targets: expected some of {', '.join(TARGETS)}; found {unknown or targets}")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank: expected a whole number of at least 1, found {rank!r}")
    found = [
        (f"{path}.{name}" if path else name, layer, name)
        for path, layer in model.named_modules()
        if isinstance(layer, (MultiHeadAttention, FeedForward))
        for name in TARGETS
        if name in targets and type(getattr(layer, name, None)) is nn.Linear
    ]
    missing = [name for name in targets if not any(name == place for _, _, place in found)]
    if missing:
        raise ValueError(
            f"targets: the model has no plain linear map {missing[0]} in an attention or feed-forward layer"
        )
    for _, layer, name in found:
        setattr(layer, name, LoRALinear(getattr(layer, name), rank, alpha, dropout))
    return [path for path, _, _ in found]


def merge_lora(model: nn.Module) -> nn.Module:
    """Replaces each `LoRALinear` of a model by its merged plain map, in place; returns the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    return model
