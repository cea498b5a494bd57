"""Models, search and corpus metric of tasks that generate text, without Lightning."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.data.text.scripts import is_latin, split_words
from mmattn.generate import Generated, GenerationConfig
from mmattn.masks import Mask
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.seq2seq.data import TextBatch
from mmattn.tasks.common.seq2seq.processor import LIMITS

BEAMS = 5  # default number of beams


class TextOutput(NamedTuple):
    """Output of a text model under teacher forcing."""

    logits: Tensor  # (B, L, V), for each next token


class TextModel(nn.Module):
    """An encoder-decoder with the interface of the tasks' models.

    Args:
        net: A Seq2Seq or a RecurrentSeq2Seq.
    """

    beside: ClassVar[tuple[str, ...]] = ()  # names of batch fields that the model takes besides source and target

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, source_ids: Tensor, source_mask: Tensor | None, target_ids: Tensor) -> TextOutput:
        """Teacher forcing.

        Args:
            source_ids: (B, S) long.
            source_mask: (B, S) bool, True = a real token.
            target_ids: (B, L) long, the start token first.

        Returns:
            Logits (B, L, V) of each next token.
        """
        return TextOutput(self.net(source_ids, source_mask, target_ids))

    def generate(
        self, source_ids: Tensor, source_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Generate a text for each source; see `Seq2Seq.generate`."""
        found: Generated = self.net.generate(source_ids, source_mask, config, **keywords)
        return found

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Attention of each target token to the source tokens: (B, L, S), rows summing to one.

        Args:
            maps: Attention maps of `mmattn.explain.capture(model)` for one pass under teacher forcing.
        """
        return read_off(maps)


class TextHead(Seq2Seq):
    """A transformer decoder that generates text from the features of any encoder.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of decoder layers.
        num_heads: Number of attention heads, h.
        memory_dim: Size of the features; None: E.
        options: Other keywords of Seq2Seq.

    >>> head = TextHead(100, 32, 1, 4, memory_dim=768)
    >>> head(torch.randn(2, 49, 768), None, torch.randint(100, (2, 5))).shape
    torch.Size([2, 5, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        memory_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(vocab_size, embed_dim, 0, num_heads, num_decoder_layers=num_layers, **options)
        self.memory_proj = nn.Linear(embed_dim if memory_dim is None else memory_dim, embed_dim)

    def encode(self, input_ids: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Project features (B, S, memory_dim), which replace ids, to the memory (B, S, E)."""
        return self.encoder(self.memory_proj(input_ids), None if key_mask is None else Mask(key_mask))


def beside(model: Any, batch: TextBatch) -> dict[str, Tensor]:
    """Additional inputs of a model from a batch, by name."""
    return {name: getattr(batch, name) for name in model.beside}


def mean_memory(states: Tensor, key_mask: Tensor) -> Tensor:
    """Mean state of the real tokens at every position, (B, S, E): attention then has no effect."""
    weights = (key_mask / key_mask.sum(1, keepdim=True).clamp_min(1)).to(states.dtype)[:, :, None]  # (B, S, 1)
    return (states * weights).sum(1, keepdim=True).expand_as(states)


def decode_options(processor: Any, source_len: int | None, **options: Any) -> GenerationConfig:
    """Generation options: those of the model, overridden by the given ones, with the special tokens of its processor.

    Without a length limit, max_new_tokens is 2 * source_len + 10, at most max_target_len.

    Args:
        processor: Has the tokenizer `target`, with the special tokens; `max_target_len`; and `options`, among them a
            public model's generation_config.json.
        source_len: Tokens of the longest source in the batch; None: max_target_len alone is the limit.
        options: Fields of GenerationConfig; None: the model's own.

    Raises:
        ConfigError: Values contradict each other.
    """
    target = processor.target
    given = {name: value for name, value in options.items() if value is not None}
    known = processor.options.get("generation")
    if known is None:
        known = {
            "decoder_start_token_id": target.start_id,
            "eos_token_id": target.eos_id,
            "pad_token_id": target.pad_id,
            "num_beams": BEAMS,
            "suppress_tokens": [t for t in (target.pad_id, target.unk_id, target.start_id) if t != target.eos_id],
        }
    known = {**known, **{k: v for k, v in processor.options.get("search", {}).items() if k != "mbr"}}
    if not LIMITS.isdisjoint(given):
        known = {name: value for name, value in known.items() if name not in LIMITS}
    elif LIMITS.isdisjoint(known):
        longest = processor.max_target_len
        given["max_new_tokens"] = longest if source_len is None else min(longest, 2 * source_len + 10)
    try:
        return GenerationConfig(**{**known, **given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"generation: {error}.") from None


def search(
    model: Any,
    batch: TextBatch,
    processor: Any,
    mbr: bool | None = None,
    beginning: str | None = None,
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> list[tuple[str, float]]:
    """Generate a text for each row of a batch; returns texts with their log p / length^length_penalty.

    Args:
        model: Has `generate(*batch.inputs, config)` and `beside`.
        batch: A batch of its processor.
        processor: See `decode_options`.
        mbr: Whether to return the beam of minimum Bayes risk (`mbr_select`) instead of the most probable one; None: as
            the model was measured.
        beginning: Words with which each text begins; None: none.
        on_text: Called with the first row's text so far after each of its tokens, without beams.
        options: See `decode_options`.
    """
    if mbr is None:
        mbr = processor.options.get("search", {}).get("mbr", False)
    config = decode_options(processor, batch.source_len, **options)
    first = [] if beginning is None else processor.target.encode(beginning)
    config = replace(config, beginning=first)
    if mbr:
        config = replace(config, num_return_sequences=config.num_beams)
    keywords: dict[str, Any] = beside(model, batch)
    if on_text is not None:
        written = list(first)

        def on_token(row: int, token: int) -> None:
            written.extend([token] if row == 0 else [])
            on_text(processor.decode(written))

        keywords["on_token"] = on_token
    found = model.generate(*batch.inputs, config, **keywords)
    log_p = (found.scores * found.lengths**config.length_penalty).tolist()  # [B][K]
    rows = []
    for candidates, scores, row_log_p in zip(found.tokens(), found.scores.tolist(), log_p, strict=True):
        texts = [processor.decode([*first, *ids]) for ids in (candidates if mbr else candidates[:1])]
        best = mbr_select(texts, row_log_p) if mbr else 0
        rows.append((texts[best], scores[best]))
    return rows


def mbr_select(texts: Sequence[str], log_p: Sequence[float], temperature: float = 4.0) -> int:
    """Index of the minimum Bayes risk candidate (Kumar and Byrne 2004), with word overlap as the gain.

    ``argmax_i sum_j softmax(log p / temperature)_j F1(words_i, words_j)``, words lower-cased and counted. If many texts
    have similar probabilities, such as short summaries of one document, the most probable one is often atypical.

    Args:
        texts: Candidates.
        log_p: Log-probability of each candidate.
        temperature: Temperature of the weights; flatter weights compensate for improbable candidates that the search
            omits.

    >>> mbr_select(["fish", "old ship sails", "old ship sailed"], [-1.0, -1.5, -1.6])
    1
    """
    split = (lambda text: re.findall(r"\w+", text.lower())) if is_latin(texts) else split_words
    bags = [Counter(split(text)) for text in texts]
    highest = max(log_p)
    weights = [math.exp((value - highest) / temperature) for value in log_p]

    def shared(a: Counter[str], b: Counter[str]) -> float:
        return 2 * (a & b).total() / ((a.total() + b.total()) or 1)

    gains = [sum(weight * shared(bag, other) for weight, other in zip(weights, bags, strict=True)) for bag in bags]
    return gains.index(max(gains))


def token_loss(logits: Tensor, labels: Tensor, label_mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the real tokens (label smoothing: Szegedy et al. 2016, section 7).

    Args:
        logits: (B, L, V).
        labels: (B, L) long.
        label_mask: (B, L) bool, True = counts.
        label_smoothing: Probability mass spread evenly over the V tokens.

    Returns:
        A scalar.
    """
    labels = labels.masked_fill(~label_mask, -100)  # ignore_index of cross_entropy
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)


def drop_words(ids: Tensor, mask: Tensor, share: float, unk_id: int, special: Sequence[int] = ()) -> Tensor:
    """Replace a share of the real tokens of ids (B, L) by the unknown one (Gal and Ghahramani 2016, section 4.2)."""
    dropped = (torch.rand(ids.shape, device=ids.device) < share) & mask
    for index in special:
        dropped &= ids != index
    return ids.masked_fill(dropped, unk_id)


class CorpusMetric(nn.Module):
    """Collects texts and scores them as a corpus, over all processes, each sample once.

    Args:
        score: Maps hypotheses and the references of each to metrics by name.
    """

    def __init__(self, score: Callable[[list[str], list[list[str]]], dict[str, float]]) -> None:
        super().__init__()
        self.score = score
        self.reset()

    def reset(self) -> None:
        """Remove all texts and sums."""
        self.rows: dict[str, tuple[str, list[str]]] = {}
        self.sums: dict[str, tuple[float, float]] = {}

    def update(self, ids: Sequence[str], hypotheses: Sequence[str], references: Sequence[list[str]]) -> None:
        """Add texts by the ids of their samples."""
        self.rows |= {i: (h, r) for i, h, r in zip(ids, hypotheses, references, strict=True)}

    def add(self, name: str, total: float, count: float) -> None:
        """Add to a mean that is reported with the score, such as the loss."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + count)

    def compute(self) -> dict[str, float]:
        """The metrics over all processes."""
        parts: list[Any] = [(self.rows, self.sums)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, (self.rows, self.sums))
        rows = {key: row for part, _ in parts for key, row in part.items()}
        ordered = [rows[key] for key in sorted(rows)]  # the same sums in the same order, however many processes
        figures = self.score([hypothesis for hypothesis, _ in ordered], [references for _, references in ordered])
        for name in dict.fromkeys(name for _, sums in parts for name in sums):
            found = [sums[name] for _, sums in parts if name in sums]
            figures[name] = sum(total for total, _ in found) / max(sum(count for _, count in found), 1.0)
        return figures


def below(maps: Mapping[str, list[Tensor]], suffix: str) -> list[Tensor]:
    """The first map of each module whose path ends with a suffix, in the model's order, from the maps of `capture`."""
    return [found[0] for path, found in maps.items() if path.endswith(suffix) and found]


def read_off(maps: Mapping[str, list[Tensor]]) -> Tensor:
    """Attention of each target token to the source tokens: (B, L, S), rows summing to one.

    The mean over all layers and heads of the cross-attention.

    Args:
        maps: Attention maps of `mmattn.explain.capture` for one pass under teacher forcing.
    """
    weights = torch.stack([layer.mean(1) for layer in below(maps, "cross_attention")]).mean(0)  # (B, L, S)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
