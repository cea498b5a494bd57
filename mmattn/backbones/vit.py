"""Vision transformers over patches or maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, FeedForward, LayerOptions, Residual, make_attention
from ..masks import same_size
from ..positions import GridPositions
from .pooling import Encoded, Pooler


class PatchEmbed(nn.Module):
    """A linear map of each flattened patch (Dosovitskiy et al. 2021, section 3.1).

    Args:
        embed_dim: E.
        patch_size: P, side of a patch in pixels.
        in_channels: Channels of the image.

    >>> import torch
    >>> PatchEmbed(32, patch_size=16)(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 32, 4, 3])
    """

    def __init__(self, embed_dim: int, *, patch_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.stride = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W). Returns (N, E, H // P, W // P); incomplete patches are ignored."""
        return self.proj(pixel_values)


class GridEncoder(nn.Module):
    """Transformer layers over a stem's map with positions; with PatchEmbed a ViT without a class token.

    Args:
        stem: Maps pixel values (N, 3, H, W) to a map (N, E, h, w), see `mmattn.backbones.build_stem`.
        embed_dim: E.
        num_layers: Number of transformer layers; 0 leaves stem and positions.
        num_heads: h.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        dropout: Dropout after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}; the tokens are flattened row by row.
        positions: See `mmattn.positions.GridPositions`.
        grid_size: (h, w) of learned positions.

    >>> import torch
    >>> GridEncoder(PatchEmbed(32), 32, 1, 4)(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 32, 8, 6])
    """

    def __init__(
        self,
        stem: nn.Module,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        positions: str = "sinusoidal",
        grid_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.positions = GridPositions(embed_dim, positions, grid_size=grid_size)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, ffn_dim=ffn_dim, dropout=dropout, attention=attention)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, 3, H, W). Returns a map (N, E, h, w); ``.flatten(2).mT`` makes it tokens (N, h w, E)."""
        grid = self.positions(self.stem(pixel_values))  # (N, E, h, w)
        tokens = self.encoder(self.dropout(grid.flatten(2).mT))  # (N, h w, E)
        return tokens.mT.unflatten(2, grid.shape[2:])

    @torch.no_grad()
    def grid_size(self, image_size: int) -> tuple[int, int]:
        """Returns rows and columns (h, w) of the map of a square image of this side in pixels."""
        like = next(self.stem.parameters())
        training = [module for module in self.stem.modules() if module.training]  # others, if frozen, are not
        cells = self.stem.eval()(like.new_zeros(1, 3, image_size, image_size)).shape
        for module in training:
            module.training = True
        return cells[2], cells[3]


class LayerScale(nn.Module):
    """``gamma * x``, a learned factor per channel of a residual (Touvron et al. 2021b, section 2).

    Args:
        embed_dim: E.
        value: Initial value of gamma; small, so that each layer is near the identity at initialization.
    """

    def __init__(self, embed_dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) to (..., E)."""
        return x * self.gamma


