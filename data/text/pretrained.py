"""Tokenizers of public models, read from their folders, with the interface of `TokenIds`.

Three layouts are read: ``tokenizer.json`` of the tokenizers library; Marian's ``source.spm``, ``target.spm`` and
``vocab.json``; T5's ``spiece.model``. The last two need the package sentencepiece.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, is_broken, shorten
from mmattn.data.readers import parse_json
from mmattn.data.text.tokenizer import KINDS, TextProcessor, TokenIds, _tokenizers, without_lead

SPACE = "\u2581"  # sentencepiece's character for a space
LAYOUTS = {
    "tokenizer.json": ("tokenizer.json",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
    "t5": ("spiece.model",),
}
IDS = ("eos_id", "pad_id", "start_id", "unk_id")
ORDER = ("marian", "t5", "tokenizer.json")  # precedence: Marian's and T5's own files are those of training


class PublicText(TokenIds):
    """A public model's tokenizer for one side of a pair.

    Args:
        kind: A layout of ``LAYOUTS``.
        files: The layout's files by name.
        side: ``source`` or ``target``: Marian has a model for each.
        max_len: Default maximum number of tokens.
        special: The ids ``pad_id``, ``unk_id``, ``start_id`` and ``eos_id``, if the layout does not define them.
        prefix: Text before every source, as in T5's training, e.g. ``summarize:``; its tokens count as the text's.

    Raises:
        DataError: A file is damaged, or lacks what the model needs.
    """

    def __init__(
        self,
        kind: str,
        files: Mapping[str, bytes],
        side: str = "source",
        max_len: int = 512,
        special: Mapping[str, int] | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.kind, self.files, self.side, self.max_len = kind, dict(files), side, max_len
        self.prefix = prefix.strip()
        self.special = dict(special or {})
        try:
            self._open()
        except DataError:
            raise
        except Exception as error:  # the libraries raise various types
            expected = "its files as public models have them"
            raise DataError(f"tokenizer ({kind})", expected, shorten(str(error))) from error

    def _open(self) -> None:
        if self.kind == "tokenizer.json":
            self._pieces = _tokenizers().Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
            self._pieces.no_truncation()
            self._pieces.no_padding()
            self.vocab_size = int(self._pieces.get_vocab_size())
            template = self._pieces.encode("").ids  # special tokens that the model's processor adds to a text
            known = {"eos_id": template[-1], "start_id": template[-1]} if template else {}
            self.prefix_ids = tuple(template[:-1])
            named = {"pad_id": ("<pad>", "[PAD]"), "unk_id": ("<unk>", "[UNK]"), "eos_id": ("</s>", "[SEP]")}
            for name, tokens in named.items():
                ids = [i for i in map(self._pieces.token_to_id, tokens) if i is not None]
                known |= {name: ids[0]} if ids and name not in known else {}
            known.setdefault("unk_id", known.get("pad_id", 0))  # a byte-level vocabulary has no unknown token
            known.setdefault("start_id", known.get("eos_id", 0))
        elif self.kind == "marian":
            self._pieces = _sentencepiece(self.files[f"{self.side}.spm"])
            self._vocabulary: dict[str, int] = parse_json(self.files["vocab.json"])
            self._tokens = {index: piece for piece, index in self._vocabulary.items()}
            self.vocab_size = max(self._vocabulary.values()) + 1
            known = {f"{name}_id": self._vocabulary[f"<{name}>"] for name in ("pad", "unk")}
            known |= {"eos_id": self._vocabulary["</s>"], "start_id": known["pad_id"]}
        else:
            self._pieces = _sentencepiece(self.files["spiece.model"])
            self.vocab_size = self._pieces.get_piece_size() + 100  # and the sentinels that T5 was pretrained with
            known = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "start_id": 0}
        known |= self.special
        missing = [name for name in IDS if name not in known]
        if missing:
            raise DataError("tokenizer.json", "the special tokens of a generating model", f"no {', '.join(missing)}")
        self.eos_id, self.pad_id, self.start_id, self.unk_id = (known[name] for name in IDS)
        self.prefix_ids += tuple(self.encode(self.prefix)) if self.prefix else ()

    def __reduce__(self) -> Any:  # the libraries' objects are opened again
        settings = (self.kind, self.files, self.side, self.max_len, self.special, self.prefix)
        return PublicText, settings, {"truncated": self.truncated}

    def encode(self, text: str) -> list[int]:
        if not isinstance(text, str) or is_broken(text):
            raise DataError("text", "a string of valid Unicode", shorten(text))
        if self.kind == "tokenizer.json":
            return list(self._pieces.encode(text, add_special_tokens=False).ids)
        if self.kind == "t5":
            return list(self._pieces.encode(text))
        language, text = _language(text)
        pieces = language + self._pieces.encode(text, out_type=str)
        return [self._vocabulary.get(piece, self.unk_id) for piece in pieces]

    def spans(self, text: str) -> list[tuple[int, int]]:
        if self.kind == "tokenizer.json":
            offsets = self._pieces.encode(text, add_special_tokens=False).offsets
            return [without_lead(text, start, end) for start, end in offsets]
        language, rest = _language(text) if self.kind == "marian" else ([], text)
        # Pieces cover the normalized text without white space: each of their characters is mapped to its position.
        characters = [
            n for n, character in enumerate(text) for _ in "".join(unicodedata.normalize("NFKC", character).split())
        ]
        spans, done = [], 0
        for piece in [*language, *self._pieces.encode(rest, out_type=str)]:
            size = len("".join(piece.replace(SPACE, " ").split()))
            start = characters[done] if done < len(characters) else len(text)
            spans.append(
                (
                    start,
                    characters[min(done + size, len(characters)) - 1] + 1 if size and done < len(characters) else start,
                )
            )
            done += size
        return spans

    def decode(self, ids: Sequence[int]) -> str:
        special = {self.pad_id, self.eos_id, self.start_id, self.unk_id}
        kept = [int(i) for i in ids if int(i) not in special]
        if self.kind == "tokenizer.json":
            return self._pieces.decode(kept, skip_special_tokens=True).strip()
        if self.kind == "t5":
            size = self._pieces.get_piece_size()
            return self._pieces.decode([i for i in kept if i < size]).strip()
        return self._pieces.decode_pieces([self._tokens[i] for i in kept]).replace(SPACE, " ").strip()

    def config(self) -> dict[str, Any]:
        settings = ("kind", "side", "max_len", "special", "prefix")
        return {name: getattr(self, name) for name in settings}

    def save(self, directory: str | Path) -> None:
        for name, content in self.files.items():
            Path(directory, name).write_bytes(content)

    def to_json(self) -> str:
        return json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()})


def _sentencepiece(model: bytes) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise DataError("tokenizer", "the package sentencepiece: pip install sentencepiece", "none") from None
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _language(text: str) -> tuple[list[str], str]:
    """Splits off Marian's token for the target language, ``>>fra<<``, before the text."""
    if text.startswith(">>") and "<<" in text:
        code, _, rest = text.partition("<<")
        return [f"{code}<<"], rest
    return [], text


