"""Generated text as server-sent events, a piece at a time, from predictors with a method `stream_text`.

`stream_text(item, **options)` yields texts, and `can_stream(options)` says whether it takes the options; both are
methods of the predictor (`mmattn.tasks.common.predictor.Predictor`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from mmattn.data.errors import shorten
from mmattn.tasks.common.serving.batching import Job
from mmattn.tasks.common.serving.inputs import Asked, RequestError
from mmattn.tasks.common.serving.models import ServedModel
from mmattn.tasks.common.serving.server import Server, failure, gone, submit


class ClientLeftError(Exception):
    """Nobody reads the stream any more."""


async def streamed(server: Server, request: Request, model: ServedModel, asked: Asked, items: list[Any]) -> Response:
    """The answer to a request with `stream`: events with `text`, the last one as of `ServedModel.result`, or an error.

    A model that streams answers one request at a time.

    Raises:
        RequestError: The model streams no text, or there are several items.
    """
    if not model.streams:
        raise RequestError(422, f"stream: expected a model that generates text piece by piece; {model.name} does not.")
    if len(items) != 1:
        raise RequestError(422, f"stream: expected one item, found {len(items)}.")
    if isinstance(items[0], Exception):
        raise items[0]
    if not can_stream(model, asked.options):
        raise RequestError(
            422,
            f"stream: expected options with which the text of {model.name} comes piece by piece, without beams "
            f"(num_beams 1), found {shorten(asked.options) if asked.options else 'its own'}.",
        )
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()
    closed = False

    def send(piece: str) -> None:  # called by the model's thread
        if closed:
            raise ClientLeftError
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    job = Job("stream", items[0], asked.options, send)
    submit(model, [job])
    job.future.add_done_callback(lambda future: loop.call_soon_threadsafe(pieces.put_nowait, None))

    async def events() -> AsyncIterator[str]:
        nonlocal closed
        text: list[str] = []
        left = asyncio.ensure_future(gone(request))
        try:
            while True:
                piece = asyncio.ensure_future(pieces.get())
                await asyncio.wait({piece, left}, timeout=server.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
                if not piece.done():
                    piece.cancel()
                    if not left.done():
                        yield event({**model.label, "error": "the answer took too long.", "status": 504})
                    return
                if piece.result() is None:
                    break
                text.append(piece.result() or "")
                yield event({"text": text[-1]})
            error = job.future.exception()
            if error is None:
                found = job.future.result()
                whole = {} if found is None else model.result(items[0], found)
                yield event({**model.label, "answer": "".join(text), **whole})
            else:
                wrong = failure(error)
                yield event({**model.label, "error": str(wrong), "status": wrong.status})
        finally:
            closed = True
            left.cancel()
            job.future.cancel()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def can_stream(model: ServedModel, options: Mapping[str, Any]) -> bool:
    """Whether a model generates text piece by piece with the given options."""
    return model.streams and bool(model.predictor.can_stream(options))


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
