"""Plot of the sources of a summary, by words. Imports matplotlib inside functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.text.scripts import UNSPACED, script_of
from mmattn.data.text.tokenizer import words_of

Span = tuple[int, int]  # start and end in characters
WIDTH = 110  # characters per line
MOST_LINES = 60
CHARACTER, LINE = 0.602 * 8 / 72, 14 / 72  # inches: width of a character (DejaVu Sans Mono, 8 points), height of a line
MOST_COLUMNS = 48  # of the heatmap
DPI = 130
TURNED: dict[str, Any] = {"rotation": 70, "ha": "right", "rotation_mode": "anchor"}  # a label ends at its column
FONT: dict[str, Any] = {"family": "monospace", "fontsize": 8}


def by_words(text: str, spans: Sequence[Span]) -> tuple[list[Span], Tensor]:
    """The words of a text's tokens, and the matrix (tokens, words) of ones that sums over each word's tokens.

    In scripts without spaces between words, and of spaces alone, each token stands for itself.

    >>> by_words("a penguin", [(0, 1), (2, 5), (5, 9)])[1].tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    words, owners = words_of(text, spans)
    unspaced = [any(script_of(letter) in UNSPACED for letter in text[start:end]) for start, end in words]
    keys = [(owner, n if not words or unspaced[owner] else -1) for n, owner in enumerate(owners)]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    shown = [words[owner] if n < 0 else spans[n] for owner, n in places]
    joins = torch.zeros(len(spans), len(shown))
    joins[range(len(spans)), [places[key] for key in keys]] = 1.0
    return shown, joins


def draw(document: str, spans: Sequence[Span], words: Sequence[str], weights: Tensor, title: str, path: Any) -> Any:
    """Plot the document with the summary's sources shaded, and a heatmap (summary words by document words) below.

    The heatmap has the document words with the largest weights, in document order.

    Args:
        document: The document.
        spans: Character spans of its S words.
        words: The L words of the summary.
        weights: (L, S), source weights of each summary word; rows sum to one.
        title: Title of the figure, in lines.
        path: Output path.

    Returns:
        The matplotlib Figure.
    """
    from matplotlib.figure import Figure

    from mmattn.plot import LEAST, NEARLY_UNIFORM, color_bar, is_flat, plain, scale_end

    shade = weights.amax(0)  # (S,)
    lines = wrap(document)
    shown = lines[:MOST_LINES]
    columns = shade.topk(min(MOST_COLUMNS, len(shade))).indices.sort().values
    heights = [LINE * (len(shown) + 1), 0.2 * len(words) + 1.2]
    width = CHARACTER * WIDTH + 0.4
    above = 0.35 + 0.15 * len(title.splitlines())
    figure = Figure(figsize=(width, sum(heights) + above), dpi=DPI, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    upper, lower = halves
    # Fixed axes, outside the layout engine, so that the shading aligns with the words.
    page, chart = upper.add_axes((0.2 / width, 0, CHARACTER * WIDTH / width, 1)), lower.subplots()
    page.set(xlim=(0, _characters_across(page)), ylim=(len(shown) + 1, 0))
    page.set_axis_off()
    _shade(page, shown, spans, shade)
    for row, (start, end) in enumerate(shown):
        text = document[start:end].replace("\t", " ")
        page.text(0, row + 0.5, plain(text), va="center", **FONT)
    if len(shown) < len(lines):
        page.text(0, len(shown) + 0.5, f"(the first {len(shown)} of {len(lines)} lines)", va="center", fontsize=8)
    uniform = 1 / len(spans)
    top = scale_end([weights], min(LEAST * uniform, 1.0))
    image = chart.imshow(weights[:, columns].numpy(), cmap="Blues", vmin=0, vmax=top, aspect="auto")
    if is_flat(weights, uniform):
        chart.set_title(NEARLY_UNIFORM, fontsize=8)
    labels = [document[slice(*spans[i])] for i in columns.tolist()]
    chart.set_xticks(range(len(labels)), [plain(label) for label in labels], fontsize=7, **TURNED)
    chart.set_yticks(range(len(words)), [plain(word) for word in words], fontsize=7)
    chart.set(xlabel="words of the document", ylabel="summary")
    color_bar(lower, image, chart, "share of the attention", uniform)
    figure.suptitle(plain(title), fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return figure


def wrap(text: str, width: int = WIDTH) -> list[Span]:
    """Start and end of the lines of a text, broken at spaces to a width in characters.

    >>> [text[a:b] for text in ["one two three"] for a, b in wrap(text, 8)]
    ['one two', 'three']
    """
    lines, start = [], 0
    for paragraph in text.split("\n"):
        end = start + len(paragraph)
        while end - start > width:
            space = text.rfind(" ", start, start + width + 1)
            cut = space if space > start else start + width
            lines.append((start, cut))
            start = cut + (text[cut] == " ")
        if end > start:
            lines.append((start, end))
        start = end + 1
    return lines


def _characters_across(page: Any) -> float:
    """Number of characters per line; measured, since fonts are rendered on whole pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(page.figure.figure).get_renderer()  # of the figure, not of the subfigure
    probe = page.text(0, 0, "x" * WIDTH, **FONT)
    characters: float = WIDTH * page.get_window_extent(renderer).width / probe.get_window_extent(renderer).width
    probe.remove()
    return characters


def _shade(page: Any, lines: Sequence[Span], spans: Sequence[Span], shade: Tensor) -> None:
    from matplotlib.patches import Rectangle

    for (start, end), strength in zip(spans, shade.tolist(), strict=True):
        for row, (first, last) in enumerate(lines):
            a, b = max(start, first), min(end, last)
            if a < b and strength >= 0.02:
                box = Rectangle((a - first, row + 0.05), b - a, 0.9, color="tab:orange", alpha=min(strength, 1.0) * 0.8)
                page.add_patch(box)
