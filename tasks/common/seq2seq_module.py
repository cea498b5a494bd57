"""The Lightning half of tasks that read one text and write another: batches of like lengths, loss, search."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor

from data.batching import BatchPlan, EvalBatchSampler
from data.buckets import TokenBatchSampler
from data.pairs import PairBatch, PairDataset, PairProcessor, PairSample, collate
from tasks.common.attention_config import check_attention
from tasks.common.datamodule import Split, TaskDataModule, expand
from tasks.common.errors import ConfigError
from tasks.common.module import TaskModule
from tasks.common.seq2seq import CorpusMetric, drop_words, token_loss, write

logger = logging.getLogger(__name__)
ATTENTIONS = ("attention", "decoder_attention", "cross_attention")


class PairDataModule(TaskDataModule):
    """Pairs of texts. A task says how a path and the built-in data are opened (`open_pairs`).

    Args:
        extra: path of more training pairs, such as back-translated ones; none: no more.
        tokenizer: of both sides: bpe (byte-level), unigram or word.
        vocab_size: most token ids, of each vocabulary.
        shared_vocab: one vocabulary for both sides, or one each.
        lowercase: lower-case all texts.
        max_source_len: most tokens read; what is longer is cut, counted and reported.
        max_target_len: most tokens written.
        max_tokens: a training batch holds at most so many places on its longer side; batch_size then bounds measuring
            alone. None: training batches have batch_size samples.
        hide: train and measure without the source: a baseline to be beaten.
    """

    processor_class: Any = PairProcessor
    collate: Any = staticmethod(collate)
    sizes = ("vocab_size", "source_vocab_size")

    def __init__(
        self,
        extra: str | None = None,
        tokenizer: Literal["bpe", "unigram", "word"] = "bpe",
        vocab_size: int = 8000,
        shared_vocab: bool = True,
        lowercase: bool = False,
        max_source_len: int = 256,
        max_target_len: int = 256,
        max_tokens: int | None = 4096,
        hide: Literal["source"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.extra, self.max_tokens, self.hide = expand(extra, "data.extra"), max_tokens, hide
        self.processor_options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "shared_vocab": shared_vocab,
            "lowercase": lowercase,
            "max_source_len": max_source_len,
            "max_target_len": max_target_len,
        }
        self.report: dict[str, float] = {}  # of the training batches, for the log

    # What a task provides ---------------------------------------------------------------------------------------------

    def open_pairs(self, split: Split, path: str | None) -> PairDataset:
        """The pairs of a path, or the built-in ones."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------------

    def open_split(self, split: Split, path: str | None) -> PairDataset:
        dataset = self.open_pairs(split, path)
        if split == "train" and self.extra is not None:
            more = self.open_pairs(split, self.extra)
            logger.info("%s: %d more pairs", self.extra, len(more))
            dataset = PairDataset([*dataset.samples, *more.samples], f"{dataset.name} and {more.name}")
        return dataset

    def make_processor(self, train: Any) -> PairProcessor:
        try:
            return self.processor_class.fit(train, **self.processor_options)
        except ValueError as error:
            raise error if getattr(error, "user_error", False) else ConfigError(f"data: {error}") from None

    def train_plan(self, dataset: Any) -> BatchPlan:
        lengths = self.processor.lengths(dataset.samples)
        if self.max_tokens is None:
            return super().train_plan(dataset)
        try:
            plan = TokenBatchSampler(lengths, self.max_tokens, seed=self.seed, **self._ranks())
        except ValueError as error:
            raise ConfigError(f"data.{error}") from None
        waste, cut = plan.waste(), self.processor.count_truncated(dataset.samples)
        self.report = {"padding_waste": waste.share, "truncated_sources": cut[0], "truncated_targets": cut[1]}
        if self.trainer is not None and self.trainer.is_global_zero:
            print(
                f"{len(dataset):,} pairs in {plan.total} batches of at most {self.max_tokens} tokens a side, padding "
                f"{waste.share:.1%}; too long and cut: {cut[0]} sources, {cut[1]} targets."
            )
        return plan

    def eval_plan(self, dataset: Any) -> BatchPlan:
        lengths = [source for source, _ in self.processor.lengths(dataset.samples)]
        return EvalBatchSampler(range(len(dataset)), self.batch_size, lengths=lengths, **self._ranks())

    def collate_fn(self, split: Split) -> Callable[..., PairBatch]:
        make = partial(self.collate, processor=self.processor)
        return partial(_without_source, make) if self.hide else make


