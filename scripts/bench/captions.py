"""Compare BLIP's captioning with transformers', with the same weights and the same ids, interleaved.

python scripts/bench/captions.py [--threads N] [--rounds N] [--clock wall|cpu] [--json FILE]

32 images of 384 x 384 pixels, exactly 20 new tokens each; a ViT-B/16 and a decoder of 12 layers, with random weights,
in float32. Required: at most 0.60 of transformers' time with AVX-512, 0.80 with AVX2 alone, greedy and with 3 beams;
and the same ids. "Encoder" is the share of the images' encoder in our time. `generation.py` runs it, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import CLOCKS, Ratio, arguments, interleave, machine, ratio, write_rows
from torch import Tensor

from mmattn import GenerationConfig
from mmattn.backbones.image_text import ImageToText
from mmattn.linears import prepare
from mmattn.pretrained.blip import convert_blip

IMAGES, SIDE, NEW = 32, 384, 20
START, END, PAD = 1, 2, 0
BEAMS = {"greedy": 1, "beam 3": 3}
MUST = 0.80 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 0.60
OPTIONS: dict[str, Any] = {"min_new_tokens": NEW, "max_new_tokens": NEW}


def random_blip() -> Any:
    """transformers' BLIP with random weights that are large enough to avoid ties of arg-max."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    ids = {"bos_token_id": START, "sep_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    config = BlipConfig(text_config=ids | {"num_attention_heads": 12}, vision_config={"image_size": SIDE})
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def transformers_search(model: Any, pixels: Tensor) -> Callable[[int], list[list[int]]]:
    """Beams to the ids of each image, by transformers."""

    def run(beams: int) -> list[list[int]]:
        with torch.inference_mode():
            ids = model.generate(pixel_values=pixels, num_beams=beams, do_sample=False, **OPTIONS)
        return ids[:, 1 : NEW + 1].tolist()

    return run


def our_model(theirs: Any) -> ImageToText:
    """The same network of this toolkit."""
    converted = convert_blip(theirs.config.to_dict(), theirs.state_dict())
    model = ImageToText(**converted.keywords).eval()
    model.load_state_dict(converted.state)
    prepare(model, "float32")
    return model


def our_search(model: ImageToText, pixels: Tensor) -> Callable[[int], list[list[int]]]:
    """Beams to the ids of each image, by this toolkit."""

    def run(beams: int) -> list[list[int]]:
        ids = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
        found = model.generate(pixels, GenerationConfig(num_beams=beams, **ids, **OPTIONS), with_scores=False)
        return [best[0] for best in found.tokens()]

    return run


def measure(given: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Print a line for each search; returns their rows, and the number of bars that fail."""
    pixels = torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    theirs = random_blip()
    ours = our_model(theirs)
    searches = {"transformers": transformers_search(theirs, pixels), "ours": our_search(ours, pixels)}

    ids: dict[str, list[list[int]]] = {}

    def note(name: str, beams: int) -> None:
        ids[name] = searches[name](beams)

    with torch.inference_mode():
        encoder = min(interleave({"": lambda: ours.encode(pixels)}, 1, 1, CLOCKS[given.clock])[""])
    print(f"time over transformers', median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    rows, broken = [], 0
    for mode, beams in BEAMS.items():
        runs = {name: partial(note, name, beams) for name in searches}
        seconds = interleave(runs, rounds=given.rounds, warmup=0, clock=CLOCKS[given.clock])
        time: Ratio = ratio(seconds, "ours", "transformers")
        best = min(seconds["ours"])
        same = sum(a == b for a, b in zip(*ids.values(), strict=True)) / IMAGES
        holds = time.median <= MUST and same == 1.0
        broken += not holds
        row = {"mode": mode, "name": "captions", "time": time, "same captions": same, "must": MUST, "holds": holds}
        rows.append(row | {"seconds": best, "encoder": encoder / best})
        text = f"{mode:<7} captions {time}, {best:.1f} s, encoder {encoder / best:.2f}"
        print(f"{text}, {same:4.0%} the same ids; must {MUST}: {'holds' if holds else 'FAILS'}", flush=True)
    return rows, broken


def main() -> int:
    given = arguments(__doc__, rounds=3, clock="wall")
    rows, broken = measure(given)
    write_rows(given.json, rows)
    print(f"{broken} bars fail" if broken else "all bars hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
