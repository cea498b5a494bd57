"""CTC beside an attending decoder: what the frames say of each next token, for greedy search and beams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu import select_rows
from .state import State

LOWEST = -1e4  # log p of what cannot be: finite, since sums of it are compared


class CTCPrefixScorer:
    """``p(c | g) = psi(g c) / psi(g)``, psi being the probability that what is said begins so.

    With ``r_b(t)`` and ``r_n(t)``, the probability that frames 1..t say g and end in a blank or in its last id
    (Watanabe et al. 2017, section IV-A, equations 51 ff., algorithm 2)::

        phi(t)    = r_b(t - 1) + [c is not g's last id] r_n(t - 1)
        psi(g c)  = sum_t phi(t) p_t(c)
        p(end|g)  = (r_b(S) + r_n(S)) / psi(g)         exactly g is said
        r_n'(t)   = (r_n'(t - 1) + phi(t)) p_t(c)      for g c
        r_b'(t)   = (r_b'(t - 1) + r_n'(t - 1)) p_t(blank)

    All c are scored at once, by one product over the frames. Sums and recurrences over t are in closed form, in
    float64: these are differences of sums of log p, in which float32 would lose what is to be found.

    Args:
        log_p: (B, S, V), log-probabilities of the frames.
        mask: (B, S) bool, True = a real frame.
        blank: The id that says nothing.
    """

    def __init__(self, log_p: Tensor, mask: Tensor | None = None, blank: int = 0) -> None:
        log_p = log_p.detach().to(torch.promote_types(log_p.dtype, torch.float32)).clamp_min(LOWEST)
        if mask is not None:  # padding says a blank, for certain
            log_p = log_p.masked_fill(~mask[:, :, None], LOWEST)
            log_p[:, :, blank] = log_p[:, :, blank].masked_fill(~mask, 0.0)
        B, _, self.vocab_size = log_p.shape
        self.log_p, self.blank, self.beams = log_p, blank, 1
        self.peaks = log_p.double().amax(1)  # (B, V)
        self.p = (log_p - self.peaks[:, None]).exp()  # (B, S, V), float64: what is rare must not round to nothing
        self.sums = F.pad(log_p[:, :, blank].double().cumsum(1), (1, 0))  # (B, S + 1) of blanks
        self.ends_blank = self.sums  # (N, S + 1), of N = B K rows: log r_b(0..S)
        self.ends_id = torch.full_like(self.sums, -math.inf)  # log r_n(0..S)
        self.last = torch.full((B,), -1, device=log_p.device)  # (N,): g's last id, -1 = g is empty
        self.log_psi = self.sums.new_zeros(B)  # (N,)

    def scores(self, end: int) -> Tensor:
        """``log p(c | g)`` of each id; `end` stands for the end, and the blank is never what comes next.

        Returns:
            (N, V) float64, at least LOWEST but for the blank.
        """
        log_psi = self._extended()  # (N, V)
        log_psi[:, end] = torch.logaddexp(self.ends_blank[:, -1], self.ends_id[:, -1])
        possible = (self.log_psi > LOWEST)[:, None]
        scores = torch.where(possible, log_psi - self.log_psi[:, None], -math.log(self.vocab_size))
        scores = scores.clamp_min(LOWEST)
        scores[:, self.blank] = -math.inf
        return scores

    def _extended(self) -> Tensor:
        """log psi(g c) for each c: (N, V)."""
        before = torch.logaddexp(self.ends_blank, self.ends_id)[:, :-1]  # (N, S): phi of an id that is new
        highest = before.amax(1, keepdim=True).clamp_min(torch.finfo(before.dtype).min)  # (N, 1)
        rows = (before - highest).exp().unflatten(0, (-1, self.beams)) @ self.p  # (B, K, V)
        log_psi = (rows.log() + self.peaks[:, None]).flatten(0, 1) + highest  # (N, V)
        again = (self.ends_blank[:, :-1] + self._said(self.last.clamp_min(0))).logsumexp(1)  # (N,)
        last = self.last.clamp_min(0)[:, None]
        again = torch.where(self.last >= 0, again, log_psi.gather(1, last)[:, 0])
        return log_psi.scatter(1, last, again[:, None])

    def _said(self, ids: Tensor) -> Tensor:
        """log p of ids (N,) at each frame: (N, S) float64."""
        index = ids.view(-1, 1, self.beams).expand(-1, self.log_p.shape[1], -1)  # (B, S, K)
        return self.log_p.gather(2, index).mT.flatten(0, 1).double()

    def advance(self, ids: Tensor) -> None:
        """Each row's g is followed by its id of ids (N,)."""
        said = self._said(ids)  # (N, S)
        repeats = (ids == self.last)[:, None]
        phi = torch.where(repeats, self.ends_blank, torch.logaddexp(self.ends_blank, self.ends_id))[:, :-1]  # (N, S)
        log_psi = (phi + said).logsumexp(1)
        self.ends_id = _recur(F.pad(said.cumsum(1), (1, 0)), phi)
        sums = self.sums.repeat_interleave(self.beams, 0)
        self.ends_blank = _recur(sums, self.ends_id[:, :-1])
        self.last, self.log_psi = ids, log_psi

    def select(self, rows: Tensor) -> None:
        """See `State.select`: the beams of a sentence share its frames."""
        index, sources = rows.flatten(), rows[:, 0] // self.beams
        for name in ("log_p", "peaks", "p", "sums"):
            setattr(self, name, select_rows(getattr(self, name), sources))
        for name in ("ends_blank", "ends_id", "last", "log_psi"):
            setattr(self, name, select_rows(getattr(self, name), index))
        self.beams = rows.shape[1]


