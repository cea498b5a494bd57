"""The summarization model: an encoder that reads long documents, a decoder that writes and copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

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
from mmattn.tasks.summarization.hierarchy import HierarchicalEncoder


class SummaryOutput(NamedTuple):
    """What the model gives under teacher forcing."""

    logits: Tensor  # (B, L, V): scores of each next token
    salience: Tensor  # (B, S): scores of each token of the document for being worth copying; (B, 0) without copying


class SummarizationModel(Seq2Seq):
    """Documents to summaries.

    Args:
        vocab_size: V, of document and summary.
        embed_dim: E.
        num_heads: h.
        ffn_dim: of the feed-forward networks.
        encoder_layers: that read.
        decoder_layers: that write.
        attention: the encoder's self-attention, {"kind": name, and the kernel's options}; none: dense.
            {"kind": "sliding_window", "window": 128} reads long documents in linear time.
        decoder_attention: the decoder's self-attention.
        cross_attention: the decoder's attention to the document.
        global_tokens: which tokens of the document see all and are seen by all, where the kernel windows: "none", the
            "first" one, or the first one of each of the "sentences".
        hierarchical: words attend within their sentences, sentences to each other, then words to the whole document
            (`HierarchicalEncoder`); off: words to the whole document.
        sentence_layers: over sentences, where hierarchical.
        document_layers: over all words once their sentences are known, where hierarchical.
        copy: words of the document can be copied (`CopyHead`).
        frequencies: each token of the document also says how often it stands there, and how rare it is altogether: the
            features TF and IDF of Nallapati et al. 2016 (section 2.2), the latter by the token's number, for tokenizers
            number what is frequent first.
        pooling: How the decoder reads the document: by "attention"; or its "mean", a baseline that cannot attend.
        dropout: everywhere but in attention weights.

    Raises:
        ValueError: options that do not go together.

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
    ) -> None:
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
            self.encoder = Encoder(embed_dim, 0, num_heads, norm_first=False)  # nothing: the hierarchy is in its place
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
        """Reads documents.

        Args:
            input_ids: (B, S) long.
            key_mask: (B, S) bool, True = a real token.
            sentence_starts: (B, n) long, each sentence's first token, filled up with -1; None: it is all one sentence.

        Returns:
            The memory (B, S, E); what stands at padding means nothing.
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
            target_ids: (B, L) long, the start token first; padded at the right, where the loss is masked.
            sentence_starts: (B, n) long, as `encode` has it.
            copy_ids: (B, S) long, what copying a token gives, where source_ids hides some; source_ids where None.

        Returns:
            logits (B, L, V), normalized logarithms where the model copies, and salience (B, S).
        """
        memory = self.encode(source_ids, source_mask, sentence_starts)
        states = self.decode(target_ids, memory, source_mask)
        logits = self.output(states)
        if self.copy_head is None:
            return SummaryOutput(logits, memory[:, :0, 0])
        kept = self.copy_head.kept(memory, source_ids if copy_ids is None else copy_ids, source_mask)
        return SummaryOutput(self.copy_head(states, logits, memory, **kept), kept["salience"])

    # Writing ----------------------------------------------------------------------------------------------------------

    def start(
        self,
        input_ids: Tensor,
        key_mask: Tensor | None = None,
        sentence_starts: Tensor | None = None,
        copy_ids: Tensor | None = None,
    ) -> CachedState:
        """Reads documents and makes the state that `step` continues from; arguments as of `encode` and `forward`."""
        memory = self.encode(input_ids, key_mask, sentence_starts)
        if self.copy_head is None:
            return self.start_from(memory, key_mask)
        key_mask = torch.ones_like(input_ids, dtype=torch.bool) if key_mask is None else key_mask
        ids = input_ids if copy_ids is None else copy_ids
        return self.start_from(memory, key_mask, extra=self.copy_head.kept(memory, ids, key_mask))

    def step(self, ids: Tensor, state: CachedState) -> Tensor:
        """New target ids (N, L) to the logits (N, V) of what follows the last of them."""
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
        """Writes summaries; config, keywords and errors as of Seq2Seq, the others as of `start`."""
        prompt = config.start_prompt(len(input_ids), input_ids.device)
        with torch.inference_mode():
            state = self.start(input_ids, key_mask, sentence_starts, copy_ids)
            return generate(self.step, state, prompt, config, **keywords)

    # Looking at it ----------------------------------------------------------------------------------------------------

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Where each token of the summary comes from, (B, L, S): the copy head's map, or the last cross-attention's.

        Args:
            maps: what `mmattn.explain.capture(model)` gave for one forward pass.
        """
        if self.copy_head is not None:
            return maps["copy_head.weights"][0]
        return maps[f"decoder.layers.{len(self.decoder.layers) - 1}.cross_attention"][0].mean(1)
