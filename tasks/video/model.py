"""The video model: an encoder of frames or of the whole clip, a head, and the evidence for a class."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mmattn.backbones import build_grid_encoder
from mmattn.backbones.timesformer import TimeSformer
from mmattn.backbones.videomae import TubeletDecoder, TubeletTransformer
from mmattn.explain import capture, relevance, shares
from mmattn.explain.relevance import Step
from mmattn.positions import GridPositions
from mmattn.tasks.video.head import PooledHead, VideoHead

VideoEncoder = Literal["factorized", "divided", "tubelet"]
Pooling = Literal["attention", "token", "mean"]
Modality = Literal["color", "difference"]
GAIN = 2.0  # of differences of frames, whose contrast is low
SPACE, TIME = "head.space.attention", "head.time.attention"  # paths of the attention that pools cells, and frames
DECODER_LAYERS = 4  # of masked pretraining (Tong et al. 2022, section 4.1)


class VideoOutput(NamedTuple):
    """Output of `VideoModel`."""

    logits: Tensor  # (B, K)


class Evidence(NamedTuple):
    """When and where in a clip the evidence for a class lies."""

    frames: Tensor  # (B, t), shares of the frames, or groups of frames: each row sums to one
    cells: Tensor  # (B, t, gh, gw), shares of the cells of each frame, which sum to one


class VideoModel(nn.Module):
    """Video classification: an encoder and a `VideoHead`, or the encoder's own pooled vector.

    Args:
        num_classes: Number of classes K; 0 for pretraining, without a head.
        encoder: "factorized": an image encoder for each frame (Donahue et al. 2015; ViViT's model 2); "divided":
            attention over time and over space in turns (TimeSformer); "tubelet": joint attention of patches of several
            frames (ViViT, VideoMAE).
        image_size: Side of the square frames, in pixels.
        num_frames: Number of frames T of a clip.
        modality: What the encoder sees: "color", or the "difference" of each frame from the one before it, in which
            what rests vanishes (Wang et al. 2016, section 3.2); the first frame's is zero.
        image_encoder: Encoder of each frame of "factorized": "conv", "vit" or "timm/NAME".
        patch_size: Patch size of "divided", "tubelet" and "vit", in pixels.
        tubelet_size: Number of frames of a patch of "tubelet".
        channels: Channels of the layers of "conv", each of which halves the map.
        embed_dim: Embedding size E.
        num_heads: Number of attention heads.
        num_layers: Number of transformer layers of "divided" and "tubelet".
        image_layers: Number of transformer layers of the image encoder.
        temporal_layers: Number of transformer layers across frames of the head.
        ffn_dim: Hidden size of the feed-forward networks; None: 2 E.
        pooling: "attention": in each frame, then across frames; "token": the class token of "divided"; "mean": of all
            cells and frames.
        attention: The self-attention over space of "divided", of "tubelet", or of the image encoder, {"kind": name, and
            the kernel's options}; None: dense.
        temporal_attention: The self-attention over time, of "divided" or across frames, likewise.
        dropout: Dropout everywhere but in attention weights.
        image_options: Additional keywords of the image encoder, see `mmattn.backbones.build_stem`.
        encoder_options: Additional keywords of "divided" and "tubelet", such as those of public weights.
        decoder_layers: Number of layers of the decoder of masked pretraining, for "tubelet"; None: no decoder.
        decoder_dim: Embedding size of this decoder; None: E / 2.
        decoder_heads: Number of its attention heads; None: half of the encoder's.
        decoder_ffn_dim: Hidden size of its feed-forward networks; None: 4 decoder_dim.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: VideoEncoder = "factorized",
        image_size: int = 32,
        num_frames: int = 12,
        modality: Modality = "color",
        image_encoder: str = "conv",
        patch_size: int = 8,
        tubelet_size: int = 2,
        channels: tuple[int, ...] = (24, 48),
        embed_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 4,
        image_layers: int = 0,
        temporal_layers: int = 2,
        ffn_dim: int | None = None,
        pooling: Pooling = "attention",
        attention: dict[str, Any] | None = None,
        temporal_attention: dict[str, Any] | None = None,
        dropout: float = 0.0,
        image_options: dict[str, Any] | None = None,
        encoder_options: dict[str, Any] | None = None,
        decoder_layers: int | None = None,
        decoder_dim: int | None = None,
        decoder_heads: int | None = None,
        decoder_ffn_dim: int | None = None,
    ) -> None:
        super().__init__()
        _check(encoder, pooling, modality, temporal_attention, decoder_layers)
        self.kind, self.pooling, self.modality = encoder, pooling, modality
        self.image_size, self.num_frames = image_size, num_frames
        layers: dict[str, Any] = {"ffn_dim": ffn_dim or 2 * embed_dim, "dropout": dropout, "attention": attention}
        sizes: dict[str, Any] = {
            "image_size": (image_size, image_size),
            "num_frames": num_frames,
            "patch_size": patch_size,
        }
        more: dict[str, Any] = dict(encoder_options or {})
        self.image_encoder: Any = None
        self.encoder: Any = None
        if encoder == "factorized":
            self.image_encoder = build_grid_encoder(
                image_encoder,
                embed_dim,
                image_layers,
                num_heads,
                image_size=image_size,
                patch_size=patch_size,
                channels=channels,
                image_options=image_options,
                **layers,
            )
        elif encoder == "divided":
            layers |= {"temporal_attention": temporal_attention, "resize": True}
            self.encoder = TimeSformer(embed_dim, num_layers, num_heads, **(sizes | layers | more))
        else:
            layers |= {"tubelet_size": tubelet_size, "resize": True}
            layers |= {"pooling": "mean" if pooling == "mean" else "first"}  # the latter norms each tubelet
            self.encoder = TubeletTransformer(embed_dim, num_layers, num_heads, **(sizes | layers | more))
        self.decoder = None
        if decoder_layers is not None:
            dim = decoder_dim or embed_dim // 2
            heads = decoder_heads or max(1, num_heads // 2)
            same = {key: more[key] for key in ("bias", "activation", "norm_eps") if key in more}
            self.decoder = TubeletDecoder(self.encoder, dim, decoder_layers, heads, ffn_dim=decoder_ffn_dim, **same)
        self.grid_positions = None
        self.head: Any = None
        if not num_classes:
            return
        if pooling == "token" or (pooling == "mean" and encoder == "tubelet"):
            self.head = PooledHead(embed_dim, num_classes, dropout=dropout)
            return
        if pooling == "attention":  # added again: the layers blur positions
            self.grid_positions = GridPositions(embed_dim, "coordinates")
        self.head = VideoHead(
            embed_dim,
            num_classes,
            num_heads=num_heads,
            temporal_layers=temporal_layers,
            ffn_dim=ffn_dim,
            pooling="mean" if pooling == "mean" else "attention",
            temporal_attention=None if encoder == "divided" or pooling == "mean" else temporal_attention,
            dropout=dropout,
        )

    def forward(self, pixel_values: Tensor) -> VideoOutput:
        """pixel_values: (B, T, 3, H, W). Returns logits (B, K)."""
        if self.head is None:
            return VideoOutput(self.encoder(self.seen(pixel_values)).pooled[:, :0])
        if isinstance(self.head, PooledHead):
            return VideoOutput(self.head(self.encoder(self.seen(pixel_values)).pooled))
        return VideoOutput(self.head(self.features(pixel_values)))

    def features(self, pixel_values: Tensor) -> Tensor:
        """The features of the cells of each frame, or group of frames: (B, t, P, E), with positions in space."""
        pixel_values = self.seen(pixel_values)
        B, T = pixel_values.shape[:2]
        if self.image_encoder is not None:
            grid = self.image_encoder(pixel_values.flatten(0, 1))  # (B T, E, h, w)
            if self.grid_positions is not None:
                grid = self.grid_positions(grid)
            return grid.flatten(2).mT.unflatten(0, (B, T))
        states = self.encoder(pixel_values).states  # (B, t, P, E)
        if self.grid_positions is None:
            return states
        h, w = self.grid_size(pixel_values)
        grid = self.grid_positions(states.flatten(0, 1).mT.unflatten(2, (h, w)))  # (B t, E, h, w)
        return grid.flatten(2).mT.unflatten(0, states.shape[:2])

    def seen(self, pixel_values: Tensor) -> Tensor:
        """What the encoder sees of a clip (B, T, 3, H, W): itself, or the differences of its frames, of equal shape."""
        if self.modality == "color":
            return pixel_values
        first = torch.zeros_like(pixel_values[:, :1])
        return torch.cat([first, GAIN * (pixel_values[:, 1:] - pixel_values[:, :-1])], dim=1)

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of the cells of each frame (gh, gw)."""
        H, W = pixel_values.shape[3:]
        if self.image_encoder is not None:
            return self.image_encoder.grid_size(H)  # type: ignore[no-any-return]
        patch = self.encoder.patches
        side = patch.stride if self.kind == "divided" else patch.patch_size
        return H // side, W // side

    @property
    def group(self) -> int:
        """Number of frames of each group to which the evidence is given: that of a tubelet, or one."""
        return int(self.encoder.patches.tubelet_size) if self.kind == "tubelet" else 1

    # Evidence ---------------------------------------------------------------------------------------------------------

    def evidence(self, pixel_values: Tensor, classes: Tensor) -> Evidence:
        """When and where in each clip the evidence for a class lies.

        With attention pooling: the relevance of the frames, attention weighted by its gradient and propagated through
        the layers across frames (Chefer et al. 2021), and the gradient-weighted attention in each frame. With a class
        token: its gradient-weighted attention to the patches of each frame, over all layers. Else, the relevance of
        tubelets, or the product of features and gradient (Jiang et al. 2021, LayerCAM).

        Args:
            pixel_values: (B, T, 3, H, W).
            classes: (B,) long, the class to explain.
        """

        def score() -> Tensor:
            return self(pixel_values).logits.gather(1, classes[:, None])[:, 0]

        B = pixel_values.shape[0]
        if self.pooling == "attention":
            found = relevance(self, score, self._plan())
            frames = found["read", "frames"][:, 0]  # (B, t)
            cells = self._weighted(score, [SPACE])[:, 0].unflatten(0, (B, -1))  # (B, t, P)
            return Evidence(shares(frames), shares(cells).unflatten(2, self.grid_size(pixel_values)))
        if self.pooling == "token":
            paths = [f"encoder.layers.{n}.attention" for n in range(len(self.encoder.layers))]
            cells = self._weighted(score, paths)[:, 0, 1:].unflatten(0, (B, -1))
        elif self.kind == "tubelet":
            R = next(iter(relevance(self, score).values()))  # (B, t P, t P)
            R = R - torch.eye(R.shape[1], device=R.device)
            h, w = self.grid_size(pixel_values)
            cells = R.mean(1).unflatten(1, (-1, h * w))
        else:
            cells = self._activations(score)
        frames = shares(cells.sum(2))
        return Evidence(frames, shares(cells).unflatten(2, self.grid_size(pixel_values)))

    def _plan(self) -> list[Step]:
        """The steps from the frames to the logits."""
        layers = range(len(self.head.layers.layers))
        steps = [Step(f"head.layers.layers.{n}.attention", "frames", "frames") for n in layers]
        return [*steps, Step(TIME, "read", "frames")]

    def _weighted(self, score: Any, paths: list[str]) -> Tensor:
        """Attention weighted by its gradient, ``mean over heads of (d score / d W * W)^+``, summed over paths."""
        with torch.enable_grad(), capture(self, differentiable=True, only=paths) as maps:
            total = score().sum()
            given = [maps[path][0] for path in paths]
            gradients = torch.autograd.grad(total, given, allow_unused=True)
        parts = [
            (weights.detach() * gradient).clamp_min(0).mean(1)
            for weights, gradient in zip(given, gradients, strict=True)
            if gradient is not None
        ]
        return torch.stack(parts).sum(0)  # (N, L, S)

    def _activations(self, score: Any) -> Tensor:
        """LayerCAM of the features that are averaged: ``sum_c relu(d score / d F_c) F_c``, at least 0, (B, t, P)."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            outputs.append(args[0].detach().requires_grad_())
            return (outputs[-1], *args[1:])

        handle = self.head.register_forward_pre_hook(keep)
        try:
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(score().sum(), outputs[:1])
        finally:
            handle.remove()
        return (gradient.clamp_min(0) * outputs[0].detach()).sum(-1).clamp_min(0)


def _check(encoder: str, pooling: str, modality: str, temporal_attention: Any, decoder_layers: int | None) -> None:
    options = (("encoder", encoder, VideoEncoder), ("pooling", pooling, Pooling), ("modality", modality, Modality))
    for name, value, kinds in options:
        if value not in get_args(kinds):
            raise ValueError(f"unknown {name} {value!r}; expected one of: {', '.join(get_args(kinds))}")
    if pooling == "token" and encoder != "divided":
        raise ValueError(f"pooling 'token': encoder {encoder!r} has no class token; expected attention or mean")
    if temporal_attention is not None and pooling == "mean" and encoder != "divided":
        raise ValueError(f"temporal_attention: encoder {encoder!r} with pooling 'mean' has none over time")
    if decoder_layers is not None and modality != "color":
        raise ValueError(f"decoder_layers: expected modality 'color', whose pixels are predicted; found {modality!r}")
    if decoder_layers is not None and encoder != "tubelet":
        raise ValueError(f"decoder_layers: expected encoder 'tubelet', whose patches are masked; found {encoder!r}")


def classify(model: VideoModel, pixel_values: Tensor, views: int = 1) -> Tensor:
    """Logarithms of the probabilities (B, K), averaged over the clips of each video, (B V, T, 3, H, W)."""
    logits = model(pixel_values).logits.float()
    if views == 1:
        return logits
    return logits.softmax(-1).unflatten(0, (-1, views)).mean(1).clamp_min(1e-12).log()
