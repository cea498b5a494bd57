"""Servers on the loopback, in a thread of the test's process, and requests to them."""

from __future__ import annotations

import http.client
import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from mmattn.tasks.common.serve import bound, make_server
from mmattn.tasks.common.serving.app import create_app
from mmattn.tasks.common.serving.models import ServedModel
from mmattn.tasks.common.serving.options import Limits


@contextmanager
def serving(models: Iterable[ServedModel], limits: Limits | None = None, token: str = "") -> Iterator[str]:
    """The address of a server that runs in a thread."""
    place = bound("127.0.0.1", 0)
    server = make_server(create_app(models, limits, token), place)
    thread = threading.Thread(target=server.run, args=([place],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield server.address
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server stops"


class Answer:
    """Status, headers and content of an answer."""

    def __init__(self, reply: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.content = reply.status, reply.headers, reply.read()

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def request(
    address: str,
    path: str,
    content: Any = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    timeout: float = 60,
) -> Answer:
    """Sends a request; content that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=timeout)
    try:
        given = dict(headers or {})
        if content is not None and not isinstance(content, bytes):
            content, given = json.dumps(content).encode(), {"Content-Type": "application/json", **given}
        connection.request(method or ("GET" if content is None else "POST"), path, content, given)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def form(fields: Mapping[str, str | bytes]) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a form; bytes are files."""
    edge, parts = uuid.uuid4().hex, []
    for name, value in fields.items():
        file = '; filename="a"\r\nContent-Type: application/octet-stream' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else value.encode()
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{edge}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={edge}"}
