"""Transformers over tubelets, patches of several frames; masked autoencoding of videos."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, LayerOptions
from ..positions import sinusoidal_alternating
from .timesformer import EncodedVideo

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of colors in 0..1
ALIKE = 1e-6  # added to the standard deviation of a patch


class TubeletEmbed(nn.Module):
    """A linear map of each flattened tubelet (Arnab et al. 2021, section 3.2).

    Args:
        embed_dim: E.
        patch_size: P, side of a tubelet in pixels.
        tubelet_size: F, its number of frames.
        in_channels: Channels of the frames.

    >>> TubeletEmbed(32, patch_size=16)(torch.randn(2, 4, 3, 64, 48)).shape
    torch.Size([2, 32, 2, 4, 3])
    """

    def __init__(self, embed_dim: int, *, patch_size: int = 16, tubelet_size: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        size = (tubelet_size, patch_size, patch_size)
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.proj = nn.Conv3d(in_channels, embed_dim, size, stride=size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (B, T, in_channels, H, W). Returns (B, E, T // F, H // P, W // P)."""
        return self.proj(pixel_values.transpose(1, 2))


def tubelets(pixel_values: Tensor, patch_size: int, tubelet_size: int) -> Tensor:
    """Cuts videos into tubelets.

    Args:
        pixel_values: (B, T, C, H, W).
        patch_size: P.
        tubelet_size: F.

    Returns:
        (B, T/F H/P W/P, F P P, C): frame by frame, row by row.

    >>> tubelets(torch.randn(2, 4, 3, 32, 48), 16, 2).shape
    torch.Size([2, 12, 512, 3])
    """
    P, F = patch_size, tubelet_size
    x = pixel_values.unflatten(4, (-1, P)).unflatten(3, (-1, P)).unflatten(1, (-1, F))  # (B, t, F, C, h, P, w, P)
    x = x.permute(0, 1, 4, 6, 2, 5, 7, 3)  # (B, t, h, w, F, P, P, C)
    return x.flatten(4, 6).flatten(1, 3)


