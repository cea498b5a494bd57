"""Texts that come in parts while a model generates them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from mmattn.tasks.common.errors import ConfigError

Found = TypeVar("Found")  # a prediction


class Streaming:
    """What a predictor tells of texts that come in parts; by default there are none."""

    task: ClassVar[str]
    live: ClassVar[bool] = False  # whether the command line writes the answer to a single item in parts

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        """Whether `stream_text` yields the answer in parts with these options of `predict`."""
        return False

    def refused_options(self) -> set[str]:
        """Options of `predict` that this model refuses, whatever their value; the server's page leaves them out."""
        return set()

    def stream_text(self, item: Any, **options: Any) -> Iterator[str]:
        """Yield the text that is generated for one item in parts, as soon as they are known.

        A generator may return the whole prediction at its end.

        Args:
            item: See `predict`.
            options: Those of `predict`, where `can_stream` allows them.

        Raises:
            ConfigError: The text is known only as a whole.
        """
        raise ConfigError(
            f"stream_text: {self.task} has no text that comes in parts with this model and these options."
        )


class _LeftError(Exception):
    """Nobody takes the parts any more."""


def in_parts(write: Callable[[Callable[[str], None]], tuple[str, Found]]) -> Generator[str, None, Found]:
    """Yield a text in parts while a function generates it in a thread, which ends with the iterator.

    A part is yielded once the next token has left it unchanged: a token may be a piece of a character, or change the
    spaces around the one before.

    Args:
        write: Gets a function to call with the text so far, after each token; returns the whole one and its prediction.

    Returns:
        The prediction, at the end.

    Raises:
        Exception: Whatever `write` raises.

    >>> def write(send):
    ...     for end in range(1, 8):
    ...         send("a b c d"[:end])
    ...     return "a b c d.", None
    >>> list(in_parts(write))
    ['a', ' ', 'b', ' ', 'c', ' ', 'd.']
    """
    texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    done: Future[tuple[str, Found]] = Future()
    left = threading.Event()

    def send(text: str) -> None:
        if left.is_set():
            raise _LeftError
        texts.put(text)

    def run() -> None:
        try:
            done.set_result(write(send))
        except BaseException as error:
            done.set_exception(error)
        texts.put(None)

    thread = threading.Thread(target=run, name="mmattn stream", daemon=True)
    thread.start()
    before, shown = "", 0
    try:
        while (text := texts.get()) is not None:
            same = (n for n, (one, other) in enumerate(zip(before, text, strict=False)) if one != other)
            final = next(same, min(len(before), len(text)))
            if final > shown:
                yield text[shown:final]
                shown = final
            before = text
        whole, found = done.result()
        if len(whole) > shown:
            yield whole[shown:]
        return found
    finally:
        left.set()
        thread.join()
