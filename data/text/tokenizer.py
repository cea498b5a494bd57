"""Text to token ids: the tokenizer that is fitted on the training texts and travels in the shipped directory."""

from __future__ import annotations

import bisect
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest, shorten

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)
PAD, UNK, BOS, EOS = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS)  # ids 0, 1, 2, 3, in every kind
KINDS = ("word", "bpe", "unigram")
CACHE_SIZE = 100_000  # texts


def _tokenizers() -> Any:
    # Questions are short, so the library's thread pool gains nothing, and its warning at every fork of a DataLoader
    # worker is noise. A user's own setting stands.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


class TokenIds:
    """What every tokenizer here can do once it can encode one text; a subclass gives the rest."""

    kind: str
    max_len: int  # most tokens of a text where nothing else is asked for
    vocab_size: int
    pad_id: int
    unk_id: int
    start_id: int  # before the first token that is written
    eos_id: int
    prefix_ids: tuple[int, ...] = ()  # what stands before a text that is closed with the end token

    def __init__(self) -> None:
        self._cache: dict[str, list[int]] = {}  # training asks for the same texts every epoch
        self.truncated = 0  # texts cut since this object was made; in this process only

    def encode(self, text: str) -> list[int]:
        """The ids of one text, not cut."""
        raise NotImplementedError

    def words(self, text: str) -> tuple[list[str], list[int]]:
        """The text's words, as white space parts them, and of each token the word that it belongs to, not cut."""
        words = list(re.finditer(r"\S+", text))
        ends = [word.end() for word in words]
        owners = [min(bisect.bisect_right(ends, start), len(words) - 1) for start, _ in self.spans(text)]
        return [word.group() for word in words], owners

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters of each of the text's tokens, from and up to, white space before it left out; not cut."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Text from ids, what is special left out."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """What the files of `save` do not hold."""
        raise NotImplementedError

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files; the caller keeps ``config()``."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Everything that is saved, as text, for a fingerprint."""
        raise NotImplementedError

    def _cached(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self.encode(text)
            if len(self._cache) < CACHE_SIZE:
                self._cache[text] = ids
        return ids

    def length(self, text: str) -> int:
        """Tokens of a text, not cut."""
        return len(self._cached(text))

    def encode_batch(
        self, texts: Sequence[str], max_len: int | None = None, eos: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Encodes texts, padded to the longest.

        Args:
            texts: B of them.
            max_len: Most tokens, those of ``self.max_len`` where None.
            eos: Close each with the end token, which is never cut (and open it with ``prefix_ids``).

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
            logger.warning("cut at %d tokens, as others that follow may be: %s", limit, shorten(cut[0]))
        self.truncated += len(cut)
        length = max(1, max(map(len, rows), default=1))
        padded = [[*row, *[self.pad_id] * (length - len(row))] for row in rows]
        ids = torch.tensor(padded, dtype=torch.long).reshape(len(rows), length)
        key_mask = torch.arange(length) < torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
        return ids, key_mask  # (B, L), (B, L)


class TextProcessor(TokenIds):
    """Token ids with their mask from strings, by a tokenizer of the ``tokenizers`` library.

    Kinds: ``word`` (split at white space and punctuation, one id a word), ``bpe`` (byte-level, never an unknown
    token) and ``unigram`` (whose fit breaks ties in no fixed order: fit once and keep it). Text is
    Unicode-normalized (NFKC) and, with ``lowercase``, lower-cased.

    Args:
        tokenizer: A fitted ``tokenizers.Tokenizer``; ``fit`` makes one.
        kind: One of ``KINDS``.
        lowercase: Whether the normalizer lower-cases; kept for the record, the tokenizer does it.
        max_len: Longest sequence in tokens; what is longer is cut, and counted in ``truncated``.

    >>> text = TextProcessor.fit(["is it red ?", "is it blue ?"])
    >>> ids, key_mask = text.encode_batch(["is it red ?", "red"])
    >>> ids.shape, key_mask.sum(1).tolist()
    (torch.Size([2, 4]), [4, 1])
    """

    def __init__(self, tokenizer: Tokenizer, kind: str = "word", lowercase: bool = True, max_len: int = 64) -> None:
        super().__init__()
        self.tokenizer, self.kind, self.lowercase, self.max_len = tokenizer, kind, lowercase, int(max_len)
        if self.max_len < 1:
            raise ValueError(f"max_len: expected at least 1, found {max_len}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _as_plain_text(tokenizer)
        self.pad_id, self.unk_id = self._special(PAD), self._special(UNK)
        self.start_id, self.eos_id = self._special(BOS), self._special(EOS)  # a written text's first and last

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
            vocab_size: The most ids there may be, special tokens included.
            min_count: How often a word (``word``) or a pair (``bpe``) must occur to get an id.
            lowercase: Lower-case the text, in training and serving alike.
            max_len: See the class.

        Raises:
            ValueError: An unknown kind, or no room for the special tokens.
            DataError: No text at all.
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
        # Once through its JSON, which rounds unigram's scores: what is saved and read is then exactly this.
        return cls(_tokenizers().Tokenizer.from_str(fitted.to_str()), kind, lowercase, max_len)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of ids, special tokens included."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return self._encode(text).ids

    def _encode(self, text: str) -> Any:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:  # not a string, or one with lone surrogates (invalid UTF-8 from a command line)
            raise DataError("text", "a string of valid Unicode", shorten(text)) from error

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the tokenizer has never seen, as they stand in it, in order, each once.

        Empty for byte-level BPE, which can spell everything.
        """
        encoding = self._encode(text)
        spans = [span for index, span in zip(encoding.ids, encoding.offsets, strict=True) if index == self.unk_id]
        return list(dict.fromkeys(text[start:end].strip() for start, end in spans if text[start:end].strip()))

    def tokens(self, text: str) -> list[str]:
        """The text's tokens as a person reads them, cut at ``max_len``: the labels of an image's axis."""
        encoding = self._encode(text)
        placed = zip(encoding.tokens, encoding.offsets, strict=True)
        return [text[start:end].strip() or token for token, (start, end) in placed][: self.max_len]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [without_lead(text, start, end) for start, end in self._encode(text).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Text from ids, special tokens but ``[UNK]`` left out."""
        hidden = {self.tokenizer.token_to_id(token) for token in (PAD, BOS, EOS)}
        return self.tokenizer.decode([int(i) for i in ids if int(i) not in hidden], skip_special_tokens=False).strip()

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "lowercase": self.lowercase, "max_len": self.max_len}

    def save(self, directory: str | Path) -> None:
        Path(directory, "tokenizer.json").write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        return self.tokenizer.to_str(pretty=False)

    @classmethod
    def load(cls, directory: str | Path, config: Mapping[str, Any] | None = None) -> TextProcessor:
        """Reads ``tokenizer.json`` as ``save`` wrote it.

        Args:
            directory: Where it lies.
            config: What ``config()`` gave.

        Raises:
            DataError: Missing or not a tokenizer.
        """
        path = Path(directory, "tokenizer.json")
        try:
            text = path.read_text(encoding="utf-8")
            json.loads(text)
            tokenizer = _tokenizers().Tokenizer.from_str(text)
        except FileNotFoundError:
            raise DataError(str(path), "the tokenizer's file", "no such file") from None
        except Exception as error:  # the library raises plain Exception
            raise DataError(str(path), "a tokenizer of the tokenizers library", shorten(str(error))) from error
        return cls(tokenizer, **dict(config or {}))


def without_lead(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters of text from start up to end, white space at their beginning left out."""
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end


def _as_plain_text(tokenizer: Tokenizer) -> None:
    # A user who writes "[PAD]" has written five plain characters. The library forgets this setting in its JSON and in a
    # pickle, and loader workers may get a pickle.
    tokenizer.encode_special_tokens = True


def _fitted(texts: list[str], kind: str, vocab_size: int, min_count: int, lowercase: bool) -> Tokenizer:
    """A tokenizer of the library. In a unigram one the model's own loss decides what is kept, not ``min_count``."""
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