class TubeletTransformer(nn.Module):
    """Pre-norm transformer layers over tubelets with fixed positions (Tong et al. 2022, section 3; ViViT's model 1).

    Args:
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        image_size: (H, W) in pixels for which the positions are counted.
        num_frames: T for which they are counted.
        patch_size: Side of a tubelet in pixels.
        tubelet_size: Number of frames of a tubelet.
        in_channels: Channels of the frames.
        resize: Whether positions are interpolated for frames of another size and number; otherwise these raise.
        pooling: "mean" of the tubelets, which is normed after it; or "first", the first tubelet after the norm.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        bias: Biases of the attentions: all, or those named, of "q", "k", "v", "out".
        norm_eps: Epsilon added to the variance in the layer norms.
        pooled_eps: Epsilon of the norm of the mean.
        dropout: Dropout after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}; the tubelets are flattened frame by frame, row by row.

    >>> model = TubeletTransformer(32, 1, 4, image_size=(32, 48), num_frames=4)
    >>> encoded = model(torch.randn(2, 4, 3, 32, 48))
    >>> encoded.states.shape, encoded.pooled.shape
    (torch.Size([2, 2, 6, 32]), torch.Size([2, 32]))
    """

    POOLINGS = ("mean", "first")

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        image_size: Sequence[int] = (224, 224),
        num_frames: int = 16,
        patch_size: int = 16,
        tubelet_size: int = 2,
        in_channels: int = 3,
        resize: bool = False,
        pooling: str = "mean",
        ffn_dim: int | None = None,
        activation: str = "gelu",
        bias: bool | Collection[str] = True,
        norm_eps: float = 1e-6,
        pooled_eps: float = 1e-5,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if pooling not in self.POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; expected one of: {', '.join(self.POOLINGS)}")
        if num_frames < tubelet_size:
            raise ValueError(f"num_frames={num_frames} is less than tubelet_size={tubelet_size}")
        self.pooling, self.resize, self.embed_dim = pooling, resize, embed_dim
        self.grid_size = (num_frames // tubelet_size, image_size[0] // patch_size, image_size[1] // patch_size)
        self.patches = TubeletEmbed(
            embed_dim, patch_size=patch_size, tubelet_size=tubelet_size, in_channels=in_channels
        )
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        layer |= {"bias": bias}
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_eps=norm_eps, **layer)
        self.norm: nn.Module = nn.Identity()
        if pooling == "mean":
            self.norm, self.encoder.norm = nn.LayerNorm(embed_dim, eps=pooled_eps), nn.Identity()

    def forward(self, pixel_values: Tensor) -> EncodedVideo:
        """Encodes.

        Args:
            pixel_values: (B, T, in_channels, H, W), normalized as the weights require.

        Returns:
            states (B, t, h w, E), t groups of frames; pooled (B, E).

        Raises:
            ValueError: Another size or number of frames, if positions are not resized.
        """
        x, (t, h, w) = self.embed(pixel_values)
        states = self.encoder(x)  # (B, t h w, E)
        pooled = self.norm(states.mean(1)) if self.pooling == "mean" else states[:, 0]
        return EncodedVideo(states.unflatten(1, (t, h * w)), pooled)

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Returns the first layer's input and each layer's output: num_layers + 1 tensors (B, t h w, E)."""
        return self.encoder.hidden_states(self.embed(pixel_values)[0])

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Returns the input of the first layer (B, t h w, E), and t, h and w."""
        grid = self.patches(pixel_values)  # (B, E, t, h, w)
        size = (grid.shape[2], grid.shape[3], grid.shape[4])
        return grid.flatten(2).mT + self.positions(size, self.embed_dim, grid), size

    def positions(self, size: tuple[int, int, int], embed_dim: int, like: Tensor) -> Tensor:
        """Sinusoids of the tubelets' numbers, (t h w, embed_dim); interpolated for a grid of another size.

        Raises:
            ValueError: Another size, if positions are not resized.
        """
        if size != self.grid_size and not self.resize:
            found, own = (" x ".join(map(str, given)) for given in (size, self.grid_size))
            raise ValueError(
                f"{found} tubelets, where the positions are for {own}: resize the video, or let `resize` resize them"
            )
        t, h, w = self.grid_size
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        table = sinusoidal_alternating(torch.arange(t * h * w, device=like.device, dtype=wide), embed_dim)
        if size != self.grid_size:
            grid = table.T.unflatten(1, self.grid_size)[None]  # (1, E, t, h, w)
            grid = nn.functional.interpolate(grid, size=size, mode="trilinear", align_corners=False)
            table = grid[0].flatten(1).T
        return table.to(like.dtype)