def load_tokenizer(directory: str | Path, config: Mapping[str, Any]) -> TokenIds:
    """Reads the tokenizer of a shipped folder, fitted or public.

    Args:
        directory: Folder of its files.
        config: Result of its ``config()``.

    Raises:
        DataError: A file is missing or damaged.
    """
    kind = config.get("kind")
    if kind in KINDS:
        return TextProcessor.load(directory, config)
    if kind not in LAYOUTS:
        raise DataError(str(directory), f"a tokenizer kind of {', '.join(LAYOUTS)}", shorten(kind))
    return PublicText(files=_read(Path(directory), kind), **config)


def read_public(directory: str | Path, prefix: str = "", **options: Any) -> tuple[PublicText, PublicText]:
    """Reads source and target tokenizers of a public model's folder; they are the same object if they do not differ.

    Args:
        directory: The folder, in one of the layouts.
        prefix: Text before every source; see ``PublicText``.
        options: ``max_len`` and ``special`` of ``PublicText``.

    Raises:
        DataError: No layout fits, or a file is damaged.
    """
    folder = Path(directory)
    for kind in ORDER:
        if all((folder / name).is_file() for name in LAYOUTS[kind]):
            files = _read(folder, kind)
            source = PublicText(kind, files, "source", prefix=prefix, **options)
            differ = kind == "marian" or prefix
            return source, PublicText(kind, files, "target", **options) if differ else source
    expected = "; or ".join(" and ".join(names) for names in LAYOUTS.values())
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise DataError(str(folder), expected, found)


def _read(folder: Path, kind: str) -> dict[str, bytes]:
    files = {}
    for name in LAYOUTS[kind]:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(str(folder / name), "the tokenizer's file", error.strerror or str(error)) from None
    return files
