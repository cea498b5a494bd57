"""Speculative decoding: several tokens are guessed cheaply, and those that the model itself would choose are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.base import KVCache
from .cached import CachedState
from .config import GenerationConfig
from .constraints import Context, build_constraints, forced_token, whole_texts
from .search import ShouldStop, check_prompt
from .topk import largest

Guess = Callable[[list[int]], list[int]]  # all ids so far -> the next ones, as far as they are guessed


class Speculated(NamedTuple):
    """A text by speculative decoding."""

    ids: list[int]  # new tokens, the end included
    accepted: int  # tokens that were guessed right
    passes: int  # calls of the model after the prompt


def lookup(ids: list[int], longest: int = 3, most: int = 10) -> list[int]:
    """Guesses that the last tokens are continued as they were before (prompt lookup, Saxena 2023).

    Args:
        ids: All ids so far.
        longest: Tokens that are compared; fewer if these do not occur before.
        most: Tokens that are guessed.

    >>> lookup([1, 2, 3, 4, 1, 2], most=2)
    [3, 4]
    """
    for size in range(min(longest, len(ids) - 1), 0, -1):
        tail = ids[-size:]
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start : start + size] == tail:
                return ids[start + size : start + size + most]
    return []


def draft(model: Any, most: int = 5) -> Guess:
    """Returns a function that guesses by the greedy choices of a smaller model (Leviathan et al. 2023).

    Args:
        model: A `CausalLM` with the same tokens.
        most: Tokens that are guessed.
    """
    state: CachedState | None = None
    known: list[int] = []  # ids that the state has read

    def guess(ids: list[int]) -> list[int]:
        nonlocal state, known
        shared = next(
            (n for n, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids))
        )
        shared = min(shared, len(ids) - 1)
        if state is None:
            state = model.start(1)
        rewind(state, shared)
        known, found = ids[:shared], list[int]()
        new = ids[shared:]
        for _ in range(min(most, model.max_len + 1 - len(ids))):  # it reads no more than max_len
            logits = model.step(torch.tensor([new], device=model.embedding.weight.device), state)
            known = known + new
            new = [int(logits.argmax(-1))]
            found += new
        return found

    return guess


def can_rewind(state: Any) -> bool:
    """Whether the last tokens of a decoding state can be taken back: all its caches have all keys and values."""
    return isinstance(state, CachedState) and all(type(cache) is KVCache for cache in state.caches)


def rewind(state: CachedState, length: int) -> None:
    """Takes back all tokens of a decoding state but the first `length`.

    Raises:
        ValueError: A cache is not one of all keys and values.
    """
    if not can_rewind(state):
        raise ValueError("speculative decoding needs an attention that caches all keys and values, such as dense")
    if length < state.length:
        for cache in state.caches:
            cache.keys, cache.values = cache.keys[:, :, :length], cache.values[:, :, :length]
        state.length = length


def speculate(
    model: Any,
    prompt: Tensor,
    config: GenerationConfig,
    guess: Guess,
    should_stop: ShouldStop | None = None,
    context: Context | None = None,
) -> Speculated:
    """Continues one prompt by greedy search, with the ids of `mmattn.generate.generate`, in fewer calls of the model.

    The guessed tokens are read in one call, which costs little more than that of one token; the first that differs
    from the model's own choice is replaced by it, and those after it are discarded.

    Args:
        model: A `CausalLM`.
        prompt: (1, P) long.
        config: Generation options, of greedy search.
        guess: Guesses the next ids: `lookup`, or the result of `draft`.
        should_stop: See `mmattn.generate.generate`.
        context: See `mmattn.generate.generate`.

    Raises:
        ValueError: More than one prompt, other searches than greedy, or an attention without a whole cache.

    >>> from mmattn.backbones.causal import CausalLM
    >>> model = CausalLM(50, 32, 1, 4).eval()
    >>> len(speculate(model, torch.tensor([[1, 2, 1, 2]]), GenerationConfig(max_new_tokens=6), lookup).ids)
    6
    """
    check_prompt(prompt, None)
    if len(prompt) != 1:
        raise ValueError(f"speculative decoding: expected one prompt, found {len(prompt)}")
    if config.do_sample or config.num_beams > 1 or config.num_return_sequences > 1:
        raise ValueError("speculative decoding: expected greedy search, found sampling, beams or several sequences")
    P, room = prompt.shape[1], config.room(prompt.shape[1])
    whole, begins = whole_texts(prompt, None, context)  # (1, T)
    earlier = whole[0].tolist()[: whole.shape[1] - P]
    constraints, end = build_constraints(config, begins), set(config.eos)
    ids = prompt[0].tolist()
    accepted = passes = 0
    with torch.inference_mode():
        state = model.start(1)
        rewind(state, 0)  # raises before the prompt is read
        read = 0  # ids that the state has read
        while len(ids) < P + room:
            left = P + room - len(ids) - 1
            guessed = guess(ids)[:left] if left and read else []
            new = torch.tensor([[*ids[read:], *guessed]], device=prompt.device)
            logits = model.output(model.advance(new, state)[0, -len(guessed) - 1 :])  # (1 + guessed, V)
            passes += read > 0
            for place in range(len(guessed) + 1):
                scores = logits[place : place + 1]
                forced = forced_token(config, len(ids), P + room)
                so_far = torch.tensor([earlier + ids], device=prompt.device)
                for constraint in constraints:
                    constraint(scores, so_far)
                token = forced[0] if forced else int(largest(scores))
                ids.append(token)
                ended = token in end or len(ids) == P + room
                if should_stop is not None and not ended:
                    ended = bool(should_stop(torch.tensor([earlier + ids], device=prompt.device))[0])
                if ended:
                    accepted += place
                    return Speculated(ids[P:], accepted, passes)
                if place == len(guessed) or token != guessed[place]:
                    accepted += place
                    break
            read = len(ids) - 1
            rewind(state, read)
    return Speculated(ids[P:], accepted, passes)
