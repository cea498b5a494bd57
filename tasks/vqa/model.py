"""The VQA model: an image encoder, a question encoder, and a head that fuses them. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones import build_grid_encoder
from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.recurrent import RecurrentEncoder
from mmattn.backbones.text import TextEncoder
from mmattn.positions import GridPositions
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.vqa.fusion import Maps, build_fusion, mean_words

Fusion = Literal["fusion_block", "co_attention", "single_stream", "additive"]
# Sigmoid heads score each cell independently and can count; softmax heads compare cells.
COUNTING = {"kind": "sigmoid", "num_sigmoid_heads": 2}
SELF_ATTENDING = ("co_attention", "single_stream")  # fusions whose own self-attention has a kernel to choose


class VQAOutput(NamedTuple):
    """Output of `VQAModel`."""

    logits: Tensor  # (B, V): a score for each answer of the vocabulary
    object_logits: Tensor  # (N, P, K): a score for each object label in each cell of the grid; K may be 0


class JointClassifier(nn.Module):
    """Logits of the answers from fused features and question features: a hidden layer over both, and their product.

    hidden = [gelu(W [s; t]), (U s) * (V t)], where s are the fused and t the question features, standardized. The
    product lets a word change the effect of a feature ("left" or "right" of two positions, "more" or "fewer" of two
    counts), which a hidden layer alone learns slowly: the low-rank bilinear pooling of Kim et al. 2017, section 3.
    Standardizing each feature over the batch amplifies features of small variance, such as positions.

    Args:
        fused_dim: Size of s.
        question_dim: Size of t.
        hidden_dim: Size of each of the two parts.
        num_answers: Number of answers V.
        dropout: Dropout of the hidden layer.
    """

    def __init__(self, fused_dim: int, question_dim: int, hidden_dim: int, num_answers: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(fused_dim + question_dim)
        self.both = nn.Linear(fused_dim + question_dim, hidden_dim)
        self.seen = nn.Linear(fused_dim, hidden_dim)  # U; the names are those of checkpoints
        self.asked = nn.Linear(question_dim, hidden_dim)  # V
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * hidden_dim, num_answers)

    def forward(self, fused: Tensor, question: Tensor) -> Tensor:
        """fused: (B, fused_dim); question: (B, question_dim). Returns (B, V)."""
        features = torch.cat([fused, question], dim=-1)
        if self.training and features.shape[0] == 1:  # the variance of one question is zero: use running statistics
            mean, variance = self.norm.running_mean, self.norm.running_var
            features = nn.functional.batch_norm(features, mean, variance, self.norm.weight, self.norm.bias)
        else:
            features = self.norm(features)
        fused, question = features.split([fused.shape[-1], question.shape[-1]], dim=-1)
        hidden = torch.cat([nn.functional.gelu(self.both(features)), self.seen(fused) * self.asked(question)], dim=-1)
        return self.out(self.dropout(hidden))


class VQAHead(nn.Module):
    """Fuses image and question features of any encoders and returns logits of the answers.

    Args:
        embed_dim: Embedding size E of the head.
        num_answers: Number of answers V.
        image_dim: Size of the image features; None: E.
        text_dim: Size of the question features; None: E.
        num_heads: Number of attention heads H.
        ffn_dim: Hidden size of the feed-forward networks; None: 4 E.
        fusion: "fusion_block" (latents that attend to the image), "co_attention" (two streams, ViLBERT),
            "single_stream" (one encoder over both, ViLT), "additive" (additive attention of a recurrent state).
        pooling: Pooling of the image by "fusion_block": "attention", or "mean", a baseline without attention.
        fusion_layers: Number of layers of the first three fusions.
        num_latents: Number of latents of "fusion_block".
        attention: Self-attention of "co_attention" and "single_stream", {"kind": name, and the kernel's options}.
        cross_attention: Attention to the image of "fusion_block" and "co_attention".
        dropout: Dropout in the fusion's layers and before the last linear map.

    >>> head = VQAHead(32, 10, image_dim=768, text_dim=384, num_heads=4)
    >>> head(torch.randn(2, 49, 768), torch.randn(2, 7, 384)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        embed_dim: int,
        num_answers: int,
        *,
        image_dim: int | None = None,
        text_dim: int | None = None,
        num_heads: int = 4,
        ffn_dim: int | None = None,
        fusion: Fusion = "fusion_block",
        pooling: Literal["attention", "mean"] = "attention",
        fusion_layers: int = 3,
        num_latents: int = 4,
        attention: Mapping[str, Any] | None = None,
        cross_attention: Mapping[str, Any] | None = COUNTING,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if attention is not None and fusion not in SELF_ATTENDING:
            raise ValueError(f"attention: fusion {fusion!r} has no self-attention kernel to choose")
        if cross_attention not in (None, COUNTING) and fusion in ("single_stream", "additive"):
            raise ValueError(f"cross_attention: fusion {fusion!r} has no cross-attention kernel to choose")
        self.image_proj = nn.Linear(image_dim, embed_dim) if image_dim not in (None, embed_dim) else nn.Identity()
        self.text_proj = nn.Linear(text_dim, embed_dim) if text_dim not in (None, embed_dim) else nn.Identity()
        if pooling not in ("attention", "mean") or (pooling == "mean" and fusion != "fusion_block"):
            raise ValueError(f"pooling: expected attention, or mean with fusion fusion_block, found {pooling!r}")
        self.fusion = build_fusion(
            fusion,
            embed_dim,
            fusion_layers,
            num_heads,
            num_latents=num_latents,
            pooled=pooling == "mean",
            ffn_dim=ffn_dim or 4 * embed_dim,
            dropout=dropout,
            attention=attention,
            cross_attention=cross_attention,
        )
        self.classifier = JointClassifier(self.fusion.out_dim, embed_dim, 2 * embed_dim, num_answers, dropout)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        key_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of the answers.

        Args:
            image_features: (N, P, image_dim): the cells or patches of N images.
            text_features: (B, L, text_dim): the words of B questions.
            key_mask: (B, L) bool, True = a real word; None: all are.
            image_index: (B,) long, the image of each question; None: B = N, and question i is about image i.

        Returns:
            (B, V).
        """
        if key_mask is None:
            key_mask = torch.ones(text_features.shape[:2], dtype=torch.bool, device=text_features.device)
        grid, text = self.image_proj(image_features), self.text_proj(text_features)
        return self.classifier(self.fusion(grid, text, key_mask, image_index), mean_words(text, key_mask))


class VQAModel(nn.Module):
    """Visual question answering as classification: images and questions to logits over an answer vocabulary.

    Args:
        vocab_size: Size of the token vocabulary.
        num_answers: Size of the answer vocabulary V.
        image_encoder: Encoder of the image's grid: "conv" (a convolutional stem), "vit" (patches) or "timm/NAME".
        image_size: Side of the square image, in pixels.
        patch_size: Patch size of "vit", in pixels.
        channels: Channels of the layers of "conv", each of which halves the map.
        embed_dim: Embedding size E.
        num_heads: Number of attention heads H.
        ffn_dim: Hidden size of the feed-forward networks.
        image_layers: Number of transformer layers of the image encoder.
        image_options: Additional keywords of the image encoder's constructor; for "timm/NAME", {"whole": true} keeps
            all its layers.
        text_encoder: Encoder of the question: "own", a transformer of text_layers, or "bert".
        text_layers: Number of transformer layers of the question encoder.
        text_options: Keywords of the constructor of "bert" (`mmattn.backbones.bert.BertEncoder`).
        fusion: See VQAHead; with "additive" the question encoder is an LSTM.
        pooling: See VQAHead.
        fusion_layers: Number of layers of the fusion.
        num_latents: Number of latents of "fusion_block".
        attention: The encoders' self-attention, {"kind": name, and the kernel's options}; none: dense.
        cross_attention: The attention to the image.
        dropout: Dropout everywhere but in attention weights.
        max_text_len: Maximum number of tokens of a question.
        num_object_labels: Number K of object labels that are predicted for each cell; 0: none.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        *,
        image_encoder: str = "conv",
        image_size: int = 64,
        patch_size: int = 8,
        channels: tuple[int, ...] = (32, 64, 96),
        embed_dim: int = 64,
        num_heads: int = 4,
        ffn_dim: int = 128,
        image_layers: int = 1,
        image_options: dict[str, Any] | None = None,
        text_encoder: Literal["own", "bert"] = "own",
        text_layers: int = 1,
        text_options: dict[str, Any] | None = None,
        fusion: Fusion = "fusion_block",
        pooling: Literal["attention", "mean"] = "attention",
        fusion_layers: int = 3,
        num_latents: int = 4,
        attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = COUNTING,
        dropout: float = 0.0,
        max_text_len: int = 32,
        num_object_labels: int = 0,
    ) -> None:
        super().__init__()
        self.max_text_len = max_text_len
        layers: dict[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention}
        self.image_encoder: Any = build_grid_encoder(
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
        self.grid_positions = GridPositions(embed_dim, "coordinates")  # added again: the layers blur positions
        self.image_size = image_size
        self.text_encoder: nn.Module
        text_dim = embed_dim
        if text_encoder == "bert":
            if fusion == "additive":
                raise ValueError("text_encoder: fusion 'additive' has an LSTM, found 'bert'")
            encoder = BertEncoder(vocab_size, **{"pooler": False, "dropout": dropout} | (text_options or {}))
            self.text_encoder, text_dim = encoder, encoder.embed_dim
        elif fusion == "additive":
            self.text_encoder = RecurrentEncoder(vocab_size, embed_dim, embed_dim, bidirectional=False, dropout=dropout)
        else:
            self.text_encoder = TextEncoder(
                vocab_size, embed_dim, text_layers, num_heads, max_len=max_text_len, positions="sinusoidal", **layers
            )
        self.head = VQAHead(
            embed_dim,
            num_answers,
            text_dim=text_dim,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            fusion=fusion,
            pooling=pooling,
            fusion_layers=fusion_layers,
            num_latents=num_latents,
            attention=attention if fusion in SELF_ATTENDING else None,
            cross_attention=cross_attention,
            dropout=dropout,
        )
        self.object_head = nn.Linear(embed_dim, num_object_labels) if num_object_labels else None

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, key_mask: Tensor, image_index: Tensor | None = None
    ) -> VQAOutput:
        """Compute the logits of the answers and of the object labels.

        Args:
            pixel_values: (N, 3, H, W).
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            image_index: (B,) long, the image of each question; None: B = N, and question i is about image i.

        Returns:
            `logits` (B, V) and `object_logits` (N, P, K).
        """
        grid = self.grid_positions(self.image_encoder(pixel_values)).flatten(2).mT  # (N, P, E)
        if isinstance(self.text_encoder, RecurrentEncoder):
            text, _ = self.text_encoder(input_ids, key_mask)  # (B, L, E)
        elif isinstance(self.text_encoder, BertEncoder):
            text = self.text_encoder(input_ids, key_mask).states  # (B, L, text_dim)
        else:
            text = self.text_encoder(input_ids, key_mask)
        logits = self.head(grid, text, key_mask, image_index)
        objects = self.object_head(grid) if self.object_head is not None else grid[..., :0]
        return VQAOutput(logits, objects)

    @cached_property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid (gh, gw) for images of the given size."""
        return self.image_encoder.grid_size(self.image_size)

    def grid_maps(self, maps: Maps, image_index: Tensor | None, key_mask: Tensor) -> list[Tensor]:
        """Attention of each question to the grid: (B, K, P) for each layer of the fusion, rows summing to one.

        K is the number of latents, or one for fusions without latents. The maps have gradients.

        Args:
            maps: Maps captured by `mmattn.explain.capture(model)` in one forward pass.
            image_index: The argument of that pass.
            key_mask: The argument of that pass.
        """
        return self.head.fusion.grid_maps(_below(maps, "head.fusion."), image_index, key_mask)

    def grid_attention(self, maps: Maps, image_index: Tensor | None, key_mask: Tensor) -> Tensor:
        """Attention of each question to the grid as one map (B, gh, gw), summing to one.

        It is the mean over latents of `mean_over_layers(grid_maps)`.

        Raises:
            ValueError: The model uses mean pooling and does not attend to the image.
        """
        layers = self.grid_maps(maps, image_index, key_mask)
        if not layers:
            raise ValueError("pooling 'mean' does not attend to the image and has no attention map")
        return mean_over_layers(layers).mean(1).unflatten(1, self.grid_size)

    def word_attention(self, maps: Maps, key_mask: Tensor) -> Tensor:
        """Attention to the words, (B, L), rows summing to one; uniform for fusions without such a map."""
        layers = [
            weights[:, : key_mask.shape[1]] for weights in self.head.fusion.word_maps(_below(maps, "head.fusion."))
        ]
        words = torch.stack(layers).mean(0) if layers else key_mask.float()
        words = words.masked_fill(~key_mask, 0.0)
        return words / words.sum(-1, keepdim=True).clamp_min(1e-6)


def mean_over_layers(layers: list[Tensor]) -> Tensor:
    """Mean of the layers' maps, without the first of several layers, which attends to a question's starting point."""
    return torch.stack(layers[1:] if len(layers) > 1 else layers).mean(0)


def _below(maps: Maps, prefix: str) -> dict[str, list[Tensor]]:
    return {path.removeprefix(prefix): found for path, found in maps.items() if path.startswith(prefix)}


def upgrade(keywords: dict[str, Any]) -> dict[str, Any]:
    """Convert keywords of format 1, whose models may have a memory of training questions.

    Raises:
        CheckpointError: The model has a memory.
    """
    if keywords.get("memory"):
        raise CheckpointError(
            "expected a model without a memory of training questions, found one with it: only version 0.1 of mmattn "
            "has it; use that version, or retrain."
        )
    return {key: value for key, value in keywords.items() if not key.startswith("memory")}
