"""Beam search and diverse beam search (Vijayakumar et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import GenerationConfig
from .constraints import Constraint, Context, build_constraints, forced_token, whole_texts
from .state import State
from .topk import log_normalizer, top_k

S = TypeVar("S", bound=State)


class Finished:
    """The best finished hypotheses of each sentence, and the test whether a better one is possible.

    Args:
        prompt: (B, P).
        room: Maximum number of new tokens.
        config: Numbers of groups and beams, length penalty and stopping criterion.
    """

    def __init__(self, prompt: Tensor, room: int, config: GenerationConfig) -> None:
        groups = config.num_beam_groups
        shape = (len(prompt), groups, config.num_beams // groups)  # (B, G, k)
        self.config, self.room = config, room
        self.ids = prompt.new_full((*shape, room), config.pad)
        self.lengths = prompt.new_zeros(shape)
        self.scores = torch.full(shape, -math.inf, device=prompt.device)  # minus infinity = a free slot
        self.done = torch.zeros(shape[:2], dtype=torch.bool, device=prompt.device)

    def add(self, live: Tensor, log_p: Tensor, ids: Tensor, ended: Tensor) -> None:
        """Adds the hypotheses that ended at this step if they are better than those kept.

        Args:
            live: (b,) sentences.
            log_p: (b, G, c), log-probabilities of the candidates.
            ids: (b, G, c, t), their new tokens.
            ended: (b, G, c) bool.
        """
        k, length = self.scores.shape[2], ids.shape[3]
        self.scores = self.scores.to(log_p.dtype)
        scores = (log_p / length**self.config.length_penalty).masked_fill(~ended | self.done[live, :, None], -math.inf)
        merged = torch.cat([self.scores[live], scores], dim=2)  # (b, G, k + c)
        best, places = merged.topk(k, dim=2)
        ids = F.pad(ids, (0, self.room - length), value=self.config.pad)
        self.ids[live] = torch.cat([self.ids[live], ids], dim=2).gather(
            2, places[..., None].expand(-1, -1, -1, self.room)
        )
        lengths = torch.cat([self.lengths[live], torch.full_like(places[:, :, :1], length).expand(scores.shape)], dim=2)
        self.lengths[live] = lengths.gather(2, places)
        self.scores[live] = best

    def settle(self, live: Tensor, best_running: Tensor, length: int) -> Tensor:
        """Returns which sentences are done, (b,) bool, given the best log p (b, G) of running beams of this length.

        As in transformers: a sentence is done if the worst of a full set is better than the best running beam would be
        if it ended now ("never": at its most favorable length), or, with early stopping, as soon as the set is full.
        """
        penalty = self.config.length_penalty
        ideal = self.room if self.config.early_stopping == "never" and penalty > 0 else length
        worst = self.scores[live].amin(2)  # (b, G), minus infinity while a slot is free
        done = best_running / ideal**penalty <= worst
        if self.config.early_stopping is True:
            done |= worst > -math.inf
        self.done[live] |= done
        return self.done[live].all(1)


def beam_search(
    step: Callable[[Tensor, S], Tensor],
    state: S,
    prompt: Tensor,
    config: GenerationConfig,
    prompt_mask: Tensor | None = None,
    should_stop: Callable[[Tensor], Tensor] | None = None,
    more: Sequence[Constraint] = (),
    context: Context | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Beam search that returns the same ids as transformers.

    Each step considers twice as many candidates as beams, so that enough remain if many of them end. The first step
    has one beam per sentence; finished sentences are removed from the batch.

    Args:
        step: See `generate`.
        state: State of B rows.
        prompt: (B, P) long.
        config: Generation options.
        prompt_mask: (B, P) bool, False = padding.
        should_stop: See `generate`.
        more: Additional constraints.
        context: See `generate`.

    Returns:
        ids (B, n, L), lengths (B, n) and scores (B, n), best first.
    """
    (B, P), G = prompt.shape, config.num_beam_groups
    k = config.num_beams // G
    room = config.room(P)
    whole, begins = whole_texts(prompt, prompt_mask, context)  # (B, T), with what comes before the prompts
    constraints = [*build_constraints(config, begins), *more]
    device, keep = prompt.device, max(2, 1 + len(config.eos)) * k
    end = torch.tensor(config.eos, dtype=prompt.dtype, device=device)
    live = torch.arange(B, device=device)  # the sentences still in the batch
    ids = whole[:, None]  # (b, G k, T), G k = 1 yet
    running = torch.zeros(B, 1, device=device)  # (b, G k) log p
    finished = Finished(prompt, room, config)
    new = prompt
    for t in range(room):
        forced = forced_token(config, P + t, P + room)
        # (b, G, c) each. The logits are freed when it returns, so the next ones can reuse their memory.
        log_p, beams, tokens = _choose(step(new, state), ids, running, config, constraints, forced, keep)
        histories = ids[torch.arange(len(live), device=device)[:, None, None], beams]  # (b, G, c, T)
        histories = torch.cat([histories, tokens[..., None]], dim=3)
        ends = torch.isin(tokens, end) if t + 1 < room else torch.ones_like(tokens, dtype=torch.bool)
        if should_stop is not None:
            ends = ends | should_stop(histories.flatten(0, 2)).view_as(ends)
        if ends.any():
            first = torch.arange(tokens.shape[2], device=device) < k  # the others only replace beams that end
            finished.add(live, log_p, histories[..., whole.shape[1] :], ends & first)
        log_p, places = log_p.masked_fill(ends, -math.inf).topk(k, dim=2)  # (b, G, k)
        staying = ~finished.settle(live, log_p[:, :, 0], t + 1)
        if t + 1 == room or not staying.any():
            break
        chosen = places[..., None].expand(-1, -1, -1, histories.shape[-1])
        ids = histories.gather(2, chosen).flatten(1, 2)  # (b, G k, T)
        first_rows = torch.arange(len(live), device=device)[:, None] * running.shape[1]
        rows = beams.gather(2, places).flatten(1) + first_rows  # (b, G k)
        running = log_p.flatten(1)  # (b, G k)
        if not staying.all():
            live, ids, running, rows = live[staying], ids[staying], running[staying], rows[staying]
        state.select(rows)
        new = ids[:, :, -1].reshape(-1, 1)  # (b G k, 1)
    n = config.num_return_sequences
    best, places = finished.scores.flatten(1).topk(n, dim=1)  # (B, n)
    lengths = finished.lengths.flatten(1).gather(1, places)
    found = finished.ids.flatten(1, 2).gather(1, places[..., None].expand(-1, -1, room))
    return found[:, :, : int(lengths.max())], lengths, best


