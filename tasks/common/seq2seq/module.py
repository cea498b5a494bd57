"""Lightning modules of tasks that generate text: loss and search; of pairs of texts, batches of similar lengths."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmattn.data.batching import BatchPlan, EvalBatchSampler
from mmattn.data.buckets import TokenBatchSampler, estimated_batches
from mmattn.tasks.common import auto
from mmattn.tasks.common.adapter import CheckpointParts, read_parts
from mmattn.tasks.common.chance import SOME, Chance, constant
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import Data, TaskModule
from mmattn.tasks.common.options import DecodeOptions, LossOptions, check_range
from mmattn.tasks.common.seq2seq.data import PairBatch, PairDataset, TextBatch
from mmattn.tasks.common.seq2seq.model import CorpusMetric, beside, drop_words, search, token_loss
from mmattn.tasks.common.seq2seq.processor import PairProcessor

logger = logging.getLogger(__name__)


class PairDataModule(TaskDataModule[PairDataset, PairProcessor]):
    """Pairs of texts.

    Args:
        extra: Path of additional training pairs, such as back-translated ones; None: no additional pairs.
        tokenizer: Tokenizer of both sides: bpe (byte-level), unigram or word.
        vocab_size: Maximum number of token ids in each vocabulary.
        shared_vocab: One vocabulary for both sides, or one each.
        lowercase: Lower-case all texts.
        max_source_len: Maximum number of source tokens; longer sources are truncated and counted.
        max_target_len: Maximum number of target tokens.
        max_tokens: Maximum number of tokens per side of a training batch, padding included; batch_size then applies to
            evaluation only. None: training batches have batch_size samples.
        ablate: Train and evaluate without the source: a baseline.
    """

    sizes: tuple[str, ...] = ("vocab_size", "source_vocab_size")
    least_steps = 1000

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
        ablate: Literal["source"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.extra, self.max_tokens, self.ablate = expand(extra, "data.extra"), max_tokens, ablate
        if max_tokens is not None:
            self.train_size = "max_tokens"
        self.processor_options = {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "shared_vocab": shared_vocab,
            "lowercase": lowercase,
            "max_source_len": max_source_len,
            "max_target_len": max_target_len,
        }
        self.report: dict[str, float] = {}  # statistics of the training batches, for the log

    def open_split(self, split: Split, path: str | None) -> PairDataset:
        dataset = super().open_split(split, path)
        if split == "train" and self.extra is not None:
            more = self.make_dataset(self.extra, split)
            logger.info("%s: %d additional pairs", self.extra, len(more))
            dataset = dataset.with_more(more)
        return dataset

    def read_model(self, name: str | Path | Mapping[str, str]) -> CheckpointParts:
        kept = self.processor_options.get("options", {})
        return read_parts(self.task, name, languages=(kept["source_lang"], kept["target_lang"]) if kept else None)

    def adapt_processor(self, start: CheckpointParts) -> None:
        defaults = inspect.signature(PairDataModule.__init__).parameters
        given = {k: v for k, v in self.processor_options.items() if k not in defaults or v != defaults[k].default}
        self.processor = start.processor.retarget(self.dataset("train"), given)
        limit = start.known["max_len"] if start.known.get("positions") == "learned" else math.inf
        for name in ("max_source_len", "max_target_len"):
            found, reason = getattr(self.processor, name), f"the number of learned positions of {start.where}"
            if found > limit:
                raise ConfigError(f"data.{name}: expected at most {limit}, {reason}, found {found}.")

    def train_plan(self, dataset: PairDataset) -> BatchPlan:
        lengths = self.processor.lengths(dataset.samples)
        if self.max_tokens is None:
            return super().train_plan(dataset)
        try:
            plan = TokenBatchSampler(lengths, self.max_tokens, seed=self.seed, **self._ranks())
        except ValueError as error:
            raise ConfigError(f"data.{error}") from None
        waste, cut = plan.padding_stats(), self.processor.count_truncated(dataset.samples)
        self.report = {"padding_waste": waste.share, "truncated_sources": cut[0], "truncated_targets": cut[1]}
        if self.trainer is not None and self.trainer.is_global_zero:
            print(
                f"{len(dataset):,} pairs in {plan.total} batches of at most {self.max_tokens} tokens a side, padding "
                f"{waste.share:.1%}; truncated: {cut[0]} sources, {cut[1]} targets."
            )
        return plan

    def epoch_batches(self, processes: int) -> int:
        if self.max_tokens is None:
            return super().epoch_batches(processes)
        samples = self.dataset("train").samples
        lengths = self.processor.lengths(auto.some(samples))
        return estimated_batches(lengths, len(samples), self.max_tokens, processes)

    def eval_plan(self, dataset: PairDataset) -> BatchPlan:
        lengths = [source for source, _ in self.processor.lengths(dataset.samples)]
        return EvalBatchSampler(range(len(dataset)), self.batch_size, lengths=lengths, **self._ranks())


@dataclass
class PairLossOptions(LossOptions):
    """The loss of models that generate text.

    Args:
        label_smoothing: Label smoothing, as in `torch.nn.CrossEntropyLoss`.
        word_dropout: Probability that training replaces a source or decoder-input token by the unknown token.
    """

    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.word_dropout", self.word_dropout, 0, 1)


@dataclass
class PairDecodeOptions(DecodeOptions):
    """Decoding options. All but `val_beams` are saved with the model and are the defaults of `predict`.

    Args:
        num_beams: Number of beams of `validate` and `test`; None: the value of the fine-tuned public model, or 5.
        length_penalty: Hypotheses are ranked by log p / length^length_penalty; None: as the public model, or 1.
        mbr: Return the hypothesis of minimum Bayes risk among the beams instead of the most probable one.
        val_beams: Number of beams of the validation within fit; 1: greedy.
    """

    num_beams: int | None = None
    length_penalty: float | None = None
    mbr: bool | None = None
    val_beams: int = 1

    def __post_init__(self) -> None:
        check_range("decode.num_beams", self.num_beams, 1)
        check_range("decode.val_beams", self.val_beams, 1)


class WritingModule(TaskModule[Data]):
    """Cross-entropy under teacher forcing, evaluated by greedy or beam search. Subclasses implement `score`."""

    Loss, Decode = PairLossOptions, PairDecodeOptions
    scale = 1.0  # the largest value of the main metric
    model: Any

    # Methods that a task implements -----------------------------------------------------------------------------------

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        """Compute corpus metrics of hypotheses, by name."""
        raise NotImplementedError

    def run_model(self, batch: TextBatch) -> Any:
        """Run the model under teacher forcing."""
        return self.model(*batch.forced, **beside(self.model, batch))

    def write(self, batch: TextBatch) -> list[str]:
        """Generate the texts of a batch."""
        options = (
            {"num_beams": self.decode.val_beams, "mbr": False} if self.trainer.state.fn == "fit" else self.wanted()
        )
        options |= {"length_penalty": self.decode.length_penalty}
        return [text for text, _ in search(self.model, batch, self.data.processor, **options)]

    def wanted(self) -> dict[str, Any]:
        """The search options of the configuration."""
        return {name: getattr(self.decode, name) for name in ("num_beams", "length_penalty", "mbr")}

    def complete_processor(self, processor: Any, metrics: Mapping[str, float]) -> Any:
        given = {name: value for name, value in self.wanted().items() if value is not None}
        if given:
            processor.options["search"] = processor.options.get("search", {}) | given
        return processor

    def chance(self) -> Chance | None:
        train, val = self.data.dataset("train").samples, self.data.dataset("val").samples[:SOME]
        references, main = [sample.right_targets() for sample in val], self.monitor.removeprefix("val/")
        answers = (sample.right_targets()[0] for sample in train)
        return constant(answers, lambda answer: self.score([answer] * len(val), references)[main], self.scale, "target")

    # ------------------------------------------------------------------------------------------------------------------

    def training_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        self.apply_word_dropout(batch)
        logits = self.run_model(batch).logits
        return token_loss(logits, batch.labels, batch.label_mask, self.loss.label_smoothing), {}

    def apply_word_dropout(self, batch: Any) -> None:
        """Word dropout of the decoder's input, in place."""
        share, target = self.loss.word_dropout, self.data.processor.target
        if share:
            batch.target_ids = drop_words(batch.target_ids, batch.label_mask, share, target.unk_id, (target.start_id,))

    def make_metric(self) -> CorpusMetric:
        return CorpusMetric(self.score)

    def update_metric(self, metric: Any, batch: Any) -> None:
        logits = self.run_model(batch).logits
        tokens = float(batch.label_mask.sum())
        metric.add("loss", float(token_loss(logits, batch.labels, batch.label_mask)) * tokens, tokens)
        texts = self.write(batch)
        metric.update(batch.ids, texts, batch.references)
        self.measure(metric, batch, texts)

    def measure(self, metric: CorpusMetric, batch: Any, texts: list[str]) -> None:
        """Add means of other figures of the texts to the metric."""


class PairModule(WritingModule[PairDataModule]):
    """A `WritingModule` of pairs of texts."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.log_dict({f"train/{name}": float(value) for name, value in self.data.report.items()})

    def apply_word_dropout(self, batch: PairBatch) -> None:
        """Word dropout of both sides, in place."""
        share, source = self.loss.word_dropout, self.data.processor.source
        if share:
            batch.source_ids = drop_words(batch.source_ids, batch.source_mask, share, source.unk_id, (source.eos_id,))
        super().apply_word_dropout(batch)
