"""The processors of public speech models: their own features and tokenizers, and how they write.

wav2vec 2.0 and HuBERT hear samples and write letters by CTC; Whisper hears windows of log-mel frames and writes behind
a prompt.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmattn.data.audio.mel import LogMel
from mmattn.data.audio.pretrained import (
    CTCText,
    WaveFeatures,
    WhisperFeatures,
    WhisperText,
    features_from_config,
    load_speech_text,
)
from mmattn.data.errors import DataError
from mmattn.tasks.asr.data import normalise
from mmattn.tasks.asr.processor import level
from mmattn.tasks.asr.speech import SpeechProcessor

UNIT = 0.01  # seconds in which lengths are counted, where the features are samples
HEARD = 20.0  # seconds that a model with CTC hears at once, where nobody says
PICTURE_BANDS = 64  # of the spectrogram in a picture
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a part of a letter is decoded to
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # written without blanks between words


class PublicProcessor(SpeechProcessor):
    """Features and a tokenizer as a public folder has them, and settings beside them."""

    KIND: ClassVar[str]
    PARTS: ClassVar[tuple[type, type]]  # of features and tokenizer
    OWN: ClassVar[tuple[str, ...]]  # the constructor's other keywords, kept as they are
    front: Any

    @property
    def sample_rate(self) -> int:
        rate: int = self.front.sample_rate
        return rate

    def settings(self) -> dict[str, Any]:
        parts = {"features": self.front.config(), "tokenizer": self.tokenizer.config()}
        return {"kind": self.KIND, **parts, **{name: getattr(self, name) for name in self.OWN}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        parts = features_from_config(config["features"], "features"), load_speech_text(folder, config["tokenizer"])
        for found, wanted in zip(parts, cls.PARTS, strict=True):
            if not isinstance(found, wanted):
                raise TypeError(f"expected {wanted.__name__}, found {type(found).__name__}")
        return cls(*parts, **{name: config[name] for name in cls.OWN})  # type: ignore[call-arg]


class CTCProcessor(PublicProcessor):
    """Samples in, letters by CTC out: wav2vec 2.0 and HuBERT.

    The padding of a batch is masked, whatever the folder says: a recording alone is the measure, and a batch must give
    the same. Texts are learnt normalised, in the case that the letters have.

    Args:
        front: How samples are normalised.
        tokenizer: Letters and their ids; its padding is CTC's blank.
        max_seconds: The longest clip it is meant for; what is longer is heard in windows.
        search: How the model was measured.

    >>> letters = {token: index for index, token in enumerate(["<pad>", "|", *"ABC"])}
    >>> tokenizer = CTCText({"vocab.json": json.dumps(letters).encode()})
    >>> processor = CTCProcessor(WaveFeatures(), tokenizer)
    >>> processor.said(processor.encode("a cab"))
    'A CAB'
    """

    KIND, PARTS, OWN = "ctc", (WaveFeatures, CTCText), ("max_seconds", "search")
    KEYS = frozenset({"kind", "features", "tokenizer", "lm_order", *OWN})
    LATER: ClassVar = {"lm_order": 0}

    def __init__(
        self,
        front: WaveFeatures,
        tokenizer: CTCText,
        max_seconds: float = HEARD,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        if max_seconds <= 0:
            raise ValueError(f"max_seconds: expected more than 0, found {max_seconds}")
        self.front, self.tokenizer = front, tokenizer
        self.max_seconds, self.search = float(max_seconds), dict(search or {})
        self._mel = LogMel(front.sample_rate, PICTURE_BANDS)

    @property
    def frame_seconds(self) -> float:
        return 1 / self.front.sample_rate

    @property
    def length_seconds(self) -> float:
        return UNIT

    def num_frames(self, num_samples: int) -> int:
        return -(-num_samples // round(UNIT * self.sample_rate))

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rows = [self.front(wave) for wave in waves]
        features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, n)
        return features, torch.arange(features.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]

    def picture(self, wave: Tensor) -> tuple[Tensor, float]:
        return self._mel(level(wave)), self._mel.hop / self.sample_rate

    def learnt(self, text: str) -> str:
        spelt = self._spelt(normalise(text))
        if self.unk_id != self.pad_id:
            return spelt
        known = {" ", *self.tokenizer.letters}  # what is not known would be taken for the blank
        return "".join(sign for sign in spelt if sign in known or sign.upper() in known)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(self._spelt(text))  # as it stands: the model's own texts come back, too

    def _spelt(self, text: str) -> str:
        """In the case that the model's letters have, sign by sign."""
        if self.tokenizer.lowered:
            return text  # the tokenizer does it
        known = self.tokenizer.letters
        kept = (
            next((form for form in (sign, sign.upper(), sign.lower()) if form in known or form == " "), sign)
            for sign in text
        )
        return "".join(kept)

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The signs of texts that the model has no letter for, in the case that its letters have."""
        letters = {letter for letter in self.tokenizer.letters if len(letter) == 1}
        upper = any(map(str.isupper, letters)) and not any(map(str.islower, letters))
        signs = {sign for text in texts for sign in self._spelt(normalise(text)) if sign != " "}
        cased = {sign.upper() if upper and len(sign.upper()) == 1 else sign for sign in signs}
        return sorted(cased - letters)

    def extended(self, signs: Sequence[str], first: int) -> CTCText:
        """The tokenizer with more letters, whose ids begin with `first`."""
        vocabulary = json.loads(self.tokenizer.files["vocab.json"])
        vocabulary |= {sign: first + n for n, sign in enumerate(signs)}
        content = json.dumps(vocabulary, ensure_ascii=False, sort_keys=True).encode()
        return CTCText(self.tokenizer.files | {"vocab.json": content}, self.tokenizer.max_len)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "lm_order": self.lm_order}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        return super().from_config(config, folder).with_lm(folder, config["lm_order"])


class WhisperProcessor(PublicProcessor):
    """Windows of log-mel frames in, text behind a prompt out: Whisper.

    Texts are learnt as the data have them, with the blank before the first word that Whisper writes.

    Args:
        front: Log-mel frames of a window.
        tokenizer: Whisper's.
        generation: As ``generation_config.json`` has it: languages, tasks, what is suppressed, beams.
        prompt: The ids behind which texts are learnt: start, language, task, and that there are no timestamps; none
            where the language is not told.
        search: How the model was measured.
    """

    KIND, PARTS, OWN = "whisper", (WhisperFeatures, WhisperText), ("generation", "prompt", "search")
    KEYS = frozenset({"kind", "features", "tokenizer", *OWN})

    def __init__(
        self,
        front: WhisperFeatures,
        tokenizer: WhisperText,
        generation: Mapping[str, Any],
        prompt: Sequence[int] = (),
        search: Mapping[str, Any] | None = None,
    ) -> None:
        self.front, self.tokenizer = front, tokenizer
        self.generation, self.prompt, self.search = dict(generation), [int(i) for i in prompt], dict(search or {})
        self.max_seconds = float(front.seconds)

    @property
    def languages(self) -> Mapping[str, Any] | None:  # type: ignore[override]
        """``<|en|>`` and the like, and their ids."""
        return self.generation.get("lang_to_id")

    @property
    def frame_seconds(self) -> float:
        return self.front.hop / self.front.sample_rate

    @property
    def window_frames(self) -> int:
        """Of a window."""
        return self.front.seconds * self.front.sample_rate // self.front.hop

    def num_frames(self, num_samples: int) -> int:
        return self.window_frames  # whatever is in it

    def real_frames(self, num_samples: int) -> int:
        """Of a window, those that hold some of so many samples."""
        return min(self.window_frames, -(-num_samples // self.front.hop))

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features, _ = self.front.batch(waves)  # (B, T, M)
        counts = torch.tensor([self.real_frames(len(wave)) for wave in waves])
        return features, torch.arange(features.shape[1]) < counts[:, None]

    def picture(self, wave: Tensor) -> tuple[Tensor, float]:
        return self.features(wave)[: self.real_frames(len(wave))], self.frame_seconds

    def learnt(self, text: str) -> str:
        return f" {text.strip()}" if text.strip() else ""

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        if not self.prompt:
            codes = ", ".join(name.strip("<|>") for name in self.languages or ())
            raise DataError("data.language", f"the language of the recordings, one of {codes}", "none")
        room = self.tokenizer.max_len - len(self.prompt)
        ids, mask = self.tokenizer.encode_batch([self.learnt(text) for text in texts], room)  # padded by the end
        prompt = torch.tensor(self.prompt).expand(len(ids), -1)  # (B, P)
        labels = torch.cat([prompt[:, 1:], pad(ids, (0, 1), value=self.eos_id)], dim=1)  # (B, P + L)
        label_mask = torch.cat(
            [torch.zeros_like(prompt[:, 1:], dtype=torch.bool), pad(mask, (1, 0), value=True)], dim=1
        )
        return torch.cat([prompt, ids], dim=1), labels, label_mask

    def words(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[tuple[str, int, int]]:
        """The words that ids of text say, each with its first id and the one behind its last, by place.

        Where a language has no blanks between words, what its pieces spell stands for them.

        Args:
            ids: Of text alone.
            prompt: What they were written behind: its language counts.
        """
        text, ends = self.decode(ids), [0]  # where the pieces end
        for count in range(1, len(ids) + 1):
            part = self.decode(ids[:count])
            ends.append(ends[-1] if part.endswith(BROKEN) and count < len(ids) else max(ends[-1], len(part)))
        ends[-1] = len(text)
        names = {index: name.strip("<|>") for name, index in (self.languages or {}).items()}
        if any(names.get(token) in UNSPACED for token in prompt):
            spans = [(a, b) for a, b in pairwise(ends) if text[a:b].strip()]
        else:
            spans = [word.span() for word in re.finditer(r"\S+", text)]
        found = []
        for start, end in spans:
            first = bisect.bisect_right(ends, start) - 1  # the piece that holds the first letter
            while first and ends[first - 1] == ends[first]:
                first -= 1  # one that holds a part of it only
            found.append((text[start:end].strip(), first, bisect.bisect_left(ends, end)))
        return found


KINDS: dict[str, type[PublicProcessor]] = {kind.KIND: kind for kind in (CTCProcessor, WhisperProcessor)}
