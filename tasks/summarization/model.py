"""The summarization model: an encoder for long documents and a decoder with a copy mechanism."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, NamedTuple

import torch
from torch import Tensor

from mmattn.attention import split_attention
from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.blocks import Encoder
from mmattn.generate import CachedState, Generated, GenerationConfig, generate
from mmattn.kernels import KERNELS
from mmattn.masks import Mask
from mmattn.tasks.common.seq2seq.model import mean_memory
from mmattn.tasks.summarization.copying import CopyHead, Frequencies
from mmattn.tasks.summarization.extractive import ExtractiveModel
from mmattn.tasks.summarization.hierarchy import HierarchicalEncoder

GENERATIVE: Final = "pointer_generator"
EXTRACTIVE: Final = "extractive"


class SummaryOutput(NamedTuple):
    """Output of the model under teacher forcing."""

    logits: Tensor  # (B, L, V), for each next token
    salience: Tensor  # (B, S), salience logits of the document's tokens; (B, 0) without a copy mechanism


class SummarizationModel(Seq2Seq):
    """Documents to summaries, written word by word.

    Args:
        vocab_size: V, shared by document and summary.
        network: "pointer_generator", this one; "extractive" names `ExtractiveModel`, which `build` makes: it chooses
            sentences of the document, and has embed_dim, num_heads, ffn_dim, encoder_layers, attention,
            sentence_layers, pooling, dropout and text_options.
        embed_dim: E.
        num_heads: Number of attention heads, h.
        ffn_dim: Hidden size of the feed-forward networks.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers.
        attention: The encoder's self-attention, {"kind": name, and the kernel's options}; none: dense. {"kind":
            "sliding_window", "window": 128} encodes long documents in linear time.
        decoder_attention: The decoder's self-attention.
        cross_attention: The decoder's attention to the document.
        global_tokens: Tokens with global attention in a windowed kernel: "none", the "first" one, or the first one of
            each of the "sentences".
        hierarchical: Words attend within their sentences, sentences to each other, then words to the whole document
            (`HierarchicalEncoder`); false: words to the whole document.
        sentence_layers: Number of layers over sentences, if hierarchical.
        document_layers: Number of layers over all words after the sentence layers, if hierarchical.
        copy: Use a pointer-generator to copy words of the document (`CopyHead`).
        frequencies: Add embeddings of a token's frequency in the document and of its rarity: the TF and IDF features of
            Nallapati et al. 2016 (section 2.2). IDF is approximated by the token's id, since tokenizers order ids by
            frequency.
        pooling: How the decoder reads the document: by "attention", or its "mean", a baseline without attention.
        dropout: Dropout rate everywhere but in attention weights.
        text_options: Keywords of the public encoder of "extractive", from its weights.

    Raises:
        ValueError: Options contradict each other.

    >>> model = SummarizationModel(50, embed_dim=16, num_heads=2, ffn_dim=32).eval()
    >>> ids = torch.randint(4, 50, (2, 9))
    >>> model(ids, torch.ones_like(ids, dtype=torch.bool), ids[:, :4]).logits.shape
    torch.Size([2, 4, 50])
    """

    beside: ClassVar[tuple[str, ...]] = ("sentence_starts", "copy_ids")  # as of `TextModel`

    def __init__(
        self,
        vocab_size: int,
        *,
        network: Literal["pointer_generator", "extractive"] = GENERATIVE,
        embed_dim: int = 96,
        num_heads: int = 4,
        ffn_dim: int = 256,
        encoder_layers: int = 1,
        decoder_layers: int = 2,
        attention: dict[str, Any] | None = None,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        global_tokens: Literal["none", "first", "sentences"] = "none",
        hierarchical: bool = True,
        sentence_layers: int = 1,
        document_layers: int = 2,
        copy: bool = True,
        frequencies: bool = False,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.1,
        text_options: Mapping[str, Any] | None = None,
    ) -> None:
        if network != GENERATIVE or text_options is not None:
            raise ValueError(f"network: expected {GENERATIVE} without text_options, found {network!r}; see build")
        if global_tokens not in ("none", "first", "sentences"):
            raise ValueError(f"global_tokens: expected none, first or sentences, found {global_tokens!r}")
        if pooling == "mean" and copy:
            raise ValueError("pooling 'mean' leaves no tokens to copy; set copy to false")
        if hierarchical and global_tokens != "none":
            raise ValueError("hierarchical: words attend within sentences; set global_tokens to none")
        super().__init__(
            vocab_size,
            embed_dim,
            0 if hierarchical else encoder_layers,
            num_heads,
            num_decoder_layers=decoder_layers,
            ffn_dim=ffn_dim,
            dropout=dropout,
            attention=attention,
            decoder_attention=decoder_attention,
            cross_attention=cross_attention,
            output_bias=True,
        )
        self.global_tokens, self.pooling = global_tokens, pooling
        if global_tokens != "none":
            KERNELS[split_attention(attention)[0]].require({"global"})
        self.hierarchy = None
        if hierarchical:
            layers: Mapping[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention}
            self.encoder = Encoder(embed_dim, 0, num_heads, norm_first=False)  # empty: the hierarchy replaces it
            self.hierarchy = HierarchicalEncoder(
                embed_dim,
                encoder_layers,
                num_heads,
                sentence_layers=sentence_layers,
                document_layers=document_layers,
                **layers,
            )
        self.copy_head = CopyHead(embed_dim) if copy else None
        self.frequencies = Frequencies(vocab_size, embed_dim) if frequencies else None

    def encode(
        self, input_ids: Tensor, key_mask: Tensor | None = None, sentence_starts: Tensor | None = None
    ) -> Tensor:
        """Encode documents.

        Args:
            input_ids: (B, S) long.
            key_mask: (B, S) bool, True = a real token.
            sentence_starts: (B, n) long, first token of each sentence, padded with -1; None: one sentence.

        Returns:
            The memory (B, S, E), undefined in the padding.
        """
        if key_mask is None:
            key_mask = torch.ones_like(input_ids, dtype=torch.bool)
        if sentence_starts is None:
            sentence_starts = torch.zeros_like(input_ids[:, :1])
        x = self.positions(self.embedding(input_ids) * self.scale)  # (B, S, E)
        if self.frequencies is not None:
            x = x + self.frequencies(input_ids, key_mask)
        x = self.dropout(self.embedding_norm(x))
        if self.hierarchy is not None:
            x = self.hierarchy(x, key_mask, sentence_starts)
        else:
            x = self.encoder(x, Mask(key_mask, global_mask=self._global_mask(key_mask, sentence_starts)))
        if self.pooling == "mean":
            x = mean_memory(x, key_mask)
        return x

    def _global_mask(self, key_mask: Tensor, sentence_starts: Tensor) -> Tensor | None:
        if self.global_tokens == "none":
            return None
        starts = sentence_starts if self.global_tokens == "sentences" else sentence_starts[:, :1]
        places = torch.arange(key_mask.shape[1], device=key_mask.device)[:, None]
        return (places == starts[:, None]).any(-1) & key_mask  # (B, S)

    def forward(  # type: ignore[override]
        self,
        source_ids: Tensor,
        source_mask: Tensor | None,
        target_ids: Tensor,
        sentence_starts: Tensor | None = None,
        copy_ids: Tensor | None = None,
    ) -> SummaryOutput:
        """Teacher forcing.

        Args:
            source_ids: (B, S) long.
            source_mask: (B, S) bool, True = a real token.
            target_ids: (B, L) long, the start token first; right-padded, where the loss is masked.
            sentence_starts: (B, n) long, as in `encode`.
            copy_ids: (B, S) long, ids that copying emits, if word dropout changed source_ids; None: source_ids.

        Returns:
            Logits (B, L, V), log-probabilities if the model copies, and salience (B, S).
        """
        memory = self.encode(source_ids, source_mask, sentence_starts)
        states = self.decode(target_ids, memory, source_mask)
        logits = self.output(states)
        if self.copy_head is None:
            return SummaryOutput(logits, memory[:, :0, 0])
        kept = self.copy_head.kept(memory, source_ids if copy_ids is None else copy_ids, source_mask)
        return SummaryOutput(self.copy_head(states, logits, memory, **kept), kept["salience"])

    # Generation -------------------------------------------------------------------------------------------------------

    def start(
        self,
        input_ids: Tensor,
        key_mask: Tensor | None = None,
        sentence_starts: Tensor | None = None,
        copy_ids: Tensor | None = None,
    ) -> CachedState:
        """Encode documents and make the initial state of `step`; arguments as of `encode` and `forward`."""
        memory = self.encode(input_ids, key_mask, sentence_starts)
        if self.copy_head is None:
            return self.start_from(memory, key_mask)
        key_mask = torch.ones_like(input_ids, dtype=torch.bool) if key_mask is None else key_mask
        ids = input_ids if copy_ids is None else copy_ids
        return self.start_from(memory, key_mask, extra=self.copy_head.kept(memory, ids, key_mask))

    def step(self, ids: Tensor, state: CachedState) -> Tensor:
        """Append target ids (N, L) and return the logits (N, V) of the next token."""
        states = self.advance(ids, state)  # (N, E)
        logits = self.output(states)
        if self.copy_head is None:
            return logits
        assert state.memory is not None
        rows = (x.unflatten(0, (state.memory.shape[0], -1)) for x in (states, logits))  # (B, K, E), (B, K, V)
        return self.copy_head(*rows, state.memory, **state.extra).flatten(0, 1)

    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        key_mask: Tensor | None,
        config: GenerationConfig,
        *,
        sentence_starts: Tensor | None = None,
        copy_ids: Tensor | None = None,
        **keywords: Any,
    ) -> Generated:
        """Generate summaries; config, keywords and errors as of Seq2Seq, other arguments as of `start`."""
        prompt = config.start_prompt(len(input_ids), input_ids.device)
        with torch.inference_mode():
            state = self.start(input_ids, key_mask, sentence_starts, copy_ids)
            return generate(self.step, state, prompt, config, **keywords)

    # Explanations -----------------------------------------------------------------------------------------------------

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Source weights of each summary token, (B, L, S): of the copy head, or else of the last cross-attention.

        Args:
            maps: Attention maps of `mmattn.explain.capture(model)` for one forward pass.
        """
        if self.copy_head is not None:
            return maps["copy_head.weights"][0]
        return maps[f"decoder.layers.{len(self.decoder.layers) - 1}.cross_attention"][0].mean(1)


def build(vocab_size: int, *, network: str = GENERATIVE, **keywords: Any) -> SummarizationModel | ExtractiveModel:
    """The model of a network's name, with the keywords of `SummarizationModel`.

    Raises:
        ValueError: There is no such network, or a keyword that is not its own is given.
    """
    if network == GENERATIVE:
        return SummarizationModel(vocab_size, **keywords)
    if network != EXTRACTIVE:
        raise ValueError(f"network: expected {GENERATIVE} or {EXTRACTIVE}, found {network!r}")
    known, own = (inspect.signature(kind).parameters for kind in (SummarizationModel, ExtractiveModel))
    for name in [name for name in keywords if name in known and name not in own]:
        value = keywords.pop(name)
        if value != known[name].default:
            raise ValueError(f"{name}: of the network {GENERATIVE} alone, not of {network}; found {value!r}")
    return ExtractiveModel(vocab_size, **keywords)
