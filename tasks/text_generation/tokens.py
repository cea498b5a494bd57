"""Files of token ids that other programs have written: `.bin` as nanoGPT's prepare.py writes them, and `.npy`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mmattn.data.errors import DataError, shorten
from mmattn.data.names import find_file

IDS = (".bin", ".npy")
RAW = np.dtype("<u2")  # of .bin
PART = 1 << 24  # tokens at a time


class FileTokens:
    """The ids of a file, mapped and not copied.

    Args:
        path: A `.bin` of unsigned 16-bit little-endian integers without a header; or a `.npy`, one-dimensional, of
            integers.

    Raises:
        DataError: The file is missing, empty, or has another form; or an id is negative.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.start = find_file(path), 0  # the first of its tokens
        self.ids = _mapped(self.path)  # (N,)
        if not len(self.ids):
            raise DataError(str(self.path), "a file with token ids", "none in it")
        digest, self.largest = hashlib.sha256(str(self.ids.dtype).encode()), 0
        for first, part in self.parts():
            digest.update(part.tobytes())
            self.largest = max(self.largest, int(part.max()))
            if int(part.min()) < 0:
                place = int((part < 0).argmax())
                raise DataError(f"{self.path}, token {first + place}", "an id of 0 or more", f"{part[place]}")
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        """Token ids have no text.

        Raises:
            DataError: Always.
        """
        raise self.without_tokenizer()

    def without_tokenizer(self) -> DataError:
        """Returns the error that there is no tokenizer of the ids."""
        given = "a tokenizer that is given, by --init_from MODEL or --data.tokenizer hf:owner/name"
        return DataError(str(self.path), f"texts; or, to train on, {given}", "token ids without one")

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the ids in parts of PART tokens, each with the index of its first."""
        for first in range(0, len(self.ids), PART):
            yield first, self.ids[first : first + PART]

    def divided(self, share: float) -> tuple[FileTokens, FileTokens]:
        """Divides the tokens at this share of them, at least one on each side if there are two."""
        cut = max(1, int(len(self.ids) * share))
        return self._part(0, cut), self._part(cut, len(self.ids))

    def _part(self, start: int, end: int) -> FileTokens:
        other = copy.copy(self)
        other.ids, other.start = self.ids[start:end], self.start + start
        other.digest = hashlib.sha256(f"{self.digest} {start} {end}".encode()).hexdigest()
        return other

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the content, or of that of the file with the places of a part."""
        return self.digest

    def check(self, vocab_size: int) -> None:
        """Checks that all ids are those of a tokenizer.

        Raises:
            DataError: One is not, which is named; or they are too narrow for the tokenizer.
        """
        if self.path.suffix.lower() == ".bin" and vocab_size > 1 << 16:
            found = f"one of {vocab_size:,}, for whose ids a .npy of 32 bits is read"
            raise DataError(str(self.path), "a tokenizer of at most 65,536 ids of 16 bits", found)
        for first, part in self.parts() if self.largest >= vocab_size else ():
            if int(part.max()) >= vocab_size:
                place = int((part >= vocab_size).argmax())
                where = f"{self.path}, token {self.start + first + place}"
                raise DataError(where, f"an id below {vocab_size:,}, as the tokenizer has them", f"{part[place]}")

    def starts(self, end_id: int) -> np.ndarray:
        """Returns (D,) int64, the index of each document's first token; each but the last ends with an end token."""
        ends = [np.flatnonzero(part == end_id) + first for first, part in self.parts()]
        starts = np.concatenate([[-1], *ends]) + 1
        return starts[starts < len(self.ids)]

    def bytes(self, lengths: Mapping[int, int]) -> int:
        """Returns the bytes of the text in UTF-8.

        Args:
            lengths: Bytes of each token; others have none.
        """
        counts = np.zeros(self.largest + 1, np.int64)
        for _, part in self.parts():
            counts += np.bincount(part.astype(np.int64), minlength=len(counts))
        return sum(length * int(counts[index]) for index, length in lengths.items() if index < len(counts))


def _mapped(path: Path) -> np.ndarray:
    """The ids of a file, mapped."""
    try:
        if path.suffix.lower() == ".npy":
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
                found = f"{ids.dtype} of the shape {ids.shape}" if isinstance(ids, np.ndarray) else "several arrays"
                raise DataError(str(path), "an array of integers with one dimension", found)
            return ids
        size = path.stat().st_size
        if size % RAW.itemsize:
            raise DataError(
                str(path), "ids of two bytes each (uint16, as of nanoGPT)", f"{size:,} bytes, an odd number"
            )
        return np.memmap(path, RAW, mode="r") if size else np.zeros(0, RAW)
    except FileNotFoundError:
        raise DataError(str(path), "a file", "no such file") from None
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(str(path), "a readable file of token ids", shorten(str(error))) from None
