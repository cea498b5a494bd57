"""The model of question answering: an encoder of a question and its context, and scores of an answer's two ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.pooling import mean_pooling
from mmattn.backbones.recurrent import read_both_ways, recurrent_layers
from mmattn.blocks import Encoder, LayerOptions, run_layer
from mmattn.fusion import BiDAF
from mmattn.masks import Mask

ENCODERS = ("own", "bert", "recurrent")


class QAOutput(NamedTuple):
    """Output of `QAModel`: scores of each token; those that are not the context's, but for the first, mean nothing."""

    start_logits: Tensor  # (N, L), of the answer's first token
    end_logits: Tensor  # (N, L), of its last one; both at position 0: of no answer
    evidence_logits: Tensor  # (N, L), of supporting facts; (N, 0) without such a head


class SpanHead(nn.Module):
    """Scores of an answer's first and last token, a linear map of the states of any encoder (Devlin et al. 2019).

    Args:
        embed_dim: Size of the states.

    >>> [scores.shape for scores in SpanHead(32)(torch.randn(2, 9, 32))]
    [torch.Size([2, 9]), torch.Size([2, 9])]
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.span = nn.Linear(embed_dim, 2)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states: (N, L, E). Returns two tensors (N, L)."""
        starts, ends = self.span(states).unbind(-1)
        return starts, ends


