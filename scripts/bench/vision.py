"""Compare a ViT-S/16's forward pass and training step with timm's, with the same weights.

python scripts/bench/vision.py [--threads N] [--rounds N] [--batch N] [--clock wall|cpu] [--json FILE]

timm's `vit_small_patch16_224` (224 x 224 pixels, 1,000 classes, float32, random weights), and VisionTransformer with a
linear head, converted from it; outputs and gradients must agree before timing. A training step is forward,
cross-entropy, backward and AdamW; the forward pass alone runs in evaluation without gradients. --clock cpu measures the
time of this process, summed over threads, for shared machines.

Required: each at most 1.02 of timm's time, median of same-round ratios. Exit 1 if not.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import timm
import torch
from common import CLOCKS, Ratio, arguments, interleave, machine, make_forward, make_step, ratio, write_rows
from torch import Tensor, nn

from mmattn.backbones.vit import VisionTransformer
from mmattn.onednn import use_onednn
from mmattn.pretrained.keymap import load_into
from mmattn.pretrained.timm import convert_timm

NAME = "vit_small_patch16_224"
CLASSES = 1000
BAR = 1.02
TIMM, OURS, AGAIN = "timm", "mmattn", "timm again"  # the last is the A/A row
CLOSE = 1e-4  # in float32


class Classifier(nn.Module):
    """VisionTransformer and a linear head."""

    def __init__(self, backbone: VisionTransformer, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 224, 224) to (B, CLASSES)."""
        return self.head(self.backbone(pixel_values).pooled)


def make_models() -> tuple[nn.Module, nn.Module]:
    """timm's model and the one converted from it."""
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, num_classes=CLASSES)
    converted = convert_timm({"architecture": NAME, "input_size": [3, 224, 224]}, theirs.state_dict())
    backbone = VisionTransformer(**converted.keywords)
    load_into(backbone, converted)
    head = nn.Linear(backbone.encoder.norm.weight.shape[0], CLASSES)
    head.load_state_dict(theirs.head.state_dict())
    return theirs, use_onednn(Classifier(backbone, head))  # as `fit` and `load` do


def measure(mode: str, options: Any) -> tuple[Ratio, list[dict[str, Any]]]:
    """Print the rows of one mode; returns the ratio to timm's time, and the rows."""
    theirs, ours = make_models()
    pixels = torch.randn(options.batch, 3, 224, 224)
    labels = torch.randint(CLASSES, (options.batch,))
    if mode == "forward":
        runs = {TIMM: make_forward(theirs, pixels), OURS: make_forward(ours, pixels)}
    else:
        runs = {TIMM: make_step(theirs, pixels, labels), OURS: make_step(ours, pixels, labels)}
    gap = float((runs[OURS]() - runs[TIMM]()).abs().max())
    if mode != "forward":  # AdamW amplifies rounding errors to whole steps, so only the first loss is compared
        first = [ours.backbone.patches.proj.weight.grad, theirs.patch_embed.proj.weight.grad]
        gap = max(gap, float((first[0] - first[1]).abs().max() / first[1].abs().max()))
    if not gap <= CLOSE:
        raise SystemExit(f"{mode}: the outputs differ by {gap:.1e}: these are not the same models")
    runs[AGAIN] = runs[TIMM]
    seconds = interleave(runs, options.rounds, clock=CLOCKS[options.clock])
    rows = []
    print(f"\n{mode:<16}{'milliseconds':>14}  over timm's, median of same rounds [quartiles]")
    for name, times in seconds.items():
        found = ratio(seconds, name, TIMM)
        rows.append({"mode": mode, "name": name, "seconds": times, "ratio": found})
        print(f"{name:<16}{1e3 * statistics.median(times):>14.1f}  {found if name != TIMM else ''}")
    return ratio(seconds, OURS, TIMM), rows


def main() -> int:
    options = arguments(__doc__, batch=8, clock="wall")
    if options.clock not in CLOCKS:
        print(f"unknown clock {options.clock!r}; expected one of: {', '.join(CLOCKS)}", file=sys.stderr)
        return 2
    print(
        f"{machine()}; batch {options.batch}, {options.rounds} rounds, {options.clock} clock, timm {timm.__version__}"
    )
    broken, rows = [], []
    for mode in ("forward", "training step"):
        found, more = measure(mode, options)
        rows += more
        if not found.median <= BAR:
            broken.append(f"{mode}: {found.median:.3f}")
    write_rows(options.json, rows)
    print(f"\nat most {BAR} of timm's: " + ("; ".join(broken) or "holds"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
