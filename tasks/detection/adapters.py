"""Adapters of detection: models of this toolkit with any classes, and timm backbones."""

from __future__ import annotations

from mmattn.tasks.common.labels.adapter import LabelAdapter


class DetectionAdapter(LabelAdapter):
    """Reads models of this toolkit."""

    scores = ("head.proposal_classes.", "head.class_heads.", "head.label_embed.")
    head = ("head.",)
