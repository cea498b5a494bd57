"""What tasks that write text share, without Lightning: the head, the search, the metric over whole texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.pairs import PairProcessor
from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.generate import Generated, GenerationConfig
from mmattn.masks import Mask


class TextOutput(NamedTuple):
    """What a model that writes text gives under teacher forcing."""

    logits: Tensor  # (B, L, V): scores of each next token


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

    def generate(
        self, input_ids: Tensor, key_mask: Tensor | None, config: GenerationConfig, **keywords: Any
    ) -> Generated:
        """As Seq2Seq's, from features (B, S, memory_dim)."""
        from mmattn.generate import generate

        prompt = torch.full((len(input_ids), 1), config.decoder_start_token_id or 0, device=input_ids.device)
        with torch.inference_mode():
            return generate(self.step, self.start(input_ids, key_mask), prompt, config, **keywords)


def search_config(processor: PairProcessor, source_len: int, num_beams: int = 1, **options: Any) -> GenerationConfig:
    """How to write with a processor's special tokens: at most twice the source's tokens and ten.

    Args:
        processor: names the tokens and the longest target.
        source_len: tokens of the longest source in the batch.
        num_beams: 1 = greedy.
        options: GenerationConfig's other fields.
    """
    target = processor.target
    return GenerationConfig(
        decoder_start_token_id=target.start_id,
        eos_token_id=target.eos_id,
        pad_token_id=target.pad_id,
        num_beams=num_beams,
        suppress_tokens=[t for t in (target.pad_id, target.unk_id, target.start_id) if t != target.eos_id],
        **{"max_new_tokens": min(processor.max_target_len, 2 * source_len + 10), **options},
    )


def write(
    model: Any,
    batch: Any,
    processor: PairProcessor,
    num_beams: int,
    given: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[str]:
    """The texts that a model writes for a batch, plain.

    Args:
        model: has `generate(source_ids, source_mask, config)`.
        batch: has source_ids and source_mask.
        processor: see `search_config`, as num_beams and options.
        given: what else the model's `generate` takes, by name.
    """
    config = search_config(processor, batch.source_ids.shape[1], num_beams, **options)
    found = model.generate(batch.source_ids, batch.source_mask, config, **(given or {})).tokens()
    return [processor.decode(best[0]) for best in found]


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
        rows, sums = self.rows, [self.sums]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, (self.rows, self.sums))
            rows = {key: value for part, _ in gathered for key, value in part.items()}
            sums = [part for _, part in gathered]
        ordered = [rows[key] for key in sorted(rows)]  # the same sums in the same order, however many processes
        figures = self.score([hypothesis for hypothesis, _ in ordered], [references for _, references in ordered])
        names = dict.fromkeys(name for part in sums for name in part)
        for name in names:
            parts = [part[name] for part in sums if name in part]
            figures[name] = sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1.0)
        return figures


def below(maps: Mapping[str, list[Tensor]], suffix: str) -> list[Tensor]:
    """Of what `mmattn.explain.capture` gave, the first map of each module whose path ends so, in the model's order."""
    return [found[0] for path, found in maps.items() if path.endswith(suffix) and found]
