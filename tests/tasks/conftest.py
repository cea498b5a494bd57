"""Public folders that several test files use."""

from pathlib import Path
from typing import Any

import pytest

from tests.public_speech import CTC, write_ctc, write_whisper
from tests.tasks.corpora import write_notes


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of indexed corpora, in an empty cache."""
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A corpus of one file of each kind."""
    return write_notes(tmp_path / "notes")


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and transformers' model, extractor and tokenizer of each kind of speech model."""
    root = tmp_path_factory.mktemp("speech")
    found: dict[str, Any] = {name: (root / name, write_ctc(root / name, **options)) for name, options in CTC.items()}
    return found | {"whisper": (root / "whisper", write_whisper(root / "whisper"))}
