"""BERT, RoBERTa, DistilBERT, ELECTRA and ALBERT as encoders, and BERT with cross-attention to a memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..blocks import AttentionConfig, Decoder, Encoder, LayerOptions
from ..feedforward import ACTIVATIONS
from ..generate import CachedSteps
from ..masks import Mask
from ..positions import LearnedPositions
from .pooling import Encoded, Pooler


class BertEmbeddings(nn.Module):
    """``project(norm(token + type + position))``, the input of BERT's first layer (Devlin et al. 2019, section 3).

    Args:
        vocab_size: V.
        embed_dim: E.
        max_len: Number of learned positions; longer texts raise.
        num_types: Number of token types; 0 for none.
        token_dim: Size D of the embeddings, which a linear map projects to E; None = E, without a projection.
        pad_id: See `BertEncoder`.
        norm_eps: Epsilon added to the variance in the norm.
        dropout: Dropout of the result.

    >>> BertEmbeddings(100, 32).embed(torch.randint(100, (2, 7))).shape
    torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        max_len: int = 512,
        num_types: int = 2,
        token_dim: int | None = None,
        pad_id: int | None = None,
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
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

    def embed(self, input_ids: Tensor, token_types: Tensor | None = None, offset: int | Tensor = 0) -> Tensor:
        """Returns the input of the first layer.

        Args:
            input_ids: (B, L) long.
            token_types: (B, L) long; None = zeros.
            offset: Position of the first token; ignored with a pad_id.

        Returns:
            (B, L, E).

        Raises:
            ValueError: The text is too long, or token types are given to a model without them.
        """
        x = self.embedding(input_ids)  # (B, L, D)
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        elif token_types is not None:
            raise ValueError("this model has no token types (num_types=0)")
        x = self.positions(x, offset) if self.pad_id is None else x + self.positions.weight[self._counted(input_ids)]
        return self.project(self.dropout(self.norm(x)))  # (B, L, E)

    def _counted(self, input_ids: Tensor) -> Tensor:
        assert self.pad_id is not None
        length, room = input_ids.shape[1], self.positions.max_len - self.pad_id - 1
        if length > room:
            raise ValueError(f"a text of {length} tokens is too long: max_len={self.positions.max_len} leaves {room}")
        real = (input_ids != self.pad_id).long()
        return real.cumsum(1) * real + self.pad_id  # (B, L): padding has position pad_id


class RepeatedLayers(nn.ModuleList):
    """Layers of which each is run several times in a row.

    Args:
        layers: The layers.
        times: How often each is run.
    """

    def __init__(self, layers: nn.ModuleList, times: int) -> None:
        super().__init__(layers)
        self.times = times

    def __iter__(self) -> Iterator[nn.Module]:
        for layer in super().__iter__():
            for _ in range(self.times):
                yield layer


