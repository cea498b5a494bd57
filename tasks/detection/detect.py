"""From the model's output to the boxes of each image, also of images that are split into tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mmattn.backbones.detection import Detections as Found, detect_by_sigmoid, detect_by_softmax
from mmattn.data.batching import alike
from mmattn.data.image.tiles import starts
from mmattn.tasks.detection.boxes import Detections
from mmattn.tasks.detection.data import DetectionBatch
from mmattn.tasks.detection.outputs import DetectionOutput
from mmattn.tasks.detection.processor import DetectionProcessor

MOST = 100  # boxes of an image, as COCO's evaluation counts
OVERLAP = 0.25  # of a tile and the next
SAME = 0.5  # IoU from which two boxes of one class, of different tiles, are one object
EDGE = 2.0  # pixels from an inner edge of a tile within which a box is cut by it


def in_sizes(processor: DetectionProcessor, batch: DetectionBatch) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Rows of a batch whose images have one size, with their pixel_values and pixel_mask.

    Convolutions see what is beside an image: the padding that larger images of a batch need would change what is found
    in it, and each is found as if it were alone.
    """
    for rows in alike(batch.sizes):
        height, width = processor.padded_size([batch.sizes[rows[0]]])
        pixels = batch.pixel_values[rows, :, :height, :width].contiguous(memory_format=torch.channels_last)
        yield rows, pixels, batch.pixel_mask[rows, :height, :width]


def detect(
    model: Callable[[Tensor, Tensor], DetectionOutput],
    processor: DetectionProcessor,
    batch: DetectionBatch,
    most: int = MOST,
) -> list[Detections]:
    """The boxes of each image of a batch, by a model and its processor; see `detections` and `in_sizes`."""
    found: dict[int, Detections] = {}
    for rows, pixels, mask in in_sizes(processor, batch):
        sizes = [batch.original_sizes[row] for row in rows]
        found |= dict(zip(rows, detections(processor, model(pixels, mask), sizes, most), strict=True))
    return [found[row] for row in range(len(batch))]


def detections(
    processor: DetectionProcessor, output: DetectionOutput, original_sizes: Sequence[tuple[int, int]], most: int = MOST
) -> list[Detections]:
    """The best pairs of query and class of each image, as boxes in its pixels; the best first.

    Where classes compete with "no object", a query has only its best class.

    Args:
        processor: Of the model.
        output: Of the model, for B images.
        original_sizes: (H, W) of each image as it was given.
        most: Number of boxes of an image.
    """
    scores, labels, boxes_xyxy, queries = _best(output, most)
    return [
        processor.detections(box.float(), score.float(), label, size)._replace(queries=query)
        for box, score, label, query, size in zip(boxes_xyxy, scores, labels, queries, original_sizes, strict=True)
    ]


def _best(output: DetectionOutput, most: int) -> Found:
    if output.no_object is None:
        return detect_by_sigmoid(output.logits, output.boxes_cxcywh, top_k=most)
    logits = torch.cat([output.logits, output.no_object[..., None]], -1)  # (B, Q, K + 1)
    found = detect_by_softmax(logits, output.boxes_cxcywh)
    scores, queries = found.scores.topk(min(most, logits.shape[1]), dim=1)  # (B, N)
    boxes_xyxy = found.boxes_xyxy.gather(1, queries[..., None].expand(-1, -1, 4))
    return Found(scores, found.labels.gather(1, queries), boxes_xyxy, queries)


def in_tiles(
    image: np.ndarray, tile: int, run: Callable[[list[np.ndarray]], list[Detections]], most: int = MOST
) -> Detections:
    """The boxes of an image that is larger than a tile, from itself and from overlapping tiles.

    A box that an inner edge of its tile cuts is dropped: the next tile, or the whole image, has it entire. Of boxes of
    one class with an IoU of `SAME` or more the best is kept (Akyon et al. 2022 call this sliced inference).

    Args:
        image: (H, W, 3) uint8.
        tile: Side of the tiles, in pixels.
        run: Finds the boxes of some images, in pixels of these.
        most: Number of boxes that are kept, by score.
    """
    from torchvision.ops import batched_nms

    height, width = image.shape[:2]
    corners = [(top, left) for top in starts(height, tile, OVERLAP) for left in starts(width, tile, OVERLAP)]
    windows = [image[top : top + tile, left : left + tile] for top, left in corners]
    found = run([image, *windows])
    parts = [found[0]]
    for (top, left), window, part in zip(corners, windows, found[1:], strict=True):
        low, high = part.boxes_xyxy[:, :2], part.boxes_xyxy[:, 2:]  # (N, 2) xy
        sides = low.new_tensor([window.shape[1], window.shape[0]])
        inner_low = torch.tensor([left > 0, top > 0], device=low.device)
        inner_high = torch.tensor([left + tile < width, top + tile < height], device=low.device)
        cut = (inner_low & (low < EDGE)) | (inner_high & (high > sides - EDGE))
        kept = ~cut.any(1)
        moved = part.boxes_xyxy + low.new_tensor([left, top, left, top])
        parts.append(Detections(moved[kept], part.scores[kept], part.labels[kept]))
    boxes_xyxy, scores, labels = (torch.cat(column) for column in zip(*(part[:3] for part in parts), strict=True))
    best = batched_nms(boxes_xyxy, scores, labels, SAME)[:most]
    return Detections(boxes_xyxy[best], scores[best], labels[best])
