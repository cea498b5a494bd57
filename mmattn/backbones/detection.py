"""What detectors share: outputs, positions and masks of maps, heads, and the reading of their outputs."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import sinusoidal_in_mask


class DetectorOutput(NamedTuple):
    """Scores and boxes; boxes are cxcywh in 0..1 of their image, without padding."""

    logits: Tensor  # (B, Q, K), of the last layer
    boxes_cxcywh: Tensor  # (B, Q, 4)
    layer_logits: Tensor  # (layers, B, Q, K), of all decoder layers, for auxiliary losses
    layer_boxes_cxcywh: Tensor  # (layers, B, Q, 4)
    proposal_logits: Tensor | None = None  # (B, P, K), of the encoder's proposals, if any
    proposal_boxes_cxcywh: Tensor | None = None  # (B, P, 4)


class Detections(NamedTuple):
    """Scored boxes; xyxy in 0..1, or in pixels where sizes were given."""

    scores: Tensor  # (B, N)
    labels: Tensor  # (B, N) long
    boxes_xyxy: Tensor  # (B, N, 4)
    queries: Tensor  # (B, N) long, the query of each


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Converts boxes from center, width and height to corners. (..., 4) to (..., 4).

    >>> cxcywh_to_xyxy(torch.tensor([0.5, 0.5, 1.0, 0.5])).tolist()
    [0.0, 0.25, 1.0, 0.75]
    """
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def detect_by_softmax(logits: Tensor, boxes_cxcywh: Tensor, sizes: Tensor | None = None) -> Detections:
    """Returns each query's best class, as DETR does.

    Args:
        logits: (B, Q, K + 1), the last of "no object".
        boxes_cxcywh: (B, Q, 4) in 0..1.
        sizes: (B, 2), height and width of each image in pixels.

    Returns:
        Q detections of each image.
    """
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
    queries = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    return Detections(scores, labels, _scaled(cxcywh_to_xyxy(boxes_cxcywh), sizes), queries)


def detect_by_sigmoid(
    logits: Tensor, boxes_cxcywh: Tensor, sizes: Tensor | None = None, *, top_k: int | None = 100
) -> Detections:
    """Returns the best pairs of query and class, as Deformable DETR (100) and RT-DETR (as many as queries) do.

    Args:
        logits: (B, Q, K).
        boxes_cxcywh: (B, Q, 4) in 0..1.
        sizes: (B, 2), height and width of each image in pixels.
        top_k: Number of pairs, at most Q K; None = Q.

    Returns:
        top_k detections of each image, the best first.
    """
    count = logits.shape[1] if top_k is None else min(top_k, logits.shape[1] * logits.shape[2])
    scores, pairs = logits.sigmoid().flatten(1).topk(count, dim=1)  # (B, N)
    queries = pairs // logits.shape[2]  # (B, N)
    boxes = cxcywh_to_xyxy(boxes_cxcywh).gather(1, queries[..., None].expand(-1, -1, 4))
    return Detections(scores, pairs % logits.shape[2], _scaled(boxes, sizes), queries)


def above(detections: Detections, threshold: float = 0.5) -> list[Detections]:
    """Returns the detections of each image with scores above the threshold: (N,), (N,), (N, 4) and (N,) each."""
    images = (Detections(*one) for one in zip(*detections, strict=True))
    return [Detections(*(tensor[one.scores > threshold] for tensor in one)) for one in images]


def _scaled(boxes: Tensor, sizes: Tensor | None) -> Tensor:
    return boxes if sizes is None else boxes * sizes.flip(-1).repeat(1, 2)[:, None, :].to(boxes.device)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """``log(x / (1 - x))``, with both parts at least eps."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def mask_of(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Returns the pixel mask (B, H, W), all True if it is None."""
    if pixel_mask is None:
        return torch.ones_like(pixel_values[:, 0], dtype=torch.bool)
    return pixel_mask


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the mask (B, H, W) at the nearest pixels of a map's cells: (B, h, w) bool."""
    return F.interpolate(mask[None].float(), size=size)[0].bool()


class MapPositions(nn.Module):
    """Positions of the cells of padded maps, to be added to queries and keys.

    Args:
        embed_dim: E.
        kind: "sine", see `sinusoidal_in_mask`, or "learned": a vector for each row and each column.
        shift: Of the sine positions.
        max_side: Rows and columns of learned positions.

    Raises:
        ValueError: An unknown kind, or an indivisible embed_dim.

    >>> MapPositions(8)(torch.ones(2, 3, 4, dtype=torch.bool), torch.float32).shape
    torch.Size([2, 12, 8])
    """

    KINDS = ("sine", "learned")

    def __init__(self, embed_dim: int, kind: str = "sine", *, shift: float = 0.0, max_side: int = 50) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"unknown positions {kind!r}; expected one of: {', '.join(self.KINDS)}")
        step = 4 if kind == "sine" else 2
        if embed_dim % step:
            raise ValueError(f"{kind} positions of maps need embed_dim divisible by {step}, found {embed_dim}")
        self.embed_dim, self.kind, self.shift = embed_dim, kind, shift
        if kind == "learned":
            self.rows, self.columns = (nn.Parameter(torch.rand(max_side, embed_dim // 2)) for _ in range(2))

    def forward(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """mask: (B, h, w) bool, True = a real cell. Returns (B or 1, h w, E), of the dtype.

        Raises:
            ValueError: The map has more rows or columns than there are learned positions.
        """
        if self.kind == "sine":
            return sinusoidal_in_mask(mask, self.embed_dim, shift=self.shift, dtype=dtype).flatten(1, 2)
        _, height, width = mask.shape
        most = self.rows.shape[0]
        if isinstance(height, int) and isinstance(width, int) and max(height, width) > most:
            raise ValueError(f"a map of {width} x {height} cells, where {most} positions a side are learned")
        columns = self.columns[:width].expand(height, width, -1)
        rows = self.rows[:height, None].expand(height, width, -1)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None].to(dtype)


class Perceptron(nn.Module):
    """Linear maps with ReLU between them, the head of boxes.

    Args:
        in_dim: Size of the input.
        hidden_dim: Size between the maps.
        out_dim: Size of the output.
        num_layers: Number of maps.

    >>> Perceptron(8, 16, 4, 3)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        sizes = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_dim). Returns (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
