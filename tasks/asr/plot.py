"""Predictions and explanations of speech recognition, and their plot. Imports matplotlib inside functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mmattn.tasks.asr.alignment import Word

WORDS, REFERENCE = "tab:cyan", "black"  # colors of word borders
SPACE = "\N{OPEN BOX}"
LABEL = 0.07  # inches: width of a character of 9 points


@dataclass
class ASRPrediction:
    """The transcript of one recording."""

    id: str
    text: str
    words: list[Word] = field(default_factory=list)  # timings in seconds from the start of the recording
    duration: float = 0.0  # seconds
    score: float = 0.0  # log p / length^length_penalty, summed over windows


@dataclass
class ASRExplanation:
    """Word timings of one recording, with the attention and the CTC alignment of each token."""

    prediction: ASRPrediction
    features: Tensor  # (T, M), log-mel frames
    frame_seconds: float  # duration of one log-mel frame
    tokens: list[str]  # of the hypothesis
    attention: Tensor | None  # (tokens, S), attention over encoded frames, rows sum to one; None without a decoder
    alignment: Tensor | None  # (tokens, S), CTC's forced alignment less the emission delay; None without CTC
    words: list[tuple[str, float, float]] = field(default_factory=list)  # reference borders, if known
    truth: str | None = None  # the reference transcript, if there is one

    def save(self, path: str | Path) -> None:
        """Write a PNG: the log-mel frames with the word timings above one heatmap (tokens by time) for each map.

        Reference borders, if known, are dashed lines.
        """
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        from mmattn.plot import LEAST, NEARLY_UNIFORM, caption, color_bar, is_flat, plain, scale_end

        total, count = len(self.features) * self.frame_seconds, len(self.tokens)
        named = (("attention", self.attention), ("CTC alignment", self.alignment))
        maps = [(name, weights) for name, weights in named if weights is not None]
        tall = min(max(0.16 * count + 0.6, 1.6), 7.0)
        wide = min(max(4 + 2.2 * total, 7.0), 20)
        figure = Figure(figsize=(wide, 3.0 + tall * len(maps)), layout="constrained")
        axes = figure.subplots(1 + len(maps), 1, sharex=True, gridspec_kw={"height_ratios": [2.2] + [tall] * len(maps)})
        top, shown = axes[0], {"aspect": "auto", "interpolation": "nearest"}
        energy = top.imshow(self.features.T.numpy(), origin="lower", cmap="magma", extent=(0, total, 0, 1), **shown)
        color_bar(figure, energy, top, "log energy, normalized")
        top.set_yticks([])
        top.set_ylabel("mel bands, low to high", fontsize=8)
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 9, "annotation_clip": False}
        for word, row in zip(self.prediction.words, _rows(self.prediction.words, 0.7 * wide / total), strict=True):
            for axis in axes:
                axis.axvspan(word.start, word.end, facecolor="none", edgecolor=WORDS, linewidth=1.0)
            top.annotate(_label(word.word), ((word.start + word.end) / 2, 1.03 + 0.12 * row), **above)
        for border in (time for _, *borders in self.words for time in borders):
            for axis in axes:
                axis.axvline(border, color="white" if axis is top else REFERENCE, linestyle="--", linewidth=0.9)
        for axis, (name, weights) in zip(axes[1:], maps, strict=True):
            uniform = 1 / weights.shape[1] if weights is self.attention else None
            norm = PowerNorm(0.5, 0.0, scale_end([weights], LEAST * (uniform or 0.0)))
            image = axis.imshow(weights.numpy(), cmap="Blues", norm=norm, extent=(0, total, count, 0), **shown)
            color_bar(figure, image, axis, "weight" if uniform else "aligned", uniform)
            axis.set_yticks([n + 0.5 for n in range(count)], [_label(token) for token in self.tokens], fontsize=7)
            flat = uniform is not None and is_flat(weights, uniform)
            axis.set_ylabel(f"{name},\n{NEARLY_UNIFORM}" if flat else name, fontsize=8)
        axes[-1].set_xlabel("seconds")
        lines = [Line2D([], [], color=WORDS, label="word borders")]
        if self.words:
            lines += [Line2D([], [], color=REFERENCE, linestyle="--", label="reference borders (white above)")]
        if " " in self.tokens:
            lines += [Line2D([], [], linestyle="none", label=f"{SPACE}: space between words")]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False)
        title = caption(self.prediction.id, self.prediction.text, self.truth, wide)
        figure.suptitle(plain(title), fontsize=9)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _rows(words: Sequence[Word], scale: float) -> list[int]:
    """The row, from 0, of each word's label, so that labels do not overlap; `scale` is inches per second."""
    ends: list[float] = []  # of the last label in each row, in inches
    rows = []
    for word in words:
        middle, half = scale * (word.start + word.end) / 2, LABEL * (len(word.word) + 1) / 2
        row = next((n for n, end in enumerate(ends) if end <= middle - half), len(ends))
        ends[row : row + 1] = [middle + half]
        rows.append(row)
    return rows


def _label(token: str) -> str:
    """A token as a label: a sign stands for the space between words."""
    from mmattn.plot import plain

    return SPACE if token == " " else plain(token)
