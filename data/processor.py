"""Base class of processors, which convert raw data to tensors and back, in training and in serving alike."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from mmattn.data.errors import DataError, located, shorten
from mmattn.data.readers import read_settings

SETTINGS = "processor.json"
S = TypeVar("S")  # a sample
B = TypeVar("B")  # a batch


class Processor(ABC, Generic[S, B]):
    """A processor that is saved in a folder as `processor.json` and the files of its tokenizers.

    A task implements its settings (`KEYS`, `settings`, `from_config`), its construction from data (`fit`), and
    batching (`collate`).
    """

    FORMAT: ClassVar[int] = 1
    KEYS: ClassVar[frozenset[str]]  # of `settings`
    LATER: ClassVar[Mapping[str, Any]] = {}  # keys that older files lack, with their defaults

    # Methods that a task implements -----------------------------------------------------------------------------------

    @abstractmethod
    def collate(
        self,
        samples: Sequence[Any],
        *,
        augment: Any = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> B:
        """Makes a batch.

        Args:
            samples: Samples of the batch.
            augment: Augmentation, in training.
            seeds: One integer per sample; required by ``augment``.
            is_repeat: The batch duplicates another so that all ranks have equally many; metrics ignore it.

        Raises:
            DataError: A sample, which the message names, cannot be read.
        """

    def ablate(self, batch: B, what: str, seeds: Sequence[int] | None = None) -> B:
        """Returns the batch without an input that a baseline must not use, such as the question; may work in place.

        Args:
            batch: Result of ``collate``.
            what: One of the task's ablations.
            seeds: As in ``collate``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no ablation {what!r}")

    def retarget(self, train: Any, given: Mapping[str, Any]) -> Self:
        """Returns a processor for fine-tuning on other data: the model's inputs, with the data's labels or vocabulary.

        Args:
            train: The training data.
            given: The configuration's processor options; options that are None are taken from the model.
        """
        return self

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """Returns the model's keywords that depend on the data."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns the argument of ``from_config`` as JSON values."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """Makes the processor from its settings and the tokenizers' files in the folder.

        Raises:
            TypeError: Settings of a wrong type.
            ValueError: Invalid or inconsistent settings.
        """

    def save_parts(self, folder: Path) -> None:
        """Writes the tokenizers' files, if any."""

    def parts_text(self) -> str:
        """Returns the content of these files, for the fingerprint."""
        return ""

    # ------------------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Returns the content of `processor.json`, i.e. all settings except the tokenizers' files.

        Keys of ``LATER`` are omitted at their defaults, so that processors of older versions keep their fingerprint.
        """
        settings = {k: v for k, v in self.settings().items() if k not in self.LATER or v != self.LATER[k]}
        return {"format_version": self.FORMAT, **settings}

    def save(self, directory: str | Path) -> None:
        """Writes ``processor.json`` and the tokenizers' files."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config(), ensure_ascii=False, indent=1) + "\n"
        (folder / SETTINGS).write_text(text, encoding="utf-8")
        self.save_parts(folder)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Reads the files that ``save`` wrote.

        Raises:
            DataError: The files are missing, damaged, or of an unsupported format version.
        """
        folder = Path(directory)
        path = folder / SETTINGS
        config = read_settings(path)
        if isinstance(config, Mapping):
            config = {**cls.LATER, **config}
        wanted = {"format_version", *cls.KEYS}
        if not isinstance(config, Mapping) or set(config) != wanted:
            keys = sorted(config) if isinstance(config, Mapping) else config
            raise DataError(str(path), f"the keys {', '.join(sorted(wanted))}", shorten(keys))
        if config["format_version"] != cls.FORMAT:
            raise DataError(str(path), f"format_version {cls.FORMAT}", shorten(config["format_version"]))
        try:
            with located(folder):
                return cls.from_config(config, folder)
        except DataError:
            raise
        except Exception as error:  # whatever constructors raise for settings of wrong types or sizes
            raise DataError(str(path), "a processor's settings", shorten(str(error), 200)) from error

    def fingerprint(self) -> str:
        """Returns the SHA-256 over everything that is saved."""
        text = json.dumps(self.config(), sort_keys=True) + self.parts_text()
        return hashlib.sha256(text.encode()).hexdigest()
