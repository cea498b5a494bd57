"""Public folders that several test files use."""

from pathlib import Path
from typing import Any

import pytest

from tests.public_speech import CTC, write_ctc, write_whisper


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and transformers' model, extractor and tokenizer of each kind of speech model."""
    root = tmp_path_factory.mktemp("speech")
    found: dict[str, Any] = {name: (root / name, write_ctc(root / name, **options)) for name, options in CTC.items()}
    return found | {"whisper": (root / "whisper", write_whisper(root / "whisper"))}
