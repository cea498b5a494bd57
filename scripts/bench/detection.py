"""Compare RT-DETR's detections with transformers', with the same weights; and the share of matching in training.

python scripts/bench/detection.py [--threads N] [--rounds N] [--size N] [--clock wall|cpu] [--json FILE]

The shape of PekingU/rtdetr_r18vd (80 classes, 300 queries, three decoder layers) with random weights, float32, batches
of 1 and 4 images of 640 x 640 pixels: forward pass and post-processing to boxes above a threshold. In float64 both must
find the same boxes, and in float32 the same scores, before timing. Then a training step of our own detector with its
defaults, on 16 built-in scenes: the share of the time that costs and assignment of predictions to objects take.

Required: at most 0.95 of transformers' time, median of same-round ratios, and a share of at most 10 %. Exit 1 if not.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import CLOCKS, Run, arguments, interleave, machine, ratio, write_rows
from torch import Tensor, nn

from mmattn.backbones.detection import above, detect_by_sigmoid
from mmattn.backbones.rt_detr import RTDetr
from mmattn.onednn import use_onednn
from mmattn.pretrained.keymap import load_into
from mmattn.pretrained.rt_detr import convert_rt_detr
from mmattn.tasks.detection.data import DetectionDataset
from mmattn.tasks.detection.demo import make
from mmattn.tasks.detection.losses import DetectionLoss
from mmattn.tasks.detection.model import DetectionModel
from mmattn.tasks.detection.processor import DetectionProcessor

BATCHES = (1, 4)
BAR, SHARE = 0.95, 0.10
THEIRS, OURS, AGAIN = "transformers", "mmattn", "transformers again"  # the last is the A/A row
THRESHOLD = 0.6
SCENES, STEPS = 16, 20
EXACT, CLOSE = 1e-8, 1e-4  # in float64, and in float32

Rows = list[dict[str, Any]]
Boxes = list[tuple[Tensor, Tensor, Tensor]]  # scores (N,), labels (N,), boxes xyxy (N, 4) of each image


def make_models() -> tuple[nn.Module, RTDetr]:
    """transformers' model, with random weights, and the one converted from it."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        num_labels=80,
        anchor_image_size=None,
    )
    torch.manual_seed(0)
    theirs = RTDetrForObjectDetection(config).eval()
    with torch.no_grad():  # as drawn by its constructor, all queries have nearly equal scores and boxes
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
            elif parameter.shape == (config.num_labels,):
                parameter.fill_(-2.0)  # of scores
        norms = [module for module in theirs.modules() if hasattr(module, "running_var")]
        hooks = [norm.register_forward_pre_hook(_set_statistics) for norm in norms]
        theirs(torch.randn(2, 3, 128, 128))
        for hook in hooks:
            hook.remove()
    converted = convert_rt_detr(config.to_dict(), theirs.state_dict())
    ours = RTDetr(**converted.keywords).eval()
    load_into(ours, converted)
    return theirs, ours


def _set_statistics(norm: Any, inputs: tuple[Tensor]) -> None:
    """Makes a batch norm's constant statistics those of its input (B, C, H, W)."""
    norm.running_var.copy_(inputs[0].var((0, 2, 3)))
    norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))


def their_detections(model: nn.Module, pixels: Tensor, sizes: Tensor) -> Boxes:
    from transformers import RTDetrImageProcessor

    processor = RTDetrImageProcessor()
    with torch.inference_mode():
        found = processor.post_process_object_detection(model(pixels), THRESHOLD, target_sizes=sizes)
    return [(one["scores"], one["labels"], one["boxes"]) for one in found]


def our_detections(model: nn.Module, pixels: Tensor, sizes: Tensor) -> Boxes:
    with torch.inference_mode():
        output = model(pixels)
        found = above(detect_by_sigmoid(output.logits, output.boxes_cxcywh, sizes, top_k=None), THRESHOLD)
    return [(one.scores, one.labels, one.boxes_xyxy) for one in found]


def compare(theirs: nn.Module, ours: RTDetr, pixels: Tensor, sizes: Tensor) -> int:
    """The number of detections, which must be the same.

    In float32, rounding may exchange queries of nearly equal scores, so that only the scores are compared.
    """
    pairs = ((their_detections, theirs), (our_detections, ours))
    exact = [find(model.double(), pixels.double(), sizes) for find, model in pairs]
    gap = max(
        float((a.double() - b.double()).abs().max()) if a.shape == b.shape and len(a) else float("inf")
        for first, second in zip(*exact, strict=True)
        for a, b in zip(first, second, strict=True)
    )
    if not gap <= EXACT:
        raise SystemExit(f"the detections differ by {gap:.1e} in float64: these are not the same models")
    rounded = [find(model.float(), pixels, sizes) for find, model in pairs]
    for (a, *_), (b, *_) in zip(*rounded, strict=True):
        count = min(len(a), len(b))
        if abs(len(a) - len(b)) > 2 or not float((a[:count] - b[:count]).abs().max()) <= CLOSE:
            raise SystemExit(f"the scores differ in float32: {len(a)} and {len(b)} detections")
    return sum(len(scores) for scores, *_ in exact[0])


