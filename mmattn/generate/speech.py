"""Prompts and constraints of Whisper's decoder: language, task, and monotonic, paired timestamps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Constraint, GenerationConfig
from .languages import CODES

STAMP_FRAMES = 2  # a timestamp's unit is two frames of 10 ms, one state of the encoder


@dataclass(frozen=True)
class SpeechConfig(GenerationConfig):
    """Generation options of Whisper, as in its ``generation_config.json`` (Radford et al. 2022, section 2.3).

    Raises:
        ValueError: Timestamps without their ids, or an unknown language or task.

    >>> config = SpeechConfig(decoder_start_token_id=5, lang_to_id={"<|en|>": 6}, language="en", max_new_tokens=9)
    >>> config.prompts(2)
    [[5, 6], [5, 6]]
    """

    is_multilingual: bool | None = None
    lang_to_id: Mapping[str, int] | None = None  # ids of "<|en|>", ...
    task_to_id: Mapping[str, int] | None = None  # ids of "transcribe" and "translate"
    language: str | Sequence[str] | None = None  # "en" or "<|en|>", for all or per recording; None: detected
    task: str | None = None
    forced_decoder_ids: Sequence[Sequence[int | None]] | None = None  # (position, id), if no language or task is given
    no_timestamps_token_id: int | None = None  # ids of the timestamps 0.00, 0.02, ... follow it
    max_initial_timestamp_index: int | None = None  # latest beginning of the first segment
    alignment_heads: Sequence[Sequence[int]] | None = None  # (layer, head) whose attention is used for word timings
    return_timestamps: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.return_timestamps and self.no_timestamps_token_id is None:
            raise ValueError("return_timestamps=True needs no_timestamps_token_id, which the ids of timestamps follow")
        if self.is_multilingual is False and (self.language is not None or self.task is not None):
            raise ValueError(f"an English model takes no language ({self.language!r}) and no task ({self.task!r})")
        for language in self.languages:
            self.language_id(language)
        if self.task is not None and self.task not in (self.task_to_id or {}):
            raise ValueError(
                f"unknown task {self.task!r}; expected one of: {', '.join(self.task_to_id or {}) or 'none'}"
            )

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages given."""
        return (
            () if self.language is None else (self.language,) if isinstance(self.language, str) else (*self.language,)
        )

    @property
    def timestamp_begin(self) -> int | None:
        """The id of 0.00 seconds."""
        return None if self.no_timestamps_token_id is None else self.no_timestamps_token_id + 1

    @property
    def detects(self) -> bool:
        """Whether the language must be detected: none is given, and the model has several."""
        return self.language is None and bool(self.lang_to_id) and self._forced()[:1] in ([], [None])

    def language_id(self, language: str) -> int:
        """Returns the id of "en", "<|en|>" or "English".

        Raises:
            ValueError: The model does not have this language.
        """
        known = self.lang_to_id or {}
        small = language.lower()
        for name in (language, f"<|{small}|>", f"<|{CODES.get(small)}|>"):
            if name in known:
                return known[name]
        codes = ", ".join(name.strip("<|>") for name in known)
        raise ValueError(f"unknown language {language!r}; expected one of: {codes or 'none'}")

    def prompts(self, rows: int, detected: Sequence[int] | None = None) -> list[list[int]]:
        """Returns the decoder's prompt for each row: start, language, task and, without timestamps, their absence.

        Args:
            rows: B.
            detected: Ids of the detected languages.

        Raises:
            ValueError: No start token, a number of languages that differs from that of rows, or no language.
        """
        if self.decoder_start_token_id is None:
            raise ValueError("decoder_start_token_id: expected an id, found none in the generation config")
        languages = list(detected) if detected is not None else [self.language_id(name) for name in self.languages]
        if isinstance(self.language, str):
            languages *= rows
        if languages and len(languages) != rows:
            raise ValueError(f"{len(languages)} languages for {rows} recordings")
        if self.detects and not languages:
            raise ValueError("the language is neither given nor detected")
        return [self._prompt(self.decoder_start_token_id, languages[row] if languages else None) for row in range(rows)]

    def constraints(self, prompt: int) -> list[Constraint]:
        if not self.return_timestamps:
            return []
        return [lambda scores, ids: pair_timestamps(scores, ids, self, prompt)]

    def _forced(self) -> list[int | None]:
        """The ids that older files force after the start token; None represents the language."""
        if self.task is not None or self.language is not None or not self.forced_decoder_ids:
            return []
        places, ids = zip(*self.forced_decoder_ids, strict=True)
        if list(places) != list(range(1, len(places) + 1)):
            raise ValueError(f"forced_decoder_ids must follow the start token one by one, found places {list(places)}")
        return list(ids)

    def _prompt(self, start: int, language: int | None) -> list[int]:
        forced = self._forced()
        if language is not None:
            forced = [language, *forced[1:]]
        found = [token for token in forced if token is not None]
        tasks = self.task_to_id or {}
        if self.task is not None:
            found.append(tasks[self.task])
        elif self.language is not None and "transcribe" in tasks:
            found.append(tasks["transcribe"])
        found = [start, *found]
        without = self.no_timestamps_token_id
        if self.return_timestamps and found[-1] == without:
            found.pop()
        elif not self.return_timestamps and without is not None and found[-1] != without:
            found.append(without)
        return found


