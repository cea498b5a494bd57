"""How a public checkpoint wants its text to be generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..generate.config import NEUTRAL, GenerationConfig
from .files import open_source, read_config

# What transformers takes where a config.json without generation_config.json leaves it out.
DEFAULTS: dict[str, dict[str, int]] = {
    "marian": {"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100, "forced_eos_token_id": 0},
    "bart": {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    },
    "t5": {"pad_token_id": 0, "eos_token_id": 1},
}


def load_generation_config(
    source: str | Path, *, download: bool = False, revision: str | None = None
) -> GenerationConfig:
    """The generation_config.json of a public model; of older ones without, what their config.json says of it.

    Args:
        source: as for `load_pretrained`.
        download: source may be a name on the hub.
        revision: of the hub's repository.

    Raises:
        FileNotFoundError: a folder or file is missing; named.
        ValueError: a key that would change what is generated and that is not supported; named.
    """
    find = open_source(source, download=download, revision=revision)
    path = find("generation_config.json")
    if path is not None:
        return GenerationConfig.read(path)
    return GenerationConfig.from_public(_of_model(read_config(find, source)), f"{source}: config.json")


def _of_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's configuration says of generation, as versions before 4.25 of transformers kept it."""
    wanted = {field.name for field in fields(GenerationConfig)} | set(NEUTRAL)
    given = {key: value for key, value in config.items() if key in wanted and value is not None}
    return DEFAULTS.get(config.get("model_type", ""), {}) | given
