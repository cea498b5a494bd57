"""Options of generation: one dataclass with the field names of public ``generation_config.json`` files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..building import check_types
from ..json_file import read_object

# Scores (N, V), changed in place; all ids so far (N, T), -1 at padding of shorter prompts.
Constraint = Callable[[Tensor, Tensor], None]

# Keys of public files that do not affect ids: execution, additional outputs, metadata.
HARMLESS = {"cache_config", "cache_implementation", "max_cache_len", "use_cache", "prefill_chunk_size", "low_memory"}
HARMLESS |= {"compile_config", "disable_compile", "remove_invalid_values", "trust_remote_code", "transformers_version"}
HARMLESS |= {"assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "is_assistant"}
HARMLESS |= {"num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind", "prompt_lookup_num_tokens"}
HARMLESS |= {"max_matching_ngram_size", "output_attentions", "output_hidden_states", "output_logits", "output_scores"}
HARMLESS |= {"return_dict_in_generate", "return_legacy_cache", "chat_format", "alignment_heads", "prev_sot_token_id"}
HARMLESS |= {"_from_model_config"}
# Keys that affect ids, with the value at which they have no effect.
NEUTRAL: dict[str, Any] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "token_healing": False,
    "renormalize_logits": False,
    "condition_on_prev_tokens": False,
}


# Fields of ids that a search uses, bos_token_id only as the start token.
ID_FIELDS = ["decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"]
ID_FIELDS += ["bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "start", "beginning"]
MOST = 1_000_000  # tokens of a text, beams, and texts of a search: a damaged file asks for no more memory


@dataclass(frozen=True)
class GenerationConfig:
    """Options of a search; fields have the meaning of the same names in public ``generation_config.json`` files.

    Lengths with "new" count generated tokens; the others include the prompt (for an encoder-decoder model the
    decoder's start token, not the source).

    Raises:
        ValueError: Invalid or contradictory values.

    >>> GenerationConfig(num_beams=4, length_penalty=0.6, max_new_tokens=50, eos_token_id=2).eos
    (2,)
    """

    max_new_tokens: int | None = None  # has precedence over max_length
    max_length: int | None = None
    min_new_tokens: int | None = None  # the end is forbidden before this length; has precedence over min_length
    min_length: int = 0
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None  # padding behind the end; None = the first eos, or 0
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    beginning: Sequence[int] = ()  # ids after the start token with which each text begins; not counted as new
    forced_bos_token_id: int | None = None  # the first token after a start token alone
    forced_eos_token_id: int | Sequence[int] | None = None  # the last token that max_length allows
    num_return_sequences: int = 1
    # Sampling
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # keeps the k most probable tokens; 0 = all
    top_p: float = 1.0  # keeps the smallest set of tokens with at least this total probability
    min_p: float = 0.0  # keeps tokens with at least this fraction of the most probable token's probability
    # Beams
    num_beams: int = 1
    length_penalty: float = 1.0  # a finished beam scores log p / length^this
    early_stopping: bool | str = False  # True: at num_beams finished; False: a heuristic; "never": none can improve
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    # Constraints on the next token
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # subtracted from the logits of tokens that were generated; not those of the prompt
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None  # forbidden as the first token

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", "num_return_sequences", "num_beams", "num_beam_groups"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                limit = f"at most {MOST:,}" if value > MOST else "at least 1"
                raise ValueError(f"{name} must be {limit}, found {value}")
        for name in ("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size", "min_p", "diversity_penalty"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        for name in ("temperature", "top_p", "repetition_penalty"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        for name in ("top_p", "min_p"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, found {getattr(self, name)}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f'early_stopping must be true, false or "never", found {self.early_stopping!r}')
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"sampling within beams is not supported: do_sample=True with num_beams={self.num_beams}")
        if self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beams={self.num_beams} is not a multiple of num_beam_groups={self.num_beam_groups}")
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise ValueError("diversity_penalty is between groups of beams: give num_beam_groups")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} needs as many beams, or sampling; "
                f"num_beams={self.num_beams}"
            )

    def start_prompt(self, rows: int, device: torch.device) -> Tensor:
        """Returns the decoder's start token and the beginning for each row: (rows, 1 + len(beginning)) long.

        Raises:
            ValueError: The config has no start token.
        """
        if self.start is None:
            raise ValueError("decoder_start_token_id: expected an id, found none in the generation config")
        return torch.tensor([[self.start, *self.beginning]], device=device).expand(rows, -1).contiguous()

    def constraints(self, prompt: int) -> list[Constraint]:
        """Returns additional constraints of a model family, after a prompt of that many tokens; applied last."""
        return []

    def check_ids(self, vocab_size: int) -> None:
        """Checks the start token and all other ids against the vocabulary of a decoder.

        Raises:
            ValueError: There is no start token, or an id is not in [0, vocab_size); names the field.
        """
        if self.start is None:
            raise ValueError("decoder_start_token_id: expected an id, found none")
        for name in ID_FIELDS:
            ids = [index for one in as_ids(getattr(self, name)) for index in as_ids(one)]  # bad words are lists
            bad = next((index for index in ids if not 0 <= index < vocab_size), None)
            if bad is not None:
                raise ValueError(f"{name}: expected ids from 0 to {vocab_size - 1}, found {bad}")

    @property
    def start(self) -> int | None:
        """The decoder's start token; as in transformers, bos_token_id replaces a missing decoder_start_token_id."""
        return self.bos_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id

    @property
    def eos(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return as_ids(self.eos_token_id)

    @property
    def pad(self) -> int:
        """The padding id behind the end of a row."""
        return self.pad_token_id if self.pad_token_id is not None else self.eos[0] if self.eos else 0

    def room(self, prompt: int) -> int:
        """Returns the maximum number of new tokens after a prompt of that many.

        Raises:
            ValueError: Neither limit is given, or the prompt reaches it.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            raise ValueError("give max_new_tokens or max_length: without either, a text need not end")
        if self.max_length <= prompt:
            raise ValueError(f"max_length={self.max_length} leaves no room after a prompt of {prompt} tokens")
        return self.max_length - prompt

    @classmethod
    def from_public(cls, values: Mapping[str, Any], source: str = "generation config") -> GenerationConfig:
        """Makes a config from the keys of a public ``generation_config.json``, with transformers' defaults.

        Args:
            values: Content of the file.
            source: Name of the file in errors.

        Raises:
            ValueError: An unsupported key that would affect the ids.
        """
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in values.items() if value is not None}
        unknown = [k for k, v in given.items() if k not in known | HARMLESS and not (k in NEUTRAL and v == NEUTRAL[k])]
        if unknown:
            found = ", ".join(f"{key} = {given[key]!r}" for key in sorted(unknown))
            raise ValueError(f"{source}: not supported, and it would change what is generated: {found}")
        given = {key: value for key, value in given.items() if key in known}
        try:
            check_types(cls, {key: value for key, value in given.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        if "max_length" not in given and "max_new_tokens" not in given:
            given["max_new_tokens"] = 20
        if given.get("do_sample"):
            given.setdefault("top_k", 50)
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def read(cls, path: str | Path) -> GenerationConfig:
        """Reads a ``generation_config.json``.

        Raises:
            ValueError: Not JSON, or see `from_public`.
        """
        return cls.from_public(read_object(path), str(path))


def as_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """Converts one id, several, or None to a tuple."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