def pair_timestamps(scores: Tensor, ids: Tensor, config: SpeechConfig, prompt: int) -> None:
    """Constrains timestamps to begin and end every segment, in order, starting with one.

    Text and a timestamp are followed by another timestamp or the end, two timestamps by text; timestamps never
    decrease; if all timestamps together are more probable than any text token, text is forbidden (Radford et al. 2022,
    section 4.5, and the published code).

    Args:
        scores: (N, V), changed in place.
        ids: (N, T), all ids so far.
        config: Options with return_timestamps, and the ids of timestamps.
        prompt: Number of ids of the prompt.
    """
    begin = config.timestamp_begin
    assert begin is not None
    scores[:, begin - 1] = -math.inf
    text, stamps = scores[:, :begin], scores[:, begin:]  # views
    generated = ids[:, prompt:]  # (N, t)
    if generated.shape[1]:
        is_stamp = generated >= begin
        last = is_stamp[:, -1]
        before = is_stamp[:, -2] if generated.shape[1] > 1 else torch.ones_like(last)
        ending = last & ~before  # a segment has ended: the next one begins there or later
        stamps.masked_fill_((last & before)[:, None], -math.inf)
        if config.eos:
            scores[:, : min(config.eos)].masked_fill_(ending[:, None], -math.inf)
        earliest = (
            generated.masked_fill(~is_stamp, begin - 1).amax(1) + (~ending).long()
        )  # (N,), one later than the last
        places = torch.arange(begin, scores.shape[1], device=scores.device)
        stamps.masked_fill_(places < earliest[:, None], -math.inf)
    else:
        text.fill_(-math.inf)
        if config.max_initial_timestamp_index is not None:
            stamps[:, config.max_initial_timestamp_index + 1 :] = -math.inf
    likelier = stamps.logsumexp(1) > text.amax(1)
    text.masked_fill_(likelier[:, None], -math.inf)


class Segment(NamedTuple):
    """A segment of speech between two timestamps."""

    start: float  # seconds
    end: float
    ids: list[int]  # its timestamps included


def split_segments(ids: Sequence[int], begin: int, frames: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """Splits the prediction of one window between consecutive timestamps (Radford et al. 2022, section 3.8).

    Args:
        ids: Ids of the window, without prompt and end.
        begin: The id of 0.00 seconds.
        frames: Number of frames of the window.

    Returns:
        (first, last, ids) of each segment, in timestamps from the window's beginning; and the number of frames by which
        the window advances: to the last timestamp if speech was cut off there, otherwise all.

    >>> split_segments([10, 1, 2, 12, 12, 3], 10, 100)
    ([(0, 2, [10, 1, 2, 12, 12])], 4)
    """
    is_stamp = [token >= begin for token in ids]
    cuts = [i for i in range(1, len(ids)) if is_stamp[i - 1] and is_stamp[i]]
    if not cuts:
        last = max((token - begin for token in ids if token > begin), default=frames // STAMP_FRAMES)
        return [(0, last, list(ids))], frames
    whole = is_stamp[-2:] == [False, True]  # no text after the last timestamp
    if whole:
        cuts.append(len(ids))
    else:
        cuts[-1] += 1
    parts = [list(ids[first:last]) for first, last in zip([0, *cuts], cuts, strict=False)]
    ends = [part[-1] - begin for part in parts]
    if not whole:
        ends[-1] = parts[-1][-2] - begin
    found = [(part[0] - begin, end, part) for part, end in zip(parts, ends, strict=True)]
    return found, frames if whole or not ends[-1] else ends[-1] * STAMP_FRAMES
