"""How processors are kept beside a model: `processor.json`, and the files of the tokenizers that they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from data.errors import DataError, shorten

SETTINGS = "processor.json"


class Saved:
    """A processor that a folder holds whole. A task says what it consists of: `KEYS`, `settings`, `from_config`."""

    FORMAT: ClassVar[int] = 1
    KEYS: ClassVar[frozenset[str]]  # of `settings`
    LATER: ClassVar[Mapping[str, Any]] = {}  # of them, those that older files have not, and what these stand for

    def settings(self) -> dict[str, Any]:
        """What ``from_config`` takes, as JSON has it."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """The processor of such settings, whose tokenizers lie in the folder.

        Raises:
            TypeError: Settings that are none, as for ValueError.
            ValueError: Settings that do not go together.
        """
        raise NotImplementedError

    def save_parts(self, folder: Path) -> None:
        """Writes the tokenizers' files, where there are any."""

    def parts_text(self) -> str:
        """What those files say."""
        return ""

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
        from data.readers import read_json

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