class NeighborConvolution(nn.Module):
    """A depthwise-separable convolution over tokens with a residual connection (Yu et al. 2018, section 2.2).

    Args:
        embed_dim: E.
        width: Number of tokens, odd.
        dropout: Dropout of the result.
    """

    def __init__(self, embed_dim: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 1 or width % 2 == 0:
            raise ValueError(f"convolution: expected an odd number of tokens, found {width}")
        self.norm = nn.LayerNorm(embed_dim)
        self.weight = nn.Parameter(torch.empty(width, embed_dim).uniform_(-(width**-0.5), width**-0.5))
        self.mix = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        """x: (N, L, E); key_mask: (N, L). Returns (N, L, E)."""
        half = self.weight.shape[0] // 2
        y = nn.functional.pad(self.norm(x).masked_fill(~key_mask[:, :, None], 0.0), (0, 0, half, half))
        # A sum of shifted products is faster on a CPU, in training, than a grouped convolution.
        parts = [y[:, n : n + x.shape[1]] * weight for n, weight in enumerate(self.weight.unbind(0))]
        return x + self.dropout(self.mix(nn.functional.gelu(torch.stack(parts).sum(0))))


class PairEncoder(nn.Module):
    """A transformer over question and context, in which each layer begins with a convolution over neighboring tokens.

    As in QANet (Yu et al. 2018), convolutions read a fact and attention joins facts; its positions are rotary. A
    context's token is marked if the question has it, too (the exact match of Chen et al. 2017, section 3.2).

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        convolution: Number of tokens of each convolution; 0: no convolutions.
        dropout: Dropout of embeddings and after each sublayer.
        attention: {"kind": name, and the kernel's options}.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        convolution: int = 7,
        dropout: float = 0.0,
        attention: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.roles = nn.Embedding(3, embed_dim)  # of the question, of the context, and of both
        self.dropout = nn.Dropout(dropout)
        layer = LayerOptions(ffn_dim=ffn_dim, dropout=dropout, attention=attention, rotary=True)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, **layer)
        count = num_layers + 1 if convolution else 0
        self.convolutions = nn.ModuleList(NeighborConvolution(embed_dim, convolution, dropout) for _ in range(count))

    def forward(self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor) -> Tensor:
        """All (N, L). Returns (N, L, E)."""
        of_context = token_types > 0
        asked = key_mask & ~of_context
        both = ((input_ids[:, :, None] == input_ids[:, None, :]) & asked[:, None, :]).any(2) & of_context  # (N, L)
        x = self.embedding(input_ids) + self.roles(of_context.long() + both.long())  # (N, L, E)
        x, mask = self.dropout(x), Mask(key_mask)
        for number, layer in enumerate(self.encoder.layers):
            if self.convolutions:
                x = self.convolutions[number](x, key_mask)
            x = run_layer(self.encoder, layer, x, mask, None)
        if self.convolutions:
            x = self.convolutions[-1](x, key_mask)
        return self.encoder.norm(x)


class MeanEncoder(nn.Module):
    """The baseline without attention: each token beside the means of the question and of the context.

    Args:
        vocab_size: V.
        embed_dim: E.
        ffn_dim: Hidden size; None = 4 E.
        dropout: Dropout of the hidden layer.
    """

    def __init__(self, vocab_size: int, embed_dim: int, *, ffn_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        hidden = ffn_dim or 4 * embed_dim
        self.mix = nn.Sequential(
            nn.Linear(3 * embed_dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, embed_dim)
        )

    def forward(self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor) -> Tensor:
        """All (N, L). Returns (N, L, E)."""
        x = self.embedding(input_ids)  # (N, L, E)
        means = [mean_pooling(x, key_mask & side)[:, None].expand_as(x) for side in (token_types == 0, token_types > 0)]
        return self.mix(torch.cat([x, *means], dim=-1))


class RecurrentPairEncoder(nn.Module):
    """BiDAF: recurrent encoders, bidirectional attention flow, and recurrent layers over its result.

    Seo et al. 2017, section 2, without character embeddings and with the end's scores from the same states as the
    start's; words' embeddings are trained with all else.

    Args:
        vocab_size: V.
        embed_dim: E of the result; also the size of the embeddings.
        num_layers: Number of recurrent layers after the attention (2 in the paper).
        dropout: Dropout of embeddings and between layers.
    """

    def __init__(self, vocab_size: int, embed_dim: int, *, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.forwards, self.backwards = recurrent_layers("lstm", embed_dim, embed_dim, 1)
        self.flow = BiDAF(embed_dim)
        self.flow_forwards, self.flow_backwards = recurrent_layers("lstm", 4 * embed_dim, embed_dim, num_layers)

    def forward(self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor) -> Tensor:
        """All (N, L). Returns (N, L, E), in the question the states of the first token, which stands for no answer."""
        length = input_ids.shape[1]
        asked = key_mask & (token_types == 0)
        first = asked.sum(1, keepdim=True)  # (N, 1): position of the context's first token
        place = torch.arange(length, device=input_ids.device)[None]
        # The first token, and behind it the context; both texts are then padded at the right alone.
        back = torch.where(place > 0, (first + place - 1).clamp_max(length - 1), 0)  # (N, L)
        context_mask = place <= key_mask.sum(1, keepdim=True) - first
        x = self.dropout(self.embedding(input_ids))  # (N, L, E)
        context, _ = read_both_ways(self.forwards, self.backwards, _moved(x, back), context_mask, self.dropout)
        question, _ = read_both_ways(self.forwards, self.backwards, x, asked, self.dropout)
        flow = self.dropout(self.flow(context, question, a_key_mask=context_mask, b_key_mask=asked))  # (N, L, 4 E)
        states, _ = read_both_ways(self.flow_forwards, self.flow_backwards, flow, context_mask, self.dropout)
        return _moved(states, torch.where(place >= first, place - first + 1, 0))


def _moved(x: Tensor, index: Tensor) -> Tensor:
    """x (N, L, E) at the positions index (N, L)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


class QAModel(nn.Module):
    """Encodes windows of a question and its context, and scores each token as the answer's first and last.

    Args:
        vocab_size: V.
        encoder: "own", a transformer with convolutions (`PairEncoder`); "bert", that of the BERT family; "recurrent",
            BiDAF.
        pooling: "attention", or "mean": the baseline `MeanEncoder`.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        ffn_dim: Hidden size of the feed-forward networks; None: 4 E.
        convolution: Number of tokens of the convolutions of "own"; 0: none.
        max_len: Maximum number of tokens of a window.
        evidence: Whether there is a head for supporting facts, which `loss.evidence` trains.
        dropout: Dropout.
        attention: Self-attention, {"kind": name, and the kernel's options}.
        text_options: Keywords of `mmattn.backbones.bert.BertEncoder`, from public weights.

    Raises:
        ValueError: The keywords are inconsistent.

    >>> types = torch.tensor([[0] * 4 + [1] * 5] * 2)
    >>> ids, mask = torch.randint(4, 100, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    >>> QAModel(100, embed_dim=32, num_heads=2)(ids, mask, types).start_logits.shape
    torch.Size([2, 9])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        encoder: Literal["own", "bert", "recurrent"] = "own",
        pooling: Literal["attention", "mean"] = "attention",
        embed_dim: int = 64,
        num_layers: int = 3,
        num_heads: int = 2,
        ffn_dim: int | None = 128,
        convolution: int = 7,
        max_len: int = 384,
        evidence: bool = False,
        dropout: float = 0.0,
        attention: Mapping[str, Any] | None = None,
        text_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS or pooling not in ("attention", "mean"):
            raise ValueError(f"expected an encoder of {', '.join(ENCODERS)} and a pooling of attention, mean")
        if (text_options is not None) != (encoder == "bert"):
            raise ValueError("text_options: expected with encoder bert, which public weights give, and no other")
        if encoder != "own" and pooling == "mean":
            raise ValueError(f"pooling: expected attention with encoder {encoder}, found mean")
        if attention is not None and (encoder == "recurrent" or pooling == "mean"):
            raise ValueError(f"attention: encoder {encoder} with pooling {pooling} has no self-attention to choose")
        self.max_len = max_len
        common: dict[str, Any] = {"dropout": dropout}
        if encoder == "bert":
            options = {**(text_options or {}), "pooler": False, **({"attention": attention} if attention else {})}
            self.encoder: nn.Module = BertEncoder(vocab_size, **options)
            embed_dim = self.encoder.embed_dim
        elif encoder == "recurrent":
            self.encoder = RecurrentPairEncoder(vocab_size, embed_dim, num_layers=num_layers, **common)
        elif pooling == "mean":
            self.encoder = MeanEncoder(vocab_size, embed_dim, ffn_dim=ffn_dim, **common)
        else:
            self.encoder = PairEncoder(
                vocab_size,
                embed_dim,
                num_layers,
                num_heads,
                ffn_dim=ffn_dim,
                convolution=convolution,
                attention=attention,
                **common,
            )
        self.head = SpanHead(embed_dim)
        self.evidence = nn.Linear(embed_dim, 1) if evidence else None

    def forward(self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor) -> QAOutput:
        """Scores tokens.

        Args:
            input_ids: (N, L) long.
            key_mask: (N, L) bool, True = a real token.
            token_types: (N, L) long, 0 = question, 1 = context.

        Raises:
            ValueError: A window is too long.
        """
        if input_ids.shape[1] > self.max_len:
            raise ValueError(f"a window of {input_ids.shape[1]} tokens is too long: max_len={self.max_len}")
        if isinstance(self.encoder, BertEncoder):
            types = token_types if self.encoder.token_types is not None else None
            states = self.encoder(input_ids, key_mask, types).states
        else:
            states = self.encoder(input_ids, key_mask, token_types)  # (N, L, E)
        starts, ends = self.head(states)
        none = states.new_zeros(*starts.shape[:1], 0)
        return QAOutput(starts, ends, none if self.evidence is None else self.evidence(states).squeeze(-1))