class BertEncoder(BertEmbeddings):
    """``Encoder(norm(token + type + position))``, each layer post-norm (Devlin et al. 2019, section 3).

    RoBERTa (Liu et al. 2019) counts positions from the padding id; DistilBERT (Sanh et al. 2019) has neither
    token types nor a pooler; ELECTRA (Clark et al. 2020, section 3.3) has no pooler, and its small models have
    embeddings of another size, ``project(norm(token + type + position))``; so has ALBERT (Lan et al. 2020), whose
    layers share their weights.

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
        num_groups: Number of layers with weights of their own, each of which is run num_layers / num_groups times
            (ALBERT); None = all layers.
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
        num_groups: int | None = None,
        pooler: bool = True,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        embeddings: dict[str, Any] = {
            "max_len": max_len,
            "num_types": num_types,
            "token_dim": token_dim,
            "pad_id": pad_id,
        }
        super().__init__(vocab_size, embed_dim, norm_eps=norm_eps, dropout=dropout, **embeddings)
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        own = num_layers if num_groups is None else num_groups
        if own < 1 or num_layers % own:
            raise ValueError(f"num_groups: expected a divisor of num_layers={num_layers}, found {num_groups}")
        self.encoder = Encoder(embed_dim, own, num_heads, norm_first=False, norm_eps=norm_eps, **layer)
        if own < num_layers:
            self.encoder.layers = RepeatedLayers(self.encoder.layers, num_layers // own)
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


class LanguageHead(nn.Module):
    """``V norm(f(W x)) + b``, the logits of tokens (Devlin et al. 2019, section 3.1, and its code).

    Args:
        vocab_size: V.
        embed_dim: E.
        hidden_dim: Size of W x; None = E.
        bias: Whether W has a bias.
        activation: f, a name in ``mmattn.feedforward.ACTIVATIONS``.
        norm_eps: Epsilon added to the variance in the norm.

    >>> LanguageHead(100, 32)(torch.randn(2, 7, 32)).shape
    torch.Size([2, 7, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        hidden_dim: int | None = None,
        bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        hidden_dim = embed_dim if hidden_dim is None else hidden_dim
        self.dense = nn.Linear(embed_dim, hidden_dim, bias=bias)
        self.activation = activation
        self.norm = nn.LayerNorm(hidden_dim, eps=norm_eps)
        self.tokens = nn.Linear(hidden_dim, vocab_size)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.tokens.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., E) to (..., V)."""
        return self.tokens(self.norm(ACTIVATIONS[self.activation](self.dense(states))))


class BertDecoder(CachedSteps, BertEmbeddings):
    """BERT with a cross-attention to a memory after each self-attention (Rothe et al. 2020, section 2).

    A causal one writes text; one that isn't reads a text in the light of the memory, as BLIP's question encoder does
    (Li et al. 2022, section 3.1).

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        kv_dim: Size of the memory's vectors; None = E.
        causal: Whether a token attends only to itself and those before it.
        head: Whether there is a `LanguageHead`, ``output``; without it, the output are the states.
        tied_output: Whether the head's last map is the embedding table.
        max_len: Number of learned positions; longer texts raise.
        num_types: Number of token types, of which only the first is used; 0 for none.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks and the head.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options} of the self-attention.
        cross_attention: Kind and options of the attention to the memory.

    >>> decoder = BertDecoder(100, 32, 1, 4, kv_dim=16)
    >>> decoder(torch.randint(100, (2, 7)), torch.randn(2, 5, 16)).shape
    torch.Size([2, 7, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        kv_dim: int | None = None,
        causal: bool = True,
        head: bool = True,
        tied_output: bool = True,
        max_len: int = 512,
        num_types: int = 0,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
    ) -> None:
        embeddings: dict[str, Any] = {"max_len": max_len, "num_types": num_types}
        super().__init__(vocab_size, embed_dim, norm_eps=norm_eps, dropout=dropout, **embeddings)
        self.causal = causal
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        self.decoder = Decoder(
            embed_dim,
            num_layers,
            num_heads,
            kv_dim=kv_dim,
            cross_attention=cross_attention,
            norm_first=False,
            norm_eps=norm_eps,
            needs=("causal",) if causal else ("self",),
            **layer,
        )
        self.output: nn.Module = nn.Identity()
        if head:
            self.output = LanguageHead(vocab_size, embed_dim, activation=activation, norm_eps=norm_eps)
            if tied_output:
                self.output.tokens.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        memory: Tensor,
        key_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Reads or writes a text.

        Args:
            input_ids: (B, L) long.
            memory: (B, S, kv_dim).
            key_mask: (B, L) bool, True = a real token; a causal one needs none for padding at the right.
            memory_mask: (B, S) bool, True = a real vector.

        Returns:
            Logits of each next token (B, L, V), or states (B, L, E).

        Raises:
            ValueError: The text is too long.
        """
        mask = Mask(key_mask, is_causal=self.causal)
        seen = None if memory_mask is None else Mask(memory_mask)
        return self.output(self.decoder(self.embed(input_ids), memory, mask, seen))

    def embed_target(self, ids: Tensor, offset: int | Tensor = 0) -> Tensor:
        return self.embed(ids, offset=offset)
