"""What the built-in data of every task must be: subclass, and give the module, its digests and what a sample holds."""

from __future__ import annotations

import hashlib
import inspect
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import refused


class DemoTests:
    """Any change of the digests is a new GENERATOR_VERSION, and every figure stated for the data is measured anew."""

    demo: ModuleType
    first: int | None = None  # so many samples of a part are digested; None: all
    digests: tuple[str, str, str]  # SHA-256, of train, val and test

    def content(self, sample: Any) -> bytes:
        """All that a sample holds; a subclass writes it."""
        raise NotImplementedError

    @pytest.fixture
    def made(self, parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """What the tests of the file look at, by part."""
        return parts

    def test_frozen(self, made: dict[str, list[Any]]) -> None:
        assert self.demo.GENERATOR_VERSION == 1
        contents = [b"".join(map(self.content, samples[: self.first])) for samples in made.values()]
        assert tuple(hashlib.sha256(content).hexdigest() for content in contents) == self.digests

    def test_the_beginning_does_not_depend_on_the_number(self, made: dict[str, list[Any]]) -> None:
        few = [self.content(sample) for sample in self.demo.make("val", 3)]
        assert few == [self.content(sample) for sample in made["val"][: len(few)]]
        if "seed" in inspect.signature(self.demo.make).parameters:
            assert few != [self.content(sample) for sample in self.demo.make("val", 3, seed=1)]

    def test_an_unknown_part(self) -> None:
        refused("split: expected one of train, val, test, found 'dev'", self.demo.make, "dev")
