"""Helpers of the data tests: writing files, and asserting data errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError
from tests.conftest import refused


def bad_data(message: str, call: Callable[..., Any], /, *given: Any, **keywords: Any) -> str:
    """Asserts that a call raises a `DataError` whose message matches a pattern; returns the whole message."""
    return refused(message, call, *given, error=DataError, **keywords)


def write(path: Path, content: Any) -> Path:
    """Writes text, bytes, or rows: strings as lines, anything else as JSON."""
    if isinstance(content, list):
        content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
