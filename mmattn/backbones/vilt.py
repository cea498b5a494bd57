"""ViLT: one transformer over the words of a question and the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, LayerOptions
from ..masks import Mask
from .bert import BertEmbeddings
from .detection import mask_of, resize_mask
from .pooling import Encoded, Pooler
from .vit import PatchEmbed, resize_in_mask


class Vilt(nn.Module):
    """``Encoder([text + m_0; class and patches + positions + m_1])``, pre-norm (Kim et al. 2021, section 3.1).

    Images of a batch have any sizes: their positions are interpolated for each, and padding takes no part. ``capture``
    records maps (B, h, L + 1 + h w, L + 1 + h w) of words, class token and patches under "encoder.layers.#.attention".

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        num_answers: K; None = no classifier, `encode` alone.
        image_size: (H, W) in pixels of the positions.
        patch_size: Side of a patch in pixels; incomplete patches are ignored.
        in_channels: Channels of the image.
        max_len: Number of learned positions of the text; longer ones raise.
        num_types: Number of token types of the text; 0 for none.
        num_modalities: Number of vectors m, of which text and image have the first two.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        qkv_bias: Biases in the projections of queries, keys and values.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}.

    >>> model = Vilt(100, 32, 1, 4, num_answers=5, image_size=(64, 64), patch_size=16)
    >>> model(torch.randn(2, 3, 48, 80), torch.randint(100, (2, 7))).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        num_answers: int | None = None,
        image_size: Sequence[int] = (384, 384),
        patch_size: int = 32,
        in_channels: int = 3,
        max_len: int = 40,
        num_types: int = 2,
        num_modalities: int = 2,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        qkv_bias: bool = True,
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.text = BertEmbeddings(
            vocab_size, embed_dim, max_len=max_len, num_types=num_types, norm_eps=norm_eps, dropout=dropout
        )
        self.patches = PatchEmbed(embed_dim, patch_size=patch_size, in_channels=in_channels)
        self.prefix = nn.Parameter(torch.randn(1, embed_dim) * 0.02)  # the class token of the image
        grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.positions = nn.Parameter(torch.randn(1, embed_dim, *grid) * 0.02)
        self.modalities = nn.Parameter(torch.randn(num_modalities, embed_dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        layer["bias"] = True if qkv_bias else ("out",)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_eps=norm_eps, **layer)
        self.pooler = Pooler(embed_dim)
        self.classifier = None
        if num_answers is not None:
            hidden = 2 * embed_dim
            self.classifier = nn.Sequential(
                nn.Linear(embed_dim, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, num_answers)
            )

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits of the answers.

        Args:
            pixel_values: (B, C, H, W), images padded at the right and the bottom.
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            pixel_mask: (B, H, W) bool, True = a pixel of the image; None = all.
            token_types: (B, L) long; None = zeros.

        Returns:
            (B, K), to be trained with binary cross-entropy.

        Raises:
            ValueError: There is no classifier, or the text is too long.
        """
        if self.classifier is None:
            raise ValueError("this Vilt has no classifier: num_answers is None; use encode")
        return self.classifier(self.encode(pixel_values, input_ids, key_mask, pixel_mask, token_types).pooled)

    def encode(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Encoded:
        """Returns states (B, L + 1 + h w, E) of words, class token and patches, and pooled (B, E); see `forward`."""
        states = self.encoder(*self.embed(pixel_values, input_ids, key_mask, pixel_mask, token_types))
        return Encoded(states, self.pooler(states[:, 0]))

    def embed(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> tuple[Tensor, Mask]:
        """Returns the input of the first layer (B, L + 1 + h w, E), and its mask; see `forward`."""
        words = self.text.embed(input_ids, token_types) + self.modalities[0]  # (B, L, E)
        grid = self.patches(pixel_values)  # (B, E, h, w)
        cells = resize_mask(mask_of(pixel_values, pixel_mask), (grid.shape[2], grid.shape[3]))  # (B, h, w)
        image = (grid + resize_in_mask(self.positions, cells)).flatten(2).mT  # (B, h w, E)
        image = torch.cat([self.prefix.expand(image.shape[0], -1, -1), image], dim=1)
        x = torch.cat([words, self.dropout(image) + self.modalities[1]], dim=1)
        if key_mask is None:
            key_mask = torch.ones_like(input_ids, dtype=torch.bool)
        first = torch.ones_like(key_mask[:, :1])  # the class token
        return x, Mask(torch.cat([key_mask, first, cells.flatten(1)], dim=1))
