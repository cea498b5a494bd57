"""Two texts as one sequence of a model: special tokens, token types, and overlapping windows over the second text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmattn.data.text.tokenizer import TokenIds


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens before, between and after two texts, each part with its token types.

    Args:
        before: Ids before the first text.
        between: Ids between the texts.
        after: Ids after the second text.
        types: Token types of before, first text, between, second text and after.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int] = (0, 0, 0, 1, 1)

    @classmethod
    def of(cls, tokenizer: TokenIds) -> PairTemplate:
        """Returns the template of a public tokenizer, or of ours: start, first, end, second, end."""
        pieces: Any = getattr(tokenizer, "_pieces", None)
        probe = pieces.encode("a", "a") if hasattr(pieces, "get_vocab") else None
        if probe is None or None not in probe.sequence_ids:
            return cls((tokenizer.start_id,), (tokenizer.eos_id,), (tokenizer.eos_id,))
        places = probe.sequence_ids
        first, second = (places.index(side) for side in (0, 1))
        ends = [len(places) - places[::-1].index(side) for side in (0, 1)]
        ids, types = list(probe.ids), list(probe.type_ids)
        kinds = (types[0], types[first], types[ends[0]], types[second], types[-1])
        return cls(tuple(ids[:first]), tuple(ids[ends[0] : second]), tuple(ids[ends[1] :]), kinds)

    @property
    def num_special(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int], int]:
        """Joins the ids of two texts.

        Returns:
            Ids, token types, and the position of the second text's first token.
        """
        parts = (self.before, first, self.between, second, self.after)
        ids = [index for part in parts for index in part]
        types = [kind for part, kind in zip(parts, self.types, strict=True) for _ in part]
        return ids, types, len(self.before) + len(first) + len(self.between)


def windows(length: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yields the first and last + 1 token of overlapping windows that cover a text; one empty window for an empty text.

    Args:
        length: Number of tokens.
        room: Maximum number of tokens of a window.
        overlap: Number of tokens that neighboring windows share, less than `room`.

    >>> list(windows(10, 6, 2))
    [(0, 6), (4, 10)]
    """
    if not 0 <= overlap < room:
        raise ValueError(f"overlap: expected 0 to {room - 1}, found {overlap}")
    start = 0
    while True:
        end = min(start + room, length)
        yield start, end
        if end == length:
            return
        start += room - overlap
