"""Pictures of explanations: the film with the weights of its frames, and overlays on the heaviest frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmattn.data.image.processor import Box
from mmattn.plot import FLAT, LEAST, LINE, NEARLY_UNIFORM, color_bar, heat, in_uniform, plain, scale_end

OVERLAYS = 4  # frames on which the cells are drawn
MOST = 24  # frames of the film that are shown


def draw_film(
    frames: Sequence[np.ndarray],
    times: Sequence[float],
    weights: Tensor,
    maps: Tensor,
    path: str | Path,
    title: str,
    window: Box,
    regions: Sequence[Sequence[Box]] = (),
) -> None:
    """Write a PNG: the frames in a row, their weights as bars below, and overlays on the heaviest ones.

    Args:
        frames: The T frames, (H, W, 3) uint8.
        times: When each is shown, in seconds.
        weights: (T,), shares of the frames that sum to one.
        maps: (T, gh, gw), shares of the cells of each frame.
        path: The file.
        title: Title of the figure.
        window: The part of the frames that the maps cover, xyxy in 0..1.
        regions: Boxes xyxy in 0..1 of each frame, to outline.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    T = len(frames)
    H, W = frames[0].shape[:2]
    heaviest = sorted(sorted(range(T), key=lambda n: -float(weights[n]))[:OVERLAYS])
    shown = sorted({round(n * (T - 1) / max(min(T, MOST) - 1, 1)) for n in range(min(T, MOST))} | set(heaviest))
    width = 11.0
    ratio = H / W
    film, below = width / len(shown) * ratio + 0.15, max((width / OVERLAYS - 0.9) * ratio, 1.8) + 0.35
    height = film + 1.0 + below + LINE * (len(title.splitlines()) + 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=[film, 1.0, below])
    top, middle, bottom = parts
    for axis, n in zip(top.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        axis.imshow(frames[n], interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set(color="tab:orange" if n in heaviest else "0.7", linewidth=2 if n in heaviest else 0.5)
        for x0, y0, x1, y1 in regions[n] if regions else ():
            box = Rectangle((x0 * W, y0 * H), (x1 - x0) * W, (y1 - y0) * H, fill=False, edgecolor="cyan", linewidth=1)
            axis.add_patch(box)
    relative = in_uniform(weights)
    strip = middle.subplots()
    colors = ["tab:orange" if n in heaviest else "tab:blue" for n in range(T)]
    strip.bar(range(T), relative.numpy(), color=colors, width=0.8)
    strip.axhline(1.0, color="tab:green", linewidth=1)
    flat = float(relative.max()) < FLAT
    strip.set(xlim=(-0.5, T - 0.5), ylim=(0, max(LEAST, float(relative.max()))), ylabel="times\nuniform")
    strip.set_title(f"weight of each frame{f', {NEARLY_UNIFORM}' if flat else ''} (line: 1)", fontsize=9)
    step = -(-T // 24)
    strip.set_xticks(range(0, T, step), [f"{times[n]:.2f}" for n in range(0, T, step)], fontsize=7)
    strip.set_xlabel("seconds", fontsize=8)
    x0, y0, x1, y1 = window
    for axis, n in zip(bottom.subplots(1, OVERLAYS, squeeze=False)[0], [*heaviest, *[-1] * OVERLAYS], strict=False):
        axis.set_axis_off()
        if n < 0:
            continue
        gray = np.repeat(frames[n].mean(2, keepdims=True) / 255, 3, axis=2)
        axis.imshow(gray, extent=(0, W, H, 0), interpolation="nearest")
        cells = in_uniform(maps[n])
        found = heat(axis, cells, (x0 * W, x1 * W, y1 * H, y0 * H), scale_end([cells]))
        color_bar(bottom, found, axis, "times uniform", 1.0)
        axis.set(xlim=(0, W), ylim=(H, 0))
        axis.set_title(plain(f"{times[n]:.2f} s, frame {float(relative[n]):.1f} times uniform"), fontsize=8)
        for left, upper, right, lower in regions[n] if regions else ():
            place, size = (left * W, upper * H), ((right - left) * W, (lower - upper) * H)
            axis.add_patch(Rectangle(place, *size, fill=False, edgecolor="cyan", linewidth=1.5))
    figure.suptitle(plain(title), fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_gif(
    frames: Sequence[np.ndarray], weights: Tensor, maps: Tensor, path: str | Path, window: Box, seconds: float
) -> None:
    """Write a GIF of the frames with their cells as red light, and the weight of the frame as a bar below.

    Args:
        frames: The T frames, (H, W, 3) uint8.
        weights: (T,), shares of the frames.
        maps: (T, gh, gw), shares of the cells of each frame.
        path: The file.
        window: The part of the frames that the maps cover, xyxy in 0..1.
        seconds: Length of the film.
    """
    from PIL import Image, ImageDraw

    relative = in_uniform(weights) / max(LEAST, float(in_uniform(weights).max()))
    pictures: list[Any] = []
    for frame, weight, cells in zip(frames, relative.tolist(), maps, strict=True):
        image = Image.fromarray(frame)
        scale = max(1, -(-160 // image.width))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        W, H = image.size
        x0, y0, x1, y1 = (round(value * side) for value, side in zip(window, (W, H, W, H), strict=True))
        strength = (in_uniform(cells) / scale_end([in_uniform(cells)])).clamp(0, 1) * weight
        light = Image.fromarray((strength.numpy() * 180).astype(np.uint8)).resize(
            (max(x1 - x0, 1), max(y1 - y0, 1)), Image.Resampling.BILINEAR
        )
        image.paste(Image.new("RGB", light.size, (255, 40, 0)), (x0, y0), light)
        whole = Image.new("RGB", (W, H + 8))
        whole.paste(image)
        ImageDraw.Draw(whole).rectangle((0, H + 1, round(W * weight), H + 7), fill=(255, 150, 0))
        pictures.append(whole)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    each = max(round(1000 * seconds / len(pictures)), 20)  # milliseconds; viewers slow down what is faster
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=each, loop=0)
