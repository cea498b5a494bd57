"""Bodies of requests: read within the limits of size and time, as JSON or as a form."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from fastapi import Request

from mmattn.data.errors import shorten
from mmattn.tasks.common.serving.forms import read_form
from mmattn.tasks.common.serving.inputs import Asked, RequestError, read_fields, read_json
from mmattn.tasks.common.serving.options import Limits

HELD = 8  # largest bodies that are in memory at a time, in all
LARGE = 1 << 20  # bytes from which a body is parsed in a thread, so that others are not kept waiting


class Bodies:
    """Reads the bodies of requests; all together hold at most `HELD` times the largest one in memory.

    Args:
        limits: The limits of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    async def read(self, request: Request, fields: Mapping[str, Iterable[str]]) -> Asked:
        """Read a request.

        Args:
            request: The request.
            fields: Names of the fields of an item, by model.

        Raises:
            RequestError: The body is too large, comes too slowly, or is neither JSON nor a form.
            ClientDisconnect: The client has left.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            found = shorten(kind) if kind else "none"
            raise RequestError(
                415, f"content-type: expected application/json or multipart/form-data, found {found}.", True
            )
        size = request.headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self.limits.max_bytes:
            raise RequestError(413, self._too_large, True)
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for chunk in request.stream():
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > self.limits.max_bytes:
                        raise RequestError(413, self._too_large, True)
                    if self.held > HELD * self.limits.max_bytes:
                        raise RequestError(429, "too many large requests at a time; try again later.", True)
            if kind == "application/json":
                return await asyncio.to_thread(read_json, body) if len(body) > LARGE else read_json(body)
            return read_fields(read_form(body, request.headers["content-type"]), fields)
        except TimeoutError:
            raise RequestError(408, f"body: expected all of it within {self.limits.timeout:g} seconds.", True) from None
        finally:
            self.held -= len(body)

    @property
    def _too_large(self) -> str:
        return f"body: expected at most {self.limits.max_bytes:,} bytes, found more."
