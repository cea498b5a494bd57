"""File formats of summarization.

**JSONL, CSV, TSV**: ``document``, ``summary``, and optionally ``id`` and ``references``, several reference summaries: a
list in JSONL, a JSON list in CSV. If ``summary`` is missing, the first of the references replaces it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.readers import TABLES, as_path, parse_json, read_rows, report_missing
from mmattn.data.table import Table

logger = logging.getLogger(__name__)
KEYS = ("document", "summary", "references", "id")


def read_summaries(
    path: str | Path | Table, require_summary: bool, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read one split.

    Args:
        path: The file, or a table in memory.
        require_summary: Whether a missing summary is an error.
        problems: Collects invalid lines.

    Yields:
        The file and line, and the fields of the sample.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    path = as_path(path)
    if isinstance(path, Path) and path.exists() and not path.is_dir() and path.suffix.lower() not in TABLES:
        raise DataError(str(path), "a .jsonl, .csv or .tsv file", f"the ending {path.suffix!r}")
    unused: dict[str, None] = {}
    for where, line, row in read_rows(path, problems):
        missing = [] if "document" in row else ["document"]
        if require_summary and not {"summary", "references"} & row.keys():
            missing.append("summary")
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        unused.update(dict.fromkeys(key for key in row if key not in KEYS))
        references = _references(row.get("references"))
        if references is None:
            problems.add(where, "references that are a list of texts", shorten(row["references"]))
            continue
        name, summary = row.get("id"), row.get("summary")
        fields = {"id": str(line if name in (None, "") else name), "source": row["document"]}
        fields["target"] = [*references, ""][0] if summary in (None, "") else summary
        yield where, fields | {"references": references}
    if unused:
        logger.warning("%s: ignored keys: %s", path, ", ".join(unused))


def _references(value: Any) -> list[str] | None:
    """Parse the references of a row; None if they are no list of texts."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else None
