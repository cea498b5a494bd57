"""The file formats of summarization, to the fields of samples.

**JSONL, CSV, TSV**: ``document``, ``summary``, and if wanted ``id`` and ``references``, several right summaries: a list
in JSONL; in CSV a JSON list. Where ``summary`` is missing, the first of them stands in for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.readers import read_rows, report_missing

logger = logging.getLogger(__name__)
KEYS = ("document", "summary", "references", "id")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv")


def read_summaries(path: str | Path, require_summary: bool, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads one split.

    Args:
        path: The file.
        require_summary: Whether a missing summary is an error.
        problems: Takes the bad lines.

    Yields:
        Where the line stands, and the sample's fields.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_dir() and path.suffix.lower() not in TABLES:
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
        yield (
            where,
            {
                "id": str(line if name in (None, "") else name),
                "source": row["document"],
                "target": [*references, ""][0] if summary in (None, "") else summary,
                "references": references,
            },
        )
    if unused:
        logger.warning("%s: not used: %s", path, ", ".join(unused))


def _references(value: Any) -> list[str] | None:
    """A list of texts from what stands in a row; None where it is none."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else None
