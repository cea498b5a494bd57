"""The loss of detection: predictions are matched with objects one to one, and compared with them.

Boxes are cxcywh in 0..1 of their image; a box that is padding takes no part in anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.tasks.detection.boxes import cxcywh_to_xyxy, paired_iou
from mmattn.tasks.detection.outputs import DetectionOutput, QuerySet

FORBIDDEN = 1e6  # cost of a query that takes no part


def focal(logits: Tensor, quality: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, ``-alpha_t (1 - p_t)^gamma log p_t``, of independent classes (Lin et al. 2017, section 3.3).

    Args:
        logits: (..., K).
        quality: (..., K), which this loss does not need.
        positive: (..., K) bool, the class of the object that the query has found.
        alpha: Weight of the positives; 1 - alpha is that of the others.
        gamma: How fast the weight of well-classified queries falls.

    Returns:
        (..., K).
    """
    target = positive.to(logits.dtype)
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")  # -log p_t
    weight = torch.where(positive, alpha, 1 - alpha)
    return weight * (-torch.expm1(-plain)).pow(gamma) * plain


def varifocal(logits: Tensor, quality: Tensor, positive: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss: scores learn the IoU q of their box, so that they rank boxes by both (Zhang et al. 2021, 3.2).

    ``-q (q log p + (1 - q) log(1 - p))`` of the class found, ``-alpha p^gamma log(1 - p)`` of the others.

    Args:
        logits: (..., K).
        quality: (..., K) in 0..1, q where positive.
        positive: (..., K) bool.
        alpha: Weight of the others.
        gamma: How fast the weight of others with low scores falls.

    Returns:
        (..., K).
    """
    weight = torch.where(positive, quality, alpha * logits.detach().sigmoid().pow(gamma))
    target = torch.where(positive, quality, 0.0)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def matchability(logits: Tensor, quality: Tensor, positive: Tensor, gamma: float = 1.5) -> Tensor:
    """Matchability-aware loss: scores learn a power of the IoU q (Huang et al. 2025, section 3.3).

    ``-(q^gamma log p + (1 - q^gamma) log(1 - p))`` of the class found, ``-p^gamma log(1 - p)`` of the others. All
    matches have full weight: by varifocal loss those of low IoU, as all are at first, learn their class late.

    Args:
        logits: (..., K).
        quality: (..., K) in 0..1, q where positive.
        positive: (..., K) bool.
        gamma: Exponent of q, and of the weight of others with low scores.

    Returns:
        (..., K).
    """
    target = torch.where(positive, quality, 0.0).pow(gamma)
    weight = torch.where(positive, 1.0, logits.detach().sigmoid().pow(gamma))
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


CLASSIFICATION: dict[str, Callable[..., Tensor]] = {
    "focal": focal,
    "varifocal": varifocal,
    "matchability": matchability,
}
INDEPENDENT = "matchability"  # the default of independent classes
CROSS_ENTROPY = "cross_entropy"  # the only one of classes with "no object", see `DetectionOutput`


class Objects(NamedTuple):
    """The true boxes of a batch."""

    boxes_cxcywh: Tensor  # (B, N, 4)
    labels: Tensor  # (B, N) long
    mask: Tensor  # (B, N) bool, True = a box


class Pairs(NamedTuple):
    """Queries and their objects: indices (T,) long of layer, image, query and object."""

    layer: Tensor
    image: Tensor
    query: Tensor
    object: Tensor


class DetectionLoss(nn.Module):
    """Matching, classification, and the distance of boxes, summed over all layers.

    In each decoder layer the objects are matched with queries one to one, by the least sum of the costs of scores, L1
    and GIoU (Carion et al. 2020, section 3.1; the cost of scores is that of Zhu et al. 2021, appendix A.4). Matched
    queries learn the class and the box, all others that there is nothing. Outputs with `no_object` have the cost
    ``-p`` and the weighted mean of the cross-entropy of all queries (Carion et al. 2020). Additional losses of
    the same kind:

    - of the decoder's earlier layers, and of the encoder's proposals, where an object may be matched several times;
    - of additional queries, with which each object is matched several times (Jia et al. 2023, section 3.2);
    - of denoising queries, whose objects are known without matching (Zhang et al. 2022, section 3.3).

    All but the cross-entropy are divided by the number of their matches in the batch, at least one.

    Args:
        classification: "focal", "varifocal", "matchability" or "cross_entropy"; none: matchability, or for outputs
            with `no_object` cross_entropy.
        class_weight: Weight of the classification.
        l1_weight: Weight of the L1 distance of cxcywh.
        giou_weight: Weight of ``1 - GIoU``.
        class_cost: Weight of the scores in matching.
        l1_cost: Weight of the L1 distance in matching.
        giou_cost: Weight of the GIoU in matching.
        aux_weight: Weight of the earlier layers.
        proposal_weight: Weight of the proposals.
        proposal_copies: How many proposals an object is matched with.
        copy_weight: Weight of the additional queries.
        copies: How many of them an object is matched with.
        denoising_weight: Weight of the denoising queries.
        no_object_weight: Weight, in the cross-entropy, of queries without an object.

    Raises:
        ValueError: An unknown classification, a negative weight, or no copies.

    >>> output = DetectionOutput(torch.randn(2, 7, 5), torch.rand(2, 7, 4))
    >>> boxes, labels, mask = torch.rand(2, 3, 4), torch.ones(2, 3).long(), torch.ones(2, 3).bool()
    >>> sorted(DetectionLoss()(output, boxes, labels, mask))
    ['classification', 'giou', 'l1']
    """

    def __init__(
        self,
        *,
        classification: str | None = None,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_cost: float = 2.0,
        l1_cost: float = 5.0,
        giou_cost: float = 2.0,
        aux_weight: float = 1.0,
        proposal_weight: float = 1.0,
        proposal_copies: int = 4,
        copy_weight: float = 1.0,
        copies: int = 4,
        denoising_weight: float = 1.0,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        known = (*CLASSIFICATION, CROSS_ENTROPY)
        if classification is not None and classification not in known:
            raise ValueError(f"unknown classification {classification!r}; expected one of: {', '.join(known)}")
        self.classification, self.no_object_weight = classification, no_object_weight
        self.weights = (class_weight, l1_weight, giou_weight)
        self.costs = (class_cost, l1_cost, giou_cost)
        self.set_weights = (aux_weight, proposal_weight, copy_weight, denoising_weight)
        if (least := min(*self.weights, *self.costs, *self.set_weights, no_object_weight)) < 0:
            raise ValueError(f"expected weights from 0, found {least}")
        if min(copies, proposal_copies) < 1:
            raise ValueError(f"copies: expected at least 1, found {min(copies, proposal_copies)}")
        self.proposal_copies, self.copies = proposal_copies, copies

    def kind(self, no_object: bool) -> str:
        """The classification of a model whose outputs have `no_object`, or not.

        Raises:
            ValueError: That of the constructor is none of such a model.
        """
        fitting = (CROSS_ENTROPY,) if no_object else tuple(CLASSIFICATION)
        found = self.classification or (CROSS_ENTROPY if no_object else INDEPENDENT)
        if found not in fitting:
            raise ValueError(f"classification: expected {' or '.join(fitting)} for this network, found {found!r}")
        return found

    def forward(
        self, output: DetectionOutput, boxes_cxcywh: Tensor, labels: Tensor, box_mask: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses, multiplied by their weights; their sum is to be minimized.

        Args:
            output: Of the model; parts that are None have no loss.
            boxes_cxcywh: True boxes (B, N, 4) in 0..1 of their images.
            labels: (B, N) long, indices of their classes.
            box_mask: (B, N) bool, True = a box.

        Returns:
            "classification", "l1" and "giou" of the last layer, and where the output has them: "auxiliary",
            "proposals", "copies", "denoising". Scalars.

        Raises:
            ValueError: See `kind`.
        """
        kind = self.kind(output.no_object is not None)
        wide = torch.promote_types(output.logits.dtype, torch.float32)
        truth = Objects(boxes_cxcywh.to(wide), labels, box_mask)
        aux, proposal, copy, denoising = self.set_weights
        none = None if output.no_object is None else output.no_object[None]
        layers = output.layers or QuerySet(output.logits[None], output.boxes_cxcywh[None], None, none)
        found = self._matched(layers, truth, kind)  # (3, layers)
        parts = dict(zip(("classification", "l1", "giou"), found[:, -1], strict=True))
        if found.shape[1] > 1:
            parts["auxiliary"] = aux * found[:, :-1].sum()
        if output.proposals is not None:
            parts["proposals"] = proposal * self._matched(output.proposals, truth, kind, self.proposal_copies).sum()
        if output.copies is not None:
            parts["copies"] = copy * self._matched(output.copies, truth, kind, self.copies).sum()
        if output.denoised is not None:
            known = output.denoised
            layer, image, query = (known.objects >= 0).expand(known.logits.shape[:3]).nonzero().unbind(1)
            pairs = Pairs(layer, image, query, known.objects[image, query])
            queries = QuerySet(known.logits, known.boxes_cxcywh, known.query_mask)
            parts["denoising"] = denoising * self._compared(queries, truth, pairs, kind).sum()
        return parts

    def match(self, queries: QuerySet, truth: Objects, copies: int = 1) -> Pairs:
        """Matches objects with queries of each layer, each object `copies` times, as often as there are queries."""
        layers, images = queries.logits.shape[:2]
        costs = np.nan_to_num(self._costs(queries, truth).flatten(0, 1).cpu().numpy(), nan=FORBIDDEN)
        costs = np.repeat(costs.clip(-FORBIDDEN, FORBIDDEN), copies, 1)  # (layers B, N copies, Q)
        there = np.repeat(truth.mask.cpu().numpy(), copies, 1)  # (B, N copies)
        columns = assign(costs, np.tile(there, (layers, 1)))
        if queries.query_mask is not None:
            allowed = np.tile(queries.query_mask.cpu().numpy(), (layers, 1))  # (layers B, Q)
            columns[~np.take_along_axis(allowed, columns.clip(0), 1)] = -1
        problem, row = (columns >= 0).nonzero()
        indices = np.stack([problem // images, problem % images, columns[problem, row], row // copies])
        return Pairs(*torch.from_numpy(indices).to(queries.logits.device))

    @torch.no_grad()
    def _costs(self, queries: QuerySet, truth: Objects) -> Tensor:
        """The costs of all pairs, (layers, B, N, Q) float."""
        layers, images, count, _ = queries.logits.shape
        wanted = truth.labels[None, :, None].expand(layers, images, count, -1)  # (layers, B, Q, N)
        scores = queries.logits.to(truth.boxes_cxcywh.dtype)
        if queries.no_object is None:
            scores = scores.gather(3, wanted)
            right, wrong = -F.logsigmoid(scores), -F.logsigmoid(-scores)
            p = scores.sigmoid()
            cost = 0.25 * (1 - p).square() * right - 0.75 * p.square() * wrong  # of a match, less that of none
        else:
            cost = -torch.cat([scores, queries.no_object[..., None].to(scores)], 3).softmax(3).gather(3, wanted)
        boxes, true = queries.boxes_cxcywh.to(cost.dtype)[..., None, :], truth.boxes_cxcywh[None, :, None]
        distance = (boxes - true).abs().sum(-1)
        giou = paired_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true))[1]
        total = self.costs[0] * cost + self.costs[1] * distance - self.costs[2] * giou
        if queries.query_mask is not None:
            total = total.masked_fill(~queries.query_mask[..., None], FORBIDDEN)
        return total.mT

    def _matched(self, queries: QuerySet, truth: Objects, kind: str, copies: int = 1) -> Tensor:
        if queries.logits.shape[-1] == 1:
            truth = truth._replace(labels=torch.zeros_like(truth.labels))
        return self._compared(queries, truth, self.match(queries, truth, copies), kind, copies)

    def _compared(
        self, queries: QuerySet, truth: Objects, pairs: Pairs, kind: str, copies: int | None = None
    ) -> Tensor:
        """The weighted losses of classification, L1 and GIoU of each layer, (3, layers)."""
        logits = queries.logits.to(truth.boxes_cxcywh.dtype)
        layers = logits.shape[0]
        count = truth.mask.sum() * copies if copies else pairs.query.numel() / layers
        count = torch.as_tensor(count, device=logits.device).clamp_min(1)
        boxes = queries.boxes_cxcywh[pairs.layer, pairs.image, pairs.query].to(logits.dtype)  # (T, 4)
        true = truth.boxes_cxcywh[pairs.image, pairs.object]
        iou, giou = paired_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true))  # (T,)
        places = (pairs.layer, pairs.image, pairs.query, truth.labels[pairs.image, pairs.object])
        none = logits.new_zeros(layers)
        distances = [none.index_add(0, pairs.layer, x) for x in ((boxes - true).abs().sum(-1), 1 - giou)]
        if queries.no_object is None:
            classes = self._independent(queries, logits, places, iou, kind) / count
        else:
            classes = self._cross_entropy(logits, queries.no_object, places)
        return logits.new_tensor(self.weights)[:, None] * torch.stack([classes, *(x / count for x in distances)])

    @staticmethod
    def _independent(queries: QuerySet, logits: Tensor, places: tuple[Tensor, ...], iou: Tensor, kind: str) -> Tensor:
        """The sums (layers,) of a loss of independent classes; the pairs have their class at `places`."""
        positive = torch.zeros_like(logits, dtype=torch.bool)
        positive[places] = True
        quality = torch.zeros_like(logits)
        quality[places] = iou.detach()
        scores = CLASSIFICATION[kind](logits, quality, positive)  # (layers, B, Q, K)
        if queries.query_mask is not None:
            scores = scores * queries.query_mask[..., None]
        return scores.sum((1, 2, 3))

    def _cross_entropy(self, logits: Tensor, no_object: Tensor, places: tuple[Tensor, ...]) -> Tensor:
        """The weighted means (layers,) over the queries; the pairs have their class at `places`."""
        *query, classes = places
        target = torch.full_like(no_object, logits.shape[-1], dtype=torch.long)  # (layers, B, Q)
        target[tuple(query)] = classes
        weight = torch.where(target < logits.shape[-1], 1.0, self.no_object_weight).to(logits)
        scores = torch.cat([logits, no_object[..., None].to(logits)], -1).log_softmax(-1)  # (layers, B, Q, K + 1)
        losses = -scores.gather(-1, target[..., None])[..., 0]
        return (weight * losses).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)


def assign(costs: np.ndarray, row_mask: np.ndarray) -> np.ndarray:
    """Assigns each row its own column, so that the sum of each problem's costs is least (Kuhn 1955).

    Args:
        costs: (P, N, M), finite; N objects and M queries.
        row_mask: (P, N) bool, True = a row that takes part. At most M rows of a problem do, in the cheapest choice.

    Returns:
        Column of each row (P, N) int64; -1 for one that takes no part, or for which there is no column.

    >>> assign(np.array([[[1.0, 2.0, 9.0], [1.0, 5.0, 9.0]]]), np.ones((1, 2), bool)).tolist()
    [[1, 0]]
    """
    from scipy.optimize import linear_sum_assignment

    columns = np.full(costs.shape[:2], -1)
    for cost, mask, found in zip(costs, row_mask, columns, strict=True):
        rows = np.nonzero(mask)[0]
        chosen, taken = linear_sum_assignment(cost[rows])
        found[rows[chosen]] = taken
    return columns