def _recur(sums: Tensor, new: Tensor) -> Tensor:
    """``log x(t)`` with ``x(t) = (x(t - 1) + new(t)) p(t)`` and ``x(0) = 0``: for all t at once.

    Divided by the product of p(1..t) it is a sum: ``x(t) = P(t) sum_s<=t new(s) / P(s - 1)``.

    Args:
        sums: (N, S + 1), log P(0..S).
        new: (N, S), log new(1..S).

    Returns:
        (N, S + 1).
    """
    return F.pad((new - sums[:, :-1]).logcumsumexp(1), (1, 0), value=-math.inf) + sums


class JointState:
    """What a decoder continues from, and what CTC has of the same prefixes; see `joint_step`.

    Args:
        state: The decoder's, of B rows.
        log_p: (B, S, V), CTC's log-probabilities of the frames.
        mask: (B, S) bool, True = a real frame.
        blank: The id that says nothing.
    """

    def __init__(self, state: State, log_p: Tensor, mask: Tensor | None = None, blank: int = 0) -> None:
        self.state, self.ctc = state, CTCPrefixScorer(log_p, mask, blank)
        self.begun = False  # the prompt is no part of what is said

    def select(self, rows: Tensor) -> None:
        """See `State.select`."""
        self.state.select(rows)
        self.ctc.select(rows)


def joint_step(
    step: Callable[[Tensor, Any], Tensor], eos_id: int, ctc_weight: float
) -> Callable[[Tensor, JointState], Tensor]:
    """A step whose scores are ``(1 - w) log p_attention + w log p_ctc`` of each next id (Watanabe et al. 2017, eq. 47).

    For `mmattn.generate.generate`, with a `JointState` and with the blank among the config's suppress_tokens. The
    search subtracts from scores what they sum to; that of weighted products is below one, and the blank is given what
    is missing: so nothing is subtracted, and the score of a text is the sum above and no other.

    Args:
        step: The decoder's: new ids (N, L) and its state to logits (N, V).
        eos_id: The end, for CTC the probability that exactly this is said.
        ctc_weight: w, of 0..1.

    Raises:
        ValueError: Another weight.

    >>> from mmattn.generate import GenerationConfig, generate
    >>> class Nothing:
    ...     def select(self, rows): ...
    >>> frames = torch.eye(4)[torch.tensor([[0, 2, 2, 0, 3, 0]])].mul(9).log_softmax(-1)
    >>> step = joint_step(lambda ids, state: torch.zeros(len(ids), 4), eos_id=1, ctc_weight=0.5)
    >>> config = GenerationConfig(num_beams=2, max_new_tokens=6, eos_token_id=1, suppress_tokens=[0])
    >>> generate(step, JointState(Nothing(), frames), torch.zeros(1, 1).long(), config).tokens()
    [[[2, 3, 1]]]
    """
    if not 0.0 <= ctc_weight <= 1.0:
        raise ValueError(f"ctc_weight={ctc_weight} is not within 0..1")

    def joint(ids: Tensor, state: JointState) -> Tensor:
        logits = step(ids, state.state)
        log_p = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))  # (N, V)
        if state.begun:
            state.ctc.advance(ids[:, -1])
        state.begun, blank = True, state.ctc.blank
        scores = log_p * (1.0 - ctc_weight)
        if ctc_weight:
            scores = scores + ctc_weight * state.ctc.scores(eos_id).to(log_p.dtype)
        scores[:, blank] = -math.inf
        scores[:, blank] = (1.0 - scores.exp().sum(-1)).clamp_min(0.0).log()
        return scores

    return joint
