"""Tokenizer files of public models, older ones converted to a tokenizer of the tokenizers library as transformers does.

T5's ``spiece.model`` is a protocol buffer of the package sentencepiece, BART's ``vocab.json`` and ``merges.txt`` are
a byte-level BPE, BERT's ``vocab.txt`` has a piece of a word on each line. Added tokens are in
``tokenizer_config.json`` or, of older versions, in ``added_tokens.json`` and ``special_tokens_map.json``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmattn.data.errors import DataError, shorten
from mmattn.data.readers import parse_json
from mmattn.data.text.tokenizer import _tokenizers

ABOUT, ADDED, SPECIAL = OPTIONAL = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
USUAL = ("<s>", "</s>", "<unk>", "<pad>", "<mask>", "<|endoftext|>")  # special wherever a vocabulary has them
BERTS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}
SENTINELS, MOST_SENTINELS = 100, 10_000  # <extra_id_0> to <extra_id_99>, with which T5 was pretrained
SPACE = "\u2581"  # sentencepiece's character for a space
CONTROL, USER_DEFINED = 3, 4  # types of sentencepiece's pieces that are matched as a whole


class AddedToken(NamedTuple):
    """A token that is matched in the text before the text is split."""

    content: str
    special: bool = True  # left out of decoded text
    flags: Mapping[str, bool] = FLAGS
    normalized: bool = False  # matched in the normalized text
    row: int | None = None


def added_tokens(files: Mapping[str, bytes]) -> list[AddedToken]:
    """Returns the added tokens that the files declare: first those with a row in the embeddings, in its order.

    Raises:
        DataError: A file is not as public models have it; names the file.
    """
    about, added, special = (parse_object(name, files.get(name, b"{}")) for name in OPTIONAL)
    settings = about if "added_tokens_decoder" in about else special | about
    named = [settings[name] for name in NAMED if settings.get(name)]
    for name in ("extra_special_tokens", "additional_special_tokens"):
        listed = settings.get(name) or []
        named += listed.values() if isinstance(listed, Mapping) else listed
    specials = {token.content: token for token in map(_token, named)}
    usual = {content: AddedToken(content) for content in USUAL}
    try:
        if "added_tokens_decoder" in about:
            found = [_token(token)._replace(row=int(i)) for i, token in about["added_tokens_decoder"].items()]
        else:
            found = [
                (usual | specials).get(content, AddedToken(content, False, normalized=True))._replace(row=int(i))
                for content, i in added.items()
            ]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{ABOUT} or {ADDED}", "added tokens and their ids", shorten(str(error))) from None
    found.sort(key=lambda token: token.row or 0)
    known = {token.content for token in found}
    return [*found, *(token for content, token in specials.items() if content not in known)]


def _token(value: Any) -> AddedToken:
    """An added token, which files have as a string or an object."""
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise DataError(ABOUT, "an added token", shorten(value))
    special = bool(value.get("special", True))
    flags = {name: bool(value.get(name, False)) for name in FLAGS}
    return AddedToken(value["content"], special, flags, bool(value.get("normalized", not special)))


def open_files(files: Mapping[str, bytes]) -> Any:
    """Makes a ``tokenizers.Tokenizer`` of the files of a layout other than Marian's.

    Raises:
        DataError: An added token has another id than its file declares.
        Exception: A file is damaged; the type is the library's.
    """
    library = _tokenizers()
    added = added_tokens(files)
    if "tokenizer.json" in files:
        found = library.Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
    elif "spiece.model" in files:
        found, own = _unigram(files)
        added = [*own, *added]
    elif "vocab.txt" in files:
        found = _word_pieces(files)
        added = [*added, *(AddedToken(token) for token in BERTS if found.token_to_id(token) is not None)]
    else:
        found = _byte_level(files)
    if "tokenizer.json" not in files:
        added += [AddedToken(content) for content in USUAL if found.token_to_id(content) is not None]
    known = {token.content for token in found.get_added_tokens_decoder().values()}
    for token in added:
        if token.content and token.content not in known:
            options = {"special": token.special, "normalized": token.normalized}
            found.add_tokens([library.AddedToken(token.content, **token.flags, **options)])
            known.add(token.content)
        index = found.token_to_id(token.content)
        if token.row not in (None, index):
            raise DataError(f"added token {token.content!r}", f"the id {index}, after the others", f"{token.row}")
    return found


def converted(files: Mapping[str, bytes]) -> bytes:
    """Returns the ``tokenizer.json`` of the files; it is unchanged if it has all their added tokens."""
    given = files.get("tokenizer.json")
    found = open_files(files)
    if given is not None:
        before = _tokenizers().Tokenizer.from_str(given.decode("utf-8"))
        if before.get_vocab_size() == found.get_vocab_size():
            return given
    return bytes(found.to_str(), "utf-8")


def _byte_level(files: Mapping[str, bytes]) -> Any:
    """The byte-level BPE of BART, RoBERTa and Whisper, with BART's special tokens around a text."""
    library = _tokenizers()
    rows = [row.removesuffix("\r") for row in files["merges.txt"].decode("utf-8").split("\n")]
    merges = [tuple(row.split(" ")) for row in rows if row and not row.startswith("#version")]
    vocabulary, about = (parse_object(name, files.get(name, b"{}")) for name in ("vocab.json", ABOUT))
    space = bool(about.get("add_prefix_space", False))
    options = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    found = library.Tokenizer(library.models.BPE(vocabulary, merges, **options))
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=space)
    found.decoder = library.decoders.ByteLevel()
    start, end = ((token, vocabulary.get(token)) for token in ("<s>", "</s>"))
    if None not in (start[1], end[1]):
        found.post_processor = library.processors.RobertaProcessing(end, start, True, space)
    return found


