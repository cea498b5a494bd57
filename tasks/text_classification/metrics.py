"""Metrics of text classification, by kind: of classes, of several labels, of scores, of words and entities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional import (
    matthews_corrcoef,
    mean_absolute_error,
    pearson_corrcoef,
    spearman_corrcoef,
)
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multilabel_average_precision,
)

from mmattn.tasks.common.labels.metrics import BINS
from mmattn.tasks.text_classification.entities import entity_counts, f1_of, is_scheme
from mmattn.tasks.text_classification.formats import MULTI, REGRESSION, TAGGING
from mmattn.tasks.text_classification.labels import IGNORED, Labels
from mmattn.tasks.text_classification.thresholds import best_thresholds

LEAST = 1e-12


def main_metric(labels: Mapping[str, Labels]) -> str:
    """The metric that selects the best model: of one task by its kind; of several, the mean of theirs."""
    if not labels:
        return "token_accuracy"
    return "mean" if len(labels) > 1 else metric_of(next(iter(labels.values())))


def metric_of(labels: Labels) -> str:
    """The main metric of a kind of labels."""
    if labels.kind == TAGGING:
        return "f1" if is_scheme(labels.names) else "accuracy"
    return {MULTI: "f1_macro", REGRESSION: "pearson"}.get(labels.kind, "accuracy")


class LabelMetric(Metric):
    """The figures of one task, over all its samples, gathered over processes.

    `compute()` returns

    - of classes: `accuracy`, `f1_macro` (over the classes that occur), `mcc` (Matthews' correlation) and `ece`, the
      expected calibration error in fifteen bins;
    - of several labels: `f1_macro` and `f1_micro` at each label's threshold, `map` and `accuracy` (of whole sets), and
      the thresholds, if it chooses them;
    - of regression: `pearson`, `spearman` and `mae`;
    - of words: `accuracy` and `f1_macro`; of entities also `f1`, `precision` and `recall`, which equal seqeval's.

    Args:
        labels: The labels of the task.
        chooses: Whether thresholds are chosen that are best for the data, as on validation data.
    """

    full_state_update = False

    def __init__(self, labels: Labels, chooses: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels, self.chooses = labels, chooses
        self.confusion: Tensor | None = None
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.scores: list[Tensor]
        self.targets: list[Tensor]
        self.counts: Tensor

    def set_dtype(self, dst_type: Any) -> LabelMetric:
        """Keep float64 for any precision of the model."""
        return self

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (n, K) and targets (n,) or (n, K); of words logits (n, W, K) and targets (n, W)."""
        if self.labels.kind == TAGGING:
            known = targets != IGNORED
            self.scores.append(logits.argmax(-1)[known].double())
            self.targets.append(targets[known].double())
            return
        logits = logits.double()
        self.scores.append(logits[:, 0] if self.labels.kind == REGRESSION else logits)
        self.targets.append(targets.double())

    def add_nothing(self) -> None:
        """Add no sample, so that a process without any takes part when the figures are gathered."""
        shape = (0, 1) if self.labels.kind == TAGGING else (0,)
        logits = torch.zeros(*shape, self.labels.size, device=self.device)
        self.update(logits, logits if self.labels.kind == MULTI else logits[..., 0])

    def add_sentences(self, predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> None:
        """Add the entities of sentences, by the tags of all their words."""
        for mine, theirs in zip(predicted, true, strict=True):
            self.counts += torch.tensor(entity_counts(mine, theirs), dtype=self.counts.dtype, device=self.device)

    def compute(self) -> dict[str, Tensor]:
        scores, targets = (
            (torch.cat(list(given)) if isinstance(given, list) else given).cpu()
            for given in (self.scores, self.targets)
        )
        if not len(targets):
            return {}
        if self.labels.kind == REGRESSION:
            return _of_scores(scores * self.labels.std + self.labels.mean, targets * self.labels.std + self.labels.mean)
        if self.labels.kind == MULTI:
            return self._of_sets(scores.sigmoid(), targets)
        size = self.labels.size
        predicted = (scores if self.labels.kind == TAGGING else scores.argmax(-1)).long()
        true = targets.long()
        self.confusion = torch.bincount(true * size + predicted, minlength=size * size).reshape(size, size)
        values = _of_classes(self.confusion.double())
        if self.labels.kind == TAGGING:
            if is_scheme(self.labels.names):
                precision, recall, f1 = f1_of(*self.counts.tolist())
                values = {
                    "f1": torch.tensor(f1),
                    "precision": torch.tensor(precision),
                    "recall": torch.tensor(recall),
                } | values
        else:
            values["mcc"] = matthews_corrcoef(predicted, true, task="multiclass", num_classes=size)
            values["ece"] = multiclass_calibration_error(scores.softmax(-1), true, size, n_bins=BINS, norm="l1")
        return {name: value.double() for name, value in values.items()}

    def _of_sets(self, probabilities: Tensor, targets: Tensor) -> dict[str, Tensor]:
        thresholds = torch.tensor(self.labels.thresholds, dtype=torch.float64)
        if self.chooses:
            thresholds = best_thresholds(probabilities, targets > 0)
        predicted, true = probabilities >= thresholds, targets > 0
        both = (predicted & true).sum(0).double()
        f1 = 2 * both / (predicted.sum(0) + true.sum(0)).clamp_min(1)
        occurs = true.any(0)
        with warnings.catch_warnings():  # of labels that do not occur, which the average leaves out
            warnings.filterwarnings("ignore", "No positive samples")
            precision = multilabel_average_precision(probabilities, true.long(), self.labels.size, average="none")
        values = {
            "f1_macro": f1[occurs].mean() if occurs.any() else both.sum(),
            "f1_micro": 2 * both.sum() / (predicted.sum() + true.sum()).clamp_min(1),
            "map": precision[occurs].mean() if occurs.any() else both.sum(),
            "accuracy": (predicted == true).all(1).double().mean(),
        }
        if self.chooses:
            values |= {f"threshold/{name}": t for name, t in zip(self.labels.names, thresholds, strict=True)}
        return {name: value.double() for name, value in values.items()}

    def reset(self) -> None:
        """Reset the state; the last confusion matrix is kept."""
        super().reset()


def _of_classes(confusion: Tensor) -> dict[str, Tensor]:
    """Accuracy, and F1 averaged over the classes that occur, from counts of true (rows) and predicted classes."""
    right, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * right / (true + predicted).clamp_min(1)
    occurs = true > 0
    return {
        "accuracy": right.sum() / confusion.sum().clamp_min(1),
        "f1_macro": f1[occurs].mean() if occurs.any() else right.sum(),
    }


def _of_scores(predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    if len(true) < 2 or predicted.std() < LEAST or true.std() < LEAST:  # no correlation is defined
        zero = true.new_zeros(())
        return {"pearson": zero, "spearman": zero, "mae": (predicted - true).abs().mean()}
    return {
        "pearson": pearson_corrcoef(predicted, true),
        "spearman": spearman_corrcoef(predicted, true),
        "mae": mean_absolute_error(predicted, true),
    }


class TokenMetric(Metric):
    """Accuracy and perplexity of hidden tokens: `token_accuracy`, `token_perplexity`."""

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.sums: Tensor

    def set_dtype(self, dst_type: Any) -> TokenMetric:
        """Keep float64 for any precision of the model."""
        return self

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (n, V) and the ids (n,) that were hidden."""
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        hits = (logits.argmax(-1) == targets).sum()
        self.sums += torch.stack([hits, loss, loss.new_tensor(len(targets))]).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        hits, loss, count = self.sums / self.sums[2].clamp_min(1)
        return {"token_accuracy": hits, "token_perplexity": (loss.clamp_max(50)).exp() * count}


class TextMetric(nn.Module):
    """The figures of all tasks: of one by their names; of several, `TASK/NAME` and `mean`, that of the main ones.

    Args:
        labels: The labels of each task.
        language: Whether hidden tokens are measured, too.
        chooses: See `LabelMetric`.
    """

    def __init__(self, labels: Mapping[str, Labels], language: bool = False, chooses: bool = False) -> None:
        super().__init__()
        self.names = list(labels)
        self.parts = nn.ModuleList(LabelMetric(one, chooses) for one in labels.values())
        self.tokens = TokenMetric() if language else None
        self.confusion: Tensor | None = None

    def part(self, task: str) -> Any:
        """The figures of a task."""
        return self.parts[self.names.index(task)]

    def compute(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        mains = []
        for name, part in zip(self.names, self.parts, strict=True):
            metric: Any = part
            if not metric.targets:
                metric.add_nothing()
            own = metric.compute()
            if not own:
                continue
            mains.append(own[metric_of(metric.labels)])
            prefix = f"{name}/" if len(self.names) > 1 else ""
            found |= {f"{prefix}{key}": value for key, value in own.items()}
            self.confusion = metric.confusion if len(self.names) == 1 else None
        if len(self.names) > 1:
            found = {"mean": torch.stack(mains).mean() if mains else torch.zeros(())} | found
        return found | (self.tokens.compute() if self.tokens is not None else {})

    def reset(self) -> None:
        """Reset the state; the last confusion matrix is kept."""
        for part in [*self.parts, *([self.tokens] if self.tokens is not None else [])]:
            part.reset()  # type: ignore[operator]
