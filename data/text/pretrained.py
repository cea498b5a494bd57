"""Tokenizers of public models, read from their folders, with the interface of `TokenIds`.

Five layouts are read: ``tokenizer.json`` of the tokenizers library; ``vocab.json`` and ``merges.txt`` of BART; T5's
``spiece.model``; BERT's ``vocab.txt``; and Marian's ``source.spm``, ``target.spm`` and ``vocab.json``, which need the
package sentencepiece.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, is_broken, located, shorten
from mmattn.data.readers import check_small
from mmattn.data.text.public_files import ABOUT, OPTIONAL, SPACE, added_tokens, converted, open_files, parse_object
from mmattn.data.text.tokenizer import KINDS, TextProcessor, TokenIds, library_errors, without_lead

TARGET = "target_vocab.json"  # of a Marian whose languages have a vocabulary each
LAYOUTS = {
    "tokenizer.json": ("tokenizer.json",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
    "bpe": ("vocab.json", "merges.txt"),
    "t5": ("spiece.model",),
    "bert": ("vocab.txt",),
}
IDS = ("eos_id", "pad_id", "start_id", "unk_id")
ORDER = (
    "marian",
    "tokenizer.json",
    "bpe",
    "t5",
    "bert",
)  # precedence: tokenizer.json has the tokens that were added later
FILES = "its files as public models have them"
SENTINEL = re.compile(r"<extra_id_\d+>")  # T5's, which need no row in the embeddings


class PublicText(TokenIds):
    """A public model's tokenizer for one side of a pair.

    Args:
        kind: A layout of ``LAYOUTS``.
        files: The layout's files by name.
        side: ``source`` or ``target``: Marian has a model for each.
        max_len: Default maximum number of tokens.
        special: The ids ``pad_id``, ``unk_id``, ``start_id`` and ``eos_id``, if the layout does not define them.
        prefix: Text before every source, as in T5's training, e.g. ``summarize:``; its tokens count as the text's.
        bare: Whether texts have no special tokens at their beginning, though the model's processor adds some: a decoder
            whose start token replaces them, as in BLIP.

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
        bare: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.files, self.side, self.max_len = kind, dict(files), side, max_len
        self.prefix = prefix.strip()
        self.special, self.bare = dict(special or {}), bare
        with library_errors(f"tokenizer ({kind})", FILES):
            self._open()

    def _open(self) -> None:
        if self.kind == "marian":
            known = self._open_marian()
        else:
            self._pieces = open_files(self.files)
            self._pieces.no_truncation()
            self._pieces.no_padding()
            vocabulary = self._pieces.get_vocab()
            template = self._pieces.encode("").ids  # special tokens that the model's processor adds to a text
            known = {"eos_id": template[-1], "start_id": template[-1]} if template else {}
            self.prefix_ids = () if self.bare else tuple(template[:-1])
            named = {"pad_id": ("<pad>", "[PAD]"), "unk_id": ("<unk>", "[UNK]"), "eos_id": ("</s>", "[SEP]")}
            for name, tokens in named.items():
                ids = [vocabulary[token] for token in tokens if token in vocabulary]
                known |= {name: ids[0]} if ids and name not in known else {}
            known.setdefault("unk_id", known.get("pad_id", 0))  # a byte-level vocabulary has no unknown token
            if len(template) == 1:  # T5's, which starts from padding; others start from the end token
                known |= {"start_id": known["pad_id"]} if "pad_id" in known else {}
            known.setdefault("start_id", known.get("eos_id", 0))
            self._measure(vocabulary)
        known |= self.special
        missing = [name for name in IDS if name not in known]
        if missing:
            raise DataError("tokenizer.json", "the special tokens of a generating model", f"no {', '.join(missing)}")
        self.eos_id, self.pad_id, self.start_id, self.unk_id = (known[name] for name in IDS)
        self.prefix_ids += tuple(self.encode(self.prefix)) if self.prefix else ()

    def _open_marian(self) -> dict[str, int]:
        self._pieces = _sentencepiece(self.files[f"{self.side}.spm"])
        separate = TARGET in self.files
        name = TARGET if separate and self.side == "target" else "vocab.json"
        vocabulary = parse_object(name, self.files[name])
        bad = next((token for token, index in vocabulary.items() if type(index) is not int or index < 0), None)
        if bad is not None:
            raise DataError(f"{name}: {bad!r}", "an id", shorten(vocabulary[bad]))
        if separate and self.side == "source":
            self.special = {}  # those are the target's
        known = {f"{name}_id": vocabulary[f"<{name}>"] for name in ("pad", "unk")}
        known |= {"eos_id": vocabulary["</s>"], "start_id": known["pad_id"]}
        added = added_tokens(self.files)
        self._added: dict[str, Mapping[str, bool]] = {token: {} for token in ("</s>", "<unk>", "<pad>")}
        self._added |= {token.content: token.flags for token in added if token.content}
        self._skipped = {token.content for token in added if token.special}
        self._vocabulary: dict[str, int] = vocabulary | {
            token.content: token.row
            for token in added
            if token.row is not None and (token.content not in vocabulary or not separate)
        }
        self._matched = re.compile("|".join(map(re.escape, sorted(self._added, key=len, reverse=True))))
        self._tokens = {index: piece for piece, index in self._vocabulary.items()}
        self._measure(self._vocabulary)
        return known

    def _measure(self, vocabulary: Mapping[str, int]) -> None:
        """Sets the size of the vocabulary, and the number of embedding rows that it needs."""
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.rows = max((i for token, i in vocabulary.items() if not SENTINEL.fullmatch(token)), default=-1) + 1

    def __reduce__(self) -> Any:  # the libraries' objects are opened again
        settings = (self.kind, self.files, self.side, self.max_len, self.special, self.prefix, self.bare)
        return PublicText, settings, {"truncated": self.truncated}

    def encode(self, text: str) -> list[int]:
        if not isinstance(text, str) or is_broken(text):
            raise DataError("text", "a string of valid Unicode", shorten(text))
        with library_errors(f"tokenizer ({self.kind})", "one that splits every text"):
            if self.kind == "marian":
                return [self._vocabulary.get(piece, self.unk_id) for piece in self._split(text)]
            return list(self._pieces.encode(text, add_special_tokens=False).ids)

    def _split(self, text: str) -> list[str]:
        """Marian's pieces of a text; added tokens are matched first, as in transformers."""
        parts, done = [], 0  # texts, with an added token between each two
        for found in self._matched.finditer(text):
            parts += [text[done : found.start()], found.group()]
            done = found.end()
        parts.append(text[done:])
        for place in range(1, len(parts), 2):
            token, flags = parts[place], self._added[parts[place]]
            if flags.get("rstrip"):
                parts[place + 1] = parts[place + 1].lstrip()
            if flags.get("lstrip"):
                parts[place - 1] = parts[place - 1].rstrip()
            if flags.get("single_word") and parts[place - 1][-1:].strip(" "):
                parts[place - 1 : place + 1] = [parts[place - 1] + token, ""]
            elif flags.get("single_word") and parts[place + 1][:1].strip(" "):
                parts[place : place + 2] = ["", token + parts[place + 1]]
        pieces: list[str] = []
        for place, part in enumerate(parts):
            if place % 2:
                pieces += [part] if part else []
            else:
                language, rest = _language(part)
                pieces += [*language, *self._pieces.encode(rest, out_type=str)]
        return pieces

    def spans(self, text: str) -> list[tuple[int, int]]:
        if self.kind != "marian":
            found = self._pieces.encode(text, add_special_tokens=False)
            # T5's space before a word has the offsets of the word's first character.
            placed = zip(found.tokens, found.offsets, strict=True)
            return [without_lead(text, start, start if token == SPACE else end) for token, (start, end) in placed]
        # Pieces cover the normalized text without white space: each of their characters is mapped to its position.
        characters = [
            n for n, character in enumerate(text) for _ in "".join(unicodedata.normalize("NFKC", character).split())
        ]
        spans, done = [], 0
        for piece in self._split(text):
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
        if self.kind != "marian":
            return self._pieces.decode(kept, skip_special_tokens=True).strip()
        pieces = [self._tokens.get(i) for i in kept]  # none of rows that only round the embeddings up
        shown = [piece for piece in pieces if piece is not None and piece not in self._skipped]
        return self._pieces.decode_pieces(shown).replace(SPACE, " ").strip()

    def restore(self, ids: Sequence[int]) -> str:
        """Converts ids to text as ``decode`` does, with white space at its ends; not of Marian."""
        special = {self.pad_id, self.eos_id, self.start_id}
        return str(self._pieces.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=True))

    def config(self) -> dict[str, Any]:
        settings = ("kind", "side", "max_len", "special", "prefix")
        bare = {"bare": True} if self.bare else {}  # which earlier releases do not know
        return {name: getattr(self, name) for name in settings} | bare

    def save(self, directory: str | Path) -> None:
        for name, content in self.files.items():
            Path(directory, name).write_bytes(content)

    def to_json(self) -> str:
        return json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()})


