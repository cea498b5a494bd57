"""JSON files of public models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that contains an object, UTF-8 with or without a byte order mark.

    Raises:
        ValueError: Not JSON, with brackets nested too deeply or an endless integer; or not an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
