"""The model of text generation: a causal language model over token ids; and the head alone."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.causal import CausalLM
from mmattn.backbones.recurrent_lm import RecurrentLM
from mmattn.chunked import chunked_cross_entropy
from mmattn.generate import Generated, GenerationConfig
from mmattn.onednn import is_plain


class TextGenerationOutput(NamedTuple):
    """Output of the model."""

    logits: Tensor  # (B, L, V), for each next token


class TextGenerationHead(nn.Module):
    """The last layer of a language model: states to logits, or to a loss without the logits in memory.

    Args:
        embed_dim: E of the states.
        vocab_size: V.
        embedding: The embedding whose table is the output projection; None: a projection of its own.
        bias: Whether logits have a bias.
        chunk: Rows of states at a time; None: as many as fit 32 MB of logits.

    >>> embedding = nn.Embedding(1000, 16)
    >>> head = TextGenerationHead(16, 1000, embedding=embedding)
    >>> states, labels = torch.randn(2, 5, 16), torch.randint(1000, (2, 5))
    >>> head(states).shape, head.loss(states, labels).shape
    (torch.Size([2, 5, 1000]), torch.Size([]))
    """

    def __init__(
        self,
        embed_dim: int,
        vocab_size: int,
        *,
        embedding: nn.Embedding | None = None,
        bias: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if embedding is not None and embedding.weight.shape != (vocab_size, embed_dim):
            found = tuple(embedding.weight.shape)
            raise ValueError(f"embedding: expected a table of {(vocab_size, embed_dim)}, found {found}")
        self.output, self.chunk = nn.Linear(embed_dim, vocab_size, bias=bias), chunk
        nn.init.normal_(self.output.weight, std=0.02)
        if embedding is not None:
            self.output.weight = embedding.weight

    def forward(self, states: Tensor) -> Tensor:
        """Returns the logits (..., V) of states (..., E)."""
        return self.output(states)

    def loss(
        self, states: Tensor, labels: Tensor, label_mask: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Returns the mean cross-entropy, a scalar; see `mmattn.chunked.chunked_cross_entropy`.

        Args:
            states: (..., E).
            labels: (...) long.
            label_mask: (...) bool, True = counts; None: all do.
            label_smoothing: Probability that is spread evenly over the vocabulary.
        """
        labels = labels if label_mask is None else labels.masked_fill(~label_mask, -100)
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "chunk": self.chunk}
        return chunked_cross_entropy(states, self.output.weight, labels, self.output.bias, **options)


class TextGenerationModel(nn.Module):
    """A causal language model.

    Args:
        vocab_size: V.
        max_len: Most tokens that it reads at once in training, and number of learned positions.
        decoder: "transformer", or "lstm" with `attention` over its past states.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: Number of attention heads, h.
        num_kv_heads: Fewer heads of keys and values; none: as many.
        ffn_dim: Hidden size of the feed-forward networks.
        positions: rotary, learned, sinusoidal, relative (those of Transformer-XL) or none.
        memory_len: Number of states of the segments before that are attended to (Transformer-XL), for relative
            positions; training then reads the corpus in order.
        norm: "layer" or "rms".
        activation: Activation of the feed-forward networks.
        gated: Whether the feed-forward networks are gated.
        tied_output: Tie the output projection to the embeddings.
        attention: The self-attention, {"kind": name, and the kernel's options}; None: dense.
        pooling: "attention", or "mean", a baseline: all tokens attend equally to those before them.
        dropout: Dropout rate everywhere but in attention weights.
    """

    def __init__(
        self,
        vocab_size: int,
        max_len: int = 256,
        *,
        decoder: Literal["transformer", "lstm"] = "transformer",
        embed_dim: int = 96,
        num_layers: int = 3,
        num_heads: int = 3,
        num_kv_heads: int | None = None,
        ffn_dim: int = 384,
        positions: Literal["rotary", "learned", "sinusoidal", "relative", "none"] = "rotary",
        memory_len: int = 0,
        norm: Literal["layer", "rms"] = "rms",
        activation: str = "gelu",
        gated: bool = False,
        tied_output: bool = True,
        attention: dict[str, Any] | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {"max_len": max_len, "tied_output": tied_output, "dropout": dropout}
        common |= {"attention": attention}
        if decoder == "lstm":
            if pooling != "attention" or memory_len or num_kv_heads is not None:
                raise ValueError("decoder 'lstm' supports only attention, not pooling, memory_len or num_kv_heads")
            if positions != "rotary" or norm != "rms" or activation != "gelu" or gated:
                raise ValueError("decoder 'lstm' has no positions, norm, activation or gated; leave them out")
            self.net: Any = RecurrentLM(vocab_size, embed_dim, num_layers, num_heads, **common)
        elif decoder == "transformer":
            common |= {"num_kv_heads": num_kv_heads, "ffn_dim": ffn_dim, "positions": positions, "norm": norm}
            common |= {"activation": activation, "gated": gated, "pooling": pooling, "memory_len": memory_len}
            self.net = CausalLM(vocab_size, embed_dim, num_layers, num_heads, **common)
        else:
            raise ValueError(f"unknown decoder {decoder!r}; expected transformer or lstm")

    def forward(
        self, input_ids: Tensor, key_mask: Tensor | None = None, documents: Tensor | None = None
    ) -> TextGenerationOutput:
        """Returns the logits of each next token.

        Args:
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            documents: (B, L) long, see `mmattn.backbones.causal.CausalLM.states`.
        """
        return TextGenerationOutput(self.net(input_ids, key_mask, documents))

    def generate(
        self, input_ids: Tensor, key_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Continue each prompt; see `mmattn.backbones.causal.CausalLM.generate`."""
        found: Generated = self.net.generate(input_ids, key_mask, config, **keywords)
        return found


class PublicLM(TextGenerationModel):
    """A public language model with the interface of `TextGenerationModel`.

    Args:
        net: The network.
    """

    def __init__(self, net: CausalLM) -> None:
        nn.Module.__init__(self)
        self.net = net


def carries(model: Any) -> bool:
    """Whether a model continues segments of a corpus: an LSTM, or Transformer-XL with a memory."""
    return isinstance(model.net, RecurrentLM) or bool(model.net.memory_len)


def token_loss(net: Any, states: Tensor, labels: Tensor, label_mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labels that count, from the states before the output projection."""
    labels = labels.masked_fill(~label_mask, -100)
    if not is_plain(net.output):  # with a low-rank update, or packed
        logits = net.output(states).float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels.flatten(), label_smoothing=label_smoothing)
    options: dict[str, Any] = {"label_smoothing": label_smoothing}
    return chunked_cross_entropy(states, net.output.weight, labels, net.output.bias, **options)


@torch.no_grad()
def token_losses(net: Any, states: Tensor, labels: Tensor, label_mask: Tensor) -> tuple[float, float]:
    """Sum of the cross-entropies, and the number of labels that count; of a float32 sum in parts."""
    count = float(label_mask.sum())
    return float(token_loss(net, states, labels, label_mask)) * count, count
