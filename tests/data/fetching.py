"""Helpers of the fetching tests: a server on loopback, archives as GitHub packs them, and the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.fetch.archive import FetchError, Source, fetch, sources
from tests.conftest import refused
from tests.image_files import encoded

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"  # an address without a server


def archive(files: dict[str, bytes], top: str = "repo-0123456789") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def png(seed: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), kind)


def easy_vqa_files(num_train: int = 200) -> dict[str, bytes]:
    def questions(images: range) -> bytes:
        rows = [["what color is the shape?", "red", i] for i in images] + [["is it red?", "yes", 0]]
        return json.dumps(rows).encode()

    files = {"data/train/questions.json": questions(range(num_train)), "data/test/questions.json": questions(range(3))}
    files |= {f"data/train/images/{i}.png": png(i) for i in range(num_train)}
    files |= {f"data/test/images/{i}.png": png(1000 + i) for i in range(3)}
    return {f"easy_vqa/{name}": content for name, content in files.items()}


@contextlib.contextmanager
def serve(answers: dict[str, Any]) -> Iterator[str]:
    """A server: bytes are sent as they are; a function is called with the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path)
            if answer is None:
                self.send_error(404)
            elif callable(answer):
                answer(self)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def get(name: str, files: dict[str, bytes], out: Path, checked: bool = False) -> Path:
    """Fetches a data set of the table from an archive of these files; compares its checksums if `checked`."""
    source = sources()[name] if checked else replace(sources()[name], sha256={})
    with serve({f"/{source.repository}/tar.gz/{source.commit}": archive(files)}) as url:
        return fetch(source, out, url)


def not_fetched(message: str, source: Source, out: Path, url: str = NOWHERE) -> None:
    """Asserts that fetching fails with this message."""
    refused(message, fetch, source, out, url, error=FetchError)


def not_got(message: str, name: str, files: dict[str, bytes], out: Path, checked: bool = False) -> None:
    """Asserts that fetching a data set from an archive of these files fails with this message and leaves no files."""
    refused(message, get, name, files, out, checked, error=FetchError)
    assert nothing_left(out)


def measured_on(real_data: Path, name: str) -> Path:
    """A data set's folder among those used for the measurements."""
    if not (real_data / name).exists():
        pytest.skip(f"real data: {real_data} has no {name}")
    return real_data / name


def nothing_left(out: Path) -> bool:
    return not out.exists() or not list(out.iterdir())


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "fetch_data.py"), *arguments]
    env = {key: value for key, value in os.environ.items() if key != "MMATTN_DATA"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", check=False)
