"""TimeSformer: attention over time and over space in turns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, run_layer
from ..masks import same_size
from ..temporal import DividedSpaceTimeLayer
from .vit import PatchEmbed, resize_positions


class EncodedVideo(NamedTuple):
    """The output of an encoder of videos."""

    states: Tensor  # (B, T, N, E): the patches of each frame, or of each group of frames, after the last norm
    pooled: Tensor  # (B, E), one vector per video


def resize_times(times: Tensor, frames: int) -> Tensor:
    """Interpolates positions in time (T, E), learned for one number of frames, linearly for another: (frames, E).

    >>> resize_times(torch.arange(4.0)[:, None], 2).flatten()
    tensor([0.5000, 2.5000])
    """
    if same_size(frames, times.shape[0]):
        return times
    wide = times.to(torch.promote_types(times.dtype, torch.float32))
    return nn.functional.interpolate(wide.T[None], frames, mode="linear")[0].T.to(times.dtype)


class TimeSformer(nn.Module):
    """Patches of frames, a class token, and layers of divided space-time attention (Bertasius et al. 2021, section 3).

    Args:
        embed_dim: E.
        num_layers: Number of layers, each `DividedSpaceTimeLayer`.
        num_heads: h.
        image_size: (H, W) in pixels of the positions in space.
        num_frames: T of the positions in time.
        patch_size: Side of a patch in pixels; incomplete patches are ignored.
        in_channels: Channels of the frames.
        resize: Whether positions are interpolated for frames of another size and number; otherwise these raise.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        bias: Biases of the attentions: all, or those named, of "q", "k", "v", "out".
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: The attention over space, {"kind": name, and the kernel's options}.
        temporal_attention: The attention over time, likewise.

    >>> model = TimeSformer(32, 1, 4, image_size=(32, 48), num_frames=4)
    >>> encoded = model(torch.randn(2, 4, 3, 32, 48))
    >>> encoded.states.shape, encoded.pooled.shape
    (torch.Size([2, 4, 6, 32]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        image_size: Sequence[int] = (224, 224),
        num_frames: int = 8,
        patch_size: int = 16,
        in_channels: int = 3,
        resize: bool = False,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        bias: bool | Collection[str] = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        temporal_attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.grid_size = (image_size[0] // patch_size, image_size[1] // patch_size)  # (h, w)
        self.patches = PatchEmbed(embed_dim, patch_size=patch_size, in_channels=in_channels)
        self.prefix = nn.Parameter(torch.randn(1, embed_dim) * 0.02)  # the class token, with its position
        self.positions = nn.Parameter(torch.randn(1, embed_dim, *self.grid_size) * 0.02)
        self.times = nn.Parameter(torch.zeros(num_frames, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            DividedSpaceTimeLayer(
                embed_dim,
                num_heads,
                ffn_dim=ffn_dim,
                dropout=dropout,
                attention=attention,
                temporal_attention=temporal_attention,
                norm_eps=norm_eps,
                activation=activation,
                bias=bias,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.gradient_checkpointing = False

    def forward(self, pixel_values: Tensor) -> EncodedVideo:
        """Encodes.

        Args:
            pixel_values: (B, T, in_channels, H, W), normalized as the weights require.

        Returns:
            states (B, T, h w, E), the patches row by row; pooled (B, E), the class token.

        Raises:
            ValueError: Another size or number of frames, if positions are not resized.
        """
        x, cls = self.embed(pixel_values)
        for layer in self.layers:
            x, cls = run_layer(self, layer, x, cls)
        return EncodedVideo(self.norm(x), self.norm(cls[:, 0]))

    def hidden_states(self, pixel_values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the first layer's input and each layer's output: patches (B, T, h w, E) and class token (B, 1, E)."""
        states = [self.embed(pixel_values)]
        for layer in self.layers:
            states.append(run_layer(self, layer, *states[-1]))
        return states

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the input of the first layer: patches (B, T, h w, E) and class token (B, 1, E)."""
        B, T = pixel_values.shape[:2]
        grid = self.patches(pixel_values.flatten(0, 1))  # (B T, E, h, w)
        positions, times = self._positions_for(T, grid.shape[2], grid.shape[3])
        patches = self.dropout((grid + positions).flatten(2).mT).unflatten(0, (B, T))  # (B, T, h w, E)
        return self.dropout(patches + times[:, None]), self.dropout(self.prefix.expand(B, 1, -1))

    def _positions_for(self, T: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        if self.resize:
            same = same_size(h, self.grid_size[0]) and same_size(w, self.grid_size[1])
            return self.positions if same else resize_positions(self.positions, (h, w)), resize_times(self.times, T)
        if (h, w) != self.grid_size or not same_size(T, self.times.shape[0]):
            raise ValueError(
                f"{T} frames of {h} x {w} patches, where the positions are for {self.times.shape[0]} of "
                f"{self.grid_size[0]} x {self.grid_size[1]}: resize the frames, or let `resize` resize the positions"
            )
        return self.positions, self.times
