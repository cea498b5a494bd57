"""Causal language models: one decoder-only transformer, of which GPT-2, Llama, Mistral and Qwen are options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import MultiHeadAttention, split_attention
from ..blocks import AttentionConfig, Encoder, Residual, make_attention
from ..feedforward import FeedForward
from ..functional import allowed_keys, dot_scores, masked_softmax
from ..generate import CachedState, Generated, GenerationConfig, generate
from ..kernels.base import ExplicitKernel
from ..masks import Mask
from ..positions import LearnedPositions, Rotary, SinusoidalPositions
from ..relative import RelativeAttention
from .causal_step import can_flatten, flatten

POSITIONS = ("rotary", "learned", "sinusoidal", "relative", "none")
# Kernels whose scores depend on the distance of rotary positions alone; for others padding at the left is a shift, and
# positions are those within each document.
RELATIVE = ("dense", "sliding_window", "cosine", "sigmoid", "adaptive_span")
STD = 0.02  # of initial weights (Radford et al. 2019)


class CausalLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with a residual connection; see `CausalLM` for the options."""

    def __init__(
        self, attention: MultiHeadAttention, ffn: FeedForward, dropout: float, norm_first: bool, norm: str, eps: float
    ) -> None:
        super().__init__()
        embed_dim = attention.embed_dim
        self.attention, self.ffn = attention, ffn
        self.attention_residual = Residual(embed_dim, dropout, norm_first, eps, norm)
        self.ffn_residual = Residual(embed_dim, dropout, norm_first, eps, norm)

    def forward(self, x: Tensor, mask: Mask | None = None, cache: Any = None, memory: Tensor | None = None) -> Tensor:
        """x: (B, L, E); memory: (B, M, E), earlier inputs of this layer that it attends to, too. Returns (B, L, E)."""
        given = {}
        if memory is not None:
            residual = self.attention_residual
            given = {"memory": residual.norm(memory) if residual.norm_first else memory}
        x = self.attention_residual(x, self.attention, mask=mask, cache=cache, **given)
        return self.ffn_residual(x, self.ffn)


class Uniform(ExplicitKernel):
    """Attends to all allowed keys equally, a baseline."""

    kind = "uniform"

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        return masked_softmax(0.0 * dot_scores(q, k), allowed_keys(q, k, mask))


class CausalModel(nn.Module):
    """What language models share: logits of each next token, and generation, by what subclasses define."""

    output: nn.Linear

    def states(self, input_ids: Tensor, key_mask: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Returns the inputs (B, L, E) of the output projection."""
        raise NotImplementedError

    def start(self, rows: int, prompt_mask: Tensor | None = None) -> Any:
        """Makes the empty state that `step` continues from."""
        raise NotImplementedError

    def advance(self, ids: Tensor, state: Any) -> Tensor:
        """Maps new ids (N, L) to their states (N, L, E)."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Returns the logits (B, L, V) of each next token; arguments as of `states`."""
        return self.output(self.states(input_ids, key_mask, documents))

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """Maps new ids (N, L) to the logits (N, V) of the next one."""
        return self.output(self.advance(ids, state)[:, -1])

    def generate(
        self, input_ids: Tensor, key_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Continues each prompt; other keywords are those of `mmattn.generate.generate`.

        Args:
            input_ids: (B, P) long, the prompts, padded at the left.
            key_mask: (B, P) bool, True = a real token; None: all are.
            config: Generation options.
        """
        if key_mask is not None and bool(key_mask.all()):
            key_mask = None  # without padding, the fused path needs no mask
        with torch.inference_mode():
            state = self.start(len(input_ids), key_mask)
            return generate(self.step, state, input_ids, config, prompt_mask=key_mask, **keywords)


class CausalLM(CausalModel):
    """A decoder-only transformer over token ids (Radford et al. 2019; Touvron et al. 2023).

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        num_kv_heads: h_kv of grouped-query attention (Ainslie et al. 2023); None = h.
        head_dim: d; None = E / h.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        positions: "rotary", "learned", "sinusoidal", "relative" (those of Transformer-XL, see `RelativeAttention`) or
            "none".
        max_len: Longest text; more tokens raise with learned positions, and are not what others were trained for.
        rotary_base: Base of rotary positions.
        rotary_scaling: See `mmattn.Rotary`.
        norm: "layer" or "rms".
        norm_eps: Epsilon added to the variance in the norms.
        norm_first: Pre-norm, with one more norm at the end.
        qk_norm: "rms" or "layer": normalizes each head's queries and keys, as in Qwen3.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        gated: Whether the feed-forward networks are gated.
        bias: Biases of the attention's maps: all, none, or those named of "q", "k", "v", "out".
        ffn_bias: Biases of the feed-forward networks.
        output_bias: Whether logits have a bias.
        tied_output: Whether the output projection is the embedding table.
        dropout: Dropout of embeddings and after each sublayer.
        attention: {"kind": name, and the kernel's options} of a causal kernel.
        local_layers: Indices of layers that attend to the last `window` tokens before each alone.
        window: Of local_layers.
        memory_len: Number of states of earlier segments that each layer attends to (Transformer-XL, Dai et al. 2019,
            section 3.2), for relative positions.
        pooling: "attention", or "mean": all attend to their past equally, a baseline.

    Raises:
        ValueError: Inconsistent options.

    >>> model, ids = CausalLM(100, 32, 2, 4).eval(), torch.randint(100, (2, 7))
    >>> model(ids).shape
    torch.Size([2, 7, 100])
    >>> model.generate(ids, None, GenerationConfig(max_new_tokens=5)).ids.shape
    torch.Size([2, 1, 5])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        ffn_dim: int | None = None,
        positions: str = "rotary",
        max_len: int = 1024,
        rotary_base: float = 10000.0,
        rotary_scaling: Mapping[str, Any] | None = None,
        norm: str = "rms",
        norm_eps: float = 1e-5,
        norm_first: bool = True,
        qk_norm: str | None = None,
        activation: str = "silu",
        gated: bool = True,
        bias: bool | Collection[str] = False,
        ffn_bias: bool = False,
        output_bias: bool = False,
        tied_output: bool = True,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        local_layers: Collection[int] = (),
        window: int = 4096,
        memory_len: int = 0,
        pooling: str = "attention",
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"unknown positions {positions!r}; expected one of: {', '.join(POSITIONS)}")
        if pooling not in ("attention", "mean"):
            raise ValueError(f"unknown pooling {pooling!r}; expected attention or mean")
        if memory_len < 0 or (memory_len and positions != "relative"):
            raise ValueError(f"memory_len={memory_len}: expected 0, or a number of states and positions 'relative'")
        if any(not 0 <= number < num_layers for number in local_layers):
            raise ValueError(f"local_layers: expected indices below {num_layers}, found {sorted(local_layers)}")
        self.embed_dim, self.max_len, self.memory_len = embed_dim, max_len, memory_len
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=STD)
        self.positions: nn.Module | None = None
        if positions == "learned":
            self.positions = LearnedPositions(max_len, embed_dim)
        elif positions == "sinusoidal":
            self.positions = SinusoidalPositions(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.decoder = Encoder(embed_dim, 0, num_heads, norm_first=norm_first, norm=norm, norm_eps=norm_eps)
        size = embed_dim // num_heads if head_dim is None else head_dim
        rotary = Rotary(size, base=rotary_base, scaling=rotary_scaling) if positions == "rotary" else None
        heads: dict[str, Any] = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "bias": bias, "qk_norm": qk_norm}
        for number in range(num_layers):
            own = {"kind": "sliding_window", "window": window} if number in local_layers else attention
            if positions == "relative":
                if own is not None or num_kv_heads not in (None, num_heads) or qk_norm is not None:
                    raise ValueError("relative positions: expected dense attention without num_kv_heads and qk_norm")
                attend: Any = RelativeAttention(embed_dim, num_heads, head_dim=head_dim, bias=bias)
            else:
                attend = make_attention(embed_dim, num_heads, own, ("causal",), **heads)
                attend.rotary = rotary  # shared: its angles are computed once
            for normed in (attend.q_norm, attend.k_norm):
                if normed is not None:
                    normed.eps = norm_eps
            if pooling == "mean":
                attend.kernel = Uniform(num_heads, attend.head_dim)
            ffn = FeedForward(embed_dim, ffn_dim, activation=activation, gated=gated, bias=ffn_bias)
            self.decoder.layers.append(CausalLayer(attend, ffn, dropout, norm_first, norm, norm_eps))
            for last in (attend.out_proj, ffn.fc2):  # the sum over layers keeps its variance (Radford et al. 2019)
                nn.init.normal_(last.weight, std=STD * (2 * num_layers) ** -0.5)
        self.kind = split_attention(attention)[0]
        self.pads_left = positions != "rotary" or self.kind in RELATIVE
        self.output = nn.Linear(embed_dim, vocab_size, bias=output_bias)
        nn.init.normal_(self.output.weight, std=STD)
        if output_bias:
            nn.init.zeros_(self.output.bias)
        if tied_output:
            self.output.weight = self.embedding.weight

    def embed(self, input_ids: Tensor, offset: int | Tensor = 0) -> Tensor:
        """Returns the input of the first layer, (B, L, E).

        Args:
            input_ids: (B, L) long.
            offset: Position of the first token; or (B, 1), or (B, L) minus 0 .. L - 1, where rows differ.
        """
        x = self.embedding(input_ids)  # (B, L, E)
        return self.dropout(x if self.positions is None else self.positions(x, offset))

    def states(self, input_ids: Tensor, key_mask: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Returns the states before the output projection.

        Args:
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token; padding may be at either side.
            documents: (B, L) long, the number of each token's document: no token attends to another document, in which
                positions begin anew. None = one document.

        Returns:
            (B, L, E); values at padding are undefined.
        """
        mask, offset = self.masks(input_ids, key_mask, documents)
        return self.decoder(self.embed(input_ids, offset), mask)

    def masks(self, input_ids: Tensor, key_mask: Tensor | None, documents: Tensor | None) -> tuple[Mask, int | Tensor]:
        """Returns the mask of `states`, and the offset of `embed`; arguments as of `states`.

        Raises:
            ValueError: Padding at the left, which this attention cannot honour with rotary positions.
        """
        if key_mask is not None and not self.pads_left and not bool(key_mask[:, 0].all()):
            raise ValueError(f"{self.kind} attention with rotary positions: expected texts without padding at the left")
        pairs = None if documents is None else (documents[:, :, None] == documents[:, None])[:, None]  # (B, 1, L, L)
        mask = Mask(key_mask, pairs, is_causal=True)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        if documents is not None and (self.positions is not None or not self.pads_left):
            new = torch.ones_like(documents, dtype=torch.bool)
            new[:, 1:] = documents[:, 1:] != documents[:, :-1]
            offset = -torch.where(new, places, 0).cummax(1).values  # (B, L): minus each document's beginning
            return (mask, offset) if self.positions is not None else (replace(mask, offset=offset), 0)
        if self.positions is None or key_mask is None:
            return mask, 0
        return mask, (key_mask.cumsum(1) - 1).clamp_min(0) - places  # (B, L)

    def hidden_states(self, input_ids: Tensor, key_mask: Tensor | None = None) -> list[Tensor]:
        """Returns the input of the first layer and the output of each: num_layers + 1 tensors (B, L, E)."""
        mask, offset = self.masks(input_ids, key_mask, None)
        return self.decoder.hidden_states(self.embed(input_ids, offset), mask)

    # Recurrence over segments -----------------------------------------------------------------------------------------

    def segment(self, input_ids: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Returns the states of a segment that continues earlier ones (Dai et al. 2019, section 3.2).

        Args:
            input_ids: (B, L) long.
            memory: The second result for the segment before; None: there is none.

        Returns:
            States (B, L, E); the last memory_len inputs of each layer, (B, M, E) each, without gradients.

        Raises:
            ValueError: The model has no memory.
        """
        if not self.memory_len:
            raise ValueError("segment: expected a model with memory_len above 0")
        x, kept, mask = self.embed(input_ids), [], Mask(is_causal=True)
        for number, layer in enumerate(self.decoder.layers):
            before = None if memory is None else memory[number]
            inputs = x if before is None else torch.cat([before, x], dim=1)
            kept.append(inputs[:, -self.memory_len :].detach())
            x = layer(x, mask, None, before)
        return self.decoder.norm(x), kept

    # Generation -------------------------------------------------------------------------------------------------------

    def start(self, rows: int, prompt_mask: Tensor | None = None) -> CachedState:
        """Makes the empty state that `step` continues from.

        Args:
            rows: Number of texts, B.
            prompt_mask: (B, P) bool, True = a real token, of prompts of several lengths, padded at the left.

        Raises:
            ValueError: See `masks`.
        """
        if prompt_mask is not None and not self.pads_left:
            raise ValueError(f"{self.kind} attention with rotary positions: expected prompts of one length")
        return CachedState(self.decoder.make_cache(rows), prompt_mask=prompt_mask)

    def advance(self, ids: Tensor, state: CachedState) -> Tensor:
        """Maps new ids (N, L) to their states (N, L, E)."""
        x, flat = self.embed(ids, state.offset), None
        if can_flatten(ids):
            state.plan = state.plan or [flatten(self.decoder, state.caches)]
            flat = state.plan[0]
        x = self.decoder(x, state.mask(ids.shape[1]), state.caches) if flat is None else flat.step(x, state)
        state.length += ids.shape[1]
        return x
