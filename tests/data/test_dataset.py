"""The base class of all tasks' data sets, tested with numbers in text files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmattn.data.dataset import SampleDataset, content_of
from mmattn.data.errors import DataError, Problems
from tests.data.files import bad_data, write


@dataclass
class Number:
    """A file that contains a number."""

    id: str
    path: Any
    value: int | None = None


class Numbers(SampleDataset[Number]):
    """A file that lists the names of files in its folder."""

    item = "number"

    def read(self, path: str | Path, problems: Problems) -> Iterator[tuple[str, Number]]:
        for line, name in enumerate(Path(path).read_text().split(), start=1):
            if name.startswith("#"):
                problems.add(f"{path}, line {line}", "a name", name)
            else:
                yield f"{path}, line {line}", Number(name, Path(path).parent / name)

    def check(self, sample: Number) -> tuple[str, str] | None:
        return ("a name of letters", repr(sample.id)) if sample.id.isdigit() else None

    def decode(self, sample: Number, where: str) -> None:
        if not sample.path.read_text().isdigit():
            raise DataError(where, "a number", "none")

    def identity(self, sample: Number) -> tuple[list[Any], list[Any]]:
        return [sample.id], [sample.path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"a": "1", "b": "x", "c": "3", "7": "7"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def listing(folder: Path, text: str) -> Path:
    return write(folder / "list", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a #x", "line 2: expected a name, found #x"),
        ("a 7", "line 2: expected a name of letters, found '7'"),
        ("a c a", "line 3: expected an id of its own, found 'a', which .*list, line 1 has already"),
        (" ", "list: expected at least one number, found none$"),
    ],
)
def test_first_invalid_item_raises(text: str, message: str, folder: Path) -> None:
    bad_data(message, Numbers, listing(folder, text))


def test_invalid_items_are_skipped_and_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Numbers(listing(folder, "a #x 7 b c a"), on_error="skip")
    assert [sample.id for sample in found.samples] == ["a", "c"]
    reasons = [reason.split(",")[0] for _, reason in found.skipped]
    expected = ["a name", "a name of letters", "a number", "an id of its own"]
    assert [reason.removeprefix("expected ") for reason in reasons] == expected
    assert "excluded 4 bad items, kept 2" in caplog.text
    alone = listing(folder, "b")
    bad_data(r"expected at least one number, found none \(1 invalid ones excluded\)", Numbers, alone, on_error="skip")


def test_in_memory_samples_are_validated() -> None:
    assert Numbers([Number("a", b"1")]).name == "samples"
    bad_data(r"^sample 1 \(id '7'\): expected a name of letters", Numbers, [Number("a", b""), Number("7", b"")])


def test_filter_and_preload_do_not_modify_the_original(folder: Path) -> None:
    whole = Numbers(listing(folder, "a c"))
    part = whole.filter(lambda sample: sample.id == "c")
    assert (len(whole), len(part), part[0].id, part.places[0].split()[-1]) == (2, 1, "c", "2")
    assert len(whole.filter(lambda sample: False)) == 0
    before = part.fingerprint()
    part.preloaded(lambda sample, where: replace(sample, value=int(sample.path.read_text()), path=None))
    assert (part[0].value, part.fingerprint()) == (3, before)
    assert pickle.loads(pickle.dumps(part)).samples == part.samples


def test_fingerprints_of_files_and_arrays(folder: Path) -> None:
    first = Numbers(listing(folder, "a c")).fingerprint()
    assert Numbers(listing(folder, "c a")).fingerprint() != first
    (folder / "a").write_text("11")
    assert Numbers(listing(folder, "a c")).fingerprint() != first
    zeros = [np.zeros(shape, dtype) for shape, dtype in (((2, 3), "u1"), ((3, 2), "u1"), ((6,), "u1"), ((2, 3), "i1"))]
    assert len({content_of(array) for array in zeros}) == 4
    assert content_of((zeros[0], 8000)) != content_of((zeros[0], 16000))
    assert content_of(None) == b""
