"""Files as tests write them, and what bad data raise: what the tests of data share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError
from tests.conftest import refused


def bad_data(message: str, call: Callable[..., Any], /, *given: Any, **keywords: Any) -> str:
    """Asserts that a call raises a `DataError` in these words, a pattern; returns all that it says."""
    return refused(message, call, *given, error=DataError, **keywords)


def write(path: Path, content: Any) -> Path:
    """Writes text, bytes, or rows: lines as they are, anything else as JSON."""
    if isinstance(content, list):
        content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
