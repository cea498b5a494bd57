"""Names in Unicode's normalization forms: macOS and its archives store an accent apart from its letter (NFD)."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def nfc(name: str) -> str:
    """Returns the form of a name that is equal for names that look alike, accents composed.

    >>> nfc("Cafe\\u0301") == "Caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def find_file(path: str | Path) -> Path:
    """Returns a path, with the names of files and folders in the form in which they exist, if they do."""
    path = Path(path)
    if str(path).isascii() or os.path.exists(path):  # Path.exists raises an error for names that are too long
        return path
    found = Path(path.anchor)
    for name in path.relative_to(path.anchor).parts:
        forms = (name, nfc(name), unicodedata.normalize("NFD", name))
        found = next((found / form for form in forms if os.path.exists(found / form)), found / name)
    return found if os.path.exists(found) else path
