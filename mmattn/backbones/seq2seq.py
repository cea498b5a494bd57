"""The encoder-decoder transformer of translation and summarization, including Marian, BART and T5."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, Decoder, Encoder, make_norm
from ..generate import CachedState, CachedSteps, Generated, GenerationConfig, generate
from ..masks import Mask
from ..positions import LearnedPositions, SinusoidalPositions, T5Bias


class Seq2Seq(CachedSteps, nn.Module):
    """An encoder-decoder transformer over token ids (Vaswani et al. 2017, section 3).

    Args:
        vocab_size: V of the source, and of the target if target_vocab_size is None.
        embed_dim: E.
        num_layers: Number of encoder layers.
        num_heads: h.
        target_vocab_size: V of the target, which then has separate embeddings.
        num_decoder_layers: None = num_layers.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        shared_embeddings: Whether source and target share an embedding table.
        tied_output: Whether the output projection is the target's embedding table.
        output_bias: Whether logits have a bias.
        positions: "sinusoidal", "learned", "rotary", "relative" (biases of the scores, shared by the layers of a stack;
            see `T5Bias`) or "none".
        max_len: Number of learned positions; longer texts raise.
        num_buckets: Buckets of relative positions.
        max_distance: Distance of relative positions beyond which all share a bucket.
        scale_embeddings: Whether embeddings are multiplied by sqrt(E) before positions are added (ibid., section 3.4).
        norm_embeddings: Whether a norm follows embeddings and positions.
        norm_first: Pre-norm.
        norm: "layer" or "rms".
        norm_eps: Epsilon added to the variance in the norms.
        head_dim: d; None = E / h.
        bias: Biases in the attentions and feed-forward networks, or in the attentions' maps of these names alone, see
            `MultiHeadAttention`.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        gated: Whether the feed-forward networks are gated.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options} of the encoder's self-attention.
        decoder_attention: Kind and options of the decoder's self-attention.
        cross_attention: Kind and options of the decoder's attention to the source.

    Raises:
        ValueError: Inconsistent options.

    >>> model = Seq2Seq(100, 32, 1, 4).eval()
    >>> source, target = torch.randint(100, (2, 7)), torch.randint(100, (2, 5))
    >>> model(source, torch.ones_like(source, dtype=torch.bool), target).shape
    torch.Size([2, 5, 100])
    >>> config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, max_new_tokens=6)
    >>> model.generate(source, None, config).scores.shape
    torch.Size([2, 1])
    """

    POSITIONS = ("sinusoidal", "learned", "rotary", "relative", "none")

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        target_vocab_size: int | None = None,
        num_decoder_layers: int | None = None,
        ffn_dim: int | None = None,
        shared_embeddings: bool = True,
        tied_output: bool = True,
        output_bias: bool = False,
        positions: str = "sinusoidal",
        max_len: int = 512,
        num_buckets: int = 32,
        max_distance: int = 128,
        scale_embeddings: bool = True,
        norm_embeddings: bool = False,
        norm_first: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        head_dim: int | None = None,
        bias: bool | Collection[str] = True,
        activation: str = "gelu",
        gated: bool = False,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        decoder_attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if positions not in self.POSITIONS:
            raise ValueError(f"unknown positions {positions!r}; expected one of: {', '.join(self.POSITIONS)}")
        if shared_embeddings and target_vocab_size not in (None, vocab_size):
            raise ValueError(
                f"shared_embeddings: one table cannot have {vocab_size} and {target_vocab_size} rows; turn it off"
            )
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.target_embedding = self.embedding
        if not shared_embeddings:
            self.target_embedding = nn.Embedding(target_vocab_size or vocab_size, embed_dim)
        for table in {self.embedding, self.target_embedding}:
            nn.init.normal_(table.weight, std=embed_dim**-0.5)
        self.scale = embed_dim**0.5 if scale_embeddings else 1.0
        self.positions = _positions(positions, max_len, embed_dim)
        self.target_positions = _positions(positions, max_len, embed_dim)
        self.embedding_norm, self.target_embedding_norm = (
            make_norm(embed_dim, norm, norm_eps) if norm_embeddings else nn.Identity() for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        layer: dict[str, Any] = {"ffn_dim": ffn_dim, "activation": activation, "gated": gated, "dropout": dropout}
        layer |= {"norm_first": norm_first, "norm": norm, "norm_eps": norm_eps}
        layer |= {"head_dim": head_dim, "bias": bias, "rotary": positions == "rotary"}
        biases = [
            T5Bias(num_heads, num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
            if positions == "relative"
            else None
            for bidirectional in (True, False)
        ]
        self.encoder = Encoder(embed_dim, num_layers, num_heads, attention=attention, position_bias=biases[0], **layer)
        self.decoder = Decoder(
            embed_dim,
            num_layers if num_decoder_layers is None else num_decoder_layers,
            num_heads,
            attention=decoder_attention,
            cross_attention=cross_attention,
            position_bias=biases[1],
            **layer,
        )
        self.output = nn.Linear(embed_dim, self.target_embedding.num_embeddings, bias=output_bias)
        nn.init.normal_(self.output.weight, std=embed_dim**-0.5)
        if output_bias:
            nn.init.zeros_(self.output.bias)
        if tied_output:
            self.output.weight = self.target_embedding.weight

    def encode(self, input_ids: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Encodes the source.

        Args:
            input_ids: (B, S) long.
            key_mask: (B, S) bool, True = a real token.

        Returns:
            The memory (B, S, E); values at padding are undefined.
        """
        x = self.positions(self.embedding(input_ids) * self.scale)  # (B, S, E)
        return self.encoder(self.dropout(self.embedding_norm(x)), None if key_mask is None else Mask(key_mask))

    def forward(self, input_ids: Tensor, key_mask: Tensor | None, decoder_input_ids: Tensor) -> Tensor:
        """Returns the logits of each next token under teacher forcing.

        Args:
            input_ids: (B, S) long.
            key_mask: (B, S) bool, True = a real token.
            decoder_input_ids: (B, L) long, the start token first; padded at the right, where the loss is masked.

        Returns:
            (B, L, V).
        """
        return self.output(self.decode(decoder_input_ids, self.encode(input_ids, key_mask), key_mask))

    def start(self, input_ids: Tensor, key_mask: Tensor | None = None) -> CachedState:
        """Encodes the source and makes the state that `step` continues from.

        Args:
            input_ids: (B, S) long.
            key_mask: (B, S) bool, True = a real token.
        """
        return self.start_from(encode_by_length(self.encode, input_ids, key_mask), key_mask)

    def generate(
        self, input_ids: Tensor, key_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Generates a target for each source; other keywords are those of `mmattn.generate.generate`.

        Args:
            input_ids: (B, S) long.
            key_mask: (B, S) bool, True = a real token.
            config: Generation options; decoder_start_token_id is required.

        Raises:
            ValueError: The config has no decoder_start_token_id.
        """
        prompt = config.start_prompt(len(input_ids), input_ids.device)
        with torch.inference_mode():
            return generate(self.step, self.start(input_ids, key_mask), prompt, config, **keywords)

    def embed_target(self, ids: Tensor, offset: int | Tensor = 0) -> Tensor:
        x = self.target_positions(self.target_embedding(ids) * self.scale, offset)  # (B, L, E)
        return self.dropout(self.target_embedding_norm(x))


def encode_by_length(
    encode: Callable[[Tensor, Tensor | None], Tensor], inputs: Tensor, key_mask: Tensor | None, rows: int = 8
) -> Tensor:
    """Encodes sources in groups of similar length on a CPU, which avoids most of the padding.

    Args:
        encode: Maps (b, s, ...) and a mask (b, s) to a memory (b, s, E).
        inputs: (B, S, ...).
        key_mask: (B, S) bool, True = a real token.
        rows: Size of a group.

    Returns:
        (B, S, E), zeros beyond the length of a group.
    """
    if key_mask is None or inputs.device.type != "cpu" or len(inputs) <= rows or torch.is_grad_enabled():
        return encode(inputs, key_mask)
    ends = (key_mask * torch.arange(1, key_mask.shape[1] + 1)).amax(1).clamp_min(1)  # (B,)
    memory = None
    for group in ends.argsort().split(rows):
        end = int(ends[group[-1]])
        part = encode(inputs[group, :end], key_mask[group, :end])  # (b, end, E)
        if memory is None:
            memory = part.new_zeros(*key_mask.shape, part.shape[-1])
        memory[group, :end] = part
    assert memory is not None
    return memory


def _positions(kind: str, max_len: int, embed_dim: int) -> nn.Module:
    if kind == "learned":
        return LearnedPositions(max_len, embed_dim)
    return SinusoidalPositions(embed_dim) if kind == "sinusoidal" else _NoPositions()


class _NoPositions(nn.Module):
    """Identity, for models without position embeddings."""

    def forward(self, x: Tensor, offset: int | Tensor = 0) -> Tensor:
        return x
