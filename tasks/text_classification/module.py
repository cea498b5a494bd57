"""Training and evaluation of text classification: the data module, losses of each kind of labels, and metrics."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.data.batching import BatchPlan, EvalBatchSampler
from mmattn.data.buckets import TokenBatchSampler
from mmattn.data.options import from_options
from mmattn.tasks.common.chance import Chance, constant
from mmattn.tasks.common.datamodule import Split, TaskDataModule
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import LossOptions, OptimOptions, check_range
from mmattn.tasks.text_classification.augment import TextAugment
from mmattn.tasks.text_classification.data import TextBatch, TextDataset
from mmattn.tasks.text_classification.formats import MULTI, REGRESSION, SINGLE, TAGGING, TEXT
from mmattn.tasks.text_classification.labels import IGNORED
from mmattn.tasks.text_classification.metrics import TextMetric, main_metric
from mmattn.tasks.text_classification.processor import (
    TextClassificationProcessor,
    check_labels,
    fit_labels,
    report_kinds,
)
from mmattn.tasks.text_classification.sampling import TaskBatchSampler, next_sentences

LABELS, MLM, NSP = "labels", "mlm", "mlm+nsp"
Paths = str | dict[str, str] | None


class TextClassificationDataModule(TaskDataModule[TextDataset, TextClassificationProcessor]):
    """Data module of labeled texts.

    Args:
        train: Path of the training split, or `demo`; or several by the names of their tasks, which share the encoder:
            `{sst2: ..., trec6: ...}`.
        val: Path of the validation split, or several with the names of `train`; none: the built-in one if `train` is
            `demo`, otherwise a part of the training data.
        test: Path of the test split, or several.
        kind: What the labels are: single_label, multi_label, regression, tagging (a label for each word) or text
            (none); None: read off the training data, and said.
        columns: Names of the file's columns by those that are expected, such as `{label: relatedness}`; of CoNLL-U the
            tags, `{tags: xpos}`.
        tokenizer: Tokenizer of the texts: word, bpe or unigram; none: word, or that of `init_from`.
        vocab_size: Maximum size of the vocabulary; none: 10,000.
        min_count: Minimum number of occurrences of a word in the training texts; none: 1.
        lowercase: Lower-case all texts; none: true, or as `init_from` does.
        max_len: Maximum number of tokens of a text or a pair. None: 128, or that of `init_from`.
        temperature: Of several tasks, each is drawn in proportion to its samples' number to the power 1 / temperature.
        augment: Keywords of `TextAugment` (`augment.py`) for training texts; none: no augmentation.
        ablate: Train and evaluate with the tokens of each text sorted ("order"): a baseline.
    """

    task = "text_classification"
    sizes = ("vocab_size", "heads", "max_len", "num_characters", "language", "head_options", "text_options")
    largest_batch = 32

    def __init__(
        self,
        train: Paths = None,
        val: Paths = None,
        test: Paths = None,
        kind: Literal["single_label", "multi_label", "regression", "tagging", "text"] | None = None,
        columns: dict[str, str] | None = None,
        tokenizer: Literal["word", "bpe", "unigram"] | None = None,
        vocab_size: int | None = None,
        min_count: int | None = None,
        lowercase: bool | None = None,
        max_len: int | None = None,
        temperature: float = 1.0,
        augment: dict[str, Any] | None = None,
        ablate: Literal["order"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(train=train, val=val, test=test, **common)  # type: ignore[arg-type]
        check_range("data.temperature", temperature, 1)
        self.kind, self.columns, self.temperature, self.ablate = kind, columns, temperature, ablate
        self.objective = LABELS
        self.augment = from_options(TextAugment, augment, "data.augment")
        self.processor_options = {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "min_count": min_count,
            "lowercase": lowercase,
            "max_len": max_len,
        }
        several = [name for name, path in self.paths.items() if isinstance(path, dict)]
        if several and any(path is not None and not isinstance(path, dict) for path in self.paths.values()):
            raise ConfigError(f"data.{several[0]}: expected a file for each task in all splits that are given.")

    @property
    def is_trained(self) -> bool:
        """Whether a trained model is evaluated."""
        return self._processor_is_shipped

    def make_dataset(self, source: Any, split: Split) -> TextDataset:
        kinds: dict[str, str] | None = None
        if self.objective != LABELS:
            kinds = None
        elif self.processor is not None:
            kinds = {name: labels.kind for name, labels in self.processor.tasks.items()}
        elif split != "train" and self.paths["train"] is not None:
            kinds = self.dataset("train").kinds
        kind: str | None = self.kind if self.objective == LABELS else TEXT
        if kinds and "" not in kinds and isinstance(source, Mapping) and (strange := sorted(set(source) - set(kinds))):
            expected = f"files of the tasks {', '.join(kinds)}"
            raise ConfigError(f"data.{split}: expected {expected}, found one of {strange[0]}.")
        given = kinds if kinds else None
        columns = self.columns if self.columns is not None else getattr(self.processor, "columns", None)
        dataset = TextDataset(source, kind, columns, given, on_error=self.on_error)
        if kinds and (unknown := {sample.task for sample in dataset.samples} - set(kinds)):
            expected = f"a file for each of the tasks {', '.join(kinds)}" if "" not in kinds else "a file of one task"
            found = f"samples of {min(unknown)}" if min(unknown) else "a file without a task's name"
            raise ConfigError(f"data.{split}: expected {expected}, found {found}.")
        if kinds and self.processor is None and TEXT not in kinds.values():
            check_labels(dataset, fit_labels(self.dataset("train")))
        return next_sentences(dataset, self.seed) if self.objective == NSP else dataset

    def open_split(self, split: Split, path: Any) -> TextDataset:
        known = [] if self.processor is None else [labels.kind for labels in self.processor.tasks.values()]
        if path is None and TAGGING in (self.kind, *known) and not (self.is_divided and split != "test"):
            from mmattn.tasks.text_classification.demo import make_tagged

            return self.make_dataset(make_tagged(split, self.demo_size if split == "train" else None), split)
        return super().open_split(split, path)

    def prepare_dataset(self, dataset: TextDataset, split: Split) -> TextDataset:
        self.processor.check(dataset)
        if split == "train" and self.augment is not None:
            self.augment.prepare(dataset)
        return dataset

    def check_train(self, dataset: TextDataset) -> None:
        if self.objective == LABELS and TEXT not in dataset.kinds.values():
            fit_labels(dataset)
        report_kinds(dataset)

    def train_plan(self, dataset: TextDataset) -> BatchPlan:
        """Batches of `batch_size` texts of similar lengths; each of one task, if there are several."""
        lengths = [self.processor.length(sample) for sample in dataset.samples]
        if len(dataset.kinds) > 1:
            tasks = [sample.task for sample in dataset.samples]
            given: dict[str, Any] = {"temperature": self.temperature, "seed": self.seed, **self._ranks()}
            return TaskBatchSampler(tasks, lengths, self.batch_size, **given)
        most = self.batch_size * self.processor.max_len
        return TokenBatchSampler([(n, 0) for n in lengths], most, self.batch_size, seed=self.seed, **self._ranks())

    def eval_plan(self, dataset: TextDataset) -> BatchPlan:
        lengths = [self.processor.length(sample) for sample in dataset.samples]
        return EvalBatchSampler(range(len(dataset)), self.batch_size, lengths=lengths, **self._ranks())


@dataclass
class TextLossOptions(LossOptions):
    """The loss of text classification.

    Args:
        objective: labels; or mlm, a masked language model of the texts, with whole words hidden; mlm+nsp also predicts
            whether the second text is the next line of the file (Devlin et al. 2019, section 3.1).
        class_weights: Weigh classes and labels by the inverse of their frequency in the training data.
    """

    objective: Literal["labels", "mlm", "mlm+nsp"] = "labels"
    class_weights: bool = False


@dataclass
class TextOptimOptions(OptimOptions):
    """The optimizer.

    Args:
        probe_below: With `--init_from` of an encoder without a head and fewer training samples than this, a linear head
            is trained on the embeddings of the frozen encoder, which are computed once; 0: never.
    """

    probe_below: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optim.probe_below", self.probe_below, 0)


class TextClassificationModule(TaskModule[TextClassificationDataModule]):
    """LightningModule of text classification."""

    task = "text_classification"
    Loss = TextLossOptions
    Optim = TextOptimOptions
    model: Any

    def connect(self, data: TextClassificationDataModule) -> None:
        data.objective = self.loss.objective
        self._source = data
        of_labels = [name for name in ("class_weights", "label_smoothing") if getattr(self.loss, name)]
        if of_labels and not data.is_trained:
            kinds = set(data.dataset("train").kinds.values())
            if kinds <= {REGRESSION, TEXT} or self.loss.objective != LABELS:
                found = "plain text" if self.loss.objective != LABELS or TEXT in kinds else "scores"
                raise ConfigError(f"loss.{of_labels[0]}: expected training data with labels, found {found}.")
        probing = self.optim.probe_below and self.start is not None and self.init_from is not None
        if probing and self.start is not None and self.start.headless and self.loss.objective == LABELS:
            count = len(data.dataset("train"))
            whole = self.lora is None and self.freeze_option is None and self.optim.unfreeze_every is None
            kinds = set(data.dataset("train").kinds.values())
            if whole and not kinds & {TAGGING, TEXT} and count < self.optim.probe_below:
                self.probe()
                sys.stderr.write(
                    f"auto: {count} training texts are fewer than --optim.probe_below {self.optim.probe_below}: a "
                    "linear head is trained on the embeddings of the frozen encoder.\n"
                )

    def probe(self) -> None:
        """Train the head alone."""
        self.freeze_option = "pretrained"
        self.is_probe = True

    is_probe = False
    _source: Any = None

    @functools.cached_property
    def _vectors(self) -> dict[tuple[str, str | None], Tensor]:
        return {}

    @property
    def monitor(self) -> str:
        """The metric that selects the best checkpoint, by the kind of the labels."""
        if self.loss.objective != LABELS:
            return "val/token_accuracy"
        data = self._source if self._trainer is None else self.data
        if data is None:
            return super().monitor
        if data.processor is not None:
            return f"val/{main_metric(data.processor.tasks)}"
        return f"val/{main_metric(fit_labels(data.dataset('train')))}"

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return super().complete_keywords(sizes) | ({"language": True} if self.loss.objective != LABELS else {})

    def build(self, sizes: Mapping[str, Any], processor: Any = None) -> None:
        if self.start is not None and self.init_from is not None:
            wanted = self.loss.objective != LABELS
            sizes = {**sizes, "language": wanted}
        super().build(sizes, processor)
        if not self.model.heads_of and self.model.language is None:
            raise ConfigError(
                "data.train: expected labels, found plain text; --data.columns.label names the column of labels, and "
                "--loss.objective mlm trains a masked language model."
            )

    def configure_model(self) -> None:
        super().configure_model()
        self.data.processor.read_for(self.model, self.loss.objective)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.is_probe:
            for group in groups:
                group["lr"] = PROBE_LR * group["lr"]
        return groups

    def complete_processor(
        self, processor: TextClassificationProcessor, metrics: Mapping[str, float]
    ) -> TextClassificationProcessor:
        """The processor with the thresholds that validation chose."""
        for name, labels in processor.tasks.items():
            prefix = f"{name}/" if len(processor.tasks) > 1 else ""
            keys = [f"{prefix}threshold/{label}" for label in labels.names]
            if labels.kind == MULTI and all(key in metrics for key in keys):
                labels.thresholds = [float(metrics[key]) for key in keys]
        return processor

    # Training ---------------------------------------------------------------------------------------------------------

    def training_loss(self, batch: TextBatch) -> tuple[Tensor, dict[str, Tensor]]:
        states = self._states(batch)
        losses: dict[str, Tensor] = {}
        if batch.masked is not None:
            hidden = batch.masked >= 0
            losses["mlm"] = F.cross_entropy(self.model.token_logits(states[hidden]).float(), batch.masked[hidden])
        output = self._output(batch, states)
        share = sum(len(rows) for rows, _ in batch.targets.values())
        for name, (rows, targets) in batch.targets.items():
            loss = self._label_loss(name, _scores(self.model, output, name)[rows].float(), targets)
            losses[name or "labels"] = loss * (len(rows) / max(share, 1))
        if not losses:  # a batch without labels: every output takes part, so that every weight has a gradient
            return output.logits.sum() * 0.0, {}
        loss = torch.stack(list(losses.values())).sum()
        if len(self.model.heads_of) > 1:  # processes reduce the gradients of all heads, also of those without a sample
            loss = loss + 0.0 * (output.logits.sum() + output.tag_logits.sum())
        return loss, losses if len(losses) > 1 else {}

    def _output(self, batch: TextBatch, states: Tensor) -> Any:
        pooled = states[:, 0] if self.is_probe else None
        return self.model.scores(states, batch.key_mask, batch.word_starts, pooled)

    def _states(self, batch: TextBatch) -> Tensor:
        """The encoder's states (N, L, E); of a frozen encoder the texts' vectors (N, 1, E), computed once."""
        if self.is_probe:
            keys = [(sample.text, sample.text_pair) for sample in batch.samples]
            if any(key not in self._vectors for key in keys):
                with torch.no_grad():
                    read = self.model.states(batch.input_ids, batch.key_mask, batch.token_types, batch.characters)
                    self._vectors |= dict(zip(keys, self.model.pooled(read, batch.key_mask), strict=True))
            return torch.stack([self._vectors[key] for key in keys])[:, None]
        given = (batch.input_ids, batch.key_mask, batch.token_types, batch.characters)
        states: Tensor = self.model.states(*given)
        return states

    def _label_loss(self, name: str, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of one task's scores (n, K) or (n, W, K)."""
        kind, smoothing = self.data.processor.tasks[name].kind, self.loss.label_smoothing
        weights = self._class_weights(name)
        weights = None if weights is None else weights.to(logits)
        if kind == REGRESSION:
            return F.mse_loss(logits[:, 0], targets.to(logits))
        if kind == MULTI:
            soft = targets.to(logits) * (1 - smoothing) + 0.5 * smoothing
            return F.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights)
        if kind == TAGGING:
            logits, targets = logits.flatten(0, 1), targets.flatten()
        if bool((targets == IGNORED).all()):
            return logits.sum() * 0.0
        options: dict[str, Any] = {"weight": weights, "ignore_index": IGNORED, "label_smoothing": smoothing}
        return F.cross_entropy(logits, targets, **options)

    def _class_weights(self, name: str) -> Tensor | None:
        """The weight of each label of a task (K,), of mean one over the training data; None without weights."""
        if not self.loss.class_weights:
            return None
        if name not in self._weights:
            labels = self.data.processor.tasks[name]
            counts = Counter(label for sample in _of(self.data.dataset("train"), name) for label in sample.labels)
            found = torch.tensor([float(counts[label] or 1) for label in labels.names])
            if labels.kind == MULTI:
                total = len(_of(self.data.dataset("train"), name))
                self._weights[name] = ((total - found) / found).clamp(1.0, 100.0).sqrt()
            else:
                self._weights[name] = found.sum() / (len(found) * found)
        return self._weights[name]

    @property
    def _weights(self) -> dict[str, Tensor]:
        known: dict[str, Tensor] = self.__dict__.setdefault("_class_weights_of", {})
        return known

    # Evaluation -------------------------------------------------------------------------------------------------------

    def make_metric(self) -> nn.Module:
        chooses = self.trainer.state.fn == "fit"
        return TextMetric(self.data.processor.tasks, self.loss.objective != LABELS, chooses)

    def update_metric(self, metric: Any, batch: TextBatch) -> None:
        states = self._states(batch)
        if batch.masked is not None:
            hidden = batch.masked >= 0
            metric.tokens.update(self.model.token_logits(states[hidden]), batch.masked[hidden])
        output = self._output(batch, states)
        for name, (rows, targets) in batch.targets.items():
            logits, part = _scores(self.model, output, name)[rows], metric.part(name)
            part.update(logits, targets)
            if part.labels.kind == TAGGING:
                tags: dict[int, list[str]] = {}
                for row, best in zip(rows.tolist(), logits.argmax(-1).tolist(), strict=True):
                    span = batch.spans[row]
                    tags.setdefault(span.sample, []).extend(part.labels.names[k] for k in best[: len(span.words)])
                part.add_sentences(list(tags.values()), [batch.samples[number].labels for number in tags])

    def chance(self) -> Chance | None:
        train, val = (self.data.dataset(split) for split in ("train", "val"))
        if self.loss.objective != LABELS or list(train.kinds.values()) != [SINGLE]:
            return None
        answers = (sample.labels[0] for sample in train.samples)
        return constant(answers, lambda answer: sum(s.labels == [answer] for s in val.samples) / len(val), kind="label")


PROBE_LR = 30.0  # times the learning rate of whole encoders: of a linear map of vectors of length one


def _of(dataset: TextDataset, task: str) -> list[Any]:
    return [sample for sample in dataset.samples if sample.task == task]


def _scores(model: Any, output: Any, name: str) -> Tensor:
    """The scores of one task, (N, K) or (N, W, K)."""
    scores = output.tag_logits if model.heads_of[name][0] == TAGGING else output.logits
    own: Tensor = scores[..., model.slices[name]]
    return own
