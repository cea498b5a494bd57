"""Tokenizers of language models, from whose ids a text is restored: characters, bytes, byte-level BPE, and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.errors import DataError, is_broken, nearest, shorten
from mmattn.data.text.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, TextProcessor, TokenIds, _tokenizers

KINDS = ("character", "byte", "bpe", "word")  # configurations have them as "lm_" + kind
PREFIX = "lm_"  # of the kinds in a processor's settings: `mmattn.data.text.tokenizer` has others of the same names
NEWLINE = "\n"
SPACE = "\u2581"  # sentencepiece's character for a space


class LanguageTokens(TokenIds):
    """A tokenizer whose ids are those of the text as it is written, white space included.

    Kinds: ``character`` (a token for each character of the training texts), ``byte`` (256 tokens), ``bpe`` (byte-level,
    as GPT-2's) and ``word`` (split at spaces, an end of line is a token; runs of spaces are one). The end token is
    between documents, and before the first.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``; ``fit`` makes one.
        kind: One of ``KINDS``.

    >>> text = LanguageTokens.fit(lambda: ["to be\\n"], "character")
    >>> text.decode(text.encode("be to"))
    'be to'
    """

    def __init__(self, tokenizer: Any, kind: str = "character") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"tokenizer kind: expected one of {', '.join(KINDS)}, found {shorten(kind)}")
        self.tokenizer, self.kind, self.max_len = tokenizer, kind, 1 << 30
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "[PAD]" in a text is five plain characters
        ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        if None in ids:
            missing = SPECIAL_TOKENS[ids.index(None)]
            raise DataError("tokenizer.json", f"a special token {missing}", "none")
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = map(int, ids)
        self.start_id = self.eos_id  # a document begins where another has ended
        self.vocab_size = int(tokenizer.get_vocab_size())
        self._table: np.ndarray | None = None  # ids by character or byte

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": self.to_json(), "_cache": {}, "_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.tokenizer = _tokenizers().Tokenizer.from_str(state["tokenizer"])
        self.tokenizer.encode_special_tokens = True

    @classmethod
    def fit(
        cls, texts: Callable[[], Iterable[str]], kind: str = "character", vocab_size: int = 8000, min_count: int = 1
    ) -> LanguageTokens:
        """Fits a tokenizer.

        Args:
            texts: Returns the training texts, anew at each call.
            kind: One of ``KINDS``.
            vocab_size: Maximum number of ids of ``bpe`` and ``word``, special tokens included.
            min_count: Minimum number of occurrences of a character, word, or pair of ``bpe``.

        Raises:
            ValueError: An unknown kind, or a vocab_size that is too small.
        """
        if kind not in KINDS:
            found = f"{kind!r}{nearest(kind, KINDS)}"
            raise ValueError(f"tokenizer kind: expected one of {', '.join(KINDS)}, found {found}")
        least = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 1)
        if kind in ("bpe", "word") and vocab_size < least:
            raise ValueError(f"vocab_size: expected at least {least} for {kind!r}, found {vocab_size}")
        library = _tokenizers()
        splitters, models = library.pre_tokenizers, library.models
        if kind in ("byte", "bpe"):
            alphabet = sorted(splitters.ByteLevel.alphabet())
            names = [*SPECIAL_TOKENS, *alphabet]
            tokenizer = library.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
            tokenizer.pre_tokenizer = splitters.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe")
            tokenizer.decoder = library.decoders.ByteLevel()
            if kind == "bpe":
                trainer = library.trainers.BpeTrainer(
                    vocab_size=vocab_size,
                    min_frequency=max(min_count, 2),
                    special_tokens=list(SPECIAL_TOKENS),
                    initial_alphabet=alphabet,
                    show_progress=False,
                )
                tokenizer.train_from_iterator(texts(), trainer)
        else:
            tokenizer = library.Tokenizer(models.WordLevel({}, unk_token=UNK))
            tokenizer.pre_tokenizer = _splitter(kind)
            counts: Counter[str] = Counter()
            for text in texts():
                split = text if kind == "character" else text.replace(NEWLINE, f" {NEWLINE} ").split(" ")
                counts.update(split)
            counts.pop("", None)
            names = [name for name in counts if counts[name] >= min_count and name not in SPECIAL_TOKENS]
            names = sorted(names) if kind == "character" else sorted(names, key=lambda name: (-counts[name], name))
            names = names if kind == "character" else names[: vocab_size - len(SPECIAL_TOKENS)]
            vocabulary = {name: i for i, name in enumerate([*SPECIAL_TOKENS, *names])}
            tokenizer.model = models.WordLevel(vocabulary, unk_token=UNK)
            tokenizer.decoder = library.decoders.Fuse() if kind == "character" else None
        return cls(library.Tokenizer.from_str(tokenizer.to_str()), kind)

    def encode(self, text: str) -> list[int]:
        if not isinstance(text, str) or is_broken(text):
            raise DataError("text", "a string of valid Unicode", shorten(text))
        if self.kind in ("character", "byte"):
            return self._by_table(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if self.kind != "word":
            return list(ids)
        special = (self.pad_id, self.bos_id, self.eos_id)  # a word of a text that looks like one is none
        return [self.unk_id if index in special else index for index in ids]

    def _by_table(self, text: str) -> list[int]:
        """The ids of characters or bytes: what the tokenizer returns, in a fiftieth of its time and memory."""
        if self._table is None:
            vocabulary = self.tokenizer.get_vocab()
            known = {ord(name): index for name, index in vocabulary.items() if len(name) == 1}
            if self.kind == "byte":
                known = {byte: vocabulary[name] for byte, name in byte_characters().items() if name in vocabulary}
            self._table = np.full(max(known, default=0) + 2, self.unk_id)
            self._table[list(known)] = list(known.values())
        codec, kind = ("utf-8", "u1") if self.kind == "byte" else ("utf-32-le", "<u4")
        codes = np.frombuffer(text.encode(codec), kind).astype(np.int64)
        return list(self._table[np.minimum(codes, len(self._table) - 1)].tolist())  # the last is unknown

    def spans(self, text: str) -> list[tuple[int, int]]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Converts ids to text, without special tokens but ``[UNK]``."""
        special = (self.pad_id, self.bos_id, self.eos_id)
        text = self.tokenizer.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=False)
        if self.kind == "word":
            text = text.replace(f" {NEWLINE}", NEWLINE).replace(f"{NEWLINE} ", NEWLINE)
        return str(text)

    def restore(self, ids: Sequence[int]) -> str:
        """Converts ids to text, with white space at its ends."""
        return self.decode(ids)

    def config(self) -> dict[str, Any]:
        return {"kind": PREFIX + self.kind}

    def save(self, directory: str | Path) -> None:
        Path(directory, "tokenizer.json").write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        return str(self.tokenizer.to_str(pretty=False))

    @classmethod
    def load(cls, directory: str | Path, config: Mapping[str, Any]) -> LanguageTokens:
        """Reads what ``save`` wrote.

        Raises:
            DataError: The file is missing or not a tokenizer.
        """
        known = TextProcessor.read_file(directory)
        return cls(known, str(config.get("kind", "")).removeprefix(PREFIX))


