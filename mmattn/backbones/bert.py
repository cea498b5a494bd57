"""The encoder of BERT, RoBERTa, DistilBERT and ELECTRA."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, LayerOptions
from ..masks import Mask
from ..positions import LearnedPositions
from .pooling import Encoded, Pooler


class BertEncoder(nn.Module):
    """``Encoder(norm(token + type + position))``, each layer post-norm (Devlin et al. 2019, section 3).

    RoBERTa (Liu et al. 2019) counts positions from the padding id; DistilBERT (Sanh et al. 2019) has neither
    token types nor a pooler; ELECTRA (Clark et al. 2020, section 3.3) has no pooler, and its small models have
    embeddings of another size, ``project(norm(token + type + position))``.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        max_len: Number of learned positions; longer texts raise.
        num_types: Number of token types (first and second sentence); 0 for none.
        token_dim: Size D of the embeddings, which a linear map projects to E; None = E, without a projection.
        pad_id: None = token i has position i. An id = padding is not counted, and the first token has position
            pad_id + 1, so that the maximum is max_len - pad_id - 1 tokens (RoBERTa).
        pooler: A linear map and tanh over the first token; without it, pooled is the first token itself.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}.

    >>> ids = torch.randint(100, (2, 7))
    >>> encoded = BertEncoder(100, 32, 1, 4)(ids)
    >>> encoded.states.shape, encoded.pooled.shape
    (torch.Size([2, 7, 32]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        max_len: int = 512,
        num_types: int = 2,
        token_dim: int | None = None,
        pad_id: int | None = None,
        pooler: bool = True,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        token_dim = embed_dim if token_dim is None else token_dim
        self.embed_dim, self.pad_id = embed_dim, pad_id
        self.embedding = nn.Embedding(vocab_size, token_dim)
        self.positions = LearnedPositions(max_len, token_dim)
        self.token_types = nn.Embedding(num_types, token_dim) if num_types else None
        for table in (self.embedding, self.token_types):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(token_dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Identity() if token_dim == embed_dim else nn.Linear(token_dim, embed_dim)
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_first=False, norm_eps=norm_eps, **layer)
        self.pooler = Pooler(embed_dim) if pooler else nn.Identity()

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None) -> Encoded:
        """Encodes.

        Args:
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            token_types: (B, L) long; None = zeros.

        Returns:
            states (B, L, E) of the last layer; pooled (B, E).

        Raises:
            ValueError: The text is too long, or token types are given to a model without them.
        """
        states = self.encoder(self.embed(input_ids, token_types), None if key_mask is None else Mask(key_mask))
        return Encoded(states, self.pooler(states[:, 0]))

    def hidden_states(
        self, input_ids: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the input of the first layer and the output of each: num_layers + 1 tensors (B, L, E)."""
        mask = None if key_mask is None else Mask(key_mask)
        return self.encoder.hidden_states(self.embed(input_ids, token_types), mask)

    def embed(self, input_ids: Tensor, token_types: Tensor | None = None) -> Tensor:
        """Returns the input of the first layer: (B, L, E)."""
        x = self.embedding(input_ids)  # (B, L, D)
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        elif token_types is not None:
            raise ValueError("this model has no token types (num_types=0)")
        x = self.positions(x) if self.pad_id is None else x + self.positions.weight[self._counted(input_ids)]
        return self.project(self.dropout(self.norm(x)))  # (B, L, E)

    def _counted(self, input_ids: Tensor) -> Tensor:
        assert self.pad_id is not None
        length, room = input_ids.shape[1], self.positions.max_len - self.pad_id - 1
        if length > room:
            raise ValueError(f"a text of {length} tokens is too long: max_len={self.positions.max_len} leaves {room}")
        real = (input_ids != self.pad_id).long()
        return real.cumsum(1) * real + self.pad_id  # (B, L): padding has position pad_id
