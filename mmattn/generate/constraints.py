"""Constraints on the next token: each changes scores in place, in the order of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Constraint, GenerationConfig, as_ids


class Context(NamedTuple):
    """The whole texts of prompts that are their ends."""

    ids: Tensor  # (B, W) long, -1 at padding, which is at the left
    new: int  # how many of the last tokens of each were generated before


def whole_texts(prompt: Tensor, prompt_mask: Tensor | None, context: Context | None) -> tuple[Tensor, int]:
    """Returns the texts so far, (B, T) with -1 at padding, and the place at which what is generated begins."""
    if context is not None:
        return context.ids, context.ids.shape[1] - context.new
    return (prompt if prompt_mask is None else prompt.masked_fill(~prompt_mask, -1)), prompt.shape[1]


def forced_token(config: GenerationConfig, length: int, limit: int) -> tuple[int, ...]:
    """Returns the ids of which the next token must be one, empty if it is not forced.

    Args:
        config: Generation options.
        length: Number of tokens so far, the prompt included.
        limit: Maximum number of tokens, the prompt included.
    """
    if length + 1 == limit and config.forced_eos_token_id is not None:
        return as_ids(config.forced_eos_token_id)
    return as_ids(config.forced_bos_token_id) if length == 1 else ()


def build_constraints(config: GenerationConfig, prompt: int) -> list[Constraint]:
    """Returns the constraints of a config, after a prompt of that many tokens."""
    found: list[Constraint] = []
    if config.repetition_penalty != 1.0:
        found.append(lambda scores, ids: penalize_repetition(scores, ids, config.repetition_penalty))
    if config.presence_penalty:
        found.append(lambda scores, ids: penalize_presence(scores, ids[:, prompt:], config.presence_penalty))
    if config.no_repeat_ngram_size:
        found.append(lambda scores, ids: ban_repeated_ngrams(scores, ids, config.no_repeat_ngram_size))
    for words in config.bad_words_ids or ():
        if tuple(words) not in {(eos,) for eos in config.eos}:
            found.append(lambda scores, ids, words=tuple(words): ban_sequence(scores, ids, words))  # type: ignore[misc]
    shortest = config.min_length if config.min_new_tokens is None else prompt + config.min_new_tokens
    if config.eos and shortest > prompt:
        found.append(lambda scores, ids: ban(scores, config.eos) if ids.shape[1] < shortest else None)
    if config.suppress_tokens:
        found.append(lambda scores, ids: ban(scores, as_ids(config.suppress_tokens)))
    if config.begin_suppress_tokens:
        first = prompt if prompt > 1 or config.forced_bos_token_id is None else prompt + 1
        opening = as_ids(config.begin_suppress_tokens)
        found.append(lambda scores, ids: ban(scores, opening) if ids.shape[1] == first else None)
    return found + config.constraints(prompt)


def ban(scores: Tensor, tokens: Sequence[int]) -> None:
    """Forbids tokens in every row of scores (N, V)."""
    for token in tokens:  # filling a column is much faster than indexing by a list
        scores[:, token] = -math.inf


def ban_sequence(scores: Tensor, ids: Tensor, words: Sequence[int]) -> None:
    """Forbids the last of words in the rows of scores (N, V) whose ids (N, T) end in the preceding ones."""
    *before, last = words
    if ids.shape[1] < len(before):
        return
    ends = ids[:, ids.shape[1] - len(before) :] == torch.tensor(before, dtype=ids.dtype, device=ids.device)
    scores[:, last].masked_fill_(ends.all(1), -math.inf)


def ban_repeated_ngrams(scores: Tensor, ids: Tensor, n: int) -> None:
    """Forbids in scores (N, V) tokens that would repeat an n-gram of ids (N, T) (Paulus et al. 2018, section 2.5)."""
    T = ids.shape[1]
    if n > T:
        return
    grams = ids.unfold(1, n, 1)  # (N, T - n + 1, n)
    same = (grams[:, :, :-1] == ids[:, None, T - n + 1 :]).all(-1) & (grams[:, :, -1] >= 0)  # (N, T - n + 1)
    rows, places = same.nonzero(as_tuple=True)
    scores[rows, grams[rows, places, -1]] = -math.inf


def penalize_repetition(scores: Tensor, ids: Tensor, penalty: float) -> None:
    """Penalizes tokens of ids (N, T) in scores (N, V) by a factor (Keskar et al. 2019, section 4.1)."""
    ids = torch.where(ids < 0, ids[:, -1:], ids)  # padding is replaced by the last id, which has no effect
    seen = scores.gather(1, ids)  # (N, T)
    scores.scatter_(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def penalize_presence(scores: Tensor, ids: Tensor, penalty: float) -> None:
    """Subtracts a penalty from the scores (N, V) of the tokens of ids (N, T), once for each."""
    if ids.shape[1]:
        scores.scatter_(1, ids, scores.gather(1, ids) - penalty)
