"""The picture of an explanation: a spectrogram with its words, and what each token was read off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmattn.tasks.asr.predict import ASRExplanation


def draw(found: ASRExplanation, path: str | Path) -> None:
    """Write a PNG: log-mel frames with the words at their times; below, on the same axis, a row a token.

    Where the true borders are known, they are dashed lines.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    total = len(found.features) * found.frame_seconds
    named = (("attention", found.attention), ("CTC's alignment", found.alignment))
    maps = [(name, weights) for name, weights in named if weights is not None]
    tall = min(0.16 * len(found.tokens) + 0.6, 7.0)
    figure = Figure(figsize=(min(4 + 2.2 * total, 20), 2.2 + tall * len(maps)), layout="constrained")
    axes = figure.subplots(1 + len(maps), 1, sharex=True, gridspec_kw={"height_ratios": [2.2] + [tall] * len(maps)})
    top = axes[0]
    top.imshow(found.features.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, total, 0, 1))
    top.set_yticks([])
    top.set_ylabel("log-mel bands, low to high")
    for word in found.transcript.words:
        for axis in axes:
            axis.axvspan(word.start, word.end, facecolor="none", edgecolor="tab:cyan", linewidth=1.0)
        top.annotate(
            _shown(word.word),
            ((word.start + word.end) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=9,
            annotation_clip=False,
        )
    for _, start, end in found.words:
        for border in (start, end):
            top.axvline(border, color="white", linestyle="--", linewidth=0.9)
    for axis, (name, weights) in zip(axes[1:], maps, strict=True):
        count = len(found.tokens)
        axis.imshow(
            weights.numpy(), aspect="auto", cmap="Blues", norm=PowerNorm(0.5, vmin=0.0), extent=(0, total, count, 0)
        )
        axis.set_yticks([n + 0.5 for n in range(count)], [_shown(token) for token in found.tokens], fontsize=7)
        axis.set_ylabel(name)
    figure.suptitle(_shown(found.transcript.id), fontsize=9)
    dashed = "; dashed: their true borders" if found.words else ""
    axes[-1].set_xlabel(f"seconds (lines: where words start and end{dashed}; \N{MIDDLE DOT}: the blank between words)")
    figure.savefig(path, dpi=110)


def _shown(token: str) -> str:
    """A token as an axis shows it: the blank between words is a dot."""
    return "\N{MIDDLE DOT}" if token == " " else token.replace("$", r"\$")
