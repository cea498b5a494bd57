"""Training and evaluation of question answering: losses of an answer's two ends, exact match and F1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.data.batching import BatchPlan, EvalBatchSampler
from mmattn.data.buckets import TokenBatchSampler
from mmattn.tasks.common.chance import Chance, constant
from mmattn.tasks.common.datamodule import Split, TaskDataModule
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import LossOptions, check_range
from mmattn.tasks.qa.data import QABatch, QADataset
from mmattn.tasks.qa.metrics import f1
from mmattn.tasks.qa.processor import QAProcessor
from mmattn.tasks.qa.spans import LOW, candidates, score_windows
from mmattn.tasks.qa.squad import SquadMetric


class QADataModule(TaskDataModule[QADataset, QAProcessor]):
    """Data module of questions about texts.

    Args:
        tokenizer: Tokenizer of the texts: word, bpe or unigram; none: word, or that of `init_from`.
        vocab_size: Maximum size of the vocabulary; none: 10,000.
        min_count: Minimum number of occurrences of a word in the training texts; none: 1.
        lowercase: Lower-case all texts; none: true, or as `init_from` does.
        max_len: Maximum number of tokens of a question with its context; longer contexts are divided into overlapping
            windows. None: 384, or that of `init_from`.
        stride: Number of tokens that neighboring windows share; none: 128, or that of `init_from`.
        max_answer_len: Maximum number of tokens of a predicted answer; none: 30.
        ablate: Train and evaluate without the question: a baseline.
    """

    task = "qa"
    sizes = ("vocab_size", "max_len")
    largest_batch = 32

    def __init__(
        self,
        tokenizer: Literal["word", "bpe", "unigram"] | None = None,
        vocab_size: int | None = None,
        min_count: int | None = None,
        lowercase: bool | None = None,
        max_len: int | None = None,
        stride: int | None = None,
        max_answer_len: int | None = None,
        ablate: Literal["question"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.ablate = ablate
        self.processor_options = {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "min_count": min_count,
            "lowercase": lowercase,
            "max_len": max_len,
            "stride": stride,
            "max_answer_len": max_answer_len,
        }

    def make_dataset(self, source: Any, split: Split) -> QADataset:
        return QADataset(source, on_error=self.on_error)

    def train_plan(self, dataset: QADataset) -> BatchPlan:
        """Batches of `batch_size` questions of similar lengths."""
        lengths = [(self.processor.length(sample), 0) for sample in dataset.samples]
        most = self.batch_size * self.processor.max_len
        return TokenBatchSampler(lengths, most, self.batch_size, seed=self.seed, **self._ranks())

    def eval_plan(self, dataset: QADataset) -> BatchPlan:
        lengths = [self.processor.length(sample) for sample in dataset.samples]
        return EvalBatchSampler(range(len(dataset)), self.batch_size, lengths=lengths, **self._ranks())


@dataclass
class QALossOptions(LossOptions):
    """The loss of question answering.

    Args:
        evidence: Weight of the loss of predicting the supporting facts, for data in which they are annotated.
    """

    evidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.evidence", self.evidence, 0)


class QAModule(TaskModule[QADataModule]):
    """LightningModule of question answering."""

    task = "qa"
    Loss = QALossOptions
    model: Any

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return super().complete_keywords(sizes) | {"evidence": self.loss.evidence > 0}

    def build(self, sizes: Mapping[str, Any], processor: Any = None) -> None:
        super().build(sizes, processor)
        if self.init_from is not None and self.loss.evidence and self.model.evidence is None:
            raise ConfigError(
                f"loss.evidence: expected 0, since the model of --init_from has no head for supporting facts; found "
                f"{self.loss.evidence}."
            )

    def complete_processor(self, processor: QAProcessor, metrics: Mapping[str, float]) -> QAProcessor:
        """The processor with the threshold of no answer that validation chose."""
        if processor.threshold is not None:
            processor.threshold = metrics.get("threshold", processor.threshold)
        return processor

    def training_loss(self, batch: QABatch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.model(batch.input_ids, batch.key_mask, batch.token_types)
        allowed = batch.context_mask.clone()
        allowed[:, 0] = True  # no answer in this window
        starts = _end_loss(output.start_logits, allowed, batch.starts, self.loss.label_smoothing)
        loss = span = (starts + _end_loss(output.end_logits, allowed, batch.ends, self.loss.label_smoothing)) / 2
        if not self.loss.evidence or not batch.has_evidence.any():
            return loss, {}
        known = batch.context_mask & batch.has_evidence[:, None]
        evidence = F.binary_cross_entropy_with_logits(
            output.evidence_logits[known].float(), batch.evidence[known].float()
        )
        return loss + self.loss.evidence * evidence, {"span": span, "evidence": evidence}

    def chance(self) -> Chance | None:
        train, val = self.data.dataset("train").samples, self.data.dataset("val").samples
        answers = (sample.texts[0] for sample in train)
        return constant(answers, lambda answer: sum(f1(answer, sample.texts) for sample in val) / len(val))

    def make_metric(self) -> nn.Module:
        kinds = sorted({sample.kind for sample in self.data.samples() if sample.kind})
        return SquadMetric(self.data.processor.threshold, self.trainer.state.fn == "fit", kinds)

    def update_metric(self, metric: Any, batch: QABatch) -> None:
        texts, differences = [], []
        longest = self.data.processor.max_answer_len
        for sample, own in zip(batch.samples, score_windows(self.model, batch), strict=True):
            found = candidates(sample.context, *own, max_answer_len=longest)
            best = found.spans[0] if found.spans else None
            texts.append(sample.context[best.start : best.end] if best else "")
            differences.append(found.null_difference)
        answers = [sample.texts for sample in batch.samples]
        metric.update(texts, answers, differences, [sample.kind for sample in batch.samples])


def _end_loss(logits: Tensor, allowed: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of the position of an answer's end, over the context's tokens and the first special token.

    Args:
        logits: (N, L).
        allowed: (N, L) bool.
        target: (N,) long.
        smoothing: Probability mass that is spread over the allowed positions.
    """
    log_p = logits.float().masked_fill(~allowed, LOW).log_softmax(-1)  # (N, L)
    right = -log_p.gather(1, target[:, None]).squeeze(1)
    if not smoothing:
        return right.mean()
    spread = -(log_p.masked_fill(~allowed, 0.0).sum(1) / allowed.sum(1))
    return ((1 - smoothing) * right + smoothing * spread).mean()
