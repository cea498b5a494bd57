"""A text that is being continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mmattn.generate import GenerationConfig
from mmattn.generate.search import ShouldStop


@dataclass
class Continuation:
    """A text in the making.

    Args:
        prompt: Ids of the prompt, as it is read.
        ids: The ids that follow, without the end token.
        count: The number of tokens that follow, the end included.
        log_p: Their log-probability; None: unknown.
        cut: Number of tokens at the beginning of the prompt that are not read.
        unknown: Parts of the prompt that the tokenizer does not know.
        is_done: Whether the text has ended.
        first: The first token that is read.
        generator: The random generator of sampling, which is the text's own.
    """

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    count: int = 0
    log_p: float | None = 0.0
    cut: int = 0
    unknown: list[str] = field(default_factory=list)
    is_done: bool = False
    first: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)

    def window(self, most: int) -> list[int]:
        """The ids that are read next, at most so many; once there are more, those from the last half on.

        What else is in the batch has no influence.
        """
        whole = [*self.prompt, *self.ids]
        if len(whole) - self.first > most:
            self.first = len(whole) - max(1, most // 2)
        return whole[self.first :]

    def add(
        self, before: Sequence[int], ids: Sequence[int], config: GenerationConfig, should_stop: ShouldStop | None
    ) -> None:
        """Add new ids, which were read after others."""
        self.is_done = bool(ids) and ids[-1] in config.eos
        if should_stop is not None and ids and not self.is_done:
            self.is_done = bool(should_stop(torch.tensor([[*before, *ids]]))[0])
        self.ids += [token for token in ids if token not in config.eos]
        self.count += len(ids)