def _splitter(kind: str) -> Any:
    library = _tokenizers()
    splitters = library.pre_tokenizers
    if kind == "character":
        return splitters.Split(library.Regex(r"[\s\S]"), "isolated")
    spaces = splitters.Split(library.Regex(" +"), "removed")
    return splitters.Sequence([splitters.Split(library.Regex("\n"), "isolated"), spaces])


def byte_characters() -> dict[int, str]:
    """The character of each byte in byte-level vocabularies: printable ones as they are (Radford et al. 2019)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = (byte for byte in range(256) if byte not in set(kept))
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + n) for n, byte in enumerate(shifted)}


def is_byte_level(tokenizer: Any) -> bool:
    """Whether the tokens of a ``tokenizers.Tokenizer`` are bytes or sequences of them, as GPT-2's."""
    return '"ByteLevel"' in tokenizer.to_str()


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Returns the bytes of each token that is not special, as they stand in a text.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``: of characters, words, byte-level BPE, or pieces of sentencepiece.

    >>> tokens = LanguageTokens.fit(lambda: ["ab"], "character").tokenizer
    >>> token_bytes(tokens)[tokens.token_to_id("b")]
    b'b'
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    special |= set(SPECIAL_TOKENS)
    bytewise = is_byte_level(tokenizer)
    table = {char: byte for byte, char in byte_characters().items()}
    found = {}
    for token, index in tokenizer.get_vocab().items():
        if token in special:
            continue
        if bytewise and all(char in table for char in token):
            found[index] = bytes(table[char] for char in token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[index] = bytes.fromhex(token[3:5])
        else:
            found[index] = token.replace(SPACE, " ").encode()
    return found


def pieces(texts: Iterable[str], size: int = 1 << 20) -> Iterator[str]:
    """Yields texts in parts of at most size characters, cut after white space where there is any.

    >>> list(pieces(["to be or not"], 6))
    ['to be ', 'or not']
    """
    for text in texts:
        start = 0
        while len(text) - start > size:
            end = max(text.rfind(" ", start, start + size), text.rfind(NEWLINE, start, start + size)) + 1
            end = end if end > start else start + size
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]


__all__ = [
    "BOS",
    "EOS",
    "KINDS",
    "PAD",
    "PREFIX",
    "LanguageTokens",
    "byte_characters",
    "is_byte_level",
    "pieces",
    "token_bytes",
]
