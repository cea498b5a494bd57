"""The translation model: an encoder-decoder over token ids."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmattn.backbones.recurrent import RecurrentSeq2Seq
from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.tasks.common.seq2seq.model import TextHead as TranslationHead, TextModel, mean_memory

__all__ = ["TranslationHead", "TranslationModel"]


class PooledSource(Seq2Seq):
    """Pooling baseline: all encoder states are replaced by their mean, so that attention cannot select positions."""

    def encode(self, input_ids: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The memory (B, S, E), the same at all positions."""
        real = torch.ones_like(input_ids, dtype=torch.bool) if key_mask is None else key_mask
        return mean_memory(super().encode(input_ids, key_mask), real)


class TranslationModel(TextModel):
    """Source ids to logits of target ids.

    Args:
        vocab_size: Size of the target vocabulary, V.
        source_vocab_size: Size of the source vocabulary; None: both sides share one vocabulary and its embeddings.
        decoder: "transformer", or "lstm": LSTM encoder and decoder with `cross_attention`, additive by default.
        embed_dim: E; also the hidden size of the LSTMs.
        num_heads: Number of attention heads, h.
        ffn_dim: Hidden size of the transformer's feed-forward networks.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers.
        tied_output: Tie the output projection to the target embeddings.
        positions: Position embeddings of the transformer: sinusoidal, learned or none.
        norm_first: Pre-norm transformer layers; false: post-norm, as in Vaswani et al. 2017.
        attention: The encoder's self-attention, {"kind": name, and the kernel's options}; None: dense.
        decoder_attention: The decoder's self-attention.
        cross_attention: The decoder's attention to the source.
        pooling: What the decoder attends to: all encoder states ("attention"), or their "mean" alone, a baseline.
        dropout: Dropout rate everywhere but in attention weights.
        max_len: Maximum length for learned positions.
    """

    def __init__(
        self,
        vocab_size: int,
        source_vocab_size: int | None = None,
        *,
        decoder: Literal["transformer", "lstm"] = "transformer",
        embed_dim: int = 128,
        num_heads: int = 4,
        ffn_dim: int = 256,
        encoder_layers: int = 2,
        decoder_layers: int = 2,
        tied_output: bool = True,
        positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal",
        norm_first: bool = True,
        attention: dict[str, Any] | None = None,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.1,
        max_len: int = 256,
    ) -> None:
        source_size = vocab_size if source_vocab_size is None else source_vocab_size
        common: dict[str, Any] = {
            "target_vocab_size": None if source_vocab_size is None else vocab_size,
            "num_decoder_layers": decoder_layers,
            "tied_output": tied_output,
            "dropout": dropout,
        }
        if decoder == "lstm":
            if attention or decoder_attention or pooling != "attention":
                others = "not attention, decoder_attention or pooling"
                raise ValueError(f"decoder 'lstm' supports only cross_attention, {others}")
            common |= {"num_heads": num_heads, "cross_attention": cross_attention or "additive"}
            net: Any = RecurrentSeq2Seq(source_size, embed_dim, embed_dim, num_layers=encoder_layers, **common)
        elif decoder == "transformer" and pooling in ("attention", "mean"):
            common |= {"attention": attention, "decoder_attention": decoder_attention}
            common |= {"cross_attention": cross_attention, "shared_embeddings": source_vocab_size is None}
            common |= {"positions": positions, "max_len": max_len, "norm_first": norm_first, "ffn_dim": ffn_dim}
            kind = Seq2Seq if pooling == "attention" else PooledSource
            net = kind(source_size, embed_dim, encoder_layers, num_heads, **common)
        else:
            raise ValueError(
                f"unknown decoder {decoder!r} or pooling {pooling!r}; expected transformer|lstm and attention|mean"
            )
        super().__init__(net)
