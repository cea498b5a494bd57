"""Adapters for Marian, BART and T5 with their tokenizers and generation options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.data.readers import read_settings
from mmattn.data.text.pretrained import LAYOUTS, ORDER, TARGET, read_public as read_tokenizers
from mmattn.data.text.public_files import OPTIONAL
from mmattn.generate import GenerationConfig
from mmattn.pretrained import read_pretrained
from mmattn.pretrained.generation import load_generation_config
from mmattn.tasks.common.adapter import Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.seq2seq.model import TextModel
from mmattn.tasks.common.seq2seq.processor import LIMITS
from mmattn.tasks.common.sources import Source

MAX_LEN = 512  # maximum number of tokens if neither the network nor its tokenizer has one
# The tasks' names of a public network's keywords, and fixed values of those that it lacks.
NAMES = {"num_layers": "encoder_layers", "num_decoder_layers": "decoder_layers"}
OWN = {"decoder": "transformer", "pooling": "attention", "copy": False, "hierarchical": False, "global_tokens": "none"}


class PairAdapter(Adapter):
    """Reads our own text-to-text checkpoints."""

    def read_own(self, source: Source, *, prefix: str | None = None, **options: Any) -> CheckpointParts:
        if prefix is not None:
            raise CheckpointError(f"prefix: expected none, since {source.folder} has its own; found {prefix!r}.")
        return super().read_own(source)


class Seq2SeqAdapter(PairAdapter):
    """Reads Marian, BART and T5 for any task; they have no copy mechanism and no sentence level."""

    network = "seq2seq"

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        return TextModel(Seq2Seq(**keywords))

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        return OWN | {NAMES.get(key, key): value for key, value in keywords.items()}

    def check(self, parts: CheckpointParts) -> None:
        processor, size = parts.processor, parts.keywords["vocab_size"]
        sizes = (size, parts.keywords.get("target_vocab_size") or size)
        for text, most in zip((processor.source, processor.target), sizes, strict=True):
            if text.rows > most:
                raise CheckpointError(
                    f"{parts.where}: expected a tokenizer of at most {most} tokens, found {text.rows}."
                )
        try:
            GenerationConfig(**processor.options["generation"]).check_ids(sizes[1])
        except ValueError as error:
            raise CheckpointError(f"{parts.where}: generation options: {error}.") from None

    def read_public(
        self, source: Source, *, prefix: str | None = None, languages: tuple[str, str] | None = None, **options: Any
    ) -> CheckpointParts:
        """Read a public network, its tokenizers and its generation_config.json.

        `task_specific_params` of config.json for the task override generation_config.json, as in the pipelines of
        transformers; T5's prefix is one of them.

        Args:
            source: Location of the network.
            prefix: Prefix of each source for T5; None: the one in config.json for the task.
            languages: Source and target language; selects among several prefixes.
            options: Ignored.

        Raises:
            CheckpointError: The folder is damaged or incomplete, or an option does not fit; names it.
        """
        tokenizer_config = source.fetch("tokenizer_config.json")
        for name in (*OPTIONAL, TARGET):  # from the hub, as the files of the first complete layout
            source.fetch(name)
        for kind in ORDER:
            if all(source.fetch(name) for name in LAYOUTS[kind]):
                break
        try:
            about = {} if tokenizer_config is None else read_settings(tokenizer_config)
            base = load_generation_config(**source.place)
            params = _task_params(source, self.task.name, prefix, languages)
            prefix = params.pop("prefix", "") or ""
            given = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
            if not LIMITS.isdisjoint(params):
                given |= dict.fromkeys(LIMITS)
            generation = GenerationConfig.from_public(given | params, f"{source.name}: task_specific_params")
            _, converted = read_pretrained(**source.place)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from None
        special = {"pad_id": generation.pad, "start_id": generation.start}
        special |= {"eos_id": generation.eos[0] if generation.eos else None}
        longest = _longest(source.config, about, converted.keywords)
        texts = read_tokenizers(
            source.folder,
            prefix,
            max_len=longest,
            special={name: index for name, index in special.items() if index is not None},
        )
        pair = languages or (about.get("source_lang"), about.get("target_lang"))
        kept: dict[str, Any] = {"generation": as_json(generation)}
        if all(pair):
            kept |= {"source_lang": pair[0], "target_lang": pair[1]}
        processor = self.task.resolve("processor")(*texts, longest, longest, kept)
        state = {f"net.{name}": tensor for name, tensor in converted.state.items()}
        return CheckpointParts(self, source.where, dict(converted.keywords), state, processor)


def _task_params(source: Source, task: str, prefix: str | None, languages: tuple[str, str] | None) -> dict[str, Any]:
    """Generation options of config.json for a task, and T5's prefix."""
    if prefix is not None and source.family != "t5":
        reason = f"{source.family} models take no prefix"
        raise CheckpointError(f"prefix: expected none, since {reason}; found {prefix!r}.")
    wanted = task if task == "summarization" else f"{task}_{languages[0]}_to_{languages[1]}" if languages else None
    known = source.config.get("task_specific_params") or {}
    found = [dict(value) for key, value in known.items() if key == wanted or (wanted is None and key.startswith(task))]
    if prefix is not None:
        same = [params for params in found if (params.get("prefix") or "").strip() == prefix.strip()]
        return (same[0] if same else {}) | {"prefix": prefix}
    if len(found) > 1:
        prefixes = ", ".join(repr(params.get("prefix")) for params in found)
        raise CheckpointError(f"{source.name}: expected a prefix to select a pair, of {prefixes}; found none.")
    return found[0] if found else {}


def _longest(config: Mapping[str, Any], about: Mapping[str, Any], keywords: Mapping[str, Any]) -> int:
    """Maximum number of tokens, by the positions of the network or the length it was trained with."""
    limits = [about.get("model_max_length"), config.get("max_position_embeddings"), config.get("n_positions")]
    if keywords.get("positions") == "learned":
        limits.append(keywords["max_len"])
    sane = [int(n) for n in limits if isinstance(n, (int, float)) and 2 <= n < 10**6]  # 10^30: no limit
    return min(sane, default=MAX_LEN)


def as_json(generation: GenerationConfig) -> dict[str, Any]:
    """The fields that differ from their defaults; num_return_sequences is 1."""
    single = dataclasses.replace(generation, num_return_sequences=1)
    fields = [(field.name, getattr(single, field.name), field.default) for field in dataclasses.fields(single)]
    return {name: value for name, value, default in fields if value != default}
