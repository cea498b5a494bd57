"""Pieces of an HTML page that needs no other file: tables, line charts, pictures. All texts are escaped here."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { border-top: 2px solid #d0d7de; padding-top: 1rem; margin-top: 2rem; }
h3 { margin-bottom: .3rem; } small, .note { color: #57606a; } .note { margin-top: .2rem; }
.big { font-size: 2.2rem; font-weight: 600; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d0d7de; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
table.matrix td { text-align: center; border: 1px solid #fff; min-width: 1.6rem; }
table.matrix th { border: 0; font-weight: normal; } table.matrix thead th { writing-mode: vertical-rl; }
pre { background: #f6f8fa; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
img { max-width: 100%; height: auto; } img.item { max-width: 6rem; max-height: 6rem; image-rendering: auto; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; max-width: 44rem; }
td { overflow-wrap: break-word; } td.number { white-space: nowrap; } h2, h3 { break-after: avoid; }
@media print { body { max-width: none; font-size: 11px; } figure, table.matrix { break-inside: avoid; } }
"""
COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#57606a")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 72, 12, 28, 36  # of a chart, and its margins
POINTS = 500  # of a line, at most
JPEG = {"quality": 85, "subsampling": 0}  # thin lines and letters keep their colors


def page(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{meta}<title>{escape(title)}</title><style>{STYLE}</style></head>"
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body>\n{body}\n</body></html>\n'


def number(value: Any) -> str:
    """A figure as text, with four digits after the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """A table of values; numbers are aligned to the right, and `Markup` is left as it is."""
    rows = list(rows)
    right = [all(isinstance(row[n], (int, float)) for row in rows) for n in range(len(rows[0]))] if rows else []
    kinds = [' class="number"' if one else "" for one in right]
    names = zip(kinds or [""] * len(head), head, strict=True) if head else ()
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in names)
    body = ["".join(f"<td{kind}>{_cell(value)}</td>" for kind, value in zip(kinds, row, strict=True)) for row in rows]
    head_row = f"<thead><tr>{top}</tr></thead>" if head else ""
    lines = "\n".join(f"<tr>{row}</tr>" for row in body)
    return f'<div class="wide"><table>{head_row}<tbody>{lines}</tbody></table></div>'


class Markup(str):
    """HTML, which `table` does not escape."""


def _cell(value: Any) -> str:
    return value if isinstance(value, Markup) else escape(number(value))


def matrix(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """A confusion matrix with numbers, rows of true and columns of predicted classes, shaded by the row's share.

    Large numbers, such as those of pixels, are written as percentages of the row.
    """
    large = max(map(max, counts)) > 9999
    top = "".join(f"<th>{escape(label)}</th>" for label in labels)
    lines = []
    for label, row in zip(labels, counts, strict=True):
        total = max(sum(row), 1)
        shades = [round(100 * value / total) for value in row]
        cells = (
            f'<td style="background:rgba(9,105,218,{shade / 100:.2f});color:{"#fff" if shade > 55 else "#1b1f24"}">'
            f"{'' if not value else f'{shade}%' if large else value}</td>"
            for value, shade in zip(row, shades, strict=True)
        )
        lines.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
    head = f"<thead><tr><th></th>{top}</tr></thead>"
    note = '<p class="note">Rows: true classes; columns: predicted ones; shade: share of the true class.</p>'
    return f'<div class="wide"><table class="matrix">{head}<tbody>{"".join(lines)}</tbody></table></div>{note}'


def chart(lines: Mapping[str, Sequence[tuple[float, float]]], title: str, x_name: str = "step") -> str:
    """A line chart as inline SVG; lines of one point are dots.

    Args:
        lines: Points (x, y) in order of x, by the line's name; values that are not finite are left out.
        title: Title.
        x_name: Label of the x-axis.
    """
    shown = {
        name: [(x, y) for x, y in some(points) if math.isfinite(x) and math.isfinite(y)]
        for name, points in lines.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    xs, ys = ([point[axis] for points in shown.values() for point in points] for axis in (0, 1))
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" font-weight="600">{escape(title)}</text>']
    for y in y_ticks:
        _, at = place(x_low, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in (x for x in x_ticks if x_low <= x <= x_high):
        at, _ = place(x, y_low)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>')
    legend = LEFT + 9 * len(title) + 24
    for color, (name, points) in zip(COLORS * len(shown), shown.items(), strict=False):
        placed = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        if len(placed) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in placed]
        if len(shown) > 1:
            parts.append(f'<text x="{legend}" y="16" fill="{color}">{escape(name)}</text>')
            legend += 8 * len(name) + 20
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>{"".join(parts)}</svg>'


def some(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about `POINTS` of the points, each the mean of its neighbors."""
    size = -(-len(points) // POINTS)
    groups = (points[start : start + size] for start in range(0, len(points), size or 1))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers at equal distances that cover a range.

    >>> ticks(0.13, 0.94)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high - low > 1e-12 * max(abs(low), abs(high)):  # a single value
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    unit = 10.0 ** math.floor(math.log10((high - low) / (most - 1)))
    step = next(unit * n for n in (1, 2, 2.5, 5, 10, 20) if math.ceil(high / (unit * n)) - low // (unit * n) < most)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 12) for n in range(first, last + 1)]


def picture(image: Any, width: int, alt: str, kind: str = "") -> Markup:
    """A PIL image as an `img` with its data, at most so many pixels wide."""
    image = image.convert("RGB")
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))))
    data = io.BytesIO()
    image.save(data, "JPEG", **JPEG)
    code = base64.b64encode(data.getvalue()).decode()
    return Markup(f'<img class="{kind}" alt="{escape(alt)}" src="data:image/jpeg;base64,{code}">')