class AttentionHead(nn.Module):
    """``a + ffn(norm(a))``, a being the attention of one learned query to all tokens (Zhai et al. 2022, section 3.2).

    Args:
        embed_dim: E.
        num_heads: h.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward network.
        norm_eps: Epsilon added to the variance in the norm.

    >>> AttentionHead(32, 4)(torch.randn(2, 12, 32)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, embed_dim) * embed_dim**-0.5)
        self.attention = make_attention(embed_dim, num_heads, None, {"cross"})
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.ffn = FeedForward(embed_dim, ffn_dim, activation=activation)

    def forward(self, states: Tensor) -> Tensor:
        """states: (B, L, E), normalized. Returns (B, E)."""
        read = self.attention(self.query.expand(states.shape[0], -1, -1), states)[:, 0]  # (B, E)
        return read + self.ffn(self.norm(read))


def resize_positions(positions: Tensor, size: Sequence[int], mode: str = "bicubic") -> Tensor:
    """Interpolates positions learned for one grid for another.

    Args:
        positions: (1, E, h, w).
        size: The target size (h', w').
        mode: "bicubic" or "bicubic_antialias", which differ if the grid becomes smaller.

    Returns:
        (1, E, h', w').

    >>> resize_positions(torch.randn(1, 32, 14, 14), (20, 12)).shape
    torch.Size([1, 32, 20, 12])
    """
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))  # half precision would shift them
    wide = wide.contiguous()  # torch's antialias is wrong for channels-last tensors if the result is one cell wide
    resized = nn.functional.interpolate(wide, tuple(size), mode="bicubic", antialias=mode == "bicubic_antialias")
    return resized.to(positions.dtype)


def resize_in_mask(positions: Tensor, cells: Tensor) -> Tensor:
    """Interpolates positions learned for one grid for the real cells of padded maps, each of its own size.

    Bilinear, the corners of both grids at the same places: ``sum_ij (1 - |y - i|)+ (1 - |x - j|)+ position_ij`` for the
    cell at (y, x) of the learned grid.

    Args:
        positions: (1, E, h, w).
        cells: (B, h', w') bool, True = a real cell; a rectangle at the left and the top.

    Returns:
        (B, E, h', w'); values at padding are undefined.

    >>> resize_in_mask(torch.randn(1, 32, 12, 12), torch.ones(2, 9, 16, dtype=torch.bool)).shape
    torch.Size([2, 32, 9, 16])
    """
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    shares = []
    for real, size, count in zip((cells[:, :, 0], cells[:, 0]), cells.shape[1:], positions.shape[2:], strict=True):
        places = torch.arange(size, device=cells.device, dtype=wide.dtype) * (count - 1)  # (h',)
        places = places / (real.sum(1, keepdim=True) - 1).clamp_min(1)  # (B, h')
        distances = places[:, :, None] - torch.arange(count, device=cells.device)  # (B, h', h)
        shares.append((1 - distances.abs()).clamp_min(0))
    return torch.einsum("byi,bxj,eij->beyx", *shares, wide[0]).to(positions.dtype)


class VisionTransformer(nn.Module):
    """Pre-norm transformer layers over a class token and patches (Dosovitskiy et al. 2021, section 3.1).

    DeiT adds a distillation token after the class token (Touvron et al. 2021, section 4), DINOv2 registers (Darcet et
    al. 2024, section 2). Positions of these tokens in public checkpoints are added to ``prefix``, as only the sum is
    used.

    Args:
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        image_size: (H, W) in pixels of the positions.
        patch_size: Side of a patch in pixels; incomplete patches are ignored.
        in_channels: Channels of the image.
        num_prefix: Tokens before the patches: 1 = class, 2 = class and distillation; class and registers.
        resize_positions: "bicubic" (as transformers) or "bicubic_antialias" (as timm) resizes the positions to the grid
            of other images; with None those raise.
        pooling: "token" (the first), "prefix" (the mean of class and distillation token), "mean" (of the patches) or
            "map" (`AttentionHead` over all tokens).
        norm_embedded: One more norm, of the first layer's input, as in CLIP (Radford et al. 2021, section 2.4).
        norm_pooled: The last norm comes after pooling instead of before (timm's ``fc_norm``).
        pooler_dim: A linear map to this size, and an activation, over the pooled vector; None for none.
        pooler_activation: A name in ``mmattn.feedforward.ACTIVATIONS``.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks, likewise.
        gated: Whether the feed-forward networks are gated; with "silu" SwiGLU, as in DINOv2's giant model.
        layer_scale: Initial value of the learned factor per channel of each residual; None for none.
        qkv_bias: Biases in the projections of queries, keys and values.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}.

    Raises:
        ValueError: An unknown option, or a pooling that needs a class token without one.

    >>> model = VisionTransformer(32, 1, 4, image_size=(64, 48))
    >>> encoded = model(torch.randn(2, 3, 64, 48))
    >>> encoded.states.shape, encoded.pooled.shape
    (torch.Size([2, 13, 32]), torch.Size([2, 32]))
    """

    POOLINGS = ("token", "prefix", "mean", "map")
    RESIZES = ("bicubic", "bicubic_antialias")

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        image_size: Sequence[int] = (224, 224),
        patch_size: int = 16,
        in_channels: int = 3,
        num_prefix: int = 1,
        resize_positions: str | None = None,
        pooling: str = "token",
        norm_embedded: bool = False,
        norm_pooled: bool = False,
        pooler_dim: int | None = None,
        pooler_activation: str = "tanh",
        ffn_dim: int | None = None,
        activation: str = "gelu",
        gated: bool = False,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if pooling not in self.POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; expected one of: {', '.join(self.POOLINGS)}")
        if pooling in ("token", "prefix") and not num_prefix:
            raise ValueError(f"pooling={pooling!r} needs a class token, and num_prefix=0")
        if resize_positions not in (None, *self.RESIZES):
            raise ValueError(
                f"unknown resize_positions {resize_positions!r}; expected one of: {', '.join(self.RESIZES)}"
            )
        self.pooling, self.resize_positions, self.num_prefix = pooling, resize_positions, num_prefix
        self.grid_size = (image_size[0] // patch_size, image_size[1] // patch_size)  # (h, w)
        self.patches = PatchEmbed(embed_dim, patch_size=patch_size, in_channels=in_channels)
        self.prefix = nn.Parameter(torch.randn(num_prefix, embed_dim) * 0.02) if num_prefix else None
        self.positions = nn.Parameter(torch.randn(1, embed_dim, *self.grid_size) * 0.02)
        self.embedded_norm: nn.Module = nn.LayerNorm(embed_dim, eps=norm_eps) if norm_embedded else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        layer |= {"gated": gated, "bias": True if qkv_bias else ("out",)}
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_eps=norm_eps, **layer)
        if layer_scale is not None:
            for residual in self.encoder.modules():
                if isinstance(residual, Residual):
                    residual.scale = LayerScale(embed_dim, layer_scale)
        self.head = None
        if pooling == "map":
            head: dict[str, Any] = {"ffn_dim": ffn_dim, "activation": activation, "norm_eps": norm_eps}
            self.head = AttentionHead(embed_dim, num_heads, **head)
        self.norm: nn.Module = nn.Identity()
        if norm_pooled:
            self.norm, self.encoder.norm = self.encoder.norm, self.norm
        self.pooler: nn.Module = nn.Identity()
        if pooler_dim is not None:
            self.pooler = Pooler(embed_dim, pooler_dim, activation=pooler_activation)

    def forward(self, pixel_values: Tensor) -> Encoded:
        """Encodes.

        Args:
            pixel_values: (N, in_channels, H, W), normalized as the weights require.

        Returns:
            states (N, num_prefix + h w, E), the prefix and then patches row by row; pooled (N, E or pooler_dim).

        Raises:
            ValueError: Another image size, if positions are not resized.
        """
        states = self.encoder(self.embed(pixel_values))
        return Encoded(states, self.pooler(self.norm(self._pool(states))))

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Returns the first layer's input and each layer's output: num_layers + 1 tensors (N, num_prefix + h w, E)."""
        return self.encoder.hidden_states(self.embed(pixel_values))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Returns the input of the first layer: (N, num_prefix + h w, E)."""
        grid = self.patches(pixel_values)  # (N, E, h, w)
        x = (grid + self._positions_for(grid.shape[2], grid.shape[3])).flatten(2).mT  # (N, h w, E)
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self.dropout(self.embedded_norm(x))

    def _positions_for(self, h: int, w: int) -> Tensor:
        if self.resize_positions is None:
            if (h, w) != self.grid_size:
                raise ValueError(
                    f"{h} x {w} patches, where the positions are for {self.grid_size[0]} x {self.grid_size[1]}: "
                    "resize the image, or let resize_positions resize them"
                )
            return self.positions
        if same_size(h, self.grid_size[0]) and same_size(w, self.grid_size[1]):
            return self.positions
        return resize_positions(self.positions, (h, w), self.resize_positions)

    def _pool(self, states: Tensor) -> Tensor:
        if self.head is not None:
            return self.head(states)
        if self.pooling == "token":
            return states[:, 0]
        if self.pooling == "prefix":
            return states[:, : self.num_prefix].mean(1)
        return states[:, self.num_prefix :].mean(1)


class VitTrunk(nn.Module):
    """The patches of a whole VisionTransformer as a map, without its class token and pooling.

    Args:
        embed_dim: E of a 1x1 convolution over the map.
        body: Keywords of VisionTransformer, which has no pooler here.

    >>> VitTrunk(16, {"embed_dim": 32, "num_layers": 1, "num_heads": 4, "image_size": (64, 48)})(
    ...     torch.randn(2, 3, 64, 48)
    ... ).shape
    torch.Size([2, 16, 4, 3])
    """

    def __init__(self, embed_dim: int, body: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = VisionTransformer(**{**body, "pooling": "mean", "pooler_dim": None})
        self.project = nn.Conv2d(body["embed_dim"], embed_dim, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W), normalized as the weights require. Returns (N, E, h, w)."""
        return self.project(self.body_features(pixel_values))

    def body_features(self, pixel_values: Tensor) -> Tensor:
        """The normalized states of the patches, before the projection: a map (N, C, h, w)."""
        states = self.body.encoder(self.body.embed(pixel_values))[:, self.body.num_prefix :]  # (N, h w, C)
        patch = self.body.patches.stride
        return states.mT.unflatten(2, (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch))
