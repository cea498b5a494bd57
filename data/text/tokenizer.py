"""Tokenizers that are fitted on the training texts and saved in the shipped directory."""

from __future__ import annotations

import bisect
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest, shorten
from mmattn.data.readers import check_small, parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)
PAD, UNK, BOS, EOS = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS)  # ids 0, 1, 2, 3, in every kind
KINDS = ("word", "bpe", "unigram")
CACHE_SIZE = 100_000  # texts


def _tokenizers() -> Any:
    # Texts are short, so the library's thread pool gains nothing, and it warns at every fork of a DataLoader worker.
    # A setting of the user has precedence.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


@contextmanager
def library_errors(where: str, expected: str, *others: type[Exception]) -> Iterator[None]:
    """Turns all but others that the tokenizers library raises, panics of its Rust code among them, into a DataError."""
    try:
        yield
    except DataError:
        raise
    except others:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(where, expected, shorten(str(error))) from error


class TokenIds:
    """Base class of tokenizers: batching and caching on top of ``encode``, which a subclass implements."""

    kind: str
    max_len: int  # default maximum number of tokens of a text
    vocab_size: int
    pad_id: int
    unk_id: int
    start_id: int  # before the first generated token
    eos_id: int
    prefix_ids: tuple[int, ...] = ()  # before a text that is closed with the end token

    def __init__(self) -> None:
        self._cache: dict[str, list[int]] = {}  # training encodes the same texts every epoch
        self.truncated = 0  # texts truncated since construction, in this process only

    def encode(self, text: str) -> list[int]:
        """Returns the ids of one text, without truncation."""
        raise NotImplementedError

    def words(self, text: str) -> tuple[list[str], list[int]]:
        """Returns a text's words, split at white space, and the index of each token's word, without truncation."""
        words, owners = words_of(text, self.spans(text))
        return [text[start:end] for start, end in words], owners

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the start and end character of each token, without leading white space and without truncation."""
        raise NotImplementedError

    def tokens(self, text: str) -> list[str]:
        """Returns the text's tokens as substrings, truncated to ``max_len``, e.g. as labels of a plot's axis."""
        return [text[start:end] for start, end in self.spans(text)][: self.max_len]

    def unknown_words(self, text: str) -> list[str]:
        """Returns the out-of-vocabulary words of a text as written, in order, without duplicates."""
        placed = zip(self.encode(text), self.spans(text), strict=True)
        words = [text[start:end] for index, (start, end) in placed if index == self.unk_id]
        return list(dict.fromkeys(filter(None, words)))

    def decode(self, ids: Sequence[int]) -> str:
        """Converts ids to text, without special tokens."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Returns the settings that the files of `save` do not contain."""
        raise NotImplementedError

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files; the caller saves ``config()``."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Returns everything that is saved, as text, for a fingerprint."""
        raise NotImplementedError

    def _cached(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self.encode(text)
            if len(self._cache) < CACHE_SIZE:
                self._cache[text] = ids
        return ids

    def length(self, text: str) -> int:
        """Returns the number of tokens of a text, without truncation."""
        return len(self._cached(text))

    def encode_batch(
        self, texts: Sequence[str], max_len: int | None = None, eos: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Encodes texts and pads them to the longest.

        Args:
            texts: B texts.
            max_len: Maximum number of tokens; None = ``self.max_len``.
            eos: Append the end token, which is never truncated, and prepend ``prefix_ids``.

        Returns:
            ids: (B, L) long, L at least 1.
            key_mask: (B, L) bool, True = a real token.
        """
        limit = self.max_len if max_len is None else max_len
        first, end = (list(self.prefix_ids), [self.eos_id]) if eos else ([], [])
        room = limit - len(first) - len(end)
        whole = [self._cached(text) for text in texts]
        rows = [[*first, *row[:room], *end] for row in whole]
        cut = [text for text, row in zip(texts, whole, strict=True) if len(row) > room]
        if cut and not self.truncated:
            logger.warning("truncated to %d tokens (reported once): %s", limit, shorten(cut[0]))
        self.truncated += len(cut)
        return pad_rows(rows, self.pad_id)


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads rows of ids to the longest; see ``TokenIds.encode_batch``, which returns the same.

    >>> pad_rows([[5, 6], [7]], 0)[0].tolist()
    [[5, 6], [7, 0]]
    """
    length = max(1, max(map(len, rows), default=1))
    padded = [[*row, *[pad_id] * (length - len(row))] for row in rows]
    ids = torch.tensor(padded, dtype=torch.long).reshape(len(rows), length)
    key_mask = torch.arange(length) < torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    return ids, key_mask  # (B, L), (B, L)


class TextProcessor(TokenIds):
    """Converts strings to token ids and masks, by a tokenizer of the ``tokenizers`` library.

    Kinds: ``word`` (split at white space and punctuation, one id per word), ``bpe`` (byte-level, without unknown
    tokens) and ``unigram`` (whose fit breaks ties in no fixed order and is therefore not reproducible). Text is
    Unicode-normalized (NFKC) and, with ``lowercase``, lower-cased.

    Args:
        tokenizer: A fitted ``tokenizers.Tokenizer``; ``fit`` makes one.
        kind: One of ``KINDS``.
        lowercase: Whether the tokenizer's normalizer lower-cases; saved in the configuration.
        max_len: Maximum length in tokens; longer texts are truncated, and counted in ``truncated``.

    >>> text = TextProcessor.fit(["is it red ?", "is it blue ?"])
    >>> ids, key_mask = text.encode_batch(["is it red ?", "red"])
    >>> ids.shape, key_mask.sum(1).tolist()
    (torch.Size([2, 4]), [4, 1])
    """

    def __init__(self, tokenizer: Tokenizer, kind: str = "word", lowercase: bool = True, max_len: int = 64) -> None:
        super().__init__()
        self.tokenizer, self.kind, self.lowercase, self.max_len = tokenizer, kind, lowercase, int(max_len)
        if kind not in KINDS:
            raise ValueError(f"tokenizer kind: expected one of {', '.join(KINDS)}, found {shorten(kind)}")
        if self.max_len < 1:
            raise ValueError(f"max_len: expected at least 1, found {max_len}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _as_plain_text(tokenizer)
        self.pad_id, self.unk_id = self._special(PAD), self._special(UNK)
        self.start_id, self.eos_id = self._special(BOS), self._special(EOS)  # first and last of a generated text

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": self.to_json(), "_cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.tokenizer = _tokenizers().Tokenizer.from_str(state["tokenizer"])
        _as_plain_text(self.tokenizer)

    def _special(self, token: str) -> int:
        index = self.tokenizer.token_to_id(token)
        if index is None:
            raise DataError("tokenizer.json", f"a special token {token}", "none")
        return int(index)

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        kind: str = "word",
        vocab_size: int = 10_000,
        min_count: int = 1,
        lowercase: bool = True,
        max_len: int = 64,
    ) -> TextProcessor:
        """Fits a tokenizer.

        Args:
            texts: The training texts, and only those.
            kind: One of ``KINDS``.
            vocab_size: Maximum number of ids, special tokens included.
            min_count: Minimum number of occurrences of a word (``word``) or a pair (``bpe``).
            lowercase: Lower-case the text, in training and serving alike.
            max_len: See the class.

        Raises:
            ValueError: An unknown kind, or a vocab_size that does not exceed the special tokens.
            DataError: No text that is not empty.
        """
        if kind not in KINDS:
            found = f"{kind!r}{nearest(kind, KINDS)}"
            raise ValueError(f"tokenizer kind: expected one of {', '.join(KINDS)}, found {found}")
        if vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(f"vocab_size: expected more than {len(SPECIAL_TOKENS)}, found {vocab_size}")
        texts = list(texts)
        if not any(text.strip() for text in texts):
            raise DataError("tokenizer", "at least one training text that is not empty", f"{len(texts)} texts")
        fitted = _fitted(texts, kind, vocab_size, min_count, lowercase)
        # A round trip through JSON, which rounds unigram's scores, makes the saved tokenizer exactly this one.
        return cls(_tokenizers().Tokenizer.from_str(fitted.to_str()), kind, lowercase, max_len)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of ids, special tokens included."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return self._encode(text).ids

    def _encode(self, text: str) -> Any:
        try:
            with library_errors("tokenizer", "one that splits every text", TypeError):
                return self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:  # not a string, or one with lone surrogates (invalid UTF-8 from a command line)
            raise DataError("text", "a string of valid Unicode", shorten(text)) from error

    def unknown_words(self, text: str) -> list[str]:
        """Returns the out-of-vocabulary words of a text as written, in order, without duplicates.

        Empty for byte-level BPE, which covers every text.
        """
        encoding = self._encode(text)
        spans = [span for index, span in zip(encoding.ids, encoding.offsets, strict=True) if index == self.unk_id]
        return list(dict.fromkeys(text[start:end].strip() for start, end in spans if text[start:end].strip()))

    def tokens(self, text: str) -> list[str]:
        """Returns the text's tokens as substrings, truncated to ``max_len``, e.g. as labels of a plot's axis."""
        encoding = self._encode(text)
        placed = zip(encoding.tokens, encoding.offsets, strict=True)
        return [text[start:end].strip() or token for token, (start, end) in placed][: self.max_len]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [without_lead(text, start, end) for start, end in self._encode(text).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Converts ids to text, without special tokens other than ``[UNK]``."""
        special = {self.tokenizer.token_to_id(token) for token in (PAD, BOS, EOS)}
        return self.tokenizer.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=False).strip()

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "lowercase": self.lowercase, "max_len": self.max_len}

    def save(self, directory: str | Path) -> None:
        Path(directory, "tokenizer.json").write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        return self.tokenizer.to_str(pretty=False)

    @classmethod
    def load(cls, directory: str | Path, config: Mapping[str, Any] | None = None) -> TextProcessor:
        """Reads the ``tokenizer.json`` that ``save`` wrote.

        Args:
            directory: Folder of the file.
            config: Result of ``config()``.

        Raises:
            DataError: The file is missing or not a tokenizer.
        """
        tokenizer = cls.read_file(directory)
        return cls(tokenizer, **dict(config or {}))

    @staticmethod
    def read_file(directory: str | Path) -> Tokenizer:
        """Reads the ``tokenizer.json`` of a folder.

        Raises:
            DataError: The file is missing or not a tokenizer.
        """
        path = Path(directory, "tokenizer.json")
        check_small(path)
        with library_errors(str(path), "a tokenizer of the tokenizers library"):
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                raise DataError(str(path), "the tokenizer's file", "no such file") from None
            parse_json(text)
            tokenizer = _tokenizers().Tokenizer.from_str(text)
            vocabulary = tokenizer.get_vocab()
            if any(i >= len(vocabulary) for i in vocabulary.values()):
                raise ValueError(f"ids beyond the {len(vocabulary):,} tokens of its vocabulary")
        return tokenizer


def words_of(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns the spans of a text's words, split at white space, and the index of the word of each token's span.

    >>> words_of("a penguin", [(0, 1), (2, 5), (5, 9)])
    ([(0, 1), (2, 9)], [0, 1, 1])
    """
    words = [word.span() for word in re.finditer(r"\S+", text)]
    ends = [end for _, end in words]
    return words, [min(bisect.bisect_right(ends, start), len(words) - 1) for start, _ in spans]


def without_lead(text: str, start: int, end: int) -> tuple[int, int]:
    """Returns the span (start, end) of a text without its leading white space."""
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end


def _as_plain_text(tokenizer: Tokenizer) -> None:
    # "[PAD]" in a user's text is five plain characters. The library saves this setting neither in its JSON nor in a
    # pickle, which loader workers may receive.
    tokenizer.encode_special_tokens = True


def _fitted(texts: list[str], kind: str, vocab_size: int, min_count: int, lowercase: bool) -> Tokenizer:
    """Fits a tokenizer of the library. ``min_count`` has no effect on unigram, which prunes by its own loss."""
    library = _tokenizers()
    splitters, decoders, trainers = library.pre_tokenizers, library.decoders, library.trainers
    common = {"vocab_size": vocab_size, "special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    trainer: Any = None
    if kind == "word":
        splitter, decoder = splitters.BertPreTokenizer(), None  # white space, each punctuation mark on its own
        counts: Counter[str] = Counter()
        for text in texts:
            text = unicodedata.normalize("NFKC", text)
            counts.update(word for word, _ in splitter.pre_tokenize_str(text.lower() if lowercase else text))
        words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
        words = [word for word in words if word not in SPECIAL_TOKENS][: vocab_size - len(SPECIAL_TOKENS)]
        vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *words])}
        model = library.models.WordLevel(vocabulary, unk_token=UNK)
    elif kind == "bpe":
        least = len(SPECIAL_TOKENS) + 256
        if vocab_size < least:
            raise ValueError(f"vocab_size: byte-level BPE needs at least {least} (every byte), found {vocab_size}")
        splitter, decoder = splitters.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        model, alphabet = library.models.BPE(unk_token=None), splitters.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(min_frequency=max(min_count, 1), initial_alphabet=alphabet, **common)
    else:
        splitter, decoder, model = splitters.Metaspace(), decoders.Metaspace(), library.models.Unigram()
        trainer = trainers.UnigramTrainer(unk_token=UNK, **common)
    tokenizer = library.Tokenizer(model)
    steps = [library.normalizers.NFKC()] + ([library.normalizers.Lowercase()] if lowercase else [])
    tokenizer.normalizer, tokenizer.pre_tokenizer = library.normalizers.Sequence(steps), splitter
    if trainer is not None:
        tokenizer.decoder = decoder
        tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
