"""Files of texts with labels: tables (CSV, TSV, JSONL), CoNLL columns, CoNLL-U, and plain text of a sample a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.names import nfc
from mmattn.data.readers import TABLES, as_path, read_lines, read_rows, report_missing
from mmattn.data.table import Table

KEYS = ("id", "text", "text_pair", "label", "labels", "score", "words", "tags")  # of a table's rows
CONLL, CONLLU, PLAIN = (".conll", ".bio", ".iob", ".iob2"), ".conllu", ".txt"
COLUMNS = {"upos": 3, "xpos": 4, "lemma": 2, "deprel": 7}  # of CoNLL-U, that label a word
WIDTH = 10  # columns of CoNLL-U
FORMATS = "CSV, TSV or JSONL with text and label; CoNLL (.conll), CoNLL-U (.conllu); or plain text (.txt)"
Row = dict[str, Any]  # text, text_pair, words, and the label as given: label, labels, score or tags


def read_samples(
    path: str | Path | Table, columns: Mapping[str, str], labeled: bool, problems: Problems, predicts: bool = False
) -> Iterator[tuple[str, Row]]:
    """Yields location and fields of each sample, with its labels as given.

    Args:
        path: The file or table.
        columns: Names of the file's columns by the names that are expected: ``{"label": "relatedness"}``. For CoNLL-U
            the column of the tags, ``{"tags": "xpos"}``.
        labeled: Whether a row without a label is an error.
        problems: Collects invalid items.
        predicts: Whether the texts are to be predicted; then columns may also have the names that are expected.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    suffix = as_path(path).suffix.lower()
    if suffix in CONLL:
        yield from _conll(path, labeled, problems)
    elif suffix == CONLLU:
        label = columns.get("label")  # which may be that of the table of another task
        column = columns.get("tags", label if label in COLUMNS else "upos")
        yield from _conllu(path, column, labeled, problems)
    elif suffix == PLAIN:
        yield from _plain(path)
    elif suffix in TABLES or isinstance(path, Table):
        yield from _rows(path, columns, labeled, problems, predicts)
    else:
        raise DataError(str(path), f"a file of {FORMATS}", f"a name that ends in {suffix!r}")


def _rows(
    path: str | Path | Table, columns: Mapping[str, str], labeled: bool, problems: Problems, predicts: bool
) -> Iterator[tuple[str, Row]]:
    known = {name: name for name in KEYS} if predicts else {}
    known |= {columns.get(name, name): name for name in KEYS}
    answers = [columns.get(name, name) for name in ("label", "labels", "score", "tags")]
    given = [columns[name] for name in ("label", "labels", "score", "tags") if name in columns]
    for where, line, row in read_rows(path, problems):
        found = {name: row[key] for key, name in known.items() if key in row}
        if "words" not in found and "tokens" in row:
            found["words"] = row["tokens"]
        missing = [] if "text" in found or "words" in found else [columns.get("text", "text")]
        if labeled and not any(name in row for name in given or answers):
            missing.append(given[0] if given else "label")
        if missing:
            names = [f"--data.columns.{known.get(name, 'label')}" for name in missing]
            also = f"{' and '.join(names)} name{'s another' if len(names) == 1 else ' others'}"
            report_missing(path, where, row, missing, known, problems, "" if predicts else also)
            continue
        if given:  # a column that was asked for is the label, whatever others there are
            found = {k: v for k, v in found.items() if k in columns or k not in ("label", "labels", "score", "tags")}
        name = found.get("id")
        found["id"] = str(line if name in (None, "") else name)
        if isinstance(found.get("words"), str):
            found["words"] = found["words"].split()
        if isinstance(found.get("tags"), str):
            found["tags"] = found["tags"].split()
        yield where, found


def _plain(path: str | Path | Table) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_lines(as_path(path)), start=1):
        if line.strip():
            yield f"{path}, line {number}", {"id": str(number), "text": line.strip()}


