"""The model of text classification: an encoder, and heads over its pooled states or over those of the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.bert import BertEncoder, LanguageHead
from mmattn.backbones.deberta import DebertaEncoder
from mmattn.backbones.modernbert import ModernBertEncoder
from mmattn.backbones.pooling import mean_pooling
from mmattn.feedforward import ACTIVATIONS
from mmattn.fusion import AttentionPooling
from mmattn.hierarchical import ContextPooling
from mmattn.masks import Mask
from mmattn.tasks.text_classification.encoders import BagOfWords, HierarchicalEncoder, OwnEncoder, RecurrentTextEncoder

PUBLIC: dict[str, type[nn.Module]] = {"bert": BertEncoder, "modernbert": ModernBertEncoder, "deberta": DebertaEncoder}
ENCODERS = ("own", "recurrent", "hierarchical", "bag", *PUBLIC)
POOLINGS = ("attention", "mean", "first")
TAGGING = "tagging"


class TextOutput(NamedTuple):
    """Output of `TextClassificationModel`; the scores of several tasks are one behind another, in their order."""

    logits: Tensor  # (N, K), of the labels of whole texts
    tag_logits: Tensor  # (N, W, T), of the labels of words, by the state of each word's first token; (N, 0, T) without
    token_logits: Tensor  # (N, L, V), of a masked language model; (N, 0, 1) of others


class TextHead(nn.Module):
    """Scores of labels, ``W norm(f(V x))`` or ``W x``, of vectors or of each state of a sequence.

    Args:
        embed_dim: E.
        num_labels: K.
        hidden: f, a name in ``mmattn.feedforward.ACTIVATIONS``; None: no hidden layer.
        norm: Whether the hidden layer is normalized.
        norm_eps: Epsilon added to the variance in the norm.
        bias: Whether the hidden layer has a bias.
        dropout: Dropout of the input and of the hidden layer.

    >>> TextHead(32, 5, hidden="tanh")(torch.randn(2, 32)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        embed_dim: int,
        num_labels: int,
        *,
        hidden: str | None = None,
        norm: bool = False,
        norm_eps: float = 1e-5,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden is not None and hidden not in ACTIVATIONS:
            raise ValueError(f"hidden: expected one of {', '.join(ACTIVATIONS)}, found {hidden!r}")
        self.hidden = hidden
        self.dense = None if hidden is None else nn.Linear(embed_dim, embed_dim, bias=bias)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(embed_dim, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) to (..., K)."""
        x = self.dropout(x)
        if self.dense is not None and self.hidden is not None:
            x = self.dropout(self.norm(ACTIVATIONS[self.hidden](self.dense(x))))
        return self.out(x)


class TextClassificationModel(nn.Module):
    """Encodes texts, pools the states to a vector of the text, and scores its labels, or those of each word.

    Args:
        vocab_size: V.
        heads: Kind and number of outputs of each task, ``{"": ["single_label", 5]}``.
        encoder: "own", a transformer with rotary positions; "recurrent", a bidirectional LSTM with additive attention;
            "hierarchical", words and sentences (Yang et al. 2016); "bag", the embeddings alone: a baseline; "bert",
            "modernbert" and "deberta", of public weights.
        pooling: "attention", from a learned query; "mean"; or "first", the first token's state.
        embed_dim: E of our encoders.
        num_layers: Number of layers.
        num_heads: h.
        ffn_dim: Hidden size of the feed-forward networks; None: 4 E.
        characters: Size of the features of each word's characters beside its embedding; 0: none.
        num_characters: Number of characters.
        max_len: Maximum number of tokens.
        language: Whether there is a head for hidden tokens, which a masked language model trains.
        hidden: Activation of the heads' hidden layer; None: none.
        dropout: Dropout of our encoders and of the heads.
        attention: Self-attention, {"kind": name, and the kernel's options}.
        text_options: Keywords of the public encoder.
        head_options: Keywords of `TextHead` and of the language head, from public weights.

    Raises:
        ValueError: The keywords are inconsistent.

    >>> model = TextClassificationModel(100, {"": ["single_label", 5]}, embed_dim=32, num_heads=2)
    >>> ids, mask = torch.randint(4, 100, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    >>> model(ids, mask, torch.zeros_like(ids)).logits.shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        vocab_size: int,
        heads: Mapping[str, Sequence[Any]],
        *,
        encoder: Literal["own", "recurrent", "hierarchical", "bag", "bert", "modernbert", "deberta"] = "own",
        pooling: Literal["attention", "mean", "first"] = "attention",
        embed_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_dim: int | None = 128,
        characters: int = 0,
        num_characters: int = 2,
        max_len: int = 128,
        language: bool = False,
        hidden: str | None = None,
        dropout: float = 0.1,
        attention: Mapping[str, Any] | None = None,
        text_options: Mapping[str, Any] | None = None,
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS or pooling not in POOLINGS:
            raise ValueError(f"expected an encoder of {', '.join(ENCODERS)} and a pooling of attention, mean, first")
        if (text_options is not None) != (encoder in PUBLIC):
            raise ValueError(f"text_options: expected with an encoder of public weights, and no other; found {encoder}")
        if attention is not None and encoder not in ("own", *PUBLIC):
            raise ValueError(f"attention: encoder {encoder} has no self-attention to choose")
        if characters and encoder in PUBLIC:
            raise ValueError(
                f"characters: expected 0 with encoder {encoder}, whose sub-words are trained; found {characters}"
            )
        self.max_len, self.characters, self.by_sentence = max_len, characters, encoder == "hierarchical"
        self.heads_of = {name: (str(kind), int(size)) for name, (kind, size) in heads.items()}
        tagged = [name for name, (kind, _) in self.heads_of.items() if kind == TAGGING]
        if tagged and self.by_sentence:
            raise ValueError("encoder hierarchical: expected labels of whole texts, found labels of words")
        if language and self.by_sentence:
            raise ValueError("encoder hierarchical: expected no masked language model, whose states are of tokens")
        if characters and language:
            raise ValueError("characters: expected 0 for a masked language model, which would read the hidden words")
        common: dict[str, Any] = {"dropout": dropout, "characters": characters, "num_characters": num_characters}
        if encoder in PUBLIC:
            options = {**(text_options or {}), **({"attention": attention} if attention else {})}
            options |= {"pooler": False} if encoder == "bert" else {}
            self.encoder: nn.Module = PUBLIC[encoder](vocab_size, **options)
            embed_dim = int(self.encoder.embed_dim)  # type: ignore[arg-type]
        elif encoder == "own":
            layers: dict[str, Any] = {"ffn_dim": ffn_dim, "attention": attention}
            self.encoder = OwnEncoder(vocab_size, embed_dim, num_layers, num_heads, **layers, **common)
        elif encoder == "recurrent":
            self.encoder = RecurrentTextEncoder(vocab_size, embed_dim, num_layers, **common)
        elif encoder == "hierarchical":
            self.encoder = HierarchicalEncoder(vocab_size, embed_dim, **common)
        else:
            self.encoder = BagOfWords(vocab_size, embed_dim, **common)
        self.embed_dim, self.kind = embed_dim, encoder
        self.pooling_kind = pooling
        self.pooling: nn.Module | None = None
        if pooling == "attention" and len(tagged) < len(self.heads_of) and not self.by_sentence:
            if encoder in ("recurrent", "bag"):
                self.pooling = ContextPooling(embed_dim)
            else:
                self.pooling = AttentionPooling(embed_dim, num_heads if embed_dim % num_heads == 0 else 1)
        given = dict(head_options or {})
        language_options = dict(given.pop("language", {}))
        given = {"hidden": hidden, "dropout": dropout, **given}
        # The names of tasks are the user's, so that a module is named by its number.
        self.head = nn.ModuleList(TextHead(embed_dim, size, **given) for _, size in self.heads_of.values())
        self.language = LanguageHead(vocab_size, embed_dim, **language_options) if language else None

    @property
    def slices(self) -> dict[str, slice]:
        """Where the scores of each task are in `logits`, or in `tag_logits`."""
        found, ends = {}, {True: 0, False: 0}
        for name, (kind, size) in self.heads_of.items():
            start = ends[kind == TAGGING]
            found[name] = slice(start, start + size)
            ends[kind == TAGGING] += size
        return found

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` takes."""
        tagging = any(kind == TAGGING for kind, _ in self.heads_of.values())
        names = ["input_ids", "key_mask", "token_types"]
        return (*names, *(["word_starts"] if tagging else []), *(["characters"] if self.characters else []))

    def states(
        self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor, characters: Tensor | None = None
    ) -> Tensor:
        """The encoder's states (N, L, E); of a hierarchical one the texts' vectors (N, E)."""
        if self.kind in PUBLIC:
            types = token_types if getattr(self.encoder, "token_types", None) is not None else None
            states: Tensor = self.encoder(input_ids, key_mask, types).states
            return states
        return self.encoder(input_ids, key_mask, token_types, characters)  # type: ignore[no-any-return]

    def pooled(self, states: Tensor, key_mask: Tensor) -> Tensor:
        """The vector (N, E) of each text from its states (N, L, E)."""
        if self.by_sentence:
            return states
        if self.pooling_kind == "first":
            return states[:, 0]
        if self.pooling is None:
            return mean_pooling(states, key_mask)
        if isinstance(self.pooling, ContextPooling):
            return self.pooling(states, key_mask)  # type: ignore[no-any-return]
        return self.pooling(states, Mask(key_mask)).squeeze(1)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        key_mask: Tensor,
        token_types: Tensor,
        word_starts: Tensor | None = None,
        characters: Tensor | None = None,
    ) -> TextOutput:
        """Scores texts.

        Args:
            input_ids: (N, L) long; of a hierarchical model (N, n, w), n sentences of w words.
            key_mask: As input_ids, bool, True = a real token.
            token_types: As input_ids, long: 0, and 1 for the second text of a pair.
            word_starts: (N, W) long, the first token of each word, -1 in the padding; for labels of words.
            characters: (N, L, C) or (N, n, w, C) long, 0 is padding; of a model that reads them.

        Raises:
            ValueError: A text is too long.
        """
        if not self.by_sentence and input_ids.shape[1] > self.max_len:
            raise ValueError(f"a text of {input_ids.shape[1]} tokens is too long: max_len={self.max_len}")
        states = self.states(input_ids, key_mask, token_types, characters)
        output = self.scores(states, key_mask, word_starts)
        return output if self.language is None else output._replace(token_logits=self.language(states))

    def scores(
        self, states: Tensor, key_mask: Tensor, word_starts: Tensor | None = None, pooled: Tensor | None = None
    ) -> TextOutput:
        """The scores of all tasks from the encoder's states, and from their `pooled` vectors, if these are known."""
        whole: list[Tensor] = []
        tags: list[Tensor] = []
        words = None
        for head, (kind, _) in zip(self.head, self.heads_of.values(), strict=True):
            if kind == TAGGING:
                if word_starts is None:
                    raise ValueError("word_starts: expected the first token of each word, found none")
                if words is None:
                    index = word_starts.clamp_min(0)[:, :, None].expand(-1, -1, states.shape[2])
                    words = states.gather(1, index)  # (N, W, E)
                tags.append(head(words))
            else:
                pooled = self.pooled(states, key_mask) if pooled is None else pooled
                whole.append(head(pooled))
        none = states.new_zeros(states.shape[0], 0)
        found = torch.cat(whole, -1) if whole else none, torch.cat(tags, -1) if tags else none[:, :, None]
        return TextOutput(*found, none[:, :, None])

    def token_logits(self, states: Tensor) -> Tensor:
        """Scores of the tokens (..., V) that are hidden at states (..., E).

        Raises:
            ValueError: The model is no masked language model.
        """
        if self.language is None:
            raise ValueError("expected a masked language model, found none: loss.objective mlm trains one")
        return self.language(states)  # type: ignore[no-any-return]
