"""Training and evaluation of summarization: cross-entropy of words or of sentences, ROUGE of the summaries."""

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
from mmattn.tasks.common.seq2seq.module import PairDataModule, PairDecodeOptions, PairLossOptions, PairModule
from mmattn.tasks.summarization.copying import worth_copying
from mmattn.tasks.summarization.data import SummaryBatch, SummaryDataset
from mmattn.tasks.summarization.extract import NUM_SENTENCES, check_extractive, extract, sentence_gains
from mmattn.tasks.summarization.extractive import sentence_loss
from mmattn.tasks.summarization.metrics import score, signature
from mmattn.tasks.summarization.model import EXTRACTIVE

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


@dataclass
class SummarizationDecodeOptions(PairDecodeOptions):
    """Decoding options. All but `val_beams` are saved with the model and are the defaults of `predict`.

    Args:
        num_beams: See `PairDecodeOptions`, as the arguments that follow; not of extractive models.
        length_penalty: See `PairDecodeOptions`.
        mbr: See `PairDecodeOptions`.
        val_beams: See `PairDecodeOptions`.
        num_sentences: Maximum number of sentences that an extractive model chooses; None: as the model that is
            fine-tuned, or 3.
    """

    num_sentences: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("decode.num_sentences", self.num_sentences, 1)


class SummarizationModule(PairModule):
    """Cross-entropy of words, and a loss that predicts which source words occur in the summary; or of sentences.

    Models that generate a summary are evaluated by beam search, extractive ones by their best sentences.
    """

    task = "summarization"
    Loss, Decode = SummarizationLossOptions, SummarizationDecodeOptions

    def __init__(self, model: dict[str, Any], *options: Any, **named: Any) -> None:
        super().__init__(model, *options, **named)
        self.is_extractive = model.get("network") == EXTRACTIVE
        if self.is_extractive:
            given = {name: value for name, value in vars(self.decode).items() if value != getattr(self.Decode, name)}
            check_extractive(given, "decode.{}")
            if self.loss.salience:
                raise ConfigError(f"loss.salience: expected 0 for an extractive model, found {self.loss.salience}.")
        elif self.decode.num_sentences is not None:
            raise ConfigError(
                f"decode.num_sentences: expected none, since the model generates words (--model.network {EXTRACTIVE} "
                f"chooses sentences); found {self.decode.num_sentences}."
            )
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

    def wanted(self) -> dict[str, Any]:
        return super().wanted() | {"num_sentences": self.decode.num_sentences}

    def training_loss(self, batch: SummaryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.apply_word_dropout(batch)
        if self.is_extractive:
            return self._sentence_loss(self.score_sentences(batch), batch, self.loss.label_smoothing), {}
        output = self.run_model(batch)
        loss = words = token_loss(output.logits, batch.labels, batch.label_mask, self.loss.label_smoothing)
        if not self.loss.salience:
            return loss, {}
        mask = batch.source_mask
        worth = worth_copying(batch.copy_ids, mask, batch.labels, batch.label_mask)  # (B, S)
        salience = F.binary_cross_entropy_with_logits(output.salience[mask].float(), worth[mask].float())
        return loss + self.loss.salience * salience, {"words": words, "salience": salience}

    def score_sentences(self, batch: SummaryBatch) -> Tensor:
        """Logits (B, n) of the sentences, by an extractive model."""
        logits: Tensor = self.model(batch.source_ids, batch.source_mask, batch.sentence_starts).logits
        return logits

    def _sentence_loss(self, logits: Tensor, batch: SummaryBatch, smoothing: float = 0.0) -> Tensor:
        return sentence_loss(logits, batch.sentence_starts, sentence_gains(batch), smoothing)

    def update_metric(self, metric: Any, batch: SummaryBatch) -> None:
        if self.is_extractive:
            logits, saved = self.score_sentences(batch), self.data.processor.options.get("search", {})
            metric.add("loss", float(self._sentence_loss(logits, batch)) * len(batch), len(batch))
            count = self.decode.num_sentences or saved.get("num_sentences", NUM_SENTENCES)
            metric.update(batch.ids, [found.summary for found in extract(logits, batch, count)], batch.references)
        else:
            super().update_metric(metric, batch)
        metric.add("truncated", float((batch.cut > 0).sum()), len(batch))  # share of truncated documents

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        return score(hypotheses, references)

    def notes(self) -> dict[str, str]:
        return signature()
