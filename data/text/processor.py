"""What processors of tokenized texts share: the tokenizer, which is shipped, and the tokens of each text, kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mmattn.data.processor import B, Processor, S
from mmattn.data.text.pair import PairTemplate
from mmattn.data.text.tokenizer import TokenIds

Encoded = tuple[list[int], list[tuple[int, int]]]  # ids and characters of each token


class TokenProcessor(Processor[S, B]):
    """A processor with one tokenizer for texts and pairs of texts.

    Args:
        tokenizer: Tokenizer of all texts.
    """

    CACHED: ClassVar[int] = 100_000  # texts whose tokens are kept

    def __init__(self, tokenizer: TokenIds) -> None:
        self.tokenizer, self.template = tokenizer, PairTemplate.of(tokenizer)
        self._cache: dict[str, Encoded] = {}

    def encode(self, text: str) -> Encoded:
        """The ids and characters of a text's tokens."""
        found = self._cache.get(text)
        if found is None:
            found = (self.tokenizer.encode(text), self.tokenizer.spans(text))
            if len(self._cache) < self.CACHED:
                self._cache[text] = found
        return found

    def save_parts(self, folder: Path) -> None:
        self.tokenizer.save(folder)

    def parts_text(self) -> str:
        return self.tokenizer.to_json()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}
