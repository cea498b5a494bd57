"""Training and evaluation of summarization: cross-entropy with a copy mechanism, ROUGE by beam search."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmattn.tasks.common.datamodule import Split
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.options import check_range
from mmattn.tasks.common.seq2seq.model import token_loss
from mmattn.tasks.common.seq2seq.module import PairDataModule, PairLossOptions, PairModule
from mmattn.tasks.summarization.copying import worth_copying
from mmattn.tasks.summarization.data import SummaryBatch, SummaryDataset
from mmattn.tasks.summarization.metrics import score, signature

logger = logging.getLogger(__name__)


class SummarizationDataModule(PairDataModule):
    """Documents with their summaries.

    Args:
        drop_repeats: Exclude duplicates, documents that occur again with the same summary, from training.
        options: Arguments of PairDataModule.
    """

    task = "summarization"
    sizes = ("vocab_size",)

    def __init__(self, drop_repeats: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if not self.processor_options["shared_vocab"]:
            raise ConfigError("data.shared_vocab: expected true, since both texts are in one language; found false.")
        self.drop_repeats = drop_repeats

    def make_dataset(self, source: Any, split: Split) -> SummaryDataset:
        dataset = SummaryDataset(source, on_error=self.on_error)
        own = isinstance(source, str) or self.paths[split] is not None
        if split == "train" and self.drop_repeats and own:
            whole, dataset = len(dataset), dataset.without_repeats()
            logger.warning("%s: %d duplicate documents excluded from training", dataset.name, whole - len(dataset))
        return dataset


@dataclass
class SummarizationLossOptions(PairLossOptions):
    """The loss of summarization.

    Args:
        label_smoothing: Probability mass that the targets spread over all tokens.
        word_dropout: Share of the source and target tokens that training replaces by the unknown token.
        salience: Weight of the loss that predicts which tokens of the document occur in the summary; it needs a copy
            mechanism.
    """

    salience: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.salience", self.salience, 0)


class SummarizationModule(PairModule):
    """Cross-entropy, and a loss that predicts which source words occur in the summary; ROUGE by beam search."""

    task = "summarization"
    Loss = SummarizationLossOptions

    def __init__(self, model: dict[str, Any], *options: Any, **named: Any) -> None:
        super().__init__(model, *options, **named)
        if self.loss.salience and not model.get("copy", True):
            raise ConfigError(
                f"loss.salience: expected 0 for a model without a copy mechanism, found {self.loss.salience}."
            )

    def build(self, sizes: Mapping[str, Any], processor: Any = None) -> None:
        super().build(sizes, processor)
        if self.network is not None and self.loss.salience:
            raise ConfigError(
                f"loss.salience: expected 0, since public models have no copy mechanism; found {self.loss.salience}."
            )

    def training_loss(self, batch: SummaryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.apply_word_dropout(batch)
        output = self.run_model(batch)
        loss = words = token_loss(output.logits, batch.labels, batch.label_mask, self.loss.label_smoothing)
        if not self.loss.salience:
            return loss, {}
        mask = batch.source_mask
        worth = worth_copying(batch.copy_ids, mask, batch.labels, batch.label_mask)  # (B, S)
        salience = F.binary_cross_entropy_with_logits(output.salience[mask].float(), worth[mask].float())
        return loss + self.loss.salience * salience, {"words": words, "salience": salience}

    def update_metric(self, metric: Any, batch: SummaryBatch) -> None:
        super().update_metric(metric, batch)
        metric.add("truncated", float((batch.cut > 0).sum()), len(batch))  # share of truncated documents

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        return score(hypotheses, references)

    def notes(self) -> dict[str, str]:
        return signature()
