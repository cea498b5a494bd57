"""Adapter of public language models, with their tokenizers, generation options and chat templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmattn.data.readers import read_settings
from mmattn.data.text.pretrained import LAYOUTS, ORDER, read_public as read_tokenizers
from mmattn.data.text.public_files import OPTIONAL
from mmattn.generate import GenerationConfig
from mmattn.pretrained.generation import load_generation_config
from mmattn.tasks.common.adapter import Adapter, CheckpointParts, read_parts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.seq2seq.adapters import as_json
from mmattn.tasks.common.sources import Source, find_model
from mmattn.tasks.common.task import tasks
from mmattn.tasks.text_generation.processor import TextGenerationProcessor

# The task's names of a public network's keywords, and fixed values of those that it lacks.
OWN = {"decoder": "transformer", "pooling": "attention"}
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
TEMPLATE = "chat_template.jinja"


class LanguageAdapter(Adapter):
    """Reads GPT-2, Llama, Mistral, Qwen2 and Qwen3; weights keep their type, and are mapped from their files."""

    network = "causal_lm"
    maps_weights = True

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        from mmattn.backbones.causal import CausalLM
        from mmattn.tasks.text_generation.model import PublicLM

        return PublicLM(CausalLM(**keywords))

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        return OWN | dict(keywords)

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        """Read a public network, its tokenizer, generation_config.json and chat template.

        Raises:
            CheckpointError: The folder is damaged or incomplete; names it.
        """
        from mmattn.pretrained import read_pretrained

        try:
            _, converted = read_pretrained(**source.place, dtype=None)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from None
        processor = self.read_processor(source, converted.keywords["max_len"])
        state = {f"net.{name}": tensor for name, tensor in converted.state.items()}
        return CheckpointParts(self, source.where, dict(converted.keywords), state, processor)

    def read_processor(self, source: Source, max_len: int) -> TextGenerationProcessor:
        """Read all but the network, whose weights are not fetched.

        Raises:
            CheckpointError: The folder is damaged or incomplete; names it.
        """
        about_file, template_file = source.fetch("tokenizer_config.json"), source.fetch(TEMPLATE)
        for name in OPTIONAL:
            source.fetch(name)
        for kind in ORDER:
            if all(source.fetch(name) for name in LAYOUTS[kind]):
                break
        try:
            about = {} if about_file is None else read_settings(about_file)
            generation = load_generation_config(**source.place)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from None
        special = self._special(source, about, generation)
        tokenizer, _ = read_tokenizers(source.folder, max_len=max_len, special=special, bare=True)
        begins = tokenizer._pieces.encode("").ids  # special tokens that the model's processor adds to a text
        kept: dict[str, Any] = {"generation": as_json(generation)}
        kept["prefix_ids"] = (
            begins[:-1] if begins and begins[-1] == special["eos_id"] != special["start_id"] else begins
        )
        kept["special_tokens"] = {name: _content(about[name]) for name in NAMES if about.get(name)}
        template = about.get("chat_template")
        if template_file is not None:
            template = template_file.read_text(encoding="utf-8")
        elif isinstance(template, list):  # several by name
            named = {one["name"]: one["template"] for one in template}
            template = named.get("default")
        if template is not None:
            kept["chat_template"] = template
        return TextGenerationProcessor(tokenizer, max_len, kept)

    def _special(self, source: Source, about: Mapping[str, Any], generation: GenerationConfig) -> dict[str, int]:
        """The ids of the special tokens, which a tokenizer's files need not have.

        Raises:
            CheckpointError: There is no end token.
        """
        config = source.config
        ends = generation.eos or _ids(config.get("eos_token_id"))
        if not ends:
            raise CheckpointError(
                f"{source.name}: expected an eos_token_id in generation_config.json or config.json, found none."
            )
        start = generation.bos_token_id if generation.bos_token_id is not None else config.get("bos_token_id")
        pad = generation.pad_token_id if generation.pad_token_id is not None else config.get("pad_token_id")
        found = {"eos_id": ends[0], "start_id": ends[0] if start is None else start}
        return found | {"pad_id": ends[0] if pad is None or pad < 0 else pad, "unk_id": ends[0]}

    def check(self, parts: CheckpointParts) -> None:
        tokenizer, size = parts.processor.tokenizer, parts.keywords["vocab_size"]
        if tokenizer.rows > size:
            raise CheckpointError(
                f"{parts.where}: expected a tokenizer of at most {size} tokens, found {tokenizer.rows}."
            )
        try:
            generation = GenerationConfig(**parts.processor.options["generation"])
            dataclasses.replace(generation, bos_token_id=tokenizer.start_id).check_ids(size)
        except ValueError as error:
            raise CheckpointError(f"{parts.where}: generation options: {error}.") from None

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """The same weights in float32, to be trained; the number of tokens stays."""
        state: dict[str, Tensor] = {name: tensor.float() for name, tensor in parts.state.items()}
        return super().adapt(dataclasses.replace(parts, state=state), processor, sizes, seed)


def read_tokenizer(name: str, max_len: int) -> TextGenerationProcessor:
    """Returns a processor for a new model with the tokenizer of another, of this toolkit or public.

    Args:
        name: The other model, see `mmattn.tasks.common.sources`.
        max_len: Most tokens that the new model reads at once.

    Raises:
        CheckpointError: There is no such model of text generation, or its tokenizer is damaged.
    """
    source, task = find_model(name), tasks()["text_generation"]
    if source.family is None:
        other = read_parts(task.name, name).processor
    elif task.name not in source.routes():
        raise CheckpointError(f"{name}: expected a model of {task.name}, found one of {source.family!r}.")
    else:
        other = LanguageAdapter(task).read_processor(source, max_len)
    kept = {key: value for key, value in other.options.items() if key in ("prefix_ids", "special_tokens")}
    return TextGenerationProcessor(other.tokenizer, max_len, kept)


def _ids(value: Any) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)
