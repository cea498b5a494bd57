"""wav2vec 2.0 and HuBERT: encoders of waveforms with an optional CTC head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, LayerOptions
from ..feedforward import ACTIVATIONS
from ..masks import Mask


class AudioStates(NamedTuple):
    """The output of an audio encoder."""

    states: Tensor  # (B, S, E); values at padding are undefined
    mask: Tensor | None  # (B, S) bool, True = a real frame; None = all are real


class WaveLayer(nn.Module):
    """A convolution over time, a norm and an activation (Baevski et al. 2020, section 2).

    Args:
        in_dim: Channels of the input.
        out_dim: Channels of the output.
        kernel_size: Kernel size, in steps.
        stride: Stride, in steps.
        norm: "layer" (over channels, step by step), "group" (over time, channel by channel) or "none".
        bias: Whether the convolution has a bias.
        activation: A name in ``mmattn.feedforward.ACTIVATIONS``.
    """

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int, stride: int, *, norm: str, bias: bool, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.by_step = norm == "layer"
        self.norm: nn.Module = nn.Identity()
        if norm != "none":
            self.norm = nn.LayerNorm(out_dim) if self.by_step else nn.GroupNorm(out_dim, out_dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, n) to (B, out_dim, n')."""
        x = self.conv(x)
        x = self.norm(x.mT).mT if self.by_step else self.norm(x)
        return ACTIVATIONS[self.activation](x)