def measure_forward(options: Any) -> tuple[list[str], Rows]:
    """Print the rows of all batch sizes; returns the failing bars, and the rows."""
    theirs, ours = make_models()
    use_onednn(ours)  # as `load` does
    failing, rows = [], []
    for batch in BATCHES:
        pixels = torch.randn(batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(batch))
        sizes = torch.tensor([[480, 640]]).repeat(batch, 1)
        count = compare(theirs, ours, pixels, sizes)

        def run(find: Callable[..., Boxes], model: nn.Module, pixels: Tensor = pixels, sizes: Tensor = sizes) -> Run:
            return lambda: find(model, pixels, sizes)

        runs = {THEIRS: run(their_detections, theirs), OURS: run(our_detections, ours)}
        runs[AGAIN] = runs[THEIRS]
        seconds = interleave(runs, options.rounds, clock=CLOCKS[options.clock])
        print(f"\nbatch {batch}, {count} boxes{'ms':>12}  over transformers', median of same rounds [quartiles]")
        for name, times in seconds.items():
            found = ratio(seconds, name, THEIRS)
            rows.append({"batch": batch, "name": name, "seconds": times, "ratio": found})
            print(f"{name:<20}{1e3 * statistics.median(times):>10.1f}  {found if name != THEIRS else ''}", flush=True)
        median = ratio(seconds, OURS, THEIRS).median
        if not median <= BAR:
            failing.append(f"batch {batch}: {median:.3f} of transformers' time")
    return failing, rows


def measure_matching(options: Any) -> tuple[list[str], Rows]:
    """Print the share of matching in training steps; returns the failing bar, and the row."""
    torch.manual_seed(0)
    dataset = DetectionDataset(make("train", SCENES))
    processor = DetectionProcessor.fit(dataset)
    batch = processor.collate(dataset.samples)
    model, loss = use_onednn(DetectionModel(**processor.sizes())).train(), DetectionLoss()
    model.to(memory_format=torch.channels_last)  # as the training module does
    pixels = batch.pixel_values.contiguous(memory_format=torch.channels_last)
    truth = (batch.boxes_cxcywh, batch.labels, batch.box_mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    match, clock, spent = loss.match, CLOCKS[options.clock], [0.0]

    def timed(*arguments: Any) -> Any:
        start = clock()
        pairs = match(*arguments)
        spent[0] += clock() - start
        return pairs

    loss.match = timed  # type: ignore[method-assign]
    shares, steps = [], []
    for _ in range(2 + STEPS):
        spent[0], start = 0.0, clock()
        optimizer.zero_grad()
        parts = loss(model(pixels, batch.pixel_mask, *truth), *truth)
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()
        steps.append(clock() - start)
        shares.append(spent[0] / steps[-1])
    shares, steps = shares[2:], steps[2:]
    low, share, high = statistics.quantiles(shares, n=4)
    boxes = int(batch.box_mask.sum())
    print(
        f"\ntraining step, {SCENES} scenes, {boxes} boxes: {1e3 * statistics.median(steps):.0f} ms, of which matching"
    )
    print(f"{share:.1%} [{low:.1%}, {high:.1%}]")
    row = {"name": "matching", "seconds": steps, "shares": shares, "must": SHARE}
    return [f"matching: {share:.1%} of a step"] * (not share <= SHARE), [row]


def main() -> int:
    options = arguments(__doc__, size=640, clock="wall")
    if options.clock not in CLOCKS:
        print(f"unknown clock {options.clock!r}; expected one of: {', '.join(CLOCKS)}", file=sys.stderr)
        return 2
    print(f"{machine()}; {options.size} x {options.size}, {options.rounds} rounds, {options.clock} clock")
    failing, rows = [], []
    for measure in (measure_forward, measure_matching):
        broken, found = measure(options)
        failing += broken
        rows += found
    write_rows(options.json, rows)
    print(f"\nat most {BAR} of transformers' time, matching at most {SHARE:.0%}: " + ("; ".join(failing) or "holds"))
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
