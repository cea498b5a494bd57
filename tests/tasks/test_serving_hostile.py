"""Hostile clients: malformed, large, slow and cancelled requests. The server answers, and keeps its memory."""

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")

from mmattn.tasks.common import serve
from mmattn.tasks.common.serving.forms import read_form
from mmattn.tasks.common.serving.inputs import RequestError
from mmattn.tasks.common.serving.models import ServedModel, open_models
from mmattn.tasks.common.serving.options import Limits
from tests.conftest import refused
from tests.tasks.echo import Echo
from tests.tasks.servers import form, request, serving

JSON = {"Content-Type": "application/json"}
PNG = b"\x89PNG\r\n\x1a\n"


def memory() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def malformed(stream: random.Random) -> tuple[bytes, dict[str, str]]:
    """A request that no server can answer, drawn from many kinds of mistakes."""
    noise = stream.randbytes(stream.randrange(1, 400))
    good = json.dumps({"item": {"text": "a"}, "options": {"top_k": 1}}).encode()
    whole, headers = form({"text": "a", "top_k": "1"})
    image, image_headers = form({"model": "image", "image": PNG + noise})
    at = stream.randrange(1, len(good))
    values: list[Any] = [None, 3, [], {}, True, 1e400, "\ud800", {"text": {"a": 1}}, [[1]], {"text": ["a"]}]
    bodies: list[Callable[[], tuple[Any, dict[str, str]]]] = [
        lambda: (noise, JSON),
        lambda: (good[:at], JSON),
        lambda: (b"[" * stream.randrange(1, 100_000), JSON),
        lambda: (b'{"item": "a", "item' + noise, JSON),
        lambda: (json.dumps({"item": {"text": stream.choice(values)}}).encode(), JSON),
        lambda: (json.dumps({"items": stream.choice([None, 3, [], {}, "ab", True])}).encode(), JSON),
        lambda: (json.dumps({"item": "a", "options": stream.choice([3, "x", [1], {"top_k": 1e9}])}).encode(), JSON),
        lambda: (
            json.dumps({"item": "a", "options": {"top_k": stream.choice(["", [], {}, "1e9", -1, 1.5, True])}})
            .encode()
            .replace(b'""', b'"q"'),
            JSON,
        ),
        lambda: (json.dumps({"item": "a", "model": stream.choice([3, "none", "../x", [], ""])}).encode(), JSON),
        lambda: (json.dumps({"item": {"text": "a", "none": 1}}).encode(), JSON),
        lambda: (b'{"item": NaN}', JSON),
        lambda: (whole[: stream.randrange(1, len(whole) - 60)], headers),
        lambda: (whole, {"Content-Type": "multipart/form-data"}),
        lambda: (whole, {"Content-Type": "multipart/form-data; boundary=" + "x" * stream.randrange(1, 200)}),
        lambda: form({f"field{n}": "x" for n in range(stream.randrange(51, 90))}),
        lambda: form({"text": noise, "model": b"\xff"}),
        lambda: (good, {"Content-Type": stream.choice(["text/plain", "image/png", "", "application/xml"])}),
        lambda: (image, image_headers),
        lambda: (
            json.dumps(
                {"model": "image", "item": {"image": stream.choice(["/etc/passwd", "data:,x", "a", 3])}}
            ).encode(),
            JSON,
        ),
    ]
    return stream.choice(bodies)()


def test_malformed_requests_have_clean_answers() -> None:
    """A thousand of them: each a status of the client's fault with a message, the memory flat, the model unharmed."""
    stream, seen, after = random.Random(0), Counter[int](), 0
    (image,) = open_models(["image=classification/demo"], device="cpu")
    with serving([ServedModel("echo", Echo()), image], Limits(max_bytes=200_000)) as address:
        for number in range(1000):
            content, headers = malformed(stream)
            path = "/explain" if number % 10 == 0 else "/predict"
            found = request(address, path, content, headers)
            assert found.status in (400, 404, 413, 415, 422), (content[:200], headers, found.content)
            assert 10 < len(found.json["error"]) < 700
            seen[found.status] += 1
            after = memory() if number == 300 else after
        assert seen.keys() == {400, 404, 415, 422}
        assert memory() - after < 10 << 20, "flat"
        assert request(address, "/predict", {"item": "fine"}).json["results"][0]["answer"] == "FINE"
        assert request(address, "/health").status == 200


def raw(address: str, *pieces: bytes, pause: float = 0.0, wait: float = 10.0) -> bytes:
    """Sends bytes with pauses between the pieces; returns what the server sends until it closes the connection."""
    netloc = urlsplit(address).netloc.split(":")
    with socket.create_connection((netloc[0], int(netloc[1])), timeout=wait) as connection:
        found = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while chunk := connection.recv(65536):
                found += chunk
        except (ConnectionError, TimeoutError):
            pass
        return found


