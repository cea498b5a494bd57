"""Plots of attention. matplotlib is imported inside the functions, and its global state is not changed.

Maps of attention are drawn in multiples of what uniform attention would give, on a scale from zero to at least
`LEAST` times that: a map without a preference is drawn and named as one, instead of its noise at full contrast.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEAST = 3.0  # multiple of uniform attention at which a color scale ends at the earliest
FLAT = 1.5  # multiple of uniform attention below which a map is called nearly uniform
NEARLY_UNIFORM = "nearly uniform"
CHARACTER, LINE = 0.1, 0.19  # inches of a title's characters, generously, and lines


def heat_map(
    weights: Tensor | Sequence[Tensor],
    row_labels: Sequence[str] | None = None,
    col_labels: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    titles: Sequence[str] | None = None,
    row_name: str = "attends",
    col_name: str = "attended to",
    value_name: str = "attention weight",
    title: str | None = None,
    numbers: Tensor | None = None,
) -> Any:
    """Plots attention between tokens: one row per query, one column per key, darker = more.

    The scale ends at `LEAST` times uniform attention, 1 / S, or higher; uniform attention is marked beside it.

    Args:
        weights: One map (L, S), or several, (n, L, S) or a list, drawn side by side (heads, layers).
        row_labels: The L query tokens.
        col_labels: The S key tokens.
        path: File to write (the suffix determines the format); None = no file.
        titles: One title per map.
        row_name: Label of the rows' axis.
        col_name: Label of the columns' axis.
        value_name: Label of the values.
        title: Title of the figure.
        numbers: (L, S) integers to write into the cells, if these are shares of something counted and not attention;
            the scale is then 0 to 1.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: The number of labels does not match the map.
    """
    maps = _panels(weights)
    _check_titles(titles, len(maps))
    L, S = maps[0].shape
    for name, labels, size in (("row_labels", row_labels, L), ("col_labels", col_labels, S)):
        if labels is not None and len(labels) != size:
            raise ValueError(f"{name} has {len(labels)} labels for {size} {name[:3]}s of the map")
    width, height = 1.6 + min(0.28 * S, 12), 1.4 + min(0.28 * L, 12)
    figure, axes = _grid(len(maps), 4, max(width, 6.0 if title else 3.2), max(height, 2.2), _above(title))
    uniform = None if numbers is not None else 1 / S
    top = scale_end(maps, 1.0 if uniform is None else min(LEAST * uniform, 1.0))
    image: Any = None
    for i, axis in enumerate(axes):
        image = axis.imshow(maps[i].numpy(), cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
        axis.set_xlabel(col_name)
        axis.set_ylabel(row_name)
        _ticks(axis, "x", col_labels, S)
        _ticks(axis, "y", row_labels, L)
        _title(axis, titles[i] if titles is not None else "", uniform is not None and is_flat(maps[i], uniform))
        for row, column in numbers.nonzero().tolist() if numbers is not None else ():
            color = "white" if maps[i][row, column] > 0.6 else "black"
            text = {"ha": "center", "va": "center", "fontsize": 7, "color": color}
            axis.text(column, row, f"{int(numbers[row, column])}", **text)  # type: ignore[index]
    color_bar(figure, image, figure.axes, value_name, uniform)
    return _finish(figure, path, title)


def overlay(
    image: Any,
    weights: Tensor | Sequence[Tensor],
    path: str | Path | None = None,
    title: str | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    *,
    titles: Sequence[str] | None = None,
    window: Sequence[float] = (0.0, 0.0, 1.0, 1.0),
) -> Any:
    """Plots an image, then maps of attention overlaid on it.

    Args:
        image: (H, W, 3) or (H, W) array of 0..255 or 0..1, a tensor (3, H, W), or a PIL image.
        weights: One map (h, w), or several, (n, h, w) or a list; each is upsampled bilinearly to the image and drawn in
            multiples of its mean, which is what uniform attention would give.
        path: File to write; None = no file.
        title: Title of the figure.
        boxes: Boxes xyxy in 0..1 of the image to outline, e.g. the reference regions of an answer.
        titles: One title per map; a flat map is called so in it.
        window: The part of the image that the maps cover, xyxy in 0..1, if the model's input is a crop or padded.

    Returns:
        The matplotlib Figure.
    """
    from matplotlib.patches import Rectangle

    pixels = _pixels(image)  # (H, W, 3) in 0..1
    H, W = pixels.shape[:2]
    maps = _panels(weights)
    _check_titles(titles, len(maps))
    figure, axes = _grid(len(maps) + 1, 4, 3.4, 3.0 * min(max(H / W, 0.3), 3.0) + 0.35, 0.1 + _above(title))
    for i, axis in enumerate(axes):
        axis.set_axis_off()
        # Under a map the image is gray, so that colors represent attention alone.
        shown = pixels if i == 0 else pixels.mean(-1, keepdim=True).expand(-1, -1, 3)
        axis.imshow(shown.numpy(), extent=(0, W, H, 0), interpolation="nearest")
        if i > 0:
            x0, y0, x1, y1 = window
            relative = in_uniform(maps[i - 1])
            found = heat(axis, relative, (x0 * W, x1 * W, y1 * H, y0 * H), scale_end([relative]))
            color_bar(figure, found, axis, "times uniform", 1.0)
            axis.set(xlim=(0, W), ylim=(H, 0))
            _title(axis, titles[i - 1] if titles is not None else "", is_flat(relative))
        for x0, y0, x1, y1 in boxes or ():
            box = Rectangle((x0 * W, y0 * H), (x1 - x0) * W, (y1 - y0) * H, fill=False, edgecolor="cyan", linewidth=1.5)
            axis.add_patch(box)
    return _finish(figure, path, title)


def heat(axis: Any, weight: Tensor, extent: Sequence[float], top: float) -> Any:
    """Overlays a map on an axis; low values are nearly transparent.

    Args:
        axis: A matplotlib Axes.
        weight: (h, w), upsampled bilinearly to whole units of the extent.
        extent: Left, right, bottom and top of the map, rows running down.
        top: The value at which the color scale, which begins at zero, ends.

    Returns:
        What `color_bar` takes.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    left, right, bottom, upper = extent
    size = (max(1, round(bottom - upper)), max(1, round(right - left)))
    large = torch.nn.functional.interpolate(weight.float()[None, None], size=size, mode="bilinear")[0, 0].cpu()
    alpha = 0.3 + 0.4 * (large / top).clamp(0, 1)
    norm = Normalize(0, top)
    axis.imshow(large.numpy(), extent=tuple(extent), cmap="inferno", norm=norm, alpha=alpha.numpy())
    return ScalarMappable(norm, "inferno")


