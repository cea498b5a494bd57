"""Adapters: recognizers from our own checkpoints, or from a public Whisper, wav2vec 2.0 or HuBERT."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.backbones.wav2vec2 import Wav2Vec2
from mmattn.backbones.whisper import Whisper
from mmattn.data.audio.mel import PREPROCESSOR, PROCESSOR, WaveFeatures, WhisperFeatures, read_features
from mmattn.data.text.pretrained import LAYOUTS
from mmattn.data.text.public_files import OPTIONAL
from mmattn.pretrained.generation import load_generation_config
from mmattn.tasks.asr.model import PublicCTC
from mmattn.tasks.asr.public_processors import CTCProcessor, CTCText, SpeechText, WhisperProcessor, WhisperText
from mmattn.tasks.asr.whisper import PublicWhisper, WhisperPredictor
from mmattn.tasks.common.adapter import Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import init_missing, read_network
from mmattn.tasks.common.seq2seq.adapters import as_json
from mmattn.tasks.common.sources import Source

TOKEN_ROWS = ("ctc.weight", "ctc.bias", "embedding.weight", "output.weight")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")  # vocabulary of a model without a CTC head
FILES = (PREPROCESSOR, PROCESSOR, "generation_config.json", "tokenizer.json", *LAYOUTS["bpe"], *OPTIONAL)


class ASRAdapter(Adapter):
    """Reads our own checkpoints and adapts them to other data."""

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """Keep the front end; for a new alphabet, move the rows of shared tokens to their new ids.

        Rows of other tokens are reinitialized to the mean of all rows.
        """
        state, keywords = parts.state, {**parts.keywords, **sizes}
        wanted, had = (p.tokenizer.tokenizer.get_vocab() for p in (processor, parts.processor))
        if wanted != had:
            state = moved(state, [had.get(token) for token in sorted(wanted, key=wanted.__getitem__)])
            shared = len(wanted.keys() & had.keys())
            sys.stderr.write(
                f"{parts.where}: {shared} of {len(wanted)} tokens are in its vocabulary; "
                "the others are reinitialized.\n"
            )
        say_lm_stays(parts)
        return dataclasses.replace(parts, keywords=keywords, state=state, processor=processor)


class CTCAdapter(Adapter):
    """Reads wav2vec 2.0 and HuBERT, with or without a CTC head."""

    network = "wav2vec2"

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        return PublicCTC(**keywords)

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {"encoder": "transformer", "decoder": "none", "pooling": "attention"}
        return fixed | {{"num_layers": "encoder_layers"}.get(key, key): value for key, value in keywords.items()}

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        front = read_front(source, WaveFeatures)
        converted = read_network(source, Wav2Vec2, "wav2vec 2.0 or HuBERT")
        keywords = dict(converted.keywords)
        size = keywords.pop("vocab_size")
        state = {f"net.{name}": value for name, value in converted.state.items() if not name.startswith("head.")}
        if size is None:
            letters = json.dumps({token: index for index, token in enumerate(SPECIAL)})
            tokenizer: Any = CTCText({"vocab.json": letters.encode()})
        else:
            tokenizer = read_texts(source, size, CTCText)
            state |= {f"head.ctc.{part}": converted.state[f"head.{part}"] for part in ("weight", "bias")}
        keywords = {"vocab_size": size or tokenizer.vocab_size, "blank": tokenizer.pad_id, **keywords}
        processor = CTCProcessor(front, tokenizer)
        return CheckpointParts(self, source.where, keywords, state, processor, headless=size is None)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """Keep the known letters, append new ones as the mean of all rows, and initialize a missing head at random."""
        known, letters = parts.keywords["vocab_size"], processor.tokenizer.letters
        missing = sorted(letters - parts.processor.tokenizer.letters)
        say_lm_stays(parts)
        if missing:
            size = processor.tokenizer.vocab_size
            state = moved(parts.state, [*range(known), *[None] * len(missing)])
            parts = dataclasses.replace(parts, keywords=parts.keywords | {"vocab_size": size}, state=state)
            if not parts.headless:
                text = f"{known} of {size} tokens are in its vocabulary; the others are reinitialized"
                sys.stderr.write(f"{parts.where}: {text}: {' '.join(missing)}\n")
        parts = dataclasses.replace(parts, processor=processor)
        return init_missing(parts, {}, seed, ("head.",)) if parts.headless else parts


class WhisperAdapter(Adapter):
    """Reads Whisper; other data change only its language and task."""

    network, predictor = "whisper", WhisperPredictor

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        return PublicWhisper(**keywords)

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {"encoder": "transformer", "decoder": "transformer", "pooling": "attention"}
        names = {"num_layers": "encoder_layers", "num_decoder_layers": "decoder_layers"}
        return fixed | {names.get(key, key): value for key, value in keywords.items()}

    def check(self, parts: CheckpointParts) -> None:
        super().check(parts)
        keywords, front = parts.keywords, parts.processor.front
        bands, frames = (keywords["num_mels"], front.n_mels), (keywords["max_frames"], front.window_frames)
        for name, (ours, theirs) in {"bands": bands, "frames in a window": frames}.items():
            if ours != theirs:
                raise CheckpointError(f"{parts.where}: expected features of {ours} {name}, found {theirs}.")

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        front = read_front(source, WhisperFeatures)
        converted = read_network(source, Whisper, "Whisper")
        keywords = dict(converted.keywords)
        tokenizer = read_texts(source, keywords["vocab_size"], WhisperText, max_len=keywords["max_len"])
        try:
            generation = load_generation_config(**source.place)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from None
        processor = WhisperProcessor(front, tokenizer, as_json(generation)).with_language()
        limits = (keywords["num_decoder_layers"], keywords["num_heads"])
        for pair in processor.generation.get("alignment_heads") or ():
            if len(pair) != 2 or not all(0 <= place < limit for place, limit in zip(pair, limits, strict=True)):
                expected = f"expected layers below {limits[0]} and heads below {limits[1]}"
                raise CheckpointError(f"{source.name}: alignment_heads: {expected}, found {pair}.")
        state = {f"net.{name}": value for name, value in converted.state.items()}
        return CheckpointParts(self, source.where, keywords, state, processor)


def read_front(source: Source, wanted: Any) -> Any:
    """Read the feature extractor of a public network, and fetch the files beside it.

    Raises:
        CheckpointError: It belongs to another network.
        DataError: The file is missing or damaged, or requires an unknown option; names the file.
    """
    for name in FILES:
        source.fetch(name)  # from the hub
    found = read_features(source.folder, wanted.KIND)
    if not isinstance(found, wanted):
        raise CheckpointError(f"{source.name}: expected a {wanted.KIND}, found a {found.KIND}.")
    return found


def read_texts(source: Source, size: int, kind: type[SpeechText], **options: Any) -> Any:
    """Read the tokenizer of a network whose vocabulary has `size` tokens.

    Raises:
        CheckpointError: The tokenizer has more tokens.
        DataError: A file is missing or damaged; names the file.
    """
    found = kind.read(source.folder, **options)
    if found.vocab_size > size:
        raise CheckpointError(
            f"{source.name}: expected a tokenizer of at most {size} tokens, found {found.vocab_size}."
        )
    return found


def say_lm_stays(parts: CheckpointParts) -> None:
    """Report that fine-tuning drops the n-gram language model, which was made from other texts."""
    if parts.processor.lm is not None:
        sys.stderr.write(f"{parts.where}: its language model is dropped; data.lm_order makes one from the new texts.\n")


def moved(state: Mapping[str, Tensor], order: Sequence[int | None]) -> dict[str, Tensor]:
    """Reorder the weights with one row per token; a new token (None) gets the mean of all rows."""
    found = dict(state)
    for name, value in state.items():
        if name.endswith(TOKEN_ROWS):
            mean = value.float().mean(0).to(value.dtype)
            found[name] = torch.stack([mean if place is None else value[place] for place in order])
    return found
