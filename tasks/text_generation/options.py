"""The options of `predict`, checked before any text is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mmattn.data.errors import nearest
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.options import check_range
from mmattn.tasks.text_generation.constrain import of_choices

CUT, REFUSE = "cut", "refuse"
NEW_TOKENS = 64
LARGEST_SEED = 2**63 - 1  # of torch's generators
LIMITS = ("max_new_tokens", "max_length")


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a continuation; None: as the model's generation_config.json says, or not at all.

    Args:
        max_new_tokens: Most tokens to generate; None: 64.
        temperature: Above 0: sampling at this temperature; 0: the most probable token each time. None: as the model
            says, or 0, or 1 if top_k, top_p or min_p is given.
        top_k: Sampling among the k most probable tokens.
        top_p: Sampling among the most probable tokens of this total probability.
        min_p: Sampling among tokens of at least this fraction of the greatest probability.
        repetition_penalty: Factor by which tokens that occurred are less probable.
        presence_penalty: Subtracted from the logits of tokens that were generated.
        no_repeat_ngram_size: No sequence of so many tokens occurs twice.
        num_beams: Number of beams.
        length_penalty: See `GenerationConfig`.
        stop: Text, or several, at which a continuation ends, without it.
        regex: Regular expression that the whole continuation matches.
        choices: The texts of which the continuation is one; on the command line separated by |.
        seed: Seed of sampling.
        on_long: What happens to a prompt of more tokens than the model reads: "cut" leaves its beginning out, and says
            so; "refuse" is an error.
        chat: Whether prompts are messages of a user, for the model's chat template.
        lookup: Speculative decoding by what the text has already: the same tokens of greedy search, in less time.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    stop: Any = None
    regex: str | None = None
    choices: Any = None
    seed: int = 0
    on_long: str = CUT
    chat: bool = False
    lookup: bool = False
    speculative: bool = False  # by a draft model

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Wanted:
        """Check options.

        Raises:
            ConfigError: There is no such option, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        wrong = next((name for name in options if name not in known), None)
        if wrong is not None:
            there = f"its options are: {', '.join(known)}"
            raise ConfigError(f"{wrong}: text_generation has no such option{nearest(wrong, known)}; {there}.")
        found = cls(**{name: value for name, value in options.items() if value is not None})
        for field in fields(cls):
            value = getattr(found, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"--{field.name}: expected a finite number, found {value}.")
        if found.temperature is not None and found.temperature < 0:
            raise ConfigError(f"--temperature: expected 0 or more, found {found.temperature}.")
        check_range("--max_new_tokens", found.max_new_tokens, 1)
        check_range("--seed", found.seed, 0, LARGEST_SEED)
        if found.on_long not in (CUT, REFUSE):
            raise ConfigError(f"--on_long: expected {CUT} or {REFUSE}, found {found.on_long!r}.")
        if found.regex is not None and found.choices is not None:
            raise ConfigError("--choices: expected no --regex, found both.")
        if any(not stop for stop in found.stops) or any(not choice for choice in found.choices_list):
            raise ConfigError("--stop and --choices: expected texts that are not empty.")
        try:
            config = found._config({"max_new_tokens": 1})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"--{error}.") from None
        if found.is_speculative and (config.do_sample or config.num_beams > 1 or found.regex or found.choices):
            raise ConfigError("--lookup and --draft: expected greedy search without --regex, found another search.")
        return replace(found, choices=found.choices_list or None)

    @property
    def choices_list(self) -> list[str]:
        """The choices as a list."""
        if self.choices is None:
            return []
        return self.choices.split("|") if isinstance(self.choices, str) else list(self.choices)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def pattern(self) -> str | None:
        """The regular expression that the whole continuation matches."""
        return of_choices(self.choices_list) if self.regex is None and self.choices_list else self.regex

    @property
    def new_tokens(self) -> int:
        """Most tokens to generate."""
        return NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def is_speculative(self) -> bool:
        """Whether tokens are guessed."""
        return self.lookup or self.speculative

    def limited(self, most: int) -> Wanted:
        """The same with another number of tokens."""
        return replace(self, max_new_tokens=most)

    def config(self, processor: Any, room: int) -> GenerationConfig:
        """The options of the search for a model with this processor."""
        tokenizer = processor.tokenizer
        known = dict(processor.options.get("generation") or {})
        known = {name: value for name, value in known.items() if name not in LIMITS}
        known = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id} | known
        if not processor.options.get("generation"):
            never = {tokenizer.pad_id, tokenizer.unk_id, getattr(tokenizer, "bos_id", tokenizer.pad_id)}
            known["suppress_tokens"] = sorted(never - {tokenizer.eos_id})
        return self._config(known | {"max_new_tokens": room})

    def _config(self, known: dict[str, Any]) -> GenerationConfig:
        names = {field.name for field in fields(GenerationConfig)}
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name in names}
        given = {name: value for name, value in given.items() if value is not None}
        given.pop("max_new_tokens", None)
        temperature = given.pop("temperature", None)
        sampled = {"top_k", "top_p", "min_p"} & given.keys()
        if temperature is not None:
            known = known | {"do_sample": temperature > 0}
            known |= {"temperature": temperature} if temperature > 0 else {}
        elif sampled or self.is_speculative or given.get("num_beams", 1) > 1:
            known = known | {"do_sample": bool(sampled) and not self.is_speculative}
        return GenerationConfig(**{**known, **given})
