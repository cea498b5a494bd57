"""Texts whose words are shaded by weights: as a picture, and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

COLOR = (0.0, 0.42, 0.84)  # of the greatest weight, on white
AGAINST = (0.8, 0.2, 0.1)  # of the least one, if there are negative weights
CHARACTER, LINE = 0.072, 0.24  # inches of a character of the picture and of a line
WIDTH, MOST_LINES = 3.6, 150  # inches, so that a phone shows a picture's text in a readable size


class Words(NamedTuple):
    """A text's words with their weights."""

    text: str
    spans: Sequence[tuple[int, int]]  # start and end character of each word
    weights: Tensor  # (W,); negative ones are evidence against what is explained
    marked: Sequence[tuple[int, int]] = ()  # characters of what is outlined, such as an answer
    toward: str = ""  # what positive weights are evidence for, such as a label

    def shades(self) -> tuple[list[float], str]:
        """Each word's shade in -1..1, and a legend of the colors, of which the darkest is so many times the mean."""
        from mmattn.plot import NEARLY_UNIFORM, in_uniform, is_flat, scale_end

        weights = self.weights.float()
        relative = in_uniform(weights.abs())
        top = scale_end([relative])
        is_signed = bool((weights < 0).any())
        toward = self.toward if len(self.toward) < 60 else f"{self.toward[:57]}..."
        colors = f"blue: for {toward or 'it'}; red: against it" if is_signed else "blue: relevant"
        legend = f"{colors}; white: 0; darkest: {top:.1f} times the mean"
        if is_flat(relative) and not is_signed:
            legend = NEARLY_UNIFORM
        return ((relative / top).clamp(0, 1) * weights.sign()).tolist(), legend

    def is_marked(self, span: tuple[int, int]) -> bool:
        """Whether a word overlaps what is outlined."""
        return any(start < span[1] and end > span[0] for start, end in self.marked)


def join_tokens(words: Sequence[tuple[int, int]], owners: Sequence[int], weights: Tensor) -> Tensor:
    """The weight of each word: the sum of its tokens' weights.

    Args:
        words: Start and end character of each of W words.
        owners: The index of the word of each of T tokens.
        weights: (T,).

    Returns:
        (W,).
    """
    total = torch.zeros(len(words), dtype=weights.dtype)
    return total.index_add_(0, torch.tensor(owners, dtype=torch.long), weights.cpu()) if len(owners) else total


def shaded_html(words: Words) -> str:
    """The text as HTML: words on a colored background, what is marked in bold and outlined."""
    parts, done = [], 0
    shades, legend = words.shades()
    for span, shade in zip(words.spans, shades, strict=True):
        parts.append(escape(words.text[done : span[0]]))
        color = "0, 107, 214" if shade >= 0 else "204, 51, 26"
        style = f"background: rgba({color}, {0.75 * abs(shade):.3f})"
        if words.is_marked(span):
            style += "; font-weight: bold; outline: 1.5px solid #bc4c00"
        parts.append(f'<span style="{style}">{escape(words.text[slice(*span)])}</span>')
        done = span[1]
    parts.append(escape(words.text[done:]))
    text = f'<p style="white-space: pre-wrap; line-height: 1.9">{"".join(parts)}</p>'
    return f'{text}<p class="note">{escape(legend)}</p>'


def shaded_picture(words: Words, path: str | Path | None = None, title: str | None = None) -> Any:
    """Plots the text: words on a colored background, what is marked outlined. It is cut after MOST_LINES lines.

    Args:
        words: The words.
        path: File to write; None = no file.
        title: Title of the figure.

    Returns:
        The matplotlib Figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from mmattn.plot import plain

    most = int(WIDTH / CHARACTER)
    rows: list[list[tuple[int, int]]] = [[]]  # of each line: indices of words and their columns
    column = 0
    for index, (start, end) in enumerate(words.spans):
        size = min(end - start, most)
        if column and column + size > most:
            rows.append([])
            column = 0
        rows[-1].append((index, column))
        column += size + 1
    shown = rows[:MOST_LINES]
    above = 0.2 * (len(title.splitlines()) if title else 0) + 0.2
    shades, legend = words.shades()
    legend = textwrap.fill(legend, most)
    height = above + LINE * (len(shown) + 1 + 0.7 * legend.count("\n")) + 0.15
    figure = Figure(figsize=(WIDTH + 0.3, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH + 0.3), ylim=(height, 0))
    axis.set_axis_off()
    if title:
        figure.suptitle(plain(title), fontsize=10, x=0.02, y=1 - 0.08 / height, ha="left", va="top")
    axis.text(0.15, height - 0.1, legend, fontsize=8, color="#57606a", va="bottom")
    for number, row in enumerate(shown):
        y = above + LINE * (number + 0.5)
        for index, column in row:
            start, end = words.spans[index]
            x, width = 0.15 + column * CHARACTER, CHARACTER * min(end - start, most)
            marked = words.is_marked((start, end))
            edge = {"edgecolor": "#bc4c00", "linewidth": 1.2} if marked else {"linewidth": 0}
            color = (*(COLOR if shades[index] >= 0 else AGAINST), 0.75 * abs(shades[index]))
            box = Rectangle((x - 0.02, y - 0.1), width + 0.04, 0.2, facecolor=color, **edge)
            axis.add_patch(box)
            text: dict[str, Any] = {
                "fontsize": 8,
                "family": "monospace",
                "va": "center",
                "weight": "bold" if marked else "normal",
            }
            axis.text(x, y, plain(words.text[start : min(end, start + most)]), **text)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
