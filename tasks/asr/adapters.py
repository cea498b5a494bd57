"""What a recogniser can begin with: a model of ours, of any alphabet, or a public Whisper, wav2vec 2.0 or HuBERT."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmattn.tasks.common.pretrained import NETWORK, PUBLIC, Parts, Source
from torch import Tensor

from mmattn.backbones.wav2vec2 import Wav2Vec2
from mmattn.backbones.whisper import Whisper
from mmattn.data.audio.pretrained import (
    PREPROCESSOR,
    PROCESSOR,
    CTCText,
    WaveFeatures,
    WhisperFeatures,
    load_speech_text,
    read_features,
)
from mmattn.pretrained.generation import load_generation_config
from mmattn.tasks.asr.model import ASRModel
from mmattn.tasks.asr.processor import ASRProcessor
from mmattn.tasks.asr.public_processors import CTCProcessor, WhisperProcessor
from mmattn.tasks.asr.public_whisper import speech_config
from mmattn.tasks.asr.speech import SpeechProcessor
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.finetune import completed, read_network
from mmattn.tasks.common.seq2seq.adapters import as_json

TOKEN_ROWS = ("ctc.weight", "ctc.bias", "embedding.weight", "output.weight")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")  # the vocabulary of a model without letters
FILES = (PREPROCESSOR, PROCESSOR, "generation_config.json", "tokenizer.json", *CTCText.FILES)
TOLD = ("sample_rate", "n_mels", "normalize", "tokenizer", "vocab_size")  # of data.*: what a public model knows itself


def read_public(source: Source, task: str, processor_class: Any) -> Parts:
    """A public network with its features, its tokenizer and its way of writing.

    Raises:
        CheckpointError: damaged, incomplete, or parts that do not fit each other; named.
        DataError: a file of the features or the tokenizer is missing, damaged, or asks for what is not known; named.
    """
    for name in FILES:
        source.fetch(name)  # of the hub
    front = read_features(source.folder)
    return _read_whisper(source, front) if source.family == "whisper" else _read_ctc(source, front)


def _read_ctc(source: Source, front: Any) -> Parts:
    if not isinstance(front, WaveFeatures):
        raise CheckpointError(f"{source.name}: expected a {WaveFeatures.KIND}, found a {front.KIND}.")
    converted = read_network(source, Wav2Vec2, "wav2vec 2.0 or HuBERT")
    keywords = dict(converted.keywords)
    size = keywords.pop("vocab_size")
    state = {f"net.{name}": value for name, value in converted.state.items() if not name.startswith("head.")}
    if size is None:
        letters = json.dumps({token: index for index, token in enumerate(SPECIAL)})
        tokenizer, size = CTCText({"vocab.json": letters.encode()}), len(SPECIAL)
        headless = True
    else:
        found: Any = load_speech_text(source.folder, {"kind": "ctc"})
        tokenizer, headless = found, False
        _check_size(source, tokenizer, size)
        state |= {f"head.ctc.{part}": converted.state[f"head.{part}"] for part in ("weight", "bias")}
    model = {NETWORK: "wav2vec2", "vocab_size": size, "blank": tokenizer.blank_id, **keywords}
    return Parts(_where(source), {PUBLIC: model}, state, CTCProcessor(front, tokenizer), headless=headless)


def _read_whisper(source: Source, front: Any) -> Parts:
    if not isinstance(front, WhisperFeatures):
        raise CheckpointError(f"{source.name}: expected a {WhisperFeatures.KIND}, found a {front.KIND}.")
    converted = read_network(source, Whisper, "Whisper")
    keywords = converted.keywords
    tokenizer: Any = load_speech_text(source.folder, {"kind": "whisper", "max_len": keywords["max_len"]})
    _check_size(source, tokenizer, keywords["vocab_size"])
    try:
        generation = load_generation_config(**source.place)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    processor = _prompted(WhisperProcessor(front, tokenizer, as_json(generation)))
    for name, ours, theirs in (
        ("bands", keywords["num_mels"], front.n_mels),
        ("frames in a window", keywords["max_frames"], processor.window_frames),
    ):
        if ours != theirs:
            raise CheckpointError(f"{source.name}: expected features of {ours} {name}, found {theirs}.")
    limits = (keywords["num_decoder_layers"], keywords["num_heads"])
    for pair in processor.generation.get("alignment_heads") or ():
        if len(pair) != 2 or not all(0 <= place < limit for place, limit in zip(pair, limits, strict=True)):
            raise CheckpointError(
                f"{source.name}: alignment_heads: expected layers below {limits[0]} and heads below {limits[1]}, "
                f"found {pair}."
            )
    state = {f"net.{name}": value for name, value in converted.state.items()}
    return Parts(_where(source), {PUBLIC: {NETWORK: "whisper", **keywords}}, state, processor)


def _where(source: Source) -> Any:
    return source.name if source.hub else source.folder


def _check_size(source: Source, tokenizer: Any, size: int) -> None:
    if tokenizer.vocab_size > size:
        raise CheckpointError(
            f"{source.name}: expected a tokenizer of at most {size} tokens, found {tokenizer.vocab_size}."
        )


def told(processor: SpeechProcessor, language: str | None, task: str | None) -> SpeechProcessor:
    """The processor for data in a language, to be transcribed or translated.

    Args:
        processor: of the model.
        language: none: as the model's folder says.
        task: likewise.

    Raises:
        ConfigError: the model knows no languages, or not this one.
    """
    given = {name: value for name, value in (("language", language), ("task", task)) if value is not None}
    if not given:
        return processor
    if not isinstance(processor, WhisperProcessor):
        name, value = next(iter(given.items()))
        raise ConfigError(f"data.{name}: expected none, since the model knows no languages; found {value!r}.")
    generation = processor.generation | given
    return _prompted(WhisperProcessor(processor.front, processor.tokenizer, generation, (), processor.search))


def _prompted(processor: WhisperProcessor) -> WhisperProcessor:
    """With the prompt behind which texts are learnt, where the language is known."""
    config = dataclasses.replace(speech_config(processor), return_timestamps=False)
    try:
        processor.prompt = [] if config.detects else config.prompts(1)[0]
    except ValueError as error:
        raise CheckpointError(f"generation_config.json: {error}.") from None
    return processor


def adopt_public(start: Parts, texts: Sequence[str], max_seconds: float) -> Parts:
    """A public model for other data: Whisper as it is; of CTC the letters that it knows stay, new ones join them.

    Args:
        start: what was found.
        texts: of the training data.
        max_seconds: the longest clip of the training.
    """
    known = start.processor
    if not isinstance(known, CTCProcessor):
        return start
    missing = known.unknown(texts)
    processor = CTCProcessor(known.front, known.tokenizer, max_seconds, without_lm(start))
    if not missing:
        return dataclasses.replace(start, processor=processor)
    public = start.keywords[PUBLIC]
    processor.tokenizer = known.extended(missing, public["vocab_size"])
    size = processor.tokenizer.vocab_size
    order = [*range(public["vocab_size"]), *[None] * len(missing)]
    state = _moved(start.state, order)
    if not start.headless:
        sys.stderr.write(
            f"{start.where}: of {size} tokens it knows {public['vocab_size']}; the others begin anew: "
            f"{' '.join(missing)}\n"
        )
    keywords = {PUBLIC: public | {"vocab_size": size}}
    return dataclasses.replace(start, keywords=keywords, state=state, processor=processor)


def without_lm(start: Parts) -> dict[str, Any]:
    """How the model searched, without its language model, which is of other texts; says so."""
    if start.processor.lm is not None:
        sys.stderr.write(f"{start.where}: its language model stays behind; data.lm_order makes one of the new texts.\n")
    return {name: value for name, value in start.processor.search.items() if not name.startswith("lm_")}


def adopt(start: Parts, fresh: ASRProcessor) -> Parts:
    """The model with a processor for other data: sound as the model knows it, texts as the data have them.

    Where the model's alphabet has all that the data's texts need, it stays. Else what it knows of each token goes to
    the same token's new place, and tokens that it does not know begin anew.

    Args:
        start: what was found.
        fresh: made from the data.
    """
    known: ASRProcessor = start.processor
    wanted, had = (p.tokenizer.tokenizer.get_vocab() for p in (fresh, known))
    if known.units == fresh.units and wanted.keys() <= had.keys():
        tokenizer, units, state = known.tokenizer, known.units, start.state
    else:
        tokenizer, units = fresh.tokenizer, fresh.units
        state = _moved(start.state, [had.get(token) for token in sorted(wanted, key=wanted.__getitem__)])
        shared = len(wanted.keys() & had.keys())
        sys.stderr.write(f"{start.where}: of {len(wanted)} tokens it knows {shared}; the others begin anew.\n")
    own = {name: getattr(known, name) for name in ("normalize", "mean", "std")}
    search = without_lm(start)
    processor = ASRProcessor(known.mel, tokenizer, units, max_seconds=fresh.max_seconds, search=search, **own)
    return dataclasses.replace(start, state=state, processor=processor)


def _moved(state: Mapping[str, Tensor], order: Sequence[int | None]) -> dict[str, Tensor]:
    """Weights with a row a token, in another order; a new token gets the mean of all."""
    moved = dict(state)
    for name, value in state.items():
        if name.endswith(TOKEN_ROWS):
            mean = value.float().mean(0).to(value.dtype)
            moved[name] = torch.stack([mean if place is None else value[place] for place in order])
    return moved


def fitted(start: Parts, sizes: Mapping[str, Any], seed: int) -> Parts:
    """What training begins with, for data of these sizes; a head that is missing is drawn from the seed."""
    if PUBLIC not in start.keywords:
        return dataclasses.replace(start, keywords={**start.keywords, **sizes})
    return completed(start, ASRModel, {}, seed, ("head.",)) if start.headless else start
