"""What turns raw data into tensors and back: the same object in training and in serving, shipped with the model."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from mmattn.data.errors import DataError, shorten
from mmattn.data.readers import read_json

SETTINGS = "processor.json"
S = TypeVar("S")  # a sample
B = TypeVar("B")  # a batch


class Processor(ABC, Generic[S, B]):
    """A processor that a folder holds whole: `processor.json`, and the files of the tokenizers that it has.

    A task says what it consists of (`KEYS`, `settings`, `from_config`), how it is made (`fit`), and how samples become
    a batch (`collate`).
    """

    FORMAT: ClassVar[int] = 1
    KEYS: ClassVar[frozenset[str]]  # of `settings`
    LATER: ClassVar[Mapping[str, Any]] = {}  # of them, those that older files have not, and what these stand for

    # What a task provides ---------------------------------------------------------------------------------------------

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
            samples: What goes into it.
            augment: Random change, in training.
            seeds: One integer a sample, needed by ``augment``.
            is_repeat: The batch is only there to give every rank the same number; it is not to be counted.

        Raises:
            DataError: A sample cannot be read; names it.
        """

    def ablate(self, batch: B, what: str, seeds: Sequence[int] | None = None) -> B:
        """The batch without what a baseline must do without, such as the question: in place, where it can be.

        Args:
            batch: From ``collate``.
            what: One of the task's ablations.
            seeds: As of ``collate``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no ablation {what!r}")

    def retarget(self, train: Any, given: Mapping[str, Any]) -> Self:
        """A processor for other data: inputs as the model knows them, labels or texts as the data have them.

        Args:
            train: The training data.
            given: What the configuration says of the processor; what is None is left to the model.
        """
        return self

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The model's keywords that the data decide."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What ``from_config`` takes, as JSON has it."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """The processor of such settings, whose tokenizers lie in the folder.

        Raises:
            TypeError: Settings that are none, as for ValueError.
            ValueError: Settings that do not go together.
        """

    def save_parts(self, folder: Path) -> None:
        """Writes the tokenizers' files, where there are any."""

    def parts_text(self) -> str:
        """What those files say."""
        return ""

    # ------------------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Everything but the tokenizers' own files, as JSON takes it.

        What older versions had not is there only where it says more: what they wrote keeps its fingerprint.
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
        """Reads what ``save`` wrote, and nothing else.

        Raises:
            DataError: Missing, damaged, or of a format this version does not know.
        """
        folder = Path(directory)
        path = folder / SETTINGS
        config = read_json(path)
        if isinstance(config, Mapping):
            config = {**cls.LATER, **config}
        wanted = {"format_version", *cls.KEYS}
        if not isinstance(config, Mapping) or set(config) != wanted:
            keys = sorted(config) if isinstance(config, Mapping) else config
            raise DataError(str(path), f"the keys {', '.join(sorted(wanted))}", shorten(keys))
        if config["format_version"] != cls.FORMAT:
            raise DataError(str(path), f"format_version {cls.FORMAT}", shorten(config["format_version"]))
        try:
            return cls.from_config(config, folder)
        except (TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(str(path), "a processor's settings", shorten(str(error), 200)) from error

    def fingerprint(self) -> str:
        """SHA-256 over everything that is saved."""
        text = json.dumps(self.config(), sort_keys=True) + self.parts_text()
        return hashlib.sha256(text.encode()).hexdigest()
