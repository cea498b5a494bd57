"""What public speech models are given and what they write: features and tokenizers, as they lie in their folders.

Whisper's log-mel frames and the normalised samples of wav2vec 2.0 and HuBERT from ``preprocessor_config.json``;
Whisper's ``tokenizer.json`` and the ``vocab.json`` of models with CTC.
"""

from __future__ import annotations

import json
import math
from collections.abc import KeysView, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmattn.data.audio.mel import triangles
from mmattn.data.errors import DataError, shorten
from mmattn.data.readers import read_json
from mmattn.data.text.pretrained import PublicText
from mmattn.data.text.tokenizer import TokenIds

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
# Keys that say nothing that is computed here, or that follow from the others.
REMARKS = frozenset(
    {"feature_extractor_type", "processor_class", "auto_map", "mel_filters", "n_samples", "nb_max_frames"}
)
BREAK = 1000.0  # Hz: the mel scale is linear below, logarithmic above
STEP = 27 / math.log(6.4)  # mels a factor e above it


def slaney_bands(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangles (n_fft / 2 + 1, M) of equal area, evenly spaced on Slaney's mel scale (Auditory Toolbox, 1998).

    The scale is 3 f / 200 up to 1000 Hz, and 15 + 27 log(f / 1000) / log(6.4) above.
    """

    def mel(f: float) -> float:
        return 3 * f / 200 if f < BREAK else 15 + STEP * math.log(f / BREAK)

    mels = torch.linspace(mel(f_min), mel(f_max), n_mels + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, 200 * mels / 3, BREAK * torch.exp((mels - 15) / STEP))
    return triangles(edges, sample_rate, n_fft) * (2 / (edges[2:] - edges[:-2]))


class WhisperFeatures:
    """Log-mel frames as Whisper hears them (Radford et al. 2022, section 2.2).

    ``x = log10(max(M |STFT|^2, 1e-10))``, then ``(max(x, max(x) - 8) + 4) / 4``: 80 dB below the loudest, near -1 .. 1.

    Args:
        sample_rate: In Hz.
        n_mels: Bands, M.
        n_fft: Samples a frame.
        hop: Samples from frame to frame.
        seconds: Of a window: recordings are cut, or padded with silence, to it.
        padding: What silence is.

    >>> WhisperFeatures()(torch.zeros(16_000)).shape
    torch.Size([3000, 80])
    """

    KIND = "WhisperFeatureExtractor"
    KEYS: ClassVar = {  # of preprocessor_config.json
        "sampling_rate": "sample_rate",
        "feature_size": "n_mels",
        "n_fft": "n_fft",
        "hop_length": "hop",
        "chunk_length": "seconds",
        "padding_value": "padding",
    }
    # What must be so, or not be said; Whisper's encoder reads no mask, whoever made one.
    NEUTRAL: ClassVar = {
        "dither": (0.0,),
        "do_normalize": (False,),
        "padding_side": ("right",),
        "return_attention_mask": (False, True),
    }

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_mels: int = 80,
        n_fft: int = 400,
        hop: int = 160,
        seconds: int = 30,
        padding: float = 0.0,
    ) -> None:
        self.sample_rate, self.n_mels, self.n_fft, self.hop = sample_rate, n_mels, n_fft, hop
        self.seconds, self.padding = seconds, padding
        self.window = torch.hann_window(n_fft)
        self.bands = slaney_bands(sample_rate, n_fft, n_mels, 0.0, 8000.0).float()

    def config(self) -> dict[str, Any]:
        """As ``preprocessor_config.json`` has it."""
        return {"feature_extractor_type": self.KIND} | {key: getattr(self, name) for key, name in self.KEYS.items()}

    def __call__(self, wave: Tensor, whole: bool = False) -> Tensor:
        """Samples to frames.

        Args:
            wave: (n,) float.
            whole: Do not cut it: of what is longer than a window come n // hop frames.

        Returns:
            (T, M), T of a window, or more where whole.

        Raises:
            DataError: Not one row of finite samples.
        """
        wave = _checked(wave)
        room = self.seconds * self.sample_rate
        if not whole:
            wave = wave[:room]
        if len(wave) < room:
            wave = torch.nn.functional.pad(wave, (0, room - len(wave)), value=self.padding)
        half = self.n_fft // 2
        log = self.log_mel(torch.nn.functional.pad(wave[None], (half, half), mode="reflect")[0])[:-1]  # (T, M)
        return self.scaled(log, float(log.max()))

    def log_mel(self, wave: Tensor) -> Tensor:
        """log10 of the bands' energies (T, M) in frames that lie within samples (n,), the first at their beginning."""
        options: dict[str, Any] = {"window": self.window, "center": False, "return_complex": True}
        spectrum = torch.stft(wave, self.n_fft, self.hop, **options).T  # (T, F)
        power = spectrum.real.square().add_(spectrum.imag.square())
        return (power @ self.bands).clamp_min_(1e-10).log10_()

    @staticmethod
    def scaled(log: Tensor, loudest: float) -> Tensor:
        """What ``log_mel`` gave, changed in place to what the network hears: 80 dB below the loudest."""
        return log.clamp_min_(loudest - 8.0).add_(4.0).div_(4.0)

    def batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, None]:
        """Windows (B, T, M) of recordings; none of it is masked: silence is real."""
        return torch.stack([self(wave) for wave in waves]), None