def test_slow_clients_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stop within the head, some within the body; the others are answered meanwhile."""
    monkeypatch.setattr(serve, "HEAD_SECONDS", 1.5)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    with serving([ServedModel("echo", Echo())], Limits(timeout=1.5)) as address, ThreadPoolExecutor(40) as pool:
        heads = [pool.submit(raw, address, head) for _ in range(20)]
        bodies = [pool.submit(raw, address, head + b"\r\n", b'{"item"', pause=0.05) for _ in range(20)]
        time.sleep(0.2)
        assert request(address, "/predict", {"item": "quick"}).json["results"][0]["answer"] == "QUICK"
        assert not any(one.done() for one in (*heads, *bodies)), "they still wait"
        assert all(one.result() == b"" for one in heads), "closed without an answer"
        assert all(one.result().startswith(b"HTTP/1.1 408 ") for one in bodies)


def test_each_request_of_a_connection_must_begin_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_SECONDS", 0.5)
    first = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving([ServedModel("echo", Echo())]) as address:
        begun = time.monotonic()
        found = raw(address, first, first, b"GET /health HTTP/1.1\r\nHost", pause=0.1, wait=5.0)
        assert found.count(b"HTTP/1.1 200") == 2
        assert time.monotonic() - begun < 4, "closed, not given up by the client"


def test_large_uploads_are_refused_before_they_are_read() -> None:
    """Also without a stated length; and many at a time are limited in all."""
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with serving([ServedModel("echo", Echo())], Limits(max_bytes=1 << 20, timeout=2.0)) as address:
        before = memory()
        found = raw(address, head + b"Content-Length: 99999999999\r\n\r\n", b"x" * 1000)
        assert found.startswith(b"HTTP/1.1 413 ")
        found = raw(
            address, head + b"Transfer-Encoding: chunked\r\n\r\n", *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 400
        )
        assert found.startswith(b"HTTP/1.1 413 ") or not found  # or reset, since the rest is not read
        held = head + b"Content-Length: 1048576\r\n\r\n" + b"x" * 1_000_000
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda _: raw(address, held), range(16)))
        assert {one[9:12] for one in found} == {b"408", b"429"}
        assert memory() - before < 40 << 20
        assert request(address, "/predict", {"item": "x" * 900_000}).status == 200, "nothing is held any more"


@pytest.fixture
def slow() -> Iterator[tuple[str, Echo]]:
    """A server whose model takes a second."""
    echo = Echo(seconds=1.0)
    with serving([ServedModel("echo", echo)], Limits(batch_size=1)) as address:
        yield address, echo


def test_cancelled_requests_are_not_predicted(slow: tuple[str, Echo]) -> None:
    address, echo = slow
    first = threading.Thread(target=request, args=(address, "/predict", {"item": "first"}))
    first.start()
    time.sleep(0.2)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
    netloc = urlsplit(address).netloc.split(":")
    for _ in range(30):
        with socket.create_connection((netloc[0], int(netloc[1]))) as connection:
            connection.sendall(head + b'{"item": "no"}')
    first.join()
    assert request(address, "/predict", {"item": "last"}).status == 200
    assert len(echo.sizes) <= 3, "those whose clients have left are skipped"


def test_forms_are_read_as_they_were_sent() -> None:
    """Any bytes in a file, quotes in names, an empty file, boundaries in quotes; and what is wrong is named."""
    for number in range(200):
        stream = random.Random(number)
        fields: dict[str, str | bytes] = {
            "text": "ä\r\n--x\r\n",
            "file": stream.randbytes(stream.randrange(300)),
            "empty": b"",
        }
        body, headers = form(fields)
        assert dict(read_form(body, headers["Content-Type"])) == fields
    edge = headers["Content-Type"].partition("boundary=")[2]
    assert dict(read_form(body, f'multipart/form-data; boundary="{edge}"; charset=utf-8')) == fields
    head = b'--x\r\ncontent-type: a/b\r\nCONTENT-DISPOSITION: form-data; filename="f.png"; name="a \\"b\\""'
    assert read_form(head + b"\r\n\r\n1\r\n--x--", "multipart/form-data; boundary=x") == [('a "b"', b"1")]
    for wrong, message in {
        b"": "truncated",
        b"--x\r\n": "truncated",
        b"--x\r\n\r\n1\r\n--x--": "a field without a name",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n--x--': "a field without a name",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--': "not UTF-8",
        b"before\r\n--x--": "does not begin with it",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 51 + b"--x--": "more than 50 fields",
    }.items():
        refused(message, read_form, wrong, "multipart/form-data; boundary=x", error=RequestError)
    refused("without its boundary", read_form, body, "multipart/form-data", error=RequestError)