def _scores(
    logits: Tensor, ids: Tensor, config: GenerationConfig, constraints: list[Constraint], forced: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Returns scores (N, V) after all constraints, and their normalizer (N, 1), to subtract for log-probabilities."""
    if forced:
        scores = torch.full_like(logits, -math.inf)
        scores[:, list(forced)] = 0.0  # a forced token has log-probability 0
        return scores, scores.new_zeros(len(scores), 1)
    log_z = log_normalizer(logits)  # before tokens are forbidden: the others are not renormalized
    if config.repetition_penalty != 1.0:  # the penalty depends on the sign: log-probabilities, not logits
        logits, log_z = logits - log_z, torch.zeros_like(log_z)
    for constraint in constraints:
        constraint(logits, ids)
    return logits, log_z


def _choose(
    logits: Tensor,
    ids: Tensor,
    running: Tensor,
    config: GenerationConfig,
    constraints: list[Constraint],
    forced: tuple[int, ...],
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best continuations of each group.

    Args:
        logits: (b r, V), of r rows per sentence: G k, or 1 in the first step.
        ids: (b, r, T), all ids so far.
        running: (b, r), their log p.
        config: Groups and their diversity penalty.
        constraints: Constraints on the next token.
        forced: The only ids that may follow, if not empty.
        keep: c, the number of continuations per group.

    Returns:
        log p, beams (among the sentence's r rows) and tokens: (b, G, c) each.
    """
    scores, log_z = _scores(logits, ids.flatten(0, 1), config, constraints, forced)
    running = running - log_z.view(running.shape)
    G, (b, r) = config.num_beam_groups, running.shape
    if G == 1:
        return tuple(part[:, None] for part in _best(scores, running, keep))  # type: ignore[return-value]
    grouped, beams = scores.view(b, r, -1), config.num_beams // G
    taken = torch.zeros_like(grouped[:, 0])  # (b, V): how often earlier groups chose a token
    found = []
    for g in range(G):
        rows = slice(0, 1) if r == 1 else slice(g * beams, (g + 1) * beams)
        apart = grouped[:, rows] - config.diversity_penalty * taken[:, None]
        log_p, beam, token = _best(apart.flatten(0, 1), running[:, rows], keep)
        # The penalty affects the selection; the scores remain the model's.
        log_p = log_p + config.diversity_penalty * taken.gather(1, token)
        found.append((log_p, beam + (rows.start or 0), token))
        chosen = token[:, :beams]
        taken.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=taken.dtype))
    log_p, beam, token = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    return log_p, beam, token


def _best(scores: Tensor, running: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each sentence's best of scores (b r, V) plus running (b, r): log p, rows and tokens, (b, keep) each."""
    b, r = running.shape
    values, tokens = top_k(scores, min(keep, scores.shape[1]))  # (b r, c): no row can have more among the best
    totals = (values.view(b, r, -1) + running[:, :, None]).flatten(1)  # (b, r c)
    log_p, places = totals.topk(min(keep, totals.shape[1]), dim=1)
    beams, tokens = places // values.shape[1], tokens.view(b, -1).gather(1, places)
    missing = keep - log_p.shape[1]
    if missing > 0:  # a smaller vocabulary is padded with impossible candidates
        log_p = F.pad(log_p, (0, missing), value=-math.inf)
        beams, tokens = F.pad(beams, (0, missing)), F.pad(tokens, (0, missing))
    return log_p, beams, tokens