def _without_source(make: Callable[..., PairBatch], samples: list[PairSample], **options: Any) -> PairBatch:
    """A batch whose sources are one sign that says nothing."""
    batch = make(samples, **options)
    batch.source_ids, batch.source_mask = batch.source_ids[:, :1] * 0 + 1, batch.source_mask[:, :1] | True
    return batch


class PairModule(TaskModule):
    """Cross-entropy under teacher forcing; measuring by greedy or beam search. A task gives the score (`score`).

    Args:
        word_dropout: share of the tokens, read and written, that training hides.
        val_beams: beams of the search that validates within fit; 1: greedy.
        num_beams: beams of `validate` and `test`.
        length_penalty: a finished beam scores log p / length^this.
        training: what TaskModule takes.
    """

    model: Any

    def __init__(
        self,
        model: dict[str, Any],
        *,
        word_dropout: float = 0.0,
        val_beams: int = 1,
        num_beams: int = 5,
        length_penalty: float = 1.0,
        **training: Any,
    ) -> None:
        super().__init__(model, **training)
        if not 0.0 <= word_dropout < 1.0:
            raise ConfigError(f"model.word_dropout: expected a value from 0 to below 1, found {word_dropout}.")
        if val_beams < 1 or num_beams < 1:
            raise ConfigError(
                f"model.val_beams and model.num_beams: expected 1 or more, found {val_beams}, {num_beams}."
            )
        self.word_dropout, self.val_beams, self.num_beams = word_dropout, val_beams, num_beams
        self.length_penalty = length_penalty

    # What a task provides ---------------------------------------------------------------------------------------------

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        """The field's figures for whole texts."""
        raise NotImplementedError

    def run_model(self, batch: Any) -> Any:
        """The model under teacher forcing."""
        return self.model(batch.source_ids, batch.source_mask, batch.target_ids)

    def write(self, batch: Any, num_beams: int) -> list[str]:
        """The texts that the model writes."""
        return write(self.model, batch, self._processor, num_beams, length_penalty=self.length_penalty)

    # ------------------------------------------------------------------------------------------------------------------

    @classmethod
    def check_model(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        return keywords | {k: check_attention(keywords[k], f"model.{k}") for k in ATTENTIONS if k in keywords}

    @property
    def _processor(self) -> PairProcessor:
        return self.trainer.datamodule.processor  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        report = self.trainer.datamodule.report  # type: ignore[attr-defined]
        self.log_dict({f"train/{name}": float(value) for name, value in report.items()})

    def training_loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.hide_words(batch)
        logits = self.run_model(batch).logits
        return token_loss(logits, batch.labels, batch.label_mask, self.label_smoothing), {}

    def hide_words(self, batch: PairBatch) -> None:
        """Word dropout, in place."""
        if not self.word_dropout:
            return
        source, target = self._processor.source, self._processor.target
        batch.source_ids = drop_words(
            batch.source_ids, batch.source_mask, self.word_dropout, source.unk_id, (source.eos_id,)
        )
        batch.target_ids = drop_words(
            batch.target_ids, batch.label_mask, self.word_dropout, target.unk_id, (target.start_id,)
        )

    def make_metric(self) -> CorpusMetric:
        return CorpusMetric(self.score)

    def update_metric(self, metric: Any, batch: PairBatch) -> None:
        logits = self.run_model(batch).logits
        tokens = float(batch.label_mask.sum())
        metric.add("loss", float(token_loss(logits, batch.labels, batch.label_mask)) * tokens, tokens)
        beams = self.val_beams if self.trainer.state.fn == "fit" else self.num_beams
        metric.update(batch.ids, self.write(batch, beams), batch.references)