def _blocks(path: str | Path | Table, comments: bool) -> Iterator[list[tuple[int, str]]]:
    """Yields the lines of each sentence with their numbers; empty lines separate sentences."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(read_lines(as_path(path)), start=1):
        if comments and line.startswith("#"):
            continue
        if line.strip():
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _conll(path: str | Path | Table, labeled: bool, problems: Problems) -> Iterator[tuple[str, Row]]:
    """A word a line: its first column; the last one is its tag. Tabs separate columns, or else spaces."""
    width: int | None = None
    for block in _blocks(path, comments=False):
        if block[0][1].split()[0] == "-DOCSTART-":  # a line alone, or right before the first sentence
            block = block[1:]
        if not block:
            continue
        cells = [
            (line, [c.strip() for c in (text.split("\t") if "\t" in text else text.split())]) for line, text in block
        ]
        width = len(cells[0][1]) if width is None else width
        least = 2 if labeled else 1
        bad = next(((line, row) for line, row in cells if len(row) != width or len(row) < least or not all(row)), None)
        where = f"{path}, line {block[0][0]}"
        if bad is not None:
            empty = ", none of them empty" if len(bad[1]) == width >= least else ""
            expected = f"{max(width, least)} columns, the first a word and the last its tag{empty}"
            problems.add(f"{path}, line {bad[0]}", expected, f"{len(bad[1])}: {shorten(' '.join(bad[1]))}")
            continue
        row: Row = {"id": str(block[0][0]), "words": [row[0] for _, row in cells]}
        if width > 1:
            row["tags"] = [row[-1] for _, row in cells]
        yield where, row


def _conllu(path: str | Path | Table, column: str, labeled: bool, problems: Problems) -> Iterator[tuple[str, Row]]:
    """Words with tags; ranges such as 3-4 and empty nodes such as 8.1 are no words of their own."""
    if column not in COLUMNS:
        raise DataError(f"data.columns: tags: expected one of {', '.join(COLUMNS)}, found {column!r}")
    for block in _blocks(path, comments=True):
        words: list[str] = []
        tags: list[str] = []
        problem: tuple[str, str, str] | None = None
        for line, text in block:
            cells = text.split("\t")
            where = f"{path}, line {line}"
            if len(cells) != WIDTH:
                problem = (where, f"{WIDTH} columns separated by tabs", f"{len(cells)}: {shorten(text)}")
                break
            if "-" in cells[0] or "." in cells[0]:
                continue
            tag = cells[COLUMNS[column]]
            if not cells[0].isdigit() or not cells[1]:
                problem = (where, "a number and a word in the first columns", shorten(text))
            elif labeled and tag == "_":
                problem = (where, f"a {column} tag", "none (_)")
            if problem is not None:
                break
            words.append(cells[1])
            tags.append(tag)
        if problem is not None:
            problems.add(*problem)
        elif words:
            row: Row = {"id": str(block[0][0]), "words": words}
            yield f"{path}, line {block[0][0]}", row | ({} if set(tags) == {"_"} else {"tags": tags})


# Kinds ----------------------------------------------------------------------------------------------------------------

SINGLE, MULTI, REGRESSION, TAGGING, TEXT = "single_label", "multi_label", "regression", "tagging", "text"
KINDS = (SINGLE, MULTI, REGRESSION, TAGGING, TEXT)
LARGEST = 1e18  # magnitude of a score: its square is a number of single precision
SCORE = f"a score, a finite number of magnitude below {LARGEST:g}"


def kind_of(rows: Sequence[Row]) -> tuple[str, str]:
    """The kind of the labels of all rows, and the reason in words.

    Words with tags are tagging. Lists of labels, or a column `labels`, are several labels. Numbers of which one has a
    decimal point, or a column `score`, are regression. All other labels are classes, whole numbers among them. Without
    any label the data are plain text.
    """
    if any("tags" in row for row in rows):
        return TAGGING, "each word has a tag"
    if any("labels" in row or isinstance(row.get("label"), (list, tuple)) for row in rows):
        return MULTI, "an item may have several labels"
    if any("score" in row for row in rows):
        return REGRESSION, "an item has a score"
    labels = [row["label"] for row in rows if "label" in row]
    if not labels:
        return TEXT, "no item has a label"
    if all(_float(label) is not None for label in labels):  # one that is not finite is an error of its item
        broken = next((label for label in labels if isinstance(label, float) or "." in str(label)), None)
        if broken is not None:
            return REGRESSION, f"labels are numbers such as {broken}"
    return SINGLE, "an item has one label"


def number_of(label: Any) -> float | None:
    """A label as a number; None if it is none, not finite, or larger than single precision computes with."""
    value = _float(label)
    return value if value is not None and abs(value) < LARGEST else None


def _float(label: Any) -> float | None:
    if isinstance(label, bool) or not isinstance(label, (int, float, str)):
        return None
    try:
        return None if "_" in str(label) else float(label)  # Python alone reads 1_000 as a number
    except (ValueError, OverflowError):
        return None


def names_of(label: Any) -> list[Any]:
    """A cell of labels as a list: a list itself, or names separated by |."""
    if isinstance(label, (list, tuple)):
        return [name_of(one) for one in label]
    return [nfc(part.strip()) for part in str(label).split("|") if part.strip()]


def name_of(label: Any) -> Any:
    """A label's name: texts without spaces around them, accents composed; numbers and truth values in words."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, (int, float)):
        return f"{label:g}"
    return nfc(label.strip()) if isinstance(label, str) else label
