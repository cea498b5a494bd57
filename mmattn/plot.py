"""Plots of attention. matplotlib is imported inside the functions, and its global state is not changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
) -> Any:
    """Plots attention between tokens: one row per query, one column per key, darker = more.

    Args:
        weights: One map (L, S), or several, (n, L, S) or a list, drawn side by side (heads, layers).
        row_labels: The L query tokens.
        col_labels: The S key tokens.
        path: File to write (the suffix determines the format); None = no file.
        titles: One title per map.
        row_name: Label of the rows' axis.
        col_name: Label of the columns' axis.
        value_name: Label of the values.

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
    figure, axes = _grid(len(maps), 4, 1.6 + min(0.28 * S, 12), 1.4 + min(0.28 * L, 12))
    top = max(float(weight.max()) for weight in maps) or 1.0
    image: Any = None
    for i, axis in enumerate(axes):
        image = axis.imshow(maps[i].numpy(), cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
        axis.set_xlabel(col_name)
        axis.set_ylabel(row_name)
        _ticks(axis, "x", col_labels, S)
        _ticks(axis, "y", row_labels, L)
        if titles is not None:
            axis.set_title(_plain(titles[i]), fontsize=9)
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label=value_name)
    return _finish(figure, path)


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
        weights: One map (h, w), or several, (n, h, w) or a list; each is upsampled bilinearly to the image and scaled
            to its own largest value.
        path: File to write; None = no file.
        title: Title of the figure.
        boxes: Boxes xyxy in 0..1 of the image to outline, e.g. the reference regions of an answer.
        titles: One title per map.
        window: The part of the image that the maps cover, xyxy in 0..1, if the model's input is a crop or padded.

    Returns:
        The matplotlib Figure.
    """
    from matplotlib.patches import Rectangle

    pixels = _pixels(image)  # (H, W, 3) in 0..1
    H, W = pixels.shape[:2]
    maps = _panels(weights)
    _check_titles(titles, len(maps))
    figure, axes = _grid(len(maps) + 1, 4, 3.0, 3.0 * min(max(H / W, 0.3), 3.0) + 0.35, 0.5 if title else 0.1)
    for i, axis in enumerate(axes):
        axis.set_axis_off()
        # Under a map the image is gray, so that colors represent attention alone.
        shown = pixels if i == 0 else pixels.mean(-1, keepdim=True).expand(-1, -1, 3)
        axis.imshow(shown.numpy(), extent=(0, W, H, 0), interpolation="nearest")
        if i > 0:
            x0, y0, x1, y1 = window
            heat(axis, maps[i - 1], (x0 * W, x1 * W, y1 * H, y0 * H))
            axis.set(xlim=(0, W), ylim=(H, 0))
            if titles is not None:
                axis.set_title(_plain(titles[i - 1]), fontsize=9)
        for x0, y0, x1, y1 in boxes or ():
            box = Rectangle((x0 * W, y0 * H), (x1 - x0) * W, (y1 - y0) * H, fill=False, edgecolor="cyan", linewidth=1.5)
            axis.add_patch(box)
    return _finish(figure, path, title)


def heat(axis: Any, weight: Tensor, extent: Sequence[float]) -> None:
    """Overlays a map on an axis, scaled to its own largest value; low values are nearly transparent.

    Args:
        axis: A matplotlib Axes.
        weight: (h, w), upsampled bilinearly to whole units of the extent.
        extent: Left, right, bottom and top of the map, rows running down.
    """
    left, right, bottom, top = extent
    size = (max(1, round(bottom - top)), max(1, round(right - left)))
    large = torch.nn.functional.interpolate(weight.float()[None, None], size=size, mode="bilinear")[0, 0]
    shown = (large / large.max().clamp_min(1e-12)).clamp(0, 1).cpu().numpy()
    axis.imshow(shown, extent=tuple(extent), cmap="inferno", vmin=0, vmax=1, alpha=0.3 + 0.4 * shown)


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
    figure, axes = _grid(len(panels), 2, width, height, 0.4 if title else 0.0)
    for i, axis in enumerate(axes):
        image = axis.imshow(panels[i].numpy(), cmap="viridis", aspect="auto")
        figure.colorbar(image, ax=axis, shrink=0.9)
        axis.set(xlabel="head", ylabel="layer")
        axis.set_title(_plain(list(values)[i].replace("_", " ")), fontsize=9)
        _ticks(axis, "x", [str(head) for head in range(h)], h)
        axis.tick_params(axis="x", rotation=0)
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


def _panels(weights: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(weights, Tensor):
        weights = [weights] if weights.dim() == 2 else list(weights)
    maps = [torch.as_tensor(weight).detach().float().cpu() for weight in weights]
    if not maps or any(weight.dim() != 2 for weight in maps):
        raise ValueError(f"expected maps of two dimensions, found shapes {[tuple(weight.shape) for weight in maps]}")
    return maps


def _check_titles(titles: Sequence[str] | None, count: int) -> None:
    if titles is not None and len(titles) != count:
        raise ValueError(f"{len(titles)} titles for {count} maps")


def _ticks(axis: Any, side: str, labels: Sequence[str] | None, size: int) -> None:
    if labels is None:
        return
    step = -(-size // 60)  # more would be illegible
    getattr(axis, f"set_{side}ticks")(
        range(0, size, step), [_plain(labels[i]) for i in range(0, size, step)], fontsize=8
    )
    if side == "x":
        axis.tick_params(axis="x", rotation=60)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib renders a pair of dollars as mathematics


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
        figure.suptitle(_plain(title), fontsize=10, wrap=True)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    return figure
