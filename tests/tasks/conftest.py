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
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache in an empty folder, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


@pytest.fixture(scope="session")
def pair_tokenizer() -> Any:
    """A tokenizer of the layout of BERT's, with 25 words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "who",
        "keeps",
        "the",
        "goat",
        "?",
        "ada",
        "lives",
        "by",
        "mill",
        ".",
        "she",
        "old",
        "where",
        "is",
        "it",
        "in",
        "a",
        "town",
        "18",
        "##43",
        ",",
    ]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer
