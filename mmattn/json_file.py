"""JSON files of public models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL, DIGITS = 128 * 2**20, 300  # bytes of a file, and digits of an integer: those of a float


def read_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that contains an object, UTF-8 with or without a byte order mark.

    Raises:
        ValueError: Not a regular file of at most 128 MB (a pipe or device may never end); not JSON, with brackets
            nested too deeply or an integer of too many digits; or not an object.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size > SMALL:
        raise ValueError(f"{path}: expected a regular file of at most {SMALL:,} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)
