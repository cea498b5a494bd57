"""The captioning model: an image encoder, and a head that writes from its grid. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones import build_grid_encoder
from mmattn.backbones.show_attend_tell import ShowAttendTell
from mmattn.generate import Generated, GenerationConfig
from mmattn.positions import GridPositions
from mmattn.tasks.common.seq2seq.model import TextHead, read_off


class CaptioningOutput(NamedTuple):
    """Output of the model under teacher forcing."""

    logits: Tensor  # (B, L, V), for each next token
    object_logits: Tensor  # (N, P, K): a score for each object label in each cell of the grid; K may be 0


class CaptioningHead(nn.Module):
    """Writes captions from the grid features of any image encoder.

    Args:
        embed_dim: Embedding size E.
        vocab_size: Size of the vocabulary V.
        image_dim: Size C of the features; None: E.
        decoder: "transformer", or "lstm": Show, Attend and Tell.
        num_heads: Number of attention heads of the transformer; the LSTM has one.
        ffn_dim: Hidden size of the transformer's feed-forward networks; None: 4 E.
        decoder_layers: Number of the transformer's layers.
        tied_output: Tie the output projection to the embeddings.
        decoder_attention: The transformer's self-attention, {"kind": name, and the kernel's options}; None: dense.
        cross_attention: The attention to the grid; None: dense, or additive of the LSTM.
        pooling: What the decoder attends to: all cells ("attention"), or their "mean" alone, a baseline.
        dropout: Dropout everywhere but in attention weights.

    >>> head = CaptioningHead(32, 100, image_dim=768, num_heads=4, decoder_layers=1)
    >>> head(torch.randn(2, 49, 768), torch.randint(100, (2, 5))).shape
    torch.Size([2, 5, 100])
    >>> config = GenerationConfig(decoder_start_token_id=2, eos_token_id=3, max_new_tokens=6)
    >>> head.eval().generate(torch.randn(2, 49, 768), config).scores.shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        embed_dim: int,
        vocab_size: int,
        *,
        image_dim: int | None = None,
        decoder: Literal["transformer", "lstm"] = "transformer",
        num_heads: int = 4,
        ffn_dim: int | None = None,
        decoder_layers: int = 2,
        tied_output: bool = True,
        decoder_attention: Mapping[str, Any] | None = None,
        cross_attention: Mapping[str, Any] | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if decoder not in ("transformer", "lstm") or pooling not in ("attention", "mean"):
            raise ValueError(
                f"unknown decoder {decoder!r} or pooling {pooling!r}; expected transformer|lstm and attention|mean"
            )
        self.pooling = pooling
        common: dict[str, Any] = {"memory_dim": image_dim, "tied_output": tied_output, "dropout": dropout}
        self.decoder: Any
        if decoder == "lstm":
            if decoder_attention is not None:
                raise ValueError("decoder_attention: decoder 'lstm' has no self-attention kernel to choose")
            attention = {"kind": "additive"} if cross_attention is None else cross_attention
            self.decoder = ShowAttendTell(vocab_size, embed_dim, embed_dim, **common, cross_attention=attention)
        else:
            common |= {"decoder_attention": decoder_attention, "cross_attention": cross_attention, "ffn_dim": ffn_dim}
            self.decoder = TextHead(vocab_size, embed_dim, decoder_layers, num_heads, **common)

    def forward(self, features: Tensor, target_ids: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Teacher forcing.

        Args:
            features: (N, P, image_dim), the cells or patches of N images.
            target_ids: (B, L) long, the start token first.
            image_index: (B,) long, the image of each caption; None: B = N, and caption i is of image i.

        Returns:
            Logits (B, L, V) of each next token.
        """
        memory = self.memory(features)
        if image_index is not None:
            memory = memory[image_index]
        logits: Tensor = self.decoder(memory, None, target_ids)
        return logits

    def memory(self, features: Tensor) -> Tensor:
        """What the decoder attends to, (N, P, image_dim)."""
        return features if self.pooling == "attention" else features.mean(1, keepdim=True).expand_as(features)

    def generate(self, features: Tensor, config: GenerationConfig, **keywords: Any) -> Generated:
        """Generate a caption for each image of features (N, P, image_dim); see `Seq2Seq.generate`."""
        found: Generated = self.decoder.generate(self.memory(features), None, config, **keywords)
        return found


class CaptioningModel(nn.Module):
    """Images to captions.

    Args:
        vocab_size: Size of the vocabulary V.
        image_encoder: Encoder of the image's grid: "conv" (a convolutional stem), "vit" (patches) or "timm/NAME".
        image_size: Side of the square image, in pixels.
        patch_size: Patch size of "vit", in pixels.
        channels: Channels of the layers of "conv", each of which halves the map.
        embed_dim: Embedding size E.
        num_heads: Number of attention heads.
        ffn_dim: Hidden size of the feed-forward networks.
        image_layers: Number of transformer layers of the image encoder.
        image_options: Additional keywords of the image encoder's constructor; {"whole": true} keeps all layers of
            "timm/NAME", and makes "vit" a whole vision transformer (`mmattn.backbones.vit.VisionTransformer`).
        decoder: See CaptioningHead.
        decoder_layers: See CaptioningHead.
        tied_output: See CaptioningHead.
        attention: The image encoder's self-attention, {"kind": name, and the kernel's options}; none: dense.
        decoder_attention: See CaptioningHead.
        cross_attention: See CaptioningHead.
        pooling: See CaptioningHead.
        dropout: Dropout everywhere but in attention weights.
        num_object_labels: Number K of object labels that are predicted for each cell; 0: none.
    """

    beside: ClassVar[tuple[str, ...]] = ()  # as of `TextModel`

    def __init__(
        self,
        vocab_size: int,
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
        decoder: Literal["transformer", "lstm"] = "transformer",
        decoder_layers: int = 2,
        tied_output: bool = True,
        attention: dict[str, Any] | None = None,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.0,
        num_object_labels: int = 0,
    ) -> None:
        super().__init__()
        self.image_encoder: Any = build_grid_encoder(
            image_encoder,
            embed_dim,
            image_layers,
            num_heads,
            image_size=image_size,
            patch_size=patch_size,
            channels=channels,
            image_options=image_options,
            ffn_dim=ffn_dim,
            dropout=dropout,
            attention=attention,
        )
        self.grid_positions = GridPositions(embed_dim, "coordinates")  # added again: the layers blur positions
        self.image_size = image_size
        self.head = CaptioningHead(
            embed_dim,
            vocab_size,
            decoder=decoder,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            decoder_layers=decoder_layers,
            tied_output=tied_output,
            decoder_attention=decoder_attention,
            cross_attention=cross_attention,
            pooling=pooling,
            dropout=dropout,
        )
        self.object_head = nn.Linear(embed_dim, num_object_labels) if num_object_labels else None

    def forward(self, pixel_values: Tensor, target_ids: Tensor, image_index: Tensor | None = None) -> CaptioningOutput:
        """Teacher forcing.

        Args:
            pixel_values: (N, 3, H, W).
            target_ids: (B, L) long, the start token first.
            image_index: (B,) long, the image of each caption; None: B = N, and caption i is of image i.

        Returns:
            `logits` (B, L, V) and `object_logits` (N, P, K).
        """
        grid = self.encode(pixel_values)  # (N, P, E)
        objects = self.object_head(grid) if self.object_head is not None else grid[..., :0]
        return CaptioningOutput(self.head(grid, target_ids, image_index), objects)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """The cells of the images, (N, P, E), row by row."""
        return self.grid_positions(self.image_encoder(pixel_values)).flatten(2).mT

    def generate(self, pixel_values: Tensor, config: GenerationConfig, **keywords: Any) -> Generated:
        """Generate a caption for each image; see `Seq2Seq.generate`."""
        with torch.inference_mode():
            return self.head.generate(self.encode(pixel_values), config, **keywords)

    @cached_property
    def attention_paths(self) -> list[str]:
        """Paths of the decoder's attentions to the grid, one for each layer."""
        return [name for name, _ in self.named_modules() if name.endswith(".cross_attention")]

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Attention of each target token to the cells: (B, L, P), rows summing to one; the mean over layers and heads.

        Args:
            maps: Attention maps of `mmattn.explain.capture(model)` for one pass under teacher forcing.
        """
        return read_off({path: [torch.cat(maps[path], dim=2)] for path in self.attention_paths})  # an LSTM has L maps

    @cached_property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid (gh, gw) for images of the given size."""
        return self.image_encoder.grid_size(self.image_size)
