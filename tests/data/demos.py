"""Tests of every task's built-in data: subclass, and define the module, its digests and the content of a sample."""

from __future__ import annotations

import hashlib
import inspect
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import refused


class DemoTests:
    """A change of the digests needs a new GENERATOR_VERSION, and every reported result must be measured again."""

    demo: ModuleType
    first: int | None = None  # number of digested samples per split; None: all
    digests: tuple[str, str, str]  # SHA-256, of train, val and test

    def content(self, sample: Any) -> bytes:
        """The content of a sample, defined by the subclass."""
        raise NotImplementedError

    @pytest.fixture
    def made(self, parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The samples that the file's tests use, by split."""
        return parts

    def test_frozen(self, made: dict[str, list[Any]]) -> None:
        assert self.demo.GENERATOR_VERSION == 1
        contents = [b"".join(map(self.content, samples[: self.first])) for samples in made.values()]
        assert tuple(hashlib.sha256(content).hexdigest() for content in contents) == self.digests

    def test_prefix_does_not_depend_on_the_size(self, made: dict[str, list[Any]]) -> None:
        few = [self.content(sample) for sample in self.demo.make("val", 3)]
        assert few == [self.content(sample) for sample in made["val"][: len(few)]]
        if "seed" in inspect.signature(self.demo.make).parameters:
            assert few != [self.content(sample) for sample in self.demo.make("val", 3, seed=1)]

    def test_unknown_split_raises(self) -> None:
        refused("split: expected one of train, val, test, found 'dev'", self.demo.make, "dev")