def _sentencepiece(model: bytes) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise DataError("tokenizer", "the package sentencepiece: pip install 'mmattn[train]'", "none") from None
    found = sentencepiece.SentencePieceProcessor(model_proto=model)
    if not found.get_piece_size():
        raise ValueError("a sentencepiece model without pieces")
    return found


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
    with located(directory):
        return PublicText(files=_read(Path(directory), kind), **config)


def read_public(directory: str | Path, prefix: str = "", **options: Any) -> tuple[PublicText, PublicText]:
    """Reads source and target tokenizers of a public model's folder; they are the same object if they do not differ.

    Args:
        directory: The folder, in one of the layouts.
        prefix: Text before every source; see ``PublicText``.
        options: ``max_len``, ``special`` and ``bare`` of ``PublicText``.

    Raises:
        DataError: No layout fits, or a file is damaged.
    """
    folder = Path(directory)
    kind = next((kind for kind in ORDER if all((folder / name).is_file() for name in LAYOUTS[kind])), None)
    with located(folder):
        if kind == "marian":
            files = _read(folder, kind)
            source = PublicText(kind, files, prefix=prefix, **options)
            return source, PublicText(kind, files, "target", **options)
        if kind is not None:
            files = convert_folder(folder, kind)
            source = PublicText("tokenizer.json", files, prefix=prefix, **options)
            return source, PublicText("tokenizer.json", files, "target", **options) if prefix else source
    expected = "; or ".join(" and ".join(names) for names in LAYOUTS.values())
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise DataError(str(folder), expected, found)


def convert_folder(folder: Path, kind: str) -> dict[str, bytes]:
    """Returns the ``tokenizer.json`` of a folder in a layout other than Marian's, by name.

    Raises:
        DataError: A file is damaged.
    """
    with library_errors(f"tokenizer ({kind})", FILES):
        return {"tokenizer.json": converted(_read(folder, kind))}


def _read(folder: Path, kind: str) -> dict[str, bytes]:
    """The files of a layout, and those of its added tokens, by name."""
    names = [*LAYOUTS[kind], *(name for name in OPTIONAL if (folder / name).is_file())]
    files = {name: read_file(folder / name) for name in names}
    about = parse_object(ABOUT, files.get(ABOUT, b"{}"))
    if kind == "marian" and about.get("separate_vocabs", (folder / TARGET).is_file()):
        files[TARGET] = read_file(folder / TARGET)
    return files


def read_file(path: Path) -> bytes:
    """Returns the content of a tokenizer's file.

    Raises:
        DataError: It cannot be read, or is not a regular file of a vocabulary's size.
    """
    try:
        check_small(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(str(path), "the tokenizer's file", error.strerror or str(error)) from None