class WaveFeatures:
    """Samples as wav2vec 2.0 and HuBERT hear them: of mean 0 and variance 1, recording by recording.

    Args:
        sample_rate: In Hz.
        normalize: Off: as they are.
        masked: Batches come with a mask (the large models); off: the base models, that were trained without.
        padding: What stands behind the end.

    >>> features, mask = WaveFeatures(masked=True).batch([torch.randn(500), torch.randn(400)])
    >>> features.shape, mask.sum(1).tolist()
    (torch.Size([2, 500]), [500, 400])
    """

    KIND = "Wav2Vec2FeatureExtractor"
    KEYS: ClassVar = {
        "sampling_rate": "sample_rate",
        "do_normalize": "normalize",
        "return_attention_mask": "masked",
        "padding_value": "padding",
    }
    NEUTRAL: ClassVar = {"feature_size": (1,), "padding_side": ("right",)}

    def __init__(
        self, sample_rate: int = 16_000, normalize: bool = True, masked: bool = False, padding: float = 0.0
    ) -> None:
        self.sample_rate, self.normalize, self.masked, self.padding = sample_rate, normalize, masked, padding

    def config(self) -> dict[str, Any]:
        """As ``preprocessor_config.json`` has it."""
        return {"feature_extractor_type": self.KIND} | {key: getattr(self, name) for key, name in self.KEYS.items()}

    def __call__(self, wave: Tensor) -> Tensor:
        """(n,) to (n,).

        Raises:
            DataError: Not one row of finite samples.
        """
        wave = _checked(wave)
        if not self.normalize:
            return wave
        return (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()

    def batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Recordings (B, n), padded, and their mask (B, n), or None.

        Each is normalised alone. transformers normalises what is not masked together with its padding: alone, a
        recording is the same.
        """
        rows = [self(wave) for wave in waves]
        out = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        if not self.masked:
            return out, None
        return out, torch.arange(out.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]


Features = WhisperFeatures | WaveFeatures
EXTRACTORS: dict[str, type[Features]] = {kind.KIND: kind for kind in (WhisperFeatures, WaveFeatures)}


def _checked(wave: Tensor) -> Tensor:
    if wave.dim() != 1 or not len(wave) or not wave.is_floating_point():
        raise DataError("wave", "samples (n,), floating point, at least one", f"{tuple(wave.shape)} {wave.dtype}")
    if not wave.isfinite().all():
        raise DataError("wave", "finite samples", f"sample {int((~wave.isfinite()).nonzero()[0])} is none")
    return wave.float()


class WhisperText(PublicText):
    """Whisper's tokenizer: byte-level pieces below the end's id, everything special and all timestamps from it on.

    Args:
        files: ``tokenizer.json``.
        max_len: Most tokens where nothing else is asked for.

    Raises:
        DataError: Not Whisper's.
    """

    def __init__(self, files: Mapping[str, bytes], max_len: int = 448) -> None:
        told_below = dict.fromkeys(("pad_id", "unk_id", "start_id", "eos_id"), 0)
        super().__init__("tokenizer.json", files, max_len=max_len, special=told_below)
        self.eos_id, self.start_id = self._id("<|endoftext|>"), self._id("<|startoftranscript|>")
        self.pad_id = self.unk_id = self.eos_id
        self.no_timestamps_id = self._id("<|notimestamps|>")

    def _id(self, token: str) -> int:
        index = self._pieces.token_to_id(token)
        if index is None:
            raise DataError("tokenizer.json", f"Whisper's token {token}", "none of that name")
        return int(index)

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "truncated": self.truncated, "max_len": self.max_len}

    def config(self) -> dict[str, Any]:
        return {"kind": "whisper", "max_len": self.max_len}

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode([i for i in map(int, ids) if i < self.eos_id]).strip()


class CTCText(TokenIds):
    """Letters of a model with CTC, one id each, a sign of its own between words.

    Args:
        files: ``vocab.json``; ``tokenizer_config.json`` and ``special_tokens_map.json`` where there are.
        max_len: Most tokens where nothing else is asked for.

    Raises:
        DataError: A file is damaged, or lacks the blank or what stands between words.
    """

    FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json")
    SPECIAL: ClassVar = {"pad_id": "<pad>", "unk_id": "<unk>", "start_id": "<s>", "eos_id": "</s>"}

    def __init__(self, files: Mapping[str, bytes], max_len: int = 512) -> None:
        super().__init__()
        self.kind, self.files, self.max_len = "ctc", dict(files), max_len
        vocabulary, *given = (_object(name, files[name]) if name in files else {} for name in self.FILES)
        if not vocabulary or not all(isinstance(index, int) for index in vocabulary.values()):
            raise DataError("vocab.json", "letters and their ids, of one language", shorten(vocabulary))
        settings = given[1] | given[0]
        self._ids: dict[str, int] = vocabulary
        self._letters = {index: letter for letter, index in vocabulary.items()}
        self.vocab_size = max(vocabulary.values()) + 1
        names = {"pad_id": "pad_token", "unk_id": "unk_token", "start_id": "bos_token", "eos_id": "eos_token"}
        tokens = {name: _content(settings.get(key, self.SPECIAL[name])) for name, key in names.items()}
        self.between = _content(settings.get("word_delimiter_token", "|"))
        self.lowered = bool(settings.get("do_lower_case", False))
        for token in (tokens["pad_id"], self.between):
            if token not in vocabulary:
                raise DataError("vocab.json", f"the token {token!r}", shorten(sorted(vocabulary)))
        self.pad_id = self.blank_id = vocabulary[tokens["pad_id"]]
        self.unk_id, self.start_id, self.eos_id = (
            vocabulary.get(tokens[name], self.pad_id) for name in ("unk_id", "start_id", "eos_id")
        )
        self._special = {vocabulary[token] for token in tokens.values() if token in vocabulary}

    @property
    def letters(self) -> KeysView[str]:
        """All tokens."""
        return self._ids.keys()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "truncated": self.truncated, "max_len": self.max_len}

    def __setstate__(self, state: dict[str, Any]) -> None:
        truncated = state.pop("truncated")
        self.__init__(**state)  # type: ignore[misc]
        self.truncated = truncated

    def encode(self, text: str) -> list[int]:
        text = text.upper() if self.lowered else text
        return [self._ids.get(self.between if sign == " " else sign, self.unk_id) for sign in text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text from ids, repeats and blanks already taken out."""
        letters = [self._letters.get(int(i), "") for i in ids if int(i) not in self._special]
        text = "".join(" " if letter == self.between else letter for letter in letters).strip()
        return text.lower() if self.lowered else text

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "max_len": self.max_len}

    def save(self, directory: str | Path) -> None:
        for name, content in self.files.items():
            Path(directory, name).write_bytes(content)

    def to_json(self) -> str:
        return json.dumps({name: content.decode("utf-8") for name, content in sorted(self.files.items())})


