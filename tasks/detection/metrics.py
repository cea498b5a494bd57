"""COCO's average precision over a data set.

Lin et al. 2014; the figures are those of the official evaluation (pycocotools), computed by faster-coco-eval.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mmattn.tasks.detection.boxes import Detections, Truth
from mmattn.tasks.detection.matching import best_thresholds

IOUS = np.linspace(0.5, 0.95, 10)  # torchmetrics' own are rounded to float32, by which figures differ from pycocotools'
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of an image and class that are counted, by score
SIZES = ("all", "small", "medium", "large")  # areas below 32^2, up to 96^2, and above

_KEY, _IS_TRUTH, _BOX, _LABEL, _SCORE, _CROWD = 0, 1, slice(2, 6), 6, 7, 8  # columns of a row; the score or the area
_COLUMNS = 9


class DetectionMetric(Metric):
    """Average precision by COCO's rules, over all images and processes.

    `compute()` returns

    - `map`: mean over IoU thresholds of 0.50, 0.55, ..., 0.95 and over the classes with true boxes; `map50` and
      `map75`: at one threshold;
    - `map_small`, `map_medium`, `map_large`: of boxes with an area below 32^2, up to 96^2, and above, in pixels of the
      original images; left out if there are no such boxes;
    - `mar100`: mean recall of the 100 best boxes of each image and class;
    - `map/NAME` and `map50/NAME` of each class with true boxes;
    - `threshold/NAME` of each class, see `best_thresholds`.

    Crowds are ignored: a box that matches one is neither right nor wrong. Without a true box all are zero.

    Args:
        names: Names of the classes.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        # Rows of all boxes, one after the other: in one dimension, as a process without images has an empty list.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.rows: list[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows; torchmetrics makes those of a process without images of it."""
        return torch.float64

    def set_dtype(self, dst_type: Any) -> DetectionMetric:
        """Keep float64 for any precision of the model, so that figures of several processes equal those of one."""
        return self

    def update(self, detections: Sequence[Detections], truths: Sequence[Truth], ids: Sequence[str]) -> None:
        """Add images: their predicted boxes, true boxes and ids."""
        for found, truth, name in zip(detections, truths, ids, strict=True):
            key = _key(name)
            rows = np.zeros((len(truth.labels) + len(found.labels), _COLUMNS))
            true, predicted = rows[: len(truth.labels)], rows[len(truth.labels) :]
            rows[:, _KEY], true[:, _IS_TRUTH] = key, 1
            true[:, _BOX], true[:, _LABEL] = truth.boxes_xyxy, truth.labels
            true[:, _SCORE], true[:, _CROWD] = truth.area, truth.crowd
            predicted[:, _BOX], predicted[:, _LABEL] = _array(found.boxes_xyxy), _array(found.labels)
            predicted[:, _SCORE] = _array(found.scores)
            self.rows.append(torch.from_numpy(rows).reshape(-1).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        rows = torch.cat([torch.zeros(0), *self.rows]) if isinstance(self.rows, list) else self.rows
        detections, truths = _images(rows.cpu().double().view(-1, _COLUMNS).numpy())
        values = average_precision(detections, truths, self.names)
        thresholds = best_thresholds(detections, truths, len(self.names))
        values |= {f"threshold/{name}": one for name, one in zip(self.names, thresholds, strict=True)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _key(name: str) -> int:
    """A number, exact in float64, by which images are ordered, so that ties do not depend on the number of processes.

    That of COCO's ids is the id, as in the official evaluation; that of other names is a hash.
    """
    if name.isdecimal() and len(name) <= 12:
        return int(name)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 12


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _images(rows: np.ndarray) -> tuple[list[Detections], list[Truth]]:
    """The boxes of each image, in order of the images' keys."""
    keys, places = np.unique(rows[:, _KEY], return_inverse=True)
    rows = rows[np.argsort(places, kind="stable")]
    starts = np.cumsum(np.bincount(places, minlength=len(keys)))[:-1]
    detections, truths = [], []
    for part in np.split(rows, starts) if len(rows) else ():
        is_true = part[:, _IS_TRUTH] == 1
        true, predicted = part[is_true], torch.from_numpy(part[~is_true])
        labels = true[:, _LABEL].astype(np.int64)
        truths.append(Truth(true[:, _BOX], labels, true[:, _CROWD] == 1, true[:, _SCORE]))
        detections.append(Detections(predicted[:, _BOX], predicted[:, _SCORE], predicted[:, _LABEL].long()))
    return detections, truths


def average_precision(
    detections: Sequence[Detections], truths: Sequence[Truth], names: Sequence[str]
) -> dict[str, float]:
    """The figures of `DetectionMetric`.

    Args:
        detections: The predicted boxes of each image.
        truths: The true boxes of each image.
        names: Names of the classes.
    """
    if not any((~truth.crowd).any() for truth in truths):
        return dict.fromkeys(("map", "map50", "map75", "mar100"), 0.0)
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        iou_thresholds=IOUS.tolist(),
        rec_thresholds=RECALLS.tolist(),
        max_detection_thresholds=[1, 10, MOST],
        extended_summary=True,
        backend="faster_coco_eval",
        # It is computed once, from what all processes have gathered.
        sync_on_compute=False,
    ).set_dtype(torch.float64)
    metric.warn_on_many_detections = False
    metric.update([_prediction(one) for one in detections], [_target(one) for one in truths])
    found = metric.compute()
    # The arrays are in float64, -1 for what has no true boxes; torchmetrics' own summary is rounded to float32.
    precision = found["precision"][..., -1]  # (IoUs, recalls, classes, sizes)
    recall = found["recall"][..., 0, -1]  # (IoUs, classes)
    parts = {"map": precision[..., 0], "map50": precision[0, ..., 0], "map75": precision[5, ..., 0], "mar100": recall}
    parts |= {f"map_{size}": precision[..., place] for place, size in enumerate(SIZES) if place}
    for place, k in enumerate(found["classes"].reshape(-1).tolist()):
        parts |= {f"map/{names[k]}": precision[:, :, place, 0], f"map50/{names[k]}": precision[0, :, place, 0]}
    return {name: float(part[part > -1].mean()) for name, part in parts.items() if (part > -1).any()}


def _prediction(one: Detections) -> dict[str, Tensor]:
    return {"boxes": one.boxes_xyxy.double(), "scores": one.scores.double(), "labels": one.labels}


def _target(one: Truth) -> dict[str, Tensor]:
    arrays: Mapping[str, np.ndarray] = {
        "boxes": one.boxes_xyxy,
        "labels": one.labels,
        "iscrowd": one.crowd.astype(np.int64),
        "area": one.area,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
