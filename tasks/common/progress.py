"""A bar for long work, where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def progress(items: Any, total: int, title: str, shown: bool = True) -> Iterator[Any]:
    """Rich's bar on stderr for long work on a terminal; nothing where nobody watches or there is little to do.

    Args:
        items: What is worked through.
        total: How many.
        title: Stands before the bar.
        shown: Off where results are written to the same terminal, and are progress enough.
    """
    if total < 64 or not shown or not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:  # it comes with what training needs
        yield from items
        return
    # By itself rich takes over stdout too, and what is written to a file would land on the terminal.
    with Progress(console=Console(stderr=True), redirect_stdout=False) as bar:
        yield from bar.track(items, total=total, description=title)