TOKENIZERS: dict[str, tuple[type[WhisperText] | type[CTCText], tuple[str, ...]]] = {
    "whisper": (WhisperText, ("tokenizer.json",)),
    "ctc": (CTCText, CTCText.FILES),
}


def read_features(directory: str | Path) -> Features:
    """What a public model's folder wants to hear.

    Raises:
        DataError: No such file, an extractor that is not known, or a setting that is not supported; named.
    """
    path, whole = Path(directory, PREPROCESSOR), Path(directory, PROCESSOR)
    if path.is_file() or not whole.is_file():
        return features_from_config(read_json(path), str(path))
    values = read_json(whole)  # as transformers 5 writes it
    return features_from_config(values.get("feature_extractor") if isinstance(values, Mapping) else None, str(whole))


def features_from_config(values: Mapping[str, Any] | None, where: str = PREPROCESSOR) -> Features:
    """The extractor that ``config()`` or a ``preprocessor_config.json`` describes.

    Raises:
        DataError: An extractor that is not known, or a setting that is not supported; named.
    """
    name = values.get("feature_extractor_type") if isinstance(values, Mapping) else None
    if name not in EXTRACTORS or not isinstance(values, Mapping):
        raise DataError(where, f"a feature_extractor_type of {', '.join(EXTRACTORS)}", shorten(name))
    kind: Any = EXTRACTORS[name]
    known = kind.KEYS | kind.NEUTRAL
    for key, value in values.items():
        if key not in known and key not in REMARKS:
            raise DataError(where, f"keys of {', '.join(sorted(known))}", repr(key))
        if value not in kind.NEUTRAL.get(key, (value,)):
            raise DataError(where, f"{key} = {' or '.join(map(repr, kind.NEUTRAL[key]))}", repr(value))
    try:
        return kind(**{name: values[key] for key, name in kind.KEYS.items() if values.get(key) is not None})
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(where, "settings of a feature extractor", shorten(str(error), 200)) from error


