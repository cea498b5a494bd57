"""Processors of public speech models, with the tokenizers of their folders.

wav2vec 2.0 and HuBERT map samples to letters by CTC; Whisper maps windows of log-mel frames to text after a prompt.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
from collections.abc import KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmattn.data.audio.mel import LogMel, WaveFeatures, WhisperFeatures, features_from_config, level
from mmattn.data.errors import DataError, located, shorten
from mmattn.data.readers import parse_json
from mmattn.data.text.pretrained import LAYOUTS, PublicText, convert_folder, read_file
from mmattn.data.text.public_files import parse_object
from mmattn.generate.speech import SpeechConfig
from mmattn.tasks.asr.data import ASRDataset, normalize_text
from mmattn.tasks.asr.processor import SpeechProcessor
from mmattn.tasks.common.errors import CheckpointError, ConfigError

WINDOW_SECONDS = 20.0  # default window of a CTC model
PLOT_BANDS = 64  # mel bands of the plotted spectrogram
BROKEN = "\N{REPLACEMENT CHARACTER}"  # decoded from an incomplete character
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # languages written without spaces between words


class SpeechText(PublicText):
    """Base class of the tokenizers of public speech models.

    Args:
        files: File contents by name.
        max_len: Default maximum number of tokens.

    Raises:
        DataError: A file is damaged, or lacks what the model requires.
    """

    KIND: ClassVar[str]
    FILES: ClassVar[tuple[str, ...]]  # the first is required

    def __init__(self, files: Mapping[str, bytes], max_len: int = 512) -> None:
        super().__init__(self.FILES[0], files, max_len=max_len)

    @classmethod
    def read(cls, directory: str | Path, kind: str = "", **options: Any) -> Self:
        """Read the tokenizer of a public folder, or one that ``save`` wrote, with the options of its ``config()``.

        Raises:
            DataError: A file is missing or damaged, or the tokenizer is of another kind.
        """
        if kind not in ("", cls.KIND):
            raise DataError(str(directory), f"a tokenizer of kind {cls.KIND}", shorten(kind))
        paths = [Path(directory, name) for name in cls.FILES]
        if not paths[0].is_file():
            raise DataError(str(paths[0]), "a tokenizer file", "none")
        with located(directory):
            return cls({path.name: read_file(path) for path in paths if path.is_file()}, **options)

    def __reduce__(self) -> Any:  # the libraries' objects are reopened
        return type(self), (self.files, self.max_len), {"truncated": self.truncated}

    def config(self) -> dict[str, Any]:
        return {"kind": self.KIND, "max_len": self.max_len}


class WhisperText(SpeechText):
    """Whisper's tokenizer: byte-level pieces below the id of the end token, special tokens and timestamps above."""

    KIND, FILES = "whisper", ("tokenizer.json",)

    @classmethod
    def read(cls, directory: str | Path, kind: str = "", **options: Any) -> Self:
        folder, older = Path(directory), LAYOUTS["bpe"]
        if all((folder / name).is_file() for name in older) and not (folder / cls.FILES[0]).is_file():
            with located(directory):
                return cls(convert_folder(folder, "bpe"), **options)
        return super().read(directory, kind, **options)

    def _open(self) -> None:
        self.special = dict.fromkeys(("pad_id", "unk_id", "start_id", "eos_id"), 0)  # set below
        super()._open()
        names = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
        self.eos_id, self.start_id, self.no_timestamps_id = map(self._id, names)
        self.pad_id = self.unk_id = self.eos_id

    def _id(self, token: str) -> int:
        index = self._pieces.token_to_id(token)
        if index is None:
            raise DataError("tokenizer.json", f"Whisper's token {token}", "none of that name")
        return int(index)

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode([i for i in map(int, ids) if i < self.eos_id]).strip()


