"""Which predicted boxes are right, and the choice of a threshold for each class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.tasks.detection.boxes import Detections, Truth, areas, box_iou, intersections

FALLBACK = 0.5  # threshold where there are no true or no right boxes
FEW = 10  # true boxes, below which the threshold of a class would be that of chance


def match(found: Detections, truth: Truth, iou: float = 0.5) -> tuple[Tensor, Tensor]:
    """Assign the predicted boxes of an image to true ones of their class by COCO's rules.

    In order of their scores, each takes the free true box with the greatest IoU, if that is at least `iou`. A box that
    takes none is ignored if a crowd of its class covers at least this share of it.

    Args:
        found: N predicted boxes.
        truth: M true boxes.
        iou: The threshold.

    Returns:
        Index of the true box of each predicted one (N,) long, -1 without one; and whether it is ignored (N,) bool.
    """
    boxes_xyxy, labels = found.boxes_xyxy.double().cpu(), found.labels.cpu()
    true_xyxy, crowd = torch.from_numpy(np.asarray(truth.boxes_xyxy, np.float64)), torch.from_numpy(truth.crowd)
    alike = labels[:, None] == torch.from_numpy(truth.labels)  # (N, M)
    least = min(iou, 1 - 1e-10)  # as in the official evaluation
    overlap: Any = torch.where(alike & ~crowd, box_iou(boxes_xyxy, true_xyxy), 0.0).numpy()
    covered = intersections(boxes_xyxy, true_xyxy) / areas(boxes_xyxy)[:, None].clamp_min(1e-12)
    ignored = (alike & crowd & (covered >= least)).any(1)
    matched = torch.full((len(labels),), -1)
    rows = (overlap >= least).any(1)  # few predicted boxes can match at all
    for n in found.scores.cpu().argsort(descending=True, stable=True).tolist() if rows.any() else ():
        if rows[n]:
            best = int(overlap[n].argmax())
            if overlap[n, best] >= least:
                matched[n] = best
                overlap[:, best] = 0.0
    return matched, ignored & (matched < 0)


def best_thresholds(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    num_classes: int,
    iou: float = 0.5,
    fallback: float = FALLBACK,
    few: int = FEW,
) -> list[float]:
    """The score of each class from which boxes are kept, so that F1 at an IoU is greatest.

    It lies halfway between the scores of the last box that is kept and of the first that is not; of equal F1s, the
    highest threshold is taken. Classes of fewer than `few` true boxes share the threshold of all classes together.

    Args:
        detections: The predicted boxes of each image, all of them.
        truths: The true boxes of each image.
        num_classes: Number of classes K.
        iou: IoU from which a box is found.
        fallback: The threshold where there is no true box or none is found.
        few: See above.

    Returns:
        K thresholds.
    """
    scores: list[list[Tensor]] = [[] for _ in range(num_classes)]
    hits: list[list[Tensor]] = [[] for _ in range(num_classes)]
    numbers = np.zeros(num_classes, np.int64)
    for found, truth in zip(detections, truths, strict=True):
        matched, ignored = match(found, truth, iou)
        numbers += np.bincount(truth.labels[~truth.crowd], minlength=num_classes)
        labels = found.labels.cpu()
        for k in labels.unique().tolist():
            own = (labels == k) & ~ignored
            scores[k].append(found.scores.cpu().double()[own])
            hits[k].append(matched[own] >= 0)
    shared = _threshold([*chain(*scores)], [*chain(*hits)], int(numbers.sum()), fallback)
    return [
        shared if numbers[k] < few else _threshold(scores[k], hits[k], int(numbers[k]), fallback)
        for k in range(num_classes)
    ]


def _threshold(score_parts: list[Tensor], hit_parts: list[Tensor], number: int, fallback: float) -> float:
    """The threshold of boxes with scores (N,) and hits (N,) bool, both in parts, and a number of true boxes."""
    if not number or not any(part.any() for part in hit_parts):
        return fallback
    scores, hits = torch.cat(score_parts), torch.cat(hit_parts)
    order = scores.argsort(descending=True, stable=True)
    scores, found = scores[order], hits[order].double().cumsum(0)
    f1 = 2 * found / (torch.arange(1, len(scores) + 1) + number)
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[:-1] > scores[1:]  # boxes of one score are kept together
    best = int(f1.masked_fill(~last, -1.0).argmax())
    below = float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    return (float(scores[best]) + below) / 2