def read_speech_text(directory: str | Path, **options: Any) -> WhisperText | CTCText:
    """The tokenizer of a public speech model's folder.

    Args:
        directory: The folder.
        options: ``max_len``.

    Raises:
        DataError: None, or a damaged one.
    """
    folder = Path(directory)
    for kind, (_, names) in TOKENIZERS.items():
        if (folder / names[0]).is_file():
            return load_speech_text(folder, {"kind": kind} | options)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise DataError(str(folder), "tokenizer.json (Whisper) or vocab.json (CTC)", found)


def load_speech_text(directory: str | Path, config: Mapping[str, Any]) -> WhisperText | CTCText:
    """The tokenizer that ``save`` wrote, with what ``config()`` gave.

    Raises:
        DataError: A file is missing or damaged.
    """
    kind = config.get("kind")
    if kind not in TOKENIZERS:
        raise DataError(str(directory), f"a tokenizer kind of {', '.join(TOKENIZERS)}", shorten(kind))
    made, names = TOKENIZERS[kind]
    paths = [Path(directory, name) for name in names]
    if not paths[0].is_file():
        raise DataError(str(paths[0]), "the tokenizer's file", "none")
    files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return made(files, **{name: value for name, value in config.items() if name != "kind"})


def _object(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(name, "JSON", shorten(str(error))) from None
    if not isinstance(value, dict):
        raise DataError(name, "an object", type(value).__name__)
    return value


def _content(token: Any) -> str:
    """A token, which newer files write as an object."""
    return str(token["content"] if isinstance(token, Mapping) else token)
