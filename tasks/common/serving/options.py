"""Limits of the server and their command line. Standard library only, so that help is immediate."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

TOKEN = "MMATTN_TOKEN"  # environment variable of the bearer token that clients must send
PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client")  # of the extra `serve`


class Limits(NamedTuple):
    """What one client may ask of the server.

    Args:
        max_bytes: Size of a request's body.
        max_items: Items of one request.
        max_queue: Items that wait for one model; a request beyond them is answered by 429.
        timeout: Seconds in which a request must have arrived, and again in which it must be answered.
        batch_size: Items of a batch; None: the predictor's own.
        batch_wait: Seconds for which a batch waits for the items of the clients that were there before.
    """

    max_bytes: int = 32 << 20
    max_items: int = 64
    max_queue: int = 256
    timeout: float = 30.0
    batch_size: int | None = None
    batch_wait: float = 0.005


HELP = {
    "max_bytes": "size of a request's body in bytes (default: 32 MiB)",
    "max_items": "items of one request (default: 64)",
    "max_queue": "items that wait for one model; requests beyond them are answered by 429 (default: 256)",
    "timeout": "seconds in which a request must arrive, and again be answered (default: 30)",
    "batch_size": "items of a batch (default: the task's own)",
    "batch_wait": "seconds for which a batch waits for clients that were there before (default: 0.005)",
}


def above(least: float, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option whose value is a number of at least `least`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < 1e15:
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {name} of at least {least:g}, found {text!r}")
        return value

    return read


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve` that all tasks share."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=above(0, int), default=8000, help="port; 0: any free one (default: 8000)")
    parser.add_argument(
        "--examples",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file or folder as for `predict --input`, whose first items the page shows for the model of this name; "
        "once for each of several models (default: validation items of the model's run, or built-in ones)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8"),
        help="pack the weights for speed on a CPU, in float32 or fewer bits; such a model explains nothing",
    )
    for name, default in Limits._field_defaults.items():
        kind: Callable[[str], Any] = float if isinstance(default, float) else int
        least = {"batch_wait": 0.0, "timeout": 0.1}.get(name, 1)
        parser.add_argument(f"--{name}", type=above(least, kind), default=default, metavar="N", help=HELP[name])


def limits_of(options: argparse.Namespace) -> Limits:
    """The limits that the command line gives."""
    return Limits(**{name: getattr(options, name) for name in Limits._fields})