def _word_pieces(files: Mapping[str, bytes]) -> Any:
    """BERT's tokenizer, with its special tokens around a text or two."""
    library = _tokenizers()
    rows = files["vocab.txt"].decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocabulary, about = {piece: row for row, piece in enumerate(rows)}, parse_object(ABOUT, files.get(ABOUT, b"{}"))
    found = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
    found.normalizer = library.normalizers.BertNormalizer(
        lowercase=bool(about.get("do_lower_case", True)),
        strip_accents=about.get("strip_accents"),
        handle_chinese_chars=bool(about.get("tokenize_chinese_chars", True)),
    )
    found.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    found.decoder = library.decoders.WordPiece(prefix="##")
    start, end = ((token, vocabulary.get(token)) for token in ("[CLS]", "[SEP]"))
    if None in (start[1], end[1]):
        raise DataError("vocab.txt", "the tokens [CLS] and [SEP]", f"{len(rows)} others")
    found.post_processor = library.processors.BertProcessing(end, start)
    return found


def _unigram(files: Mapping[str, bytes]) -> tuple[Any, list[AddedToken]]:
    """T5's tokenizer, the sentinels after its pieces, and the tokens that it matches as a whole."""
    library = _tokenizers()
    pieces, kinds, characters, unknown = [], [], b"", 2
    for field, value in _fields(files["spiece.model"]):  # of a ModelProto
        if field == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
            kinds.append(piece.get(3, 1))
        elif field == 2:
            unknown = dict(_fields(value)).get(40, 0)
        elif field == 3:
            characters = dict(_fields(value)).get(2, b"")
    count = parse_object(ABOUT, files.get(ABOUT, b"{}")).get("extra_ids", SENTINELS)
    if count not in range(MOST_SENTINELS + 1):
        raise DataError(f"{ABOUT}: extra_ids", f"a number from 0 to {MOST_SENTINELS}", shorten(count))
    sentinels = [f"<extra_id_{n}>" for n in reversed(range(int(count)))]
    matched = [(piece, kind) for (piece, _), kind in zip(pieces, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    whole = [AddedToken(piece, kind == CONTROL) for piece, kind in matched]
    scores = [*pieces, *((sentinel, 0.0) for sentinel in sentinels)]
    found = library.Tokenizer(library.models.Unigram(scores, unknown, False))
    if characters:
        found.normalizer = library.normalizers.Precompiled(characters)
    splitters, decoders = library.pre_tokenizers, library.decoders
    space = {"replacement": SPACE, "prepend_scheme": "always", "split": True}
    found.pre_tokenizer = splitters.Sequence([splitters.WhitespaceSplit(), splitters.Metaspace(**space)])
    found.decoder = decoders.Metaspace(**space)
    end = found.token_to_id("</s>")
    if end is None:
        raise DataError("spiece.model", "the piece </s>", "none")
    found.post_processor = library.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return found, [*whole, *map(AddedToken, sentinels)]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the numbers and values of a protocol buffer's fields."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = varint()
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if size == 0:
            yield key >> 3, varint()
            continue
        size = varint() if size is None else size
        if size > len(message) - place or key & 7 in (3, 4, 6, 7):
            raise ValueError("a damaged protocol buffer")
        yield key >> 3, message[place : place + size]
        place += size


def parse_object(name: str, content: bytes) -> dict[str, Any]:
    """Returns a file's JSON object.

    Raises:
        DataError: The content is not JSON, or not an object; names the file.
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise DataError(name, "JSON", shorten(str(error))) from None
    if not isinstance(value, dict):
        raise DataError(name, "an object", type(value).__name__)
    return value
