"""Low-rank adaptation of linear maps: fine-tuning of few weights, which can be merged into the frozen ones."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import PROJECTIONS, MultiHeadAttention
from .backbones.segformer import MixFFN
from .channel import ChannelAttention, SqueezeExcitation
from .deformable import DeformableAttention
from .feedforward import FeedForward
from .hierarchical import ContextPooling
from .onednn import OneDNNLinear, linear
from .spatial import AttentionGate

# The maps that can be adapted, by layer. Those to one number (scores of BiDAF, gates of cells) are vectors, which no
# low rank makes smaller; a kernel's own weights are those of single heads.
MAPS: dict[type[nn.Module], tuple[str, ...]] = {
    MultiHeadAttention: tuple(f"{name}_proj" for name in PROJECTIONS),
    FeedForward: ("fc1", "gate", "fc2"),
    MixFFN: ("fc1", "fc2"),
    DeformableAttention: ("offset_proj", "weight_proj", "v_proj", "out_proj"),
    AttentionGate: ("x_proj", "g_proj"),
    ChannelAttention: ("fc1", "fc2"),
    SqueezeExcitation: ("fc1", "fc2"),
    ContextPooling: ("proj",),
}
TARGETS = tuple(dict.fromkeys(name for names in MAPS.values() for name in names))
Plain = TypeVar("Plain", nn.Linear, nn.Conv2d)


class LowRank(nn.Module):
    """What the adapted maps have in common: the frozen weight (out, in, ...), and the update ``scale B A``."""

    weight: Tensor
    bias: Any  # (out,), or None
    lora_a: Tensor  # (rank, in)
    lora_b: Tensor  # (out, rank)

    def _adapt(self, given: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float) -> None:
        """Takes over the weights of a plain map, frozen, and makes A and B."""
        given.requires_grad_(False)
        self.weight, self.bias = given.weight, given.bias
        self.rank, self.scale, self.dropout = rank, alpha / rank, nn.Dropout(dropout)
        self.lora_a = nn.Parameter(given.weight.new_empty(rank, given.weight.shape[1]))
        self.lora_b = nn.Parameter(given.weight.new_zeros(given.weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear, and so uniform in +-1 / sqrt(in)

    def _merge_into(self, plain: Plain) -> Plain:
        """Gives a plain map the weight ``W + (alpha / rank) B A``."""
        update = (self.scale * self.lora_b @ self.lora_a).view_as(self.weight)
        plain.weight = nn.Parameter((self.weight + update).detach())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach())
        return plain

    def merged(self) -> nn.Module:
        """Returns the plain map with the weight ``W + (alpha / rank) B A``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


class LoRALinear(LowRank, nn.Linear):
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
        nn.Linear.__init__(self, linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self._adapt(linear, rank, alpha, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        update = linear(linear(self.dropout(x), self.lora_a), self.lora_b * self.scale)
        return linear(x, self.weight, self.bias) + update

    def merged(self) -> nn.Linear:
        """Returns the plain linear map with the weight ``W + (alpha / rank) B A``."""
        return self._merge_into(nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"))


class LoRAConv2d(LowRank, nn.Conv2d):
    """`LoRALinear` of the channels of each cell: a convolution with a kernel of one cell.

    Args:
        conv: The convolution; its parameters are shared, and frozen.
        rank: See `LoRALinear`.
        alpha: See `LoRALinear`.
        dropout: See `LoRALinear`.

    Raises:
        ValueError: The convolution is of more than one cell, strided or grouped.

    >>> adapted = LoRAConv2d(nn.Conv2d(6, 4, 1), rank=2)
    >>> adapted.lora_a.shape, adapted.lora_b.shape, adapted(torch.randn(3, 6, 5, 5)).shape
    (torch.Size([2, 6]), torch.Size([4, 2]), torch.Size([3, 4, 5, 5]))
    """

    def __init__(self, conv: nn.Conv2d, rank: int, alpha: float = 16.0, dropout: float = 0.0) -> None:
        if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0), 1):
            raise ValueError(f"expected a convolution of one cell, without stride, padding and groups; found {conv}")
        nn.Conv2d.__init__(self, conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta")
        self._adapt(conv, rank, alpha, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in, H, W) to (B, out, H, W)."""
        update = F.conv2d(self.dropout(x), self.lora_a[:, :, None, None])  # (B, rank, H, W)
        update = F.conv2d(update, (self.lora_b * self.scale)[:, :, None, None])
        return F.conv2d(x, self.weight, self.bias) + update

    def merged(self) -> nn.Conv2d:
        """Returns the plain convolution with the weight ``W + (alpha / rank) B A``."""
        plain = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=self.bias is not None, device="meta")
        return self._merge_into(plain)


ADAPTED: dict[type[nn.Module], type[LoRALinear] | type[LoRAConv2d]] = {
    nn.Linear: LoRALinear,
    OneDNNLinear: LoRALinear,
    nn.Conv2d: LoRAConv2d,
}


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: Collection[str] = ("q_proj", "v_proj"),
    dropout: float = 0.0,
    weights: Collection[str] | None = None,
) -> list[str]:
    """Replaces linear maps of a model's attention and feed-forward layers by `LoRALinear`, in place.

    All other weights stay as they are: freeze those that are not to be trained.

    Args:
        model: Any model of this package's layers.
        rank: See `LoRALinear`.
        alpha: See `LoRALinear`.
        targets: Names of the maps, in all layers that have them: "q_proj", "k_proj", "v_proj", "out_proj" of attention;
            "fc1", "gate", "fc2" of feed-forward layers; those of other layers are in `MAPS`. A kernel that shares
            queries and keys has no "k_proj".
        dropout: See `LoRALinear`.
        weights: Names of the parameters whose maps may be replaced, such as those of public weights; None: all.

    Returns:
        The paths of the replaced maps.

    Raises:
        ValueError: An invalid rank, or a target that the model has not; names those that it has.

    >>> layer = nn.ModuleDict({"attention": MultiHeadAttention(32, 4)})
    >>> add_lora(layer, rank=2)
    ['attention.q_proj', 'attention.v_proj']
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank: expected a whole number of at least 1, found {rank!r}")
    found = [
        (f"{path}.{name}" if path else name, layer, name)
        for path, layer in model.named_modules()
        for kind, names in MAPS.items()
        if isinstance(layer, kind)
        for name in names
        if type(getattr(layer, name, None)) in ADAPTED
        and (weights is None or f"{path}.{name}.weight".removeprefix(".") in weights)
    ]
    known = [name for name in TARGETS if any(name == place for _, _, place in found)]
    if not known:
        raise ValueError("targets: expected attention or feed-forward layers of plain linear maps; the model has none")
    unknown = sorted(set(targets) - set(known))
    if unknown or not targets or isinstance(targets, str):
        wrong = targets if isinstance(targets, str) else unknown or targets
        raise ValueError(f"targets: expected some of {', '.join(known)}; found {wrong!r}")
    chosen = [(path, layer, name) for path, layer, name in found if name in targets]
    for _, layer, name in chosen:
        given = getattr(layer, name)
        setattr(layer, name, ADAPTED[type(given)](given, rank, alpha, dropout))
    return [path for path, _, _ in chosen]


def merge_lora(model: nn.Module) -> nn.Module:
    """Replaces each adapted map of a model by its merged plain map, in place; returns the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                setattr(parent, name, child.merged())
    return model