class CTCText(SpeechText):
    """Tokenizer of a CTC model: one id for each letter, and a delimiter between words."""

    KIND, FILES = "ctc", ("vocab.json", "tokenizer_config.json", "special_tokens_map.json")
    SPECIAL: ClassVar = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>"}  # defaults

    def _open(self) -> None:
        vocabulary, about, special = (parse_object(name, self.files.get(name, b"{}")) for name in self.FILES)
        if not vocabulary or not all(isinstance(index, int) for index in vocabulary.values()):
            raise DataError("vocab.json", "letters and their ids, of one language", shorten(vocabulary))
        self._ids, settings = vocabulary, special | about
        self._letters = {index: letter for letter, index in vocabulary.items()}
        self.vocab_size = max(self._letters) + 1
        tokens = {name: _content(settings.get(f"{name}_token", usual)) for name, usual in self.SPECIAL.items()}
        self.between = _content(settings.get("word_delimiter_token", "|"))
        self.lowered = bool(settings.get("do_lower_case", False))
        for token in (tokens["pad"], self.between):
            if token not in vocabulary:
                raise DataError("vocab.json", f"the token {token!r}", shorten(sorted(vocabulary)))
        found = [vocabulary.get(token, vocabulary[tokens["pad"]]) for token in tokens.values()]
        self.pad_id, self.unk_id, self.start_id, self.eos_id = found
        self._special = set(found)

    @property
    def letters(self) -> KeysView[str]:
        """All tokens."""
        return self._ids.keys()

    def encode(self, text: str) -> list[int]:
        text = text.upper() if self.lowered else text
        return [self._ids.get(self.between if character == " " else character, self.unk_id) for character in text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, after repeats and blanks are removed."""
        letters = [self._letters.get(int(i), "") for i in ids if int(i) not in self._special]
        text = "".join(" " if letter == self.between else letter for letter in letters).strip()
        return text.lower() if self.lowered else text

    def to_json(self) -> str:
        return json.dumps({name: content.decode("utf-8") for name, content in sorted(self.files.items())})


def _content(token: Any) -> str:
    """The text of a token, which newer files store as an object."""
    return str(token["content"] if isinstance(token, Mapping) else token)


class PublicProcessor(SpeechProcessor):
    """Base class of public processors: a front end and a tokenizer from a public folder, and settings."""

    KIND: ClassVar[str]
    PARTS: ClassVar[tuple[type, type[SpeechText]]]  # types of front end and tokenizer
    OWN: ClassVar[tuple[str, ...]]  # other constructor keywords, saved unchanged
    LATER: ClassVar = {"lm_order": 0}
    front: Any

    def settings(self) -> dict[str, Any]:
        parts = {"features": self.front.config(), "tokenizer": self.tokenizer.config(), "lm_order": self.lm_order}
        return {"kind": self.KIND, **parts, **{name: getattr(self, name) for name in self.OWN}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        front, (wanted, text) = features_from_config(config["features"], "features"), cls.PARTS
        if not isinstance(front, wanted):
            raise TypeError(f"expected {wanted.__name__}, found {type(front).__name__}")
        own = {name: config[name] for name in cls.OWN}
        found = cls(front, text.read(folder, **config["tokenizer"]), **own)  # type: ignore[call-arg]
        return found.with_lm(folder, config["lm_order"])


@dataclass(eq=False)
class CTCProcessor(PublicProcessor):
    """Processor of wav2vec 2.0 and HuBERT: samples in, letters by CTC out.

    Batches are always masked, whatever the folder specifies, so that a batch gives the same result as each recording
    alone. Training texts are normalized and take the case of the model's letters.

    >>> letters = {token: index for index, token in enumerate(["<pad>", "|", *"ABC"])}
    >>> tokenizer = CTCText({"vocab.json": json.dumps(letters).encode()})
    >>> processor = CTCProcessor(WaveFeatures(), tokenizer)
    >>> processor.detokenize(processor.encode("a cab"))
    'A CAB'
    """

    KIND: ClassVar = "ctc"
    PARTS: ClassVar = (WaveFeatures, CTCText)
    OWN: ClassVar = ("max_seconds", "search")
    KEYS: ClassVar = frozenset({"kind", "features", "tokenizer", "lm_order", *OWN})
    front: WaveFeatures
    tokenizer: CTCText
    max_seconds: float = WINDOW_SECONDS
    search: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_seconds <= 0:
            raise ValueError(f"max_seconds: expected more than 0, found {self.max_seconds}")

    def spectrogram(self, wave: Tensor) -> tuple[Tensor, float]:
        mel = LogMel(self.sample_rate, PLOT_BANDS)
        return mel(level(wave)), mel.frame_seconds

    def normalize_target(self, text: str) -> str:
        spelled = self._match_case(normalize_text(text))
        if self.tokenizer.unk_id != self.tokenizer.pad_id:
            return spelled
        known = {" ", *self.tokenizer.letters}  # unknown characters would be encoded as the blank
        return "".join(character for character in spelled if character in known or character.upper() in known)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(self._match_case(text))  # not normalized: also encodes the model's own transcripts

    def _match_case(self, text: str) -> str:
        """The text in the case of the model's letters, character by character."""
        if self.tokenizer.lowered:
            return text  # the tokenizer changes the case
        known, forms = (
            {" ", *self.tokenizer.letters},
            ((character, character.upper(), character.lower()) for character in text),
        )
        return "".join(next((form for form in three if form in known), three[0]) for three in forms)

    def retarget(self, train: ASRDataset, given: Mapping[str, Any]) -> Self:
        """A processor whose vocabulary has the data's missing letters appended, in the case of the model's letters.

        Args:
            train: The training data.
            given: ``max_seconds``, and ``size``, the vocabulary size of the model, after which new ids follow.
        """
        tokenizer, letters = self.tokenizer, {letter for letter in self.tokenizer.letters if len(letter) == 1}
        upper = any(map(str.isupper, letters)) and not any(map(str.islower, letters))
        characters = {
            character
            for sample in train.samples
            for character in self._match_case(normalize_text(sample.text))
            if character != " "
        }
        missing = {
            character.upper() if upper and len(character.upper()) == 1 else character for character in characters
        } - letters
        if missing:
            new = enumerate(sorted(missing), given.get("size", tokenizer.vocab_size))
            vocabulary = parse_json(tokenizer.files["vocab.json"]) | {character: index for index, character in new}
            content = json.dumps(vocabulary, ensure_ascii=False, sort_keys=True).encode()
            tokenizer = CTCText(tokenizer.files | {"vocab.json": content}, tokenizer.max_len)
        return type(self)(self.front, tokenizer, given.get("max_seconds") or WINDOW_SECONDS, self.search_without_lm())


@dataclass(eq=False)
class WhisperProcessor(PublicProcessor):
    """Processor of Whisper: windows of log-mel frames in, text after a prompt out.

    Training texts are not normalized; a space precedes the first word, as in Whisper's output.
    """

    KIND: ClassVar = "whisper"
    PARTS: ClassVar = (WhisperFeatures, WhisperText)
    OWN: ClassVar = ("generation", "prompt", "search")
    KEYS: ClassVar = frozenset({"kind", "features", "tokenizer", "lm_order", *OWN})
    front: WhisperFeatures
    tokenizer: WhisperText
    generation: dict[str, Any]  # generation_config.json: languages, tasks, suppressed tokens, beams
    # Prompt ids of training: start, language, task, and no timestamps; empty if the language is not given.
    prompt: Sequence[int] = ()
    search: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.max_seconds = float(self.front.seconds)

    @property
    def languages(self) -> Mapping[str, int]:
        """Ids of ``<|en|>`` and the like; empty for an English-only model."""
        return self.generation.get("lang_to_id") or {}

    def with_language(self, language: str | None = None, task: str | None = None) -> Self:
        """The processor with the prompt of a language and a task, if the language is known."""
        given = {name: value for name, value in (("language", language), ("task", task)) if value is not None}
        if self.prompt and not given:
            return self
        changed = dataclasses.replace(self, generation=self.generation | given)
        config = dataclasses.replace(changed.speech_config(), return_timestamps=False)
        try:
            changed.prompt = [] if config.detects else config.prompts(1)[0]
        except ValueError as error:
            raise CheckpointError(f"generation_config.json: {error}.") from None
        return changed

    def speech_config(self, *, ctc_weight: float | None = None, **search: Any) -> SpeechConfig:
        """Generation options: of the model's folder, overridden by the measured ones and by arguments.

        Arguments are num_beams, language, task and all others of ``SpeechConfig``; None is ignored.

        Raises:
            ConfigError: The model lacks a language or task, or values contradict each other.
        """
        if ctc_weight is not None:
            raise ConfigError(f"ctc_weight: expected none, since Whisper has no CTC; found {ctc_weight}.")
        given = {name: value for name, value in search.items() if value is not None}
        try:
            return SpeechConfig(**{**self.generation, **self.search, **given})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"generation: {error}.") from None

    def spectrogram(self, wave: Tensor) -> tuple[Tensor, float]:
        return self.features(wave)[: self.front.real_frames(len(wave))], self.frame_seconds

    def normalize_target(self, text: str) -> str:
        return f" {text.strip()}" if text.strip() else ""

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        if not self.prompt:
            codes = ", ".join(name.strip("<|>") for name in self.languages)
            raise DataError("data.language", f"the language of the recordings, one of {codes}", "none")
        room = self.tokenizer.max_len - len(self.prompt)
        ids, mask = self.tokenizer.encode_batch(
            [self.normalize_target(text) for text in texts], room
        )  # padded by the end
        prompt = torch.tensor(self.prompt).expand(len(ids), -1)  # (B, P)
        labels = torch.cat([prompt[:, 1:], pad(ids, (0, 1), value=self.tokenizer.eos_id)], dim=1)  # (B, P + L)
        label_mask = pad(pad(mask, (1, 0), value=True), (len(self.prompt) - 1, 0), value=False)
        return torch.cat([prompt, ids], dim=1), labels, label_mask

    def words(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[tuple[str, int, int]]:
        """Words of text ids, each with the index of its first id and of the id after its last.

        If the prompt's language has no spaces between words, the pieces themselves are the words.
        """
        text, ends = self.decode(ids), [0]  # character offsets at which pieces end
        for count in range(1, len(ids) + 1):
            part = self.decode(ids[:count])
            ends.append(ends[-1] if part.endswith(BROKEN) and count < len(ids) else max(ends[-1], len(part)))
        ends[-1] = len(text)
        names = {index: name.strip("<|>") for name, index in self.languages.items()}
        if any(names.get(token) in UNSPACED for token in prompt):
            spans = [(a, b) for a, b in pairwise(ends) if text[a:b].strip()]
        else:
            spans = [word.span() for word in re.finditer(r"\S+", text)]
        found = []
        for start, end in spans:
            first = bisect.bisect_right(ends, start) - 1  # the piece that holds the first letter
            while first and ends[first - 1] == ends[first]:
                first -= 1  # a piece that holds only some bytes of it
            found.append((text[start:end].strip(), first, bisect.bisect_left(ends, end)))
        return found
