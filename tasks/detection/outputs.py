"""What a detector returns: tensors of its last layer, and in training those that other losses need."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class QuerySet(NamedTuple):
    """Predictions of queries that compete for the objects of their image."""

    logits: Tensor  # (layers, B, Q, K); K = 1: of an object of any class
    boxes_cxcywh: Tensor  # (layers, B, Q, 4) in 0..1 of the image's own part
    query_mask: Tensor | None = None  # (B, Q) bool, True = takes part; None: all
    no_object: Tensor | None = None  # (layers, B, Q), see `DetectionOutput`


class Denoised(NamedTuple):
    """Predictions of queries that begin at disturbed true boxes."""

    logits: Tensor  # (layers, B, D, K)
    boxes_cxcywh: Tensor  # (layers, B, D, 4)
    objects: Tensor  # (B, D) long, index of the true box to find; -1: none, as the disturbance is too great
    query_mask: Tensor  # (B, D) bool, False = padding of images with fewer boxes


class DetectionOutput(NamedTuple):
    """Scores and boxes, cxcywh in 0..1 of the image's own part of the pixels; in training also what losses need.

    Classes are independent, each with the sigmoid of its logit; with `no_object` they are not: then the logits of the
    classes and that of "no object" are those of one softmax.
    """

    logits: Tensor  # (B, Q, K), of the last layer
    boxes_cxcywh: Tensor  # (B, Q, 4)
    layers: QuerySet | None = None  # of all decoder layers, the last one included
    proposals: QuerySet | None = None  # of the encoder's cells, one layer
    copies: QuerySet | None = None  # of additional queries, several of which may find the same object
    denoised: Denoised | None = None
    no_object: Tensor | None = None  # (B, Q), logit of "no object"; None: classes are independent