class VideoMAE(nn.Module):
    """A `TubeletTransformer` that sees few tubelets, and a small decoder that completes the others (Tong et al. 2022).

    Args:
        encoder: Keywords of `TubeletTransformer`.
        decoder_dim: Embedding size of the decoder.
        decoder_layers: Number of its layers.
        decoder_heads: Number of its attention heads.
        decoder_ffn_dim: Hidden size of its feed-forward networks; None = 4 decoder_dim.
        norm_targets: Whether the pixels to be predicted are standardized within each tubelet.
        mean: Mean of the colors in 0..1 by which pixel_values were normalized.
        std: Their standard deviation.

    >>> small = {"embed_dim": 32, "num_layers": 1, "num_heads": 4, "image_size": (32, 48), "num_frames": 4}
    >>> model = VideoMAE(small, decoder_dim=16, decoder_layers=1, decoder_heads=2)
    >>> mask = tube_mask(2, (2, 2, 3), 0.5)
    >>> model(torch.randn(2, 4, 3, 32, 48), mask).shape
    torch.Size([2, 6, 1536])
    """

    def __init__(
        self,
        encoder: dict[str, Any],
        *,
        decoder_dim: int = 384,
        decoder_layers: int = 4,
        decoder_heads: int = 6,
        decoder_ffn_dim: int | None = None,
        norm_targets: bool = True,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
    ) -> None:
        super().__init__()
        self.encoder = TubeletTransformer(**encoder)
        same = {key: encoder[key] for key in ("bias", "activation", "norm_eps", "dropout") if key in encoder}
        self.decoder = TubeletDecoder(
            self.encoder, decoder_dim, decoder_layers, decoder_heads, ffn_dim=decoder_ffn_dim, **same
        )
        self.norm_targets, self.mean, self.std = norm_targets, tuple(mean), tuple(std)

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        """pixel_values: (B, T, C, H, W); mask: (B, t h w) bool, True = masked. Returns (B, M, F P P C), see decoder."""
        return self.decoder(self.encoder, pixel_values, mask)

    def loss(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of the masked tubelets, a scalar; see `masked_loss`."""
        return masked_loss(
            self.encoder, self.decoder, pixel_values, mask, self.mean, self.std, norm_targets=self.norm_targets
        )


class TubeletDecoder(nn.Module):
    """Completes a video of which an encoder saw the tubelets that are not masked (Tong et al. 2022, section 3.2).

    Args:
        encoder: The encoder, for its sizes.
        embed_dim: E' of the decoder.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        layer: Keywords of `Encoder`.
    """

    def __init__(
        self, encoder: TubeletTransformer, embed_dim: int, num_layers: int, num_heads: int, **layer: Any
    ) -> None:
        super().__init__()
        patches = encoder.patches
        self.embed_dim = embed_dim
        self.project = nn.Linear(encoder.embed_dim, embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.layers = Encoder(embed_dim, num_layers, num_heads, **layer)
        self.layers.norm = nn.LayerNorm(embed_dim)
        pixels = patches.proj.in_channels * patches.tubelet_size * patches.patch_size**2
        self.out = nn.Linear(embed_dim, pixels)

    def forward(self, encoder: TubeletTransformer, pixel_values: Tensor, mask: Tensor) -> Tensor:
        """Predicts the pixels of the masked tubelets.

        Args:
            encoder: The encoder.
            pixel_values: (B, T, C, H, W).
            mask: (B, t h w) bool, True = masked, as many in each row.

        Returns:
            (B, M, F P P C) for the M masked tubelets of each video, in order.
        """
        x, size = encoder.embed(pixel_values)
        B = x.shape[0]
        seen = encoder.encoder(x[~mask].unflatten(0, (B, -1)))  # (B, t h w - M, E)
        positions = encoder.positions(size, self.embed_dim, x).expand(B, -1, -1)
        hidden = positions[mask].unflatten(0, (B, -1))  # (B, M, E')
        known = self.project(seen) + positions[~mask].unflatten(0, (B, -1))
        found = self.layers.hidden_states(torch.cat([known, self.mask_token + hidden], dim=1))[-1]
        return self.out(self.layers.norm(found[:, -hidden.shape[1] :]))


def masked_loss(
    encoder: TubeletTransformer,
    decoder: TubeletDecoder,
    pixel_values: Tensor,
    mask: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    norm_targets: bool = True,
) -> Tensor:
    """Mean squared error of the pixels of masked tubelets.

    Args:
        encoder: The encoder.
        decoder: The decoder.
        pixel_values: (B, T, C, H, W), normalized by mean and std.
        mask: (B, t h w) bool, True = masked, as many in each row.
        mean: Mean of the colors in 0..1.
        std: Their standard deviation.
        norm_targets: Whether the pixels of each tubelet are standardized for each color (He et al. 2022, section 3).

    Returns:
        A scalar.
    """
    predicted = decoder(encoder, pixel_values, mask)  # (B, M, F P P C)
    with torch.no_grad():
        center, spread = (pixel_values.new_tensor(values)[:, None, None] for values in (mean, std))
        found = tubelets(pixel_values * spread + center, encoder.patches.patch_size, encoder.patches.tubelet_size)
        if norm_targets:
            found = (found - found.mean(2, keepdim=True)) / (found.var(2, keepdim=True).sqrt() + ALIKE)
        targets = found.flatten(2)[mask].view_as(predicted)
    return nn.functional.mse_loss(predicted, targets)


def tube_mask(
    batch: int, size: tuple[int, int, int], ratio: float = 0.9, generator: torch.Generator | None = None
) -> Tensor:
    """Masks the same places in all frames of a video (Tong et al. 2022, section 3.3).

    Args:
        batch: B.
        size: t, h and w, numbers of tubelets.
        ratio: Share of the places that are masked: at least one is, and one is not.
        generator: Source of the draws; None: torch's own.

    Returns:
        (B, t h w) bool, True = masked.

    Raises:
        ValueError: There is a single place.
    """
    t, places = size[0], size[1] * size[2]
    if places < 2:
        raise ValueError("expected at least two patches in a frame, of which some are masked; found one")
    count = min(max(round(ratio * places), 1), places - 1)
    order = torch.rand(batch, places, generator=generator).argsort(1)
    return (order < count)[:, None].expand(-1, t, -1).flatten(1)  # (B, t h w)
