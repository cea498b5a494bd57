"""What tasks that write text share, without Lightning: the head, the search, the metric over whole texts."""

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
from mmattn.generate import Generated, GenerationConfig
from mmattn.masks import Mask
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.seq2seq.data import PairBatch
from mmattn.tasks.common.seq2seq.processor import LIMITS, PairProcessor

BEAMS = 5  # where neither the user nor the model says


class TextOutput(NamedTuple):
    """What a model that writes text gives under teacher forcing."""

    logits: Tensor  # (B, L, V): scores of each next token


class TextModel(nn.Module):
    """An encoder-decoder in the shape in which the tasks know their models.

    Args:
        net: a Seq2Seq or a RecurrentSeq2Seq.
    """

    beside: ClassVar[tuple[str, ...]] = ()  # what of a batch the model takes beside source and target, by name

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
            logits (B, L, V) of each next token.
        """
        return TextOutput(self.net(source_ids, source_mask, target_ids))

    def generate(
        self, source_ids: Tensor, source_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """Writes a text for each source; see `Seq2Seq.generate`."""
        found: Generated = self.net.generate(source_ids, source_mask, config, **keywords)
        return found

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Which source tokens each target token was read off: (B, L, S), rows summing to one.

        Args:
            maps: what `mmattn.explain.capture(model)` gave for one pass under teacher forcing.
        """
        return read_off(maps)


class TextHead(Seq2Seq):
    """Writes text from the features of any encoder: a transformer decoder over a memory that it is given.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: of the decoder.
        num_heads: h.
        memory_dim: size of the features, E where None.
        options: Seq2Seq's other keywords.

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
        """Features (B, S, memory_dim), in the place of ids, to the memory (B, S, E)."""
        return self.encoder(self.memory_proj(input_ids), None if key_mask is None else Mask(key_mask))


def beside(model: Any, batch: PairBatch) -> dict[str, Tensor]:
    """What of a batch a model takes beside source and target, by name."""
    return {name: getattr(batch, name) for name in model.beside}


def mean_memory(states: Tensor, key_mask: Tensor) -> Tensor:
    """The mean of the real tokens' states at every place, (B, S, E): attending to that can choose nothing."""
    weights = (key_mask / key_mask.sum(1, keepdim=True).clamp_min(1)).to(states.dtype)[:, :, None]  # (B, S, 1)
    return (states * weights).sum(1, keepdim=True).expand_as(states)


def decode_options(processor: PairProcessor, source_len: int, **options: Any) -> GenerationConfig:
    """How to write, as a model wants it; with the special tokens of its processor, and at most twice the source's
    tokens and ten, where it says nothing.

    Args:
        processor: names the tokens, the longest target, and what a public model's generation_config.json says.
        source_len: tokens of the longest source in the batch.
        options: GenerationConfig's fields; None leaves one to the model.

    Raises:
        ConfigError: values that do not go together.
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
        given["max_new_tokens"] = min(processor.max_target_len, 2 * source_len + 10)
    try:
        return GenerationConfig(**{**known, **given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"generation: {error}.") from None


def search(
    model: Any, batch: PairBatch, processor: PairProcessor, mbr: bool | None = None, **options: Any
) -> list[tuple[str, float]]:
    """The text that a model writes for each row of a batch, and its log p / length^length_penalty.

    Args:
        model: has `generate(source_ids, source_mask, config)`, and says what it takes `beside`.
        batch: of its processor.
        processor: see `decode_options`, as options.
        mbr: of the texts that the beams find, the one that agrees most with all (`mbr_select`), not the likeliest;
            None: as the model was measured.
    """
    if mbr is None:
        mbr = processor.options.get("search", {}).get("mbr", False)
    config = decode_options(processor, batch.source_ids.shape[1], **options)
    if mbr:
        config = replace(config, num_return_sequences=config.num_beams)
    found = model.generate(batch.source_ids, batch.source_mask, config, **beside(model, batch))
    log_p = (found.scores * found.lengths**config.length_penalty).tolist()  # [B][K]
    rows = []
    for candidates, scores, likely in zip(found.tokens(), found.scores.tolist(), log_p, strict=True):
        texts = [processor.decode(ids) for ids in (candidates if mbr else candidates[:1])]
        best = mbr_select(texts, likely) if mbr else 0
        rows.append((texts[best], scores[best]))
    return rows


def mbr_select(texts: Sequence[str], log_p: Sequence[float], temperature: float = 4.0) -> int:
    """Which of some texts shares most words with all of them: minimum Bayes risk (Kumar and Byrne 2004).

    ``argmax_i sum_j softmax(log p / temperature)_j F1(words_i, words_j)``, words lower-cased and counted. Where many
    texts are about as likely, as many short summaries of one document are, the likeliest is often an odd one.

    Args:
        texts: candidates.
        log_p: of each.
        temperature: of the weights; what a search leaves out is mostly unlikely, and flatter weights stand in for it.

    >>> mbr_select(["fish", "old ship sails", "old ship sailed"], [-1.0, -1.5, -1.6])
    1
    """
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
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
        label_smoothing: mass spread evenly over the V tokens.

    Returns:
        A scalar.
    """
    labels = labels.masked_fill(~label_mask, -100)  # torch's own sign for "leave out"
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)


def drop_words(ids: Tensor, mask: Tensor, share: float, unk_id: int, special: Sequence[int] = ()) -> Tensor:
    """Hides a share of the real tokens of ids (B, L) behind the unknown one (Gal and Ghahramani 2016, section 4.2)."""
    hidden = (torch.rand(ids.shape, device=ids.device) < share) & mask
    for index in special:
        hidden &= ids != index
    return ids.masked_fill(hidden, unk_id)


class CorpusMetric(nn.Module):
    """Collects whole texts and scores them together, those of all processes, each sample once.

    Args:
        score: hypotheses and the references of each -> figures by name.
    """

    def __init__(self, score: Callable[[list[str], list[list[str]]], dict[str, float]]) -> None:
        super().__init__()
        self.score = score
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.rows: dict[str, tuple[str, list[str]]] = {}
        self.sums: dict[str, tuple[float, float]] = {}

    def update(self, ids: Sequence[str], hypotheses: Sequence[str], references: Sequence[list[str]]) -> None:
        """Adds texts by the ids of their samples."""
        self.rows |= {i: (h, r) for i, h, r in zip(ids, hypotheses, references, strict=True)}

    def add(self, name: str, total: float, count: float) -> None:
        """Adds to a mean beside the score, such as the loss."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + count)

    def compute(self) -> dict[str, float]:
        """The figures over all processes."""
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
    """Of what `mmattn.explain.capture` gave, the first map of each module whose path ends so, in the model's order."""
    return [found[0] for path, found in maps.items() if path.endswith(suffix) and found]


def read_off(maps: Mapping[str, list[Tensor]]) -> Tensor:
    """Which source tokens each written token was read off: (B, L, S), rows summing to one.

    The mean over all layers and heads of the attention to the source.

    Args:
        maps: what `mmattn.explain.capture` gave for one pass under teacher forcing.
    """
    weights = torch.stack([layer.mean(1) for layer in below(maps, "cross_attention")]).mean(0)  # (B, L, S)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
