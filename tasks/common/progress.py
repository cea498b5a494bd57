"""A progress bar for interactive terminals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def progress(items: Any, total: int, title: str, shown: bool = True) -> Iterator[Any]:
    """Iterate with Rich's progress bar on stderr, if that is a terminal and there are at least 64 items.

    Args:
        items: The items to iterate over.
        total: Number of items.
        title: Title of the bar.
        shown: Whether to show the bar; False if results are printed to the same terminal.
    """
    if total < 64 or not shown or not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:  # a dependency of training
        yield from items
        return
    # By default rich redirects stdout, too, and results written to a file would appear on the terminal.
    with Progress(console=Console(stderr=True), redirect_stdout=False) as bar:
        yield from bar.track(items, total=total, description=title)
