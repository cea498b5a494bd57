"""Greedy search, sampling and beam search over a step function that returns logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .beams import beam_search
from .config import GenerationConfig
from .constraints import Constraint, Context, build_constraints, forced_token, whole_texts
from .sampling import sample, uniform_draws
from .state import State
from .topk import largest, log_normalizer

S = TypeVar("S", bound=State)
OnToken = Callable[[int, int], None]
Generators = torch.Generator | Sequence[torch.Generator] | None
ShouldStop = Callable[[Tensor], Tensor]  # all ids so far (N, T), -1 at padding: whether each text ends here, (N,) bool


class Generated(NamedTuple):
    """Generated hypotheses, best first if there are several per sentence."""

    ids: Tensor  # (B, n, L) long: new tokens, the end included, then padding
    lengths: Tensor  # (B, n) long: numbers of new tokens
    scores: Tensor  # (B, n): log p / length^length_penalty; NaN if not requested

    def tokens(self, *, without: tuple[int, ...] = ()) -> list[list[list[int]]]:
        """Returns the ids as lists [sentence][n-best], without padding and the given ids, such as that of the end."""
        rows = zip(self.ids.tolist(), self.lengths.tolist(), strict=True)
        return [
            [[token for token in ids[:length] if token not in without] for ids, length in zip(*row, strict=True)]
            for row in rows
        ]


def generate(
    step: Callable[[Tensor, S], Tensor],
    state: S,
    prompt: Tensor,
    config: GenerationConfig,
    *,
    generator: Generators = None,
    on_token: OnToken | None = None,
    with_scores: bool = True,
    prompt_mask: Tensor | None = None,
    should_stop: ShouldStop | None = None,
    constraints: Sequence[Constraint] = (),
    context: Context | None = None,
) -> Generated:
    """Continues each prompt until it ends or reaches the maximum length.

    Args:
        step: Maps new ids (N, L) and the state to the logits (N, V) of the next id. Each id is passed once; the logits
            are changed in place.
        state: State of B rows, before the prompt's first token. It is changed, and cannot be reused.
        prompt: (B, P) long, at least the start token.
        config: Generation options.
        generator: Random generator, for sampling; or one of each sentence, which then is independent of the others.
        on_token: Called with (row, token) for each final token; row is sentence * num_return_sequences + n. Not
            available with beams, whose tokens are final only at the end.
        with_scores: Off = greedy search and sampling skip the normalization over the vocabulary; beams always have
            scores.
        prompt_mask: (B, P) bool, True = a real token, if prompts of several lengths are padded at the left; the state
            must be made with it too (see `CachedState`). max_length and min_length include padding, so max_new_tokens
            is preferable.
        should_stop: Whether texts end after the last of their ids, besides the end token.
        constraints: Additional constraints on the next token, applied last.
        context: The whole texts of which the prompts are the ends, for constraints and should_stop.

    Returns:
        ids, lengths and scores.

    Raises:
        ValueError: A prompt of another shape, a mask that is not left padding, or see `GenerationConfig.room`.

    >>> def step(ids, state):  # i is followed by i + 1
    ...     return torch.nn.functional.one_hot(ids[:, -1] + 1, 10).float()
    >>> class NoState:
    ...     def select(self, rows): ...
    >>> config = GenerationConfig(eos_token_id=9, max_new_tokens=4)
    >>> generate(step, NoState(), torch.tensor([[2], [7]]), config).tokens()
    [[[3, 4, 5, 6]], [[8, 9]]]
    """
    check_prompt(prompt, prompt_mask)
    if config.num_beams > 1 and on_token is not None:
        raise ValueError(f"num_beams={config.num_beams}: beams settle no token before the end, nothing to stream")
    with torch.inference_mode():
        if config.num_beams > 1:
            found = beam_search(step, state, prompt, config, prompt_mask, should_stop, constraints, context)
            generated = Generated(*found)
        else:
            more = (generator, with_scores, prompt_mask, should_stop, constraints, context)
            steps = _one_by_one(step, state, prompt, config, *more)
            while True:
                try:
                    new = next(steps)
                except StopIteration as end:
                    generated = end.value
                    break
                for row, token in new if on_token is not None else ():
                    on_token(row, token)  # type: ignore[misc]
    with torch.inference_mode(False):  # results are ordinary tensors even within inference mode
        return Generated(*(tensor.clone() for tensor in generated))


def stream(
    step: Callable[[Tensor, S], Tensor],
    state: S,
    prompt: Tensor,
    config: GenerationConfig,
    *,
    generator: Generators = None,
    prompt_mask: Tensor | None = None,
    should_stop: ShouldStop | None = None,
    constraints: Sequence[Constraint] = (),
    context: Context | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Yields the (row, token) pairs of each step of `generate`, greedy or sampled, as soon as they are known.

    Raises:
        ValueError: See `generate`; or beams are requested.

    >>> def step(ids, state):
    ...     return torch.nn.functional.one_hot(ids[:, -1] + 1, 10).float()
    >>> class NoState:
    ...     def select(self, rows): ...
    >>> list(stream(step, NoState(), torch.tensor([[7]]), GenerationConfig(eos_token_id=9, max_new_tokens=4)))
    [[(0, 8)], [(0, 9)]]
    """
    check_prompt(prompt, prompt_mask)
    if config.num_beams > 1:
        raise ValueError(f"num_beams={config.num_beams}: beams settle no token before the end, nothing to stream")
    more = (generator, False, prompt_mask, should_stop, constraints, context)
    steps = _one_by_one(step, state, prompt, config, *more)
    while True:
        with torch.inference_mode():  # not while the caller has the tokens
            new = next(steps, None)
        if new is None:
            return
        yield new


