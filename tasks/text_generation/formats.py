"""Files of text generation.

- A text file (`.txt`, or any other name): one document; with `document="line"` each line is one, with "paragraph" each
  part between empty lines. Files may be larger than memory: they are read in parts.
- A folder: its `.txt` and `.md` files at any depth, in the order of their names.
- A `.bin` or `.npy` of token ids, see ``tokens.py``.
- JSONL, CSV or TSV with `text`; or with `prompt` and `response`, which are instructions: only responses are learned.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, is_broken
from mmattn.data.files import files_below
from mmattn.data.names import find_file
from mmattn.data.readers import TABLES, as_path, read_rows, report_missing, stream_lines
from mmattn.data.table import Table
from mmattn.tasks.text_generation.tokens import IDS, FileTokens

DOCUMENTS = ("file", "line", "paragraph")
TEXTS = (".txt", ".md")
PIECE = 1 << 20  # characters at a time


class FileText:
    """The text of a file, which is not kept in memory.

    Args:
        path: The file, in UTF-8.

    Raises:
        DataError: The file cannot be read, is empty, or is not UTF-8 (with the line).
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.start, self.end = find_file(path), 0, 0  # the first and the last + 1 character
        digest, is_empty, number = hashlib.sha256(), True, 1
        for line in _long_lines(self.path):
            if is_broken(line):
                raise DataError(f"{self.path}, line {number}", "UTF-8 text", f"the byte 0x{_broken_byte(line):02x}")
            number += line.endswith("\n")
            is_empty = is_empty and not line.strip()
            digest.update(line.encode())
            self.end += len(line)
        if is_empty:
            raise DataError(str(self.path), "a file with content", "an empty file")
        self.digest = digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """Yields parts of about PIECE characters, which end with lines if these are shorter."""
        parts: list[str] = []
        size, place = 0, 0
        for line in _long_lines(self.path):
            first, place = place, place + len(line)
            line = line[max(self.start - first, 0) : max(self.end - first, 0)]
            if size and size + len(line) > PIECE:
                yield "".join(parts)
                parts, size = [], 0
            parts.append(line)
            size += len(line)
            if place >= self.end:
                break
        if size:
            yield "".join(parts)

    def divided(self, share: float) -> tuple[FileText, FileText]:
        """Divides the text after its last space within this share of the characters; after none, the first is empty."""
        most, place, cut = int((self.end - self.start) * share), 0, 0
        for part in self:
            found = part.rfind(" ", 0, most - place)
            cut = cut if found < 0 else place + found + 1
            place += len(part)
            if place >= most:
                break
        return self._part(self.start, self.start + cut), self._part(self.start + cut, self.end)

    def _part(self, start: int, end: int) -> FileText:
        other = copy.copy(self)
        other.start, other.end = start, end
        other.digest = hashlib.sha256(f"{self.digest} {start} {end}".encode()).hexdigest()
        return other

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the content, or of that of the file with the places of a part."""
        return self.digest


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file with their ends, which are line feeds."""
    for line in stream_lines(path):
        yield line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line


def _long_lines(path: Path) -> Iterator[str]:
    """Yields what `_lines` does; lines of more than PIECE characters in parts, so that none is whole in memory."""
    rest = ""  # of a line: what comes after the last space
    for part in stream_lines(path, limit=PIECE):
        line, rest = rest + part, ""
        if line.endswith("\n"):
            yield line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line
            continue
        end = line.rfind(" ", 1) + 1 or len(line) - line.endswith("\r")  # whose line feed may follow
        line, rest = line[:end], line[end:]
        if line:
            yield line
    if rest:
        yield rest


def _broken_byte(line: str) -> int:
    """Returns the first byte of a line that is not UTF-8, which was read as a lone surrogate."""
    return next(ord(character) & 0xFF for character in line if is_broken(character))


def read_texts(
    path: str | Path | Table, document: str, require_text: bool, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the location of each text with its fields: `id`, `text`, and of instructions `prompt`.

    Args:
        path: A file or folder, or a table in memory.
        document: See the module.
        require_text: Whether rows need a text or a response, besides a prompt.
        problems: Collects invalid items.

    Raises:
        DataError: The path as a whole cannot be read.
    """
    if not isinstance(path, Table) and Path(path).is_dir():
        found = [(name, file) for name, file in files_below(Path(path), TEXTS)]
        if not found:
            raise DataError(str(path), f"a folder with text files ({', '.join(TEXTS)})", "none in it")
        for name, file in found:
            try:
                yield from _of_file(file, name, document, problems)
            except DataError as error:
                problems.take(str(file), error)
        return
    if isinstance(path, Table) or as_path(path).suffix.lower() in TABLES:
        yield from _rows(path, require_text, problems)
        return
    if as_path(path).suffix.lower() in IDS:
        yield str(path), {"id": Path(path).name, "text": FileTokens(path)}
        return
    yield from _of_file(Path(path), Path(path).name, document, problems)


def _of_file(path: Path, name: str, document: str, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    if document == "file":
        yield str(path), {"id": name, "text": FileText(path)}
        return
    number, lines, start, any_text = 0, list[str](), 0, False

    def finished() -> Iterator[tuple[str, dict[str, Any]]]:
        text = "".join(lines).strip("\n")
        where = f"{path}, line {start}"
        if is_broken(text):
            problems.add(where, "UTF-8 text", "bytes that are not")
        elif text.strip():
            yield where, {"id": f"{name}:{start}", "text": text}

    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            any_text = True
            start = start if lines else number
            lines.append(line)
        if lines and (document == "line" or not line.strip()):
            yield from finished()
            lines = []
    if lines:
        yield from finished()
    if not any_text:
        raise DataError(str(path), "a file with content", "an empty file")


def _rows(path: str | Path | Table, require_text: bool, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds: dict[bool, str] = {}  # whether rows are instructions, and the first of each kind
    for where, number, row in read_rows(path, problems):
        is_instruction = "prompt" in row or "response" in row
        wanted = ("prompt", "response") if is_instruction and require_text else ("prompt",)
        missing = [name for name in (wanted if is_instruction else ("text",)) if name not in row]
        if missing:
            report_missing(path, where, row, missing, {"id", "text", "prompt", "response"}, problems)
            continue
        kinds.setdefault(is_instruction, where)
        if len(kinds) > 1 and require_text:
            found = f"texts, as in {kinds[False]}" if is_instruction else f"instructions, as in {kinds[True]}"
            raise DataError(where, "rows that all have text, or all prompt and response", f"both: {found}")
        fields: dict[str, Any] = {"id": str(row.get("id", number))}
        fields |= {"text": row.get("response", "") if is_instruction else row["text"]}
        yield where, fields | ({"prompt": row["prompt"]} if is_instruction else {})
