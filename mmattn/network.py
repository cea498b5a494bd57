"""Whether a network is there, found out soon: libraries try for half a minute. Standard library only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

SECONDS = 1.5  # until a server is taken to be unreachable


def hub_responds(endpoint: str) -> bool:
    """Whether the hub responds; this may take long, or raise an exception of the HTTP library."""
    from huggingface_hub.utils import get_session

    get_session().head(endpoint, timeout=SECONDS)
    return True


def true_within(seconds: float, *checks: Callable[[], bool]) -> list[bool]:
    """Runs checks of the network at once; returns for each whether it was true in time. Exceptions are false."""
    found: dict[int, bool] = {}

    def run(number: int) -> None:
        with contextlib.suppress(Exception):  # those of the HTTP libraries, of which there are several
            found[number] = checks[number]()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(checks))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [found.get(number, False) for number in range(len(checks))]