def check_prompt(prompt: Tensor, prompt_mask: Tensor | None) -> None:
    """Raises a ValueError for a prompt of another shape, or a mask that is not left padding; see `generate`."""
    if prompt.dim() != 2 or not prompt.shape[1]:
        raise ValueError(f"prompt must be (B, P) with at least one token each, found {tuple(prompt.shape)}")
    if prompt_mask is None:
        return
    if prompt_mask.shape != prompt.shape or prompt_mask.dtype != torch.bool:
        found = f"{tuple(prompt_mask.shape)} {prompt_mask.dtype}"
        raise ValueError(f"prompt_mask must be {tuple(prompt.shape)} torch.bool, as the prompt is, found {found}")
    wrong = (~prompt_mask[:, -1] | (prompt_mask[:, :-1] & ~prompt_mask[:, 1:]).any(1)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(f"prompts are padded at the left, before their first token: row {wrong[0]} is not")


def _one_by_one(
    step: Callable[[Tensor, S], Tensor],
    state: S,
    prompt: Tensor,
    config: GenerationConfig,
    generator: Generators,
    with_scores: bool,
    prompt_mask: Tensor | None,
    should_stop: ShouldStop | None,
    more: Sequence[Constraint],
    context: Context | None,
) -> Generator[list[tuple[int, int]], None, Generated]:
    """Greedy search or sampling; a sentence is removed from the batch when all its rows have ended.

    Yields the row and token of each new token.
    """
    (B, P), n = prompt.shape, config.num_return_sequences
    room = config.room(P)
    ids, begins = whole_texts(prompt, prompt_mask, context)  # (B, T), with what comes before the prompts
    constraints = [*build_constraints(config, begins), *more]
    end = torch.tensor(config.eos, dtype=prompt.dtype, device=prompt.device)
    out = prompt.new_full((B, n, room), config.pad)
    lengths = prompt.new_zeros(B, n)
    live = torch.arange(B, device=prompt.device)  # the sentences still in the batch
    running = torch.ones(B, n, dtype=torch.bool, device=prompt.device)
    scores = torch.zeros(B, n, device=prompt.device)
    ids, new = ids.repeat_interleave(n, 0), prompt  # (b n, T), (b n, L)
    draw, draws = _draws(generator, B, n, room, prompt.device) if config.do_sample else (None, None)
    for t in range(room):
        forced = forced_token(config, P + t, P + room)
        uniform = None if draws is None else draws[live, :, t].flatten()  # (b n,)
        tokens, log_p = _pick(step(new, state), ids, config, constraints, forced, draw, uniform, with_scores)
        if t == 0 and n > 1:
            state.select(live[:, None].expand(B, n))
        if log_p is not None:
            scores = scores.to(log_p.dtype)
            scores[live] += log_p.view(-1, n).masked_fill(~running, 0.0)
        tokens = tokens.view(-1, n).masked_fill(~running, config.pad)  # (b, n)
        out[live, :, t] = tokens
        lengths[live] += running
        yield [(int(live[sentence]) * n + k, int(tokens[sentence, k])) for sentence, k in running.nonzero().tolist()]
        ids = torch.cat([ids, tokens.view(-1, 1)], dim=1)  # (b n, T)
        ended = torch.isin(tokens, end)
        if should_stop is not None:
            ended = ended | should_stop(ids).view(-1, n)
        running = running & ~ended
        staying = running.any(1)  # (b,)
        if t + 1 == room or not staying.any():
            break
        if not staying.all():
            kept = staying.nonzero().squeeze(1)
            live, running, tokens = live[kept], running[kept], tokens[kept]
            rows = kept[:, None] * n + torch.arange(n, device=kept.device)  # (b, n)
            ids = ids[rows.flatten()]
            state.select(rows)
        new = tokens.view(-1, 1)
    longest = int(lengths.max())
    scores = scores / lengths.clamp_min(1) ** config.length_penalty if with_scores else scores.fill_(math.nan)
    return Generated(out[:, :, :longest], lengths, scores)


def _draws(
    generator: Generators, sentences: int, n: int, room: int, device: torch.device
) -> tuple[torch.Generator | None, Tensor | None]:
    """Returns the generator of all sentences, or what is drawn by their own: uniform numbers (B, n, room)."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator, None
    if len(generator) != sentences:
        raise ValueError(f"generator: expected one, or one of each of {sentences} sentences, found {len(generator)}")
    return None, uniform_draws(generator, (room, n), device).transpose(1, 2)


def _pick(
    logits: Tensor,
    ids: Tensor,
    config: GenerationConfig,
    constraints: list[Constraint],
    forced: tuple[int, ...],
    generator: torch.Generator | None,
    uniform: Tensor | None,
    with_scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """Returns the next token of each row of ids (N, T) and, if requested, its log p, from logits (N, V).

    The logits are freed here, so the next ones can reuse their memory.

    Returns:
        (N,) both.
    """
    logits = logits.repeat_interleave(len(ids) // len(logits), 0) if len(logits) < len(ids) else logits
    if forced:  # log-probability 0
        wide = torch.promote_types(logits.dtype, torch.float32)
        return ids.new_full((len(ids),), forced[0]), logits.new_zeros(len(ids), dtype=wide) if with_scores else None
    penalized = config.repetition_penalty != 1.0 or config.presence_penalty != 0.0
    plain = logits.clone() if penalized and with_scores else logits  # other constraints only forbid
    log_z = log_normalizer(logits) if with_scores else None  # (N, 1), without renormalization
    for constraint in constraints:
        constraint(logits, ids)
    tokens = sample(logits, config, generator, uniform) if config.do_sample else largest(logits)  # (N,)
    return tokens, None if log_z is None else (plain.gather(1, tokens[:, None]) - log_z)[:, 0]