def in_uniform(weight: Tensor) -> Tensor:
    """A map of attention in multiples of its mean, which is what uniform attention would give; zeros stay zeros."""
    return weight / weight.mean().clamp_min(1e-12)


def scale_end(maps: Sequence[Tensor], least: float = LEAST) -> float:
    """The end of a color scale: the largest value of the maps, or `least` if that is higher."""
    return max(least, *(float(weight.max()) for weight in maps))


def is_flat(weight: Tensor, uniform: float = 1.0) -> bool:
    """Whether no value of a map exceeds `FLAT` times uniform attention."""
    return float(weight.max()) < FLAT * uniform


def color_bar(figure: Any, image: Any, axis: Any, name: str, uniform: float | None = None) -> None:
    """Draws a color bar with numbers, and a line at uniform attention if that is given."""
    bar = figure.colorbar(image, ax=axis, shrink=0.8)
    bar.ax.locator_params(nbins=4)  # each costs time
    if uniform is not None:
        bar.ax.axhline(uniform, color="tab:green", linewidth=2)
        name += " (line: 1)" if uniform == 1.0 else f" (line: uniform, {uniform:.2g})"
    bar.set_label(name, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def caption(name: str, predicted: str, truth: str | None = None, width: float = 6.0) -> str:
    """The title of an explanation: the item's name, what was predicted and, if it is known, what is true.

    Args:
        name: The item's name; empty: none.
        predicted: The prediction in words.
        truth: What is true, in words; None: unknown.
        width: Width of the figure in inches, to which lines are broken; long texts are cut after three lines.

    >>> caption("cats/7.jpg", "dog (0.62)", "cat").splitlines()
    ['cats/7.jpg', 'predicted: dog (0.62); true: cat']
    """
    most = max(round(width / CHARACTER), 20)
    lines = []
    texts = [f"predicted: {predicted}", *([f"true: {truth}"] if truth is not None else [])]
    if len("; ".join(texts)) <= most:
        texts = ["; ".join(texts)]
    for text in filter(None, (name, *texts)):
        lines += textwrap.wrap(text, most, max_lines=3, placeholder=" ...")
    return "\n".join(lines)


def head_chart(
    statistics: Any,
    path: str | Path | None = None,
    *,
    layer_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Any:
    """Plots statistics of heads, one panel per statistic, one row per layer, one column per head; NaN is empty.

    Args:
        statistics: Result of `mmattn.explain.head_statistics`, or any mapping of names to tensors (layers, h).
        path: File to write; None = no file.
        layer_names: One name per layer; None = numbers from 0.
        title: Title of the figure.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: Values that are not (layers, h), or names that do not match.
    """
    values = dict(statistics._asdict() if hasattr(statistics, "_asdict") else statistics)
    panels = _panels(list(values.values()))
    if len({panel.shape for panel in panels}) > 1:
        raise ValueError(f"expected values of one shape, found {[tuple(panel.shape) for panel in panels]}")
    layers, h = panels[0].shape
    if layer_names is not None and len(layer_names) != layers:
        raise ValueError(f"{len(layer_names)} layer_names for {layers} layers")
    names = [str(i) for i in range(layers)] if layer_names is None else layer_names
    width, height = 2.2 + min(0.35 * h, 10), 1.3 + min(0.35 * layers, 10)
    figure, axes = _grid(len(panels), 2, width, height, _above(title))
    for i, axis in enumerate(axes):
        image = axis.imshow(panels[i].numpy(), cmap="viridis", aspect="auto")
        figure.colorbar(image, ax=axis, shrink=0.9)
        axis.set(xlabel="head", ylabel="layer")
        axis.set_title(plain(list(values)[i].replace("_", " ")), fontsize=9)
        axis.set_xticks(range(h), [str(head) for head in range(h)], fontsize=8)
        _ticks(axis, "y", names, layers)
    return _finish(figure, path, title)


def _grid(count: int, most: int, width: float, height: float, above: float = 0.0) -> tuple[Any, list[Any]]:
    """Makes a figure with axes for count panels, at most ``most`` side by side; sizes in inches."""
    from matplotlib.figure import Figure

    columns = min(most, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height + above), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _above(title: str | None) -> float:
    """Inches that a figure's title takes."""
    return 0.1 + LINE * len(title.splitlines()) if title else 0.0


def _panels(weights: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(weights, Tensor):
        weights = [weights] if weights.dim() == 2 else list(weights)
    maps = [torch.as_tensor(weight).detach().float().cpu() for weight in weights]
    if not maps or any(weight.dim() != 2 for weight in maps):
        raise ValueError(f"expected maps of two dimensions, found shapes {[tuple(weight.shape) for weight in maps]}")
    return maps


def _title(axis: Any, text: str, flat: bool) -> None:
    words = [text] if text else []
    axis.set_title(plain(", ".join([*words, *([NEARLY_UNIFORM] if flat else [])])), fontsize=9)


def _check_titles(titles: Sequence[str] | None, count: int) -> None:
    if titles is not None and len(titles) != count:
        raise ValueError(f"{len(titles)} titles for {count} maps")


def _ticks(axis: Any, side: str, labels: Sequence[str] | None, size: int) -> None:
    if labels is None:
        return
    step = -(-size // 60)  # more would be illegible
    shown = range(0, size, step)
    turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if side == "x" else {}  # ends at its column
    getattr(axis, f"set_{side}ticks")(shown, [plain(labels[i]) for i in shown], fontsize=8, **turned)


def plain(text: str) -> str:
    """A text as matplotlib draws it: a pair of dollars would be mathematics, and bytes that are no text an error."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def _pixels(image: Any) -> Tensor:
    """Converts an image of any kind to (H, W, 3) float in 0..1, on the CPU."""
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        if pixels.dim() == 3 and pixels.shape[0] in (1, 3):
            pixels = pixels.permute(1, 2, 0)
    else:
        import numpy as np

        if hasattr(image, "convert"):
            image = image.convert("RGB")
        pixels = torch.from_numpy(np.array(image))
    scale = 1.0 if pixels.is_floating_point() else 255.0
    pixels = (pixels.float() / scale).clamp(0, 1)
    if pixels.dim() == 2:
        pixels = pixels.unsqueeze(-1)
    if pixels.dim() != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"expected an image (H, W, 3), found shape {tuple(pixels.shape)}")
    return pixels.expand(-1, -1, 3) if pixels.shape[-1] == 1 else pixels[..., :3]


def _finish(figure: Any, path: str | Path | None, title: str | None = None) -> Any:
    if title:
        figure.suptitle(plain(title), fontsize=10)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    return figure
