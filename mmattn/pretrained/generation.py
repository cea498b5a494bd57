"""Generation options of public checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..generate.config import NEUTRAL, GenerationConfig
from ..generate.speech import SpeechConfig
from .files import open_source, read_config

# Defaults of transformers for keys that a config.json without generation_config.json omits.
DEFAULTS: dict[str, dict[str, Any]] = {
    "marian": {"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100, "forced_eos_token_id": 0},
    "bart": {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    },
    "t5": {"pad_token_id": 0, "eos_token_id": 1},
    "blip": {"bos_token_id": 30522, "pad_token_id": 0, "sep_token_id": 102},
    "git": {"bos_token_id": 101, "pad_token_id": 0, "eos_token_id": 102},
    "vision-encoder-decoder": {"pad_token_id": 0},
    "whisper": {
        "bos_token_id": 50256,
        "pad_token_id": 50256,
        "eos_token_id": 50256,
        "decoder_start_token_id": 50257,
        "begin_suppress_tokens": [220, 50256],
    },
}
DECODERS = {"blip": "text_config", "vision-encoder-decoder": "decoder"}  # sections of config.json with options
CONFIGS: dict[str, type[GenerationConfig]] = {"whisper": SpeechConfig}


def load_generation_config(
    source: str | Path, *, download: bool = False, revision: str | None = None
) -> GenerationConfig:
    """Reads the generation_config.json of a public model or, for older models without it, their config.json.

    Args:
        source: As in `load_pretrained`.
        download: source may be a name on the hub.
        revision: Revision of the hub's repository.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: An unsupported key that would affect the generated ids.
    """
    find = open_source(source, download=download, revision=revision)
    path = find("generation_config.json")
    config = read_config(find, source) if path is None or find("config.json") is not None else {}
    kind = CONFIGS.get(config.get("model_type", ""), GenerationConfig)
    if path is not None:
        found = kind.read(path)
        if isinstance(found, SpeechConfig) and found.forced_decoder_ids is None:
            found = replace(found, forced_decoder_ids=config.get("forced_decoder_ids"))  # as in transformers
    else:
        found = kind.from_public(_of_model(config, kind), f"{source}: config.json")
    return replace(found, **_ids_of_blip(config)) if config.get("model_type") == "blip" else found


def _of_model(config: Mapping[str, Any], kind: type[GenerationConfig]) -> dict[str, Any]:
    """Returns the generation options in a model's configuration, where transformers before 4.25 kept them."""
    wanted = {field.name for field in fields(kind)} | set(NEUTRAL)
    family = config.get("model_type", "")
    found = dict(DEFAULTS.get(family, {}))
    for section in (config.get(DECODERS.get(family, "")) or {}, config):
        found |= {key: value for key, value in section.items() if key in wanted and value is not None}
    found.pop("sep_token_id", None)
    return found


def _ids_of_blip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ids with which BLIP generates, whatever its other options: texts end with the separator."""
    text = DEFAULTS["blip"] | (config.get("text_config") or {})
    ids = {"decoder_start_token_id": "bos_token_id", "eos_token_id": "sep_token_id", "pad_token_id": "pad_token_id"}
    return {ours: text[theirs] for ours, theirs in ids.items()}
