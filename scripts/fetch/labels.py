"""The public sets of labeled texts of ``scripts/fetch_data.py``: conversion to JSON lines, CoNLL and CoNLL-U.

Texts of train and val that also stand in a later part are left out, compared by their words. Where a set has no
validation part, that of the measurements is listed in ``validation/`` by digests of its texts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.fetch.archive import Archive, FetchError, validation

Rows = dict[str, list[dict[str, Any]]]  # by part: train, val, test
PARTS = ("train", "val", "test")
WORDS = re.compile(r"\w+")


def words_of(text: str) -> str:
    """A text's words, without case and punctuation."""
    return " ".join(WORDS.findall(text.lower()))


def text_digest(text: str) -> str:
    """The digest by which a validation part lists its texts."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def pair_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of a text, or of both texts of a pair in either order."""
    return tuple(sorted(words_of(row[name]) for name in ("text", "text_pair") if name in row))


def write_parts(folder: Path, rows: Rows, later: Iterable[tuple[str, ...]] = ()) -> None:
    """Write ``PART.jsonl``, without the rows of train and val whose words also stand in a later part, or in `later`."""
    seen = set(later)
    for part in reversed(PARTS):
        if not rows.get(part):
            raise FetchError(f"{folder.name}: the archive has no texts of {part}")
        keys = [pair_key(row) for row in rows[part]]
        kept = [row for row, key in zip(rows[part], keys, strict=True) if part == "test" or key not in seen]
        seen |= set(keys)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def table(text: str, name: str, columns: int, row: Callable[[list[str]], dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a text of cells separated by tabs, without quoting.

    Raises:
        FetchError: A line has other cells.
    """
    found = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        cells = line.rstrip("\r").split("\t")
        try:
            if len(cells) < columns:
                raise ValueError(f"{len(cells)} cells, expected {columns}")
            found.append(row(cells))
        except (ValueError, LookupError) as error:
            raise FetchError(f"{name}, line {number} cannot be read ({error})") from None
    return found


def convert_sst2(archive: Archive, folder: Path) -> None:
    """Lines of a class, 0 or 1, and a sentence."""
    names = {"0": "negative", "1": "positive"}
    rows = {}
    for part, name in zip(PARTS, ("train", "dev", "test"), strict=True):
        lines = archive.text(rf"data/stsa\.binary\.{name}").removesuffix("\n").split("\n")
        pairs = [line.partition(" ") for line in lines]
        if any(label not in names for label, _, _ in pairs):
            raise FetchError(f"sst2: stsa.binary.{name} has a line without a class")
        rows[part] = [{"text": text.strip(), "label": names[label]} for label, _, text in pairs]
    write_parts(folder, rows)


def convert_trec6(archive: Archive, folder: Path) -> None:
    """Lines of a class, "DESC:manner", and a question, in Latin-1; the questions of val are listed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, content in archive.files(r"data/raw/TREC\.(?:train|test)[^/]*"):
        lines = content.decode("latin-1").removesuffix("\n").split("\n")
        pairs = [line.partition(" ") for line in lines if ":" in line.partition(" ")[0]]
        rows = [{"text": text.strip(), "label": fine.split(":")[0], "fine": fine} for fine, _, text in pairs]
        found.setdefault("test" if ".test" in path else "train", []).extend(rows)
    write_parts(folder, divided("trec6", found))


def divided(name: str, found: Mapping[str, list[dict[str, Any]]]) -> Rows:
    """Train and test with the listed texts of train as val."""
    chosen = set(validation(name))
    is_val = [text_digest(row["text"]) in chosen for row in found.get("train", [])]
    split = {
        part: [r for r, v in zip(found.get("train", []), is_val, strict=True) if v == (part == "val")]
        for part in PARTS[:2]
    }
    return split | {"test": found.get("test", [])}


def convert_agnews(archive: Archive, folder: Path) -> None:
    """Tables of a class, 1 to 4, and a description; line ends and characters that the source lost are restored."""
    names = ("World", "Sports", "Business", "Sci/Tech")
    found = {}
    for part, name in (("train", "dev"), ("test", "test")):
        reader = csv.reader(io.StringIO(archive.text(rf"data/ag_news/{name}\.csv")))
        try:
            _, *cells = reader
            found[part] = [{"text": restored(text), "label": names[int(label) - 1]} for label, text in cells]
        except (csv.Error, ValueError, IndexError) as error:
            raise FetchError(f"agnews_8k: {name}.csv has no class and text a row ({error})") from None
    write_parts(folder, divided("agnews_8k", found))


def restored(text: str) -> str:
    """Backslashes as spaces, ``#39;`` and the like as their character, and single spaces."""
    text = re.sub(r" ?#(\d+);", lambda match: chr(int(match[1])), text.replace("\\", " "))
    return " ".join(text.split())


def convert_goemotions(archive: Archive, folder: Path) -> None:
    """Tables of a text, the numbers of its labels, and an id."""
    names = archive.text(r"data/original/labels\.txt").split()
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8", newline="\n")

    def row(cells: list[str]) -> dict[str, Any]:
        return {
            "id": cells[2],
            "text": " ".join(cells[0].split()),
            "labels": [names[int(n)] for n in cells[1].split(",")],
        }

    parts = zip(PARTS, ("train", "dev", "test"), strict=True)
    write_parts(
        folder, {part: table(archive.text(rf"data/original/{name}\.tsv"), name, 3, row) for part, name in parts}
    )


def sick_rows(archive: Archive, name: str) -> list[dict[str, Any]]:
    """The pairs of a part of SICK."""
    text = archive.text(rf"data/sts/sick2014/SICK_{name}\.txt").partition("\n")[2]

    def row(cells: list[str]) -> dict[str, Any]:
        first, second, score, label = (cell.strip() for cell in cells[1:5])
        return {"text": first, "text_pair": second, "label": label.lower(), "relatedness": float(score), "id": cells[0]}

    return table(text, f"SICK_{name}.txt", 5, row)


def stsb_rows(archive: Archive, name: str) -> list[dict[str, Any]]:
    """The pairs of a part of the STS Benchmark."""

    def row(cells: list[str]) -> dict[str, Any]:
        texts = {"text": cells[5].strip(), "text_pair": cells[6].strip()}
        return {**texts, "label": float(cells[4]), "genre": cells[0], "source": cells[1], "year": cells[2]}

    return table(archive.text(rf"data/stsbenchmark/sts-{name}\.csv"), f"sts-{name}.csv", 7, row)


def convert_sick(archive: Archive, folder: Path, stsb: Archive) -> None:
    """The pairs of SICK, without those that stand in the test part of the STS Benchmark."""
    names = zip(PARTS, ("train", "trial", "test_annotated"), strict=True)
    later = [pair_key(row) for row in stsb_rows(stsb, "test")]
    write_parts(folder, {part: sick_rows(archive, name) for part, name in names}, later)


def convert_stsb(archive: Archive, folder: Path, sick: Archive) -> None:
    """The pairs of the STS Benchmark, without those that stand in the test part of SICK."""
    names = zip(PARTS, ("train", "dev", "test"), strict=True)
    later = [pair_key(row) for row in sick_rows(sick, "test_annotated")]
    write_parts(folder, {part: stsb_rows(archive, name) for part, name in names}, later)


def convert_wnut17(archive: Archive, folder: Path) -> None:
    """Words and tags, separated by a tab; white space around them is removed."""
    for part, name in zip(
        PARTS, (r"wnut17train\.conll", r"emerging\.dev\.conll", r"emerging\.test\.annotated"), strict=True
    ):
        lines = archive.text(name).replace("\r\n", "\n").removesuffix("\n").split("\n")
        cells = [[cell.strip() for cell in line.split("\t")] for line in lines]
        text = "\n".join("\t".join(row) if any(row) else "" for row in cells)
        (folder / f"{part}.conll").write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def convert_ewt(archive: Archive, folder: Path) -> None:
    """The documents of each part's list, put together; without enhanced dependencies, empty nodes and repetitions."""
    sources = dict(archive.files(r"not-to-release/sources/[^/]+/[^/]+\.conllu"))
    parts: dict[str, list[tuple[str, list[str]]]] = {}
    for part, name in zip(PARTS, ("train", "dev", "test"), strict=True):
        listed = archive.text(rf"not-to-release/file-lists/files\.{name}").split()
        missing = [path for path in listed if f"not-to-release/sources/{path}" not in sources]
        if missing:
            raise FetchError(f"ewt_pos: the archive lacks {missing[0]}, which the list of {name} names")
        texts = [sources[f"not-to-release/sources/{path}"].decode("utf-8") for path in listed]
        parts[part] = [sentence(block) for text in texts for block in text.strip().split("\n\n")]
    seen: set[str] = set()
    for part in reversed(PARTS):
        kept = [lines for words, lines in parts[part] if part == "test" or words not in seen]
        seen |= {words for words, _ in parts[part]}
        text = "".join("\n".join(lines) + "\n\n" for lines in kept)
        (folder / f"{part}.conllu").write_text(text, encoding="utf-8", newline="\n")


def sentence(block: str) -> tuple[str, list[str]]:
    """The words of a sentence in lower case, and its lines as they are written."""
    words, lines = [], []
    for line in block.split("\n"):
        if line.startswith("#"):
            if re.match(r"# (newdoc|sent_id|text) ", line):
                lines.append(line)
            continue
        cells = line.split("\t")
        if "." in cells[0]:
            continue
        if "-" not in cells[0]:
            words.append(cells[1].lower())
        cells[8] = "_"
        cells[9] = "SpaceAfter=No" if "SpaceAfter=No" in cells[9].split("|") else "_"
        lines.append("\t".join(cells))
    return " ".join(words), lines


def listed_digests(texts: Sequence[str]) -> list[str]:
    """The digests of a validation part, in order, for ``validation/NAME.json``."""
    return sorted({text_digest(text) for text in texts})