class ConvPositions(nn.Module):
    """Convolutional relative positions: adds a wide grouped convolution of (B, S, E) to it (ibid.).

    Args:
        embed_dim: E.
        kernel_size: Kernel size, in frames.
        groups: Groups of channels.
        activation: A name in ``mmattn.feedforward.ACTIVATIONS``.
        norm: Whether a batch norm precedes the convolution, as in some HuBERT models.
    """

    def __init__(self, embed_dim: int, *, kernel_size: int, groups: int, activation: str, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(embed_dim, embed_dim, kernel_size, padding=kernel_size // 2, groups=groups)
        nn.init.normal_(self.conv.weight, std=2 * math.sqrt(1 / (kernel_size * embed_dim)))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.norm: nn.Module = nn.BatchNorm1d(embed_dim) if norm else nn.Identity()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, E) to (B, S, E)."""
        placed = self.conv(self.norm(x.mT))[:, :, : x.shape[1]]  # (B, E, S): an even kernel gives one extra frame
        return x + ACTIVATIONS[self.activation](placed).mT


class Wav2Vec2(nn.Module):
    """``Encoder(positions(project(convolutions(wave))))`` (Baevski et al. 2020, section 2); HuBERT is the same network.

    HuBERT (Hsu et al. 2021) differs in training. With conv_norm="group" (the base models) a clip's statistics include
    its padding, as in the published models: only batches of equal lengths give the same states as single clips. With
    "layer" (the large models) padding has no effect.

    Args:
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        vocab_size: V of a CTC head over the states; None for none.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        conv_dims: Channels of the convolutions over samples.
        conv_kernels: Kernel sizes of these convolutions.
        conv_strides: Strides of these convolutions.
        conv_norm: "group" = the first is normalized over time; "layer" = each is normalized at every step.
        conv_bias: Whether these convolutions have biases.
        conv_activation: Activation of these convolutions and of the positions' convolution.
        feature_norm: Whether a layer norm precedes the projection to E.
        position_kernel: Kernel size of the positions' convolution, in frames.
        position_groups: Groups of the positions' convolution.
        position_norm: Whether a batch norm precedes the positions' convolution.
        norm_first: Pre-norm (the large models); off: post-norm, and a norm before the first layer.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}.

    Raises:
        ValueError: Inconsistent options.

    >>> model = Wav2Vec2(32, 1, 4, vocab_size=9, conv_dims=(16, 16), conv_kernels=(10, 3), conv_strides=(5, 2))
    >>> wave = torch.randn(2, 400)
    >>> model(wave).states.shape, model.logits(wave)[0].shape
    (torch.Size([2, 39, 32]), torch.Size([2, 39, 9]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        vocab_size: int | None = None,
        ffn_dim: int | None = None,
        conv_dims: Sequence[int] = (512, 512, 512, 512, 512, 512, 512),
        conv_kernels: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        conv_strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        conv_norm: str = "group",
        conv_bias: bool = False,
        conv_activation: str = "gelu",
        feature_norm: bool = True,
        position_kernel: int = 128,
        position_groups: int = 16,
        position_norm: bool = False,
        norm_first: bool = False,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if conv_norm not in ("group", "layer"):
            raise ValueError(f"unknown conv_norm {conv_norm!r}; expected one of: group, layer")
        if not len(conv_dims) == len(conv_kernels) == len(conv_strides) > 0:
            found = f"{len(conv_dims)}, {len(conv_kernels)} and {len(conv_strides)}"
            raise ValueError(f"conv_dims, conv_kernels and conv_strides must be as many, at least one; found {found}")
        self.kernels, self.strides = tuple(conv_kernels), tuple(conv_strides)
        sizes = zip((1, *conv_dims), conv_dims, conv_kernels, conv_strides, strict=False)
        self.convolutions = nn.Sequential(
            *(
                WaveLayer(
                    *size,
                    norm=conv_norm if conv_norm == "layer" or first else "none",
                    bias=conv_bias,
                    activation=conv_activation,
                )
                for first, size in zip((True, *[False] * len(conv_dims)), sizes, strict=False)
            )
        )
        self.feature_norm = nn.LayerNorm(conv_dims[-1], eps=norm_eps) if feature_norm else nn.Identity()
        self.project = nn.Linear(conv_dims[-1], embed_dim)
        self.positions = ConvPositions(
            embed_dim,
            kernel_size=position_kernel,
            groups=position_groups,
            activation=conv_activation,
            norm=position_norm,
        )
        self.norm = nn.Identity() if norm_first else nn.LayerNorm(embed_dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_first=norm_first, norm_eps=norm_eps, **layer)
        self.head = None if vocab_size is None else nn.Linear(embed_dim, vocab_size)

    @property
    def hop(self) -> int:
        """Samples between states: 320 in public models, 20 ms at 16 kHz."""
        return math.prod(self.strides)

    def forward(self, wave: Tensor, sample_mask: Tensor | None = None) -> AudioStates:
        """Encodes.

        Args:
            wave: (B, n), normalized as the weights require, 0 at padding.
            sample_mask: (B, n) bool, True = a real sample, padded at the right. Public base models (conv_norm="group")
                were trained without a mask.

        Returns:
            states (B, S, E) of the last layer, and their mask.

        Raises:
            ValueError: The wave is too short for a single frame.
        """
        x, mask = self.embed(wave, sample_mask)
        return AudioStates(self.encoder(x, None if mask is None else Mask(mask)), mask)

    def logits(self, wave: Tensor, sample_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns CTC logits (B, S, V), id 0 the blank in public models, and the mask (B, S); see `forward`.

        Raises:
            ValueError: The model has no CTC head.
        """
        if self.head is None:
            raise ValueError("this model has no CTC head (vocab_size=None)")
        states, mask = self(wave, sample_mask)
        return self.head(self.dropout(states)), mask

    def hidden_states(self, wave: Tensor, sample_mask: Tensor | None = None) -> list[Tensor]:
        """Returns the input of the first layer and the output of each: num_layers + 1 tensors (B, S, E)."""
        x, mask = self.embed(wave, sample_mask)
        return self.encoder.hidden_states(x, None if mask is None else Mask(mask))

    def embed(self, wave: Tensor, sample_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the input of the first layer, (B, S, E), and its mask, (B, S)."""
        if wave.shape[1] < (least := self.receptive_field):
            raise ValueError(f"{wave.shape[1]} samples are too short: one frame takes {least}")
        features, mask = self.convolutions(wave[:, None]).mT, None  # (B, S, C)
        if sample_mask is not None:
            real = self.frames(sample_mask.sum(1))  # (B,)
            mask = torch.arange(features.shape[1], device=wave.device) < real[:, None]  # (B, S)
        return self.place(features, mask), mask

    def place(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps the convolutions' output (B, S, C) and its mask (B, S) to the input of the first layer."""
        x = self.project(self.feature_norm(features))  # (B, S, E)
        if mask is not None:
            x = x.masked_fill(~mask[:, :, None], 0.0)  # within the positions' convolution's receptive field
        return self.dropout(self.norm(self.positions(self.dropout(x))))

    @property
    def receptive_field(self) -> int:
        """Receptive field of one frame, in samples: 400 in public models."""
        seen = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            seen = (seen - 1) * stride + kernel
        return seen

    def frames(self, samples: Tensor) -> Tensor:
        """Returns the number of frames for numbers of samples, (...) long."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel).div(stride, rounding_mode="floor") + 1
        return samples.clamp_min(0)
