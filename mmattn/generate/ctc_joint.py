"""Joint CTC and attention decoding: CTC prefix scores of each next token, for greedy and beam search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu import select_rows
from .state import State

LOWEST = -1e4  # log p of impossible events: finite, since sums of it are compared


class CTCPrefixScorer:
    """CTC prefix scores ``p(c | g) = psi(g c) / psi(g)``, psi the probability of all transcripts with that prefix.

    With ``r_b(t)`` and ``r_n(t)``, the probability that frames 1..t emit g and end in a blank or in its last id
    (Watanabe et al. 2017, section IV-A, equations 51 ff., algorithm 2)::

        phi(t)    = r_b(t - 1) + [c is not g's last id] r_n(t - 1)
        psi(g c)  = sum_t phi(t) p_t(c)
        p(end|g)  = (r_b(S) + r_n(S)) / psi(g)         the transcript is g
        r_n'(t)   = (r_n'(t - 1) + phi(t)) p_t(c)      for g c
        r_b'(t)   = (r_b'(t - 1) + r_n'(t - 1)) p_t(blank)

    All c are scored at once, by one product over the frames. Sums and recurrences over t are in closed form, in
    float64: they are differences of sums of log p, for which float32 is too imprecise.

    Args:
        log_p: (B, S, V), log-probabilities of the frames.
        mask: (B, S) bool, True = a real frame.
        blank: Id of the blank.
    """

    def __init__(self, log_p: Tensor, mask: Tensor | None = None, blank: int = 0) -> None:
        log_p = log_p.detach().to(torch.promote_types(log_p.dtype, torch.float32)).clamp_min(LOWEST)
        if mask is not None:  # padding emits a blank with probability 1
            log_p = log_p.masked_fill(~mask[:, :, None], LOWEST)
            log_p[:, :, blank] = log_p[:, :, blank].masked_fill(~mask, 0.0)
        B, _, self.vocab_size = log_p.shape
        self.log_p, self.blank, self.beams = log_p, blank, 1
        self.peaks = log_p.double().amax(1)  # (B, V)
        self.p = (log_p - self.peaks[:, None]).exp()  # (B, S, V), float64: small probabilities must not round to zero
        self.sums = F.pad(log_p[:, :, blank].double().cumsum(1), (1, 0))  # (B, S + 1) of blanks
        self.ends_blank = self.sums  # (N, S + 1), of N = B K rows: log r_b(0..S)
        self.ends_id = torch.full_like(self.sums, -math.inf)  # log r_n(0..S)
        self.last = torch.full((B,), -1, device=log_p.device)  # (N,): g's last id, -1 = g is empty
        self.log_psi = self.sums.new_zeros(B)  # (N,)

    def scores(self, end: int) -> Tensor:
        """Returns ``log p(c | g)`` of each id, with that of the end at id `end`; the blank is impossible.

        Returns:
            (N, V) float64, at least LOWEST except for the blank.
        """
        log_psi = self._extended()  # (N, V)
        log_psi[:, end] = torch.logaddexp(self.ends_blank[:, -1], self.ends_id[:, -1])
        possible = (self.log_psi > LOWEST)[:, None]
        scores = torch.where(possible, log_psi - self.log_psi[:, None], -math.log(self.vocab_size))
        scores = scores.clamp_min(LOWEST)
        scores[:, self.blank] = -math.inf
        return scores

    def _extended(self) -> Tensor:
        """Returns log psi(g c) for each c: (N, V)."""
        before = torch.logaddexp(self.ends_blank, self.ends_id)[:, :-1]  # (N, S): phi of an id that is new
        highest = before.amax(1, keepdim=True).clamp_min(torch.finfo(before.dtype).min)  # (N, 1)
        rows = (before - highest).exp().unflatten(0, (-1, self.beams)) @ self.p  # (B, K, V)
        log_psi = (rows.log() + self.peaks[:, None]).flatten(0, 1) + highest  # (N, V)
        again = (self.ends_blank[:, :-1] + self._emission(self.last.clamp_min(0))).logsumexp(1)  # (N,)
        last = self.last.clamp_min(0)[:, None]
        again = torch.where(self.last >= 0, again, log_psi.gather(1, last)[:, 0])
        return log_psi.scatter(1, last, again[:, None])

    def _emission(self, ids: Tensor) -> Tensor:
        """Returns log p of ids (N,) at each frame: (N, S) float64."""
        index = ids.view(-1, 1, self.beams).expand(-1, self.log_p.shape[1], -1)  # (B, S, K)
        return self.log_p.gather(2, index).mT.flatten(0, 1).double()

    def advance(self, ids: Tensor) -> None:
        """Extends each row's g by its id of ids (N,)."""
        emission = self._emission(ids)  # (N, S)
        repeats = (ids == self.last)[:, None]
        phi = torch.where(repeats, self.ends_blank, torch.logaddexp(self.ends_blank, self.ends_id))[:, :-1]  # (N, S)
        log_psi = (phi + emission).logsumexp(1)
        self.ends_id = _recur(F.pad(emission.cumsum(1), (1, 0)), phi)
        sums = self.sums.repeat_interleave(self.beams, 0)
        self.ends_blank = _recur(sums, self.ends_id[:, :-1])
        self.last, self.log_psi = ids, log_psi

    def select(self, rows: Tensor) -> None:
        """See `State.select`; the beams of a sentence share its frames."""
        index, sources = rows.flatten(), rows[:, 0] // self.beams
        for name in ("log_p", "peaks", "p", "sums"):
            setattr(self, name, select_rows(getattr(self, name), sources))
        for name in ("ends_blank", "ends_id", "last", "log_psi"):
            setattr(self, name, select_rows(getattr(self, name), index))
        self.beams = rows.shape[1]


def _recur(sums: Tensor, new: Tensor) -> Tensor:
    """Solves ``x(t) = (x(t - 1) + new(t)) p(t)``, ``x(0) = 0``, for all t at once; returns ``log x(t)``.

    Divided by the product P(t) of p(1..t), x is a sum: ``x(t) = P(t) sum_s<=t new(s) / P(s - 1)``.

    Args:
        sums: (N, S + 1), log P(0..S).
        new: (N, S), log new(1..S).

    Returns:
        (N, S + 1).
    """
    return F.pad((new - sums[:, :-1]).logcumsumexp(1), (1, 0), value=-math.inf) + sums


class JointState:
    """The decoding state of a decoder and of CTC for the same prefixes; see `joint_step`.

    Args:
        state: The decoder's state, of B rows.
        log_p: (B, S, V), CTC's log-probabilities of the frames.
        mask: (B, S) bool, True = a real frame.
        blank: Id of the blank.
    """

    def __init__(self, state: State, log_p: Tensor, mask: Tensor | None = None, blank: int = 0) -> None:
        self.state, self.ctc = state, CTCPrefixScorer(log_p, mask, blank)
        self.begun = False  # False until the prompt, which is not part of the transcript, has been read

    def select(self, rows: Tensor) -> None:
        """See `State.select`."""
        self.state.select(rows)
        self.ctc.select(rows)


def joint_step(
    step: Callable[[Tensor, Any], Tensor], eos_id: int, ctc_weight: float
) -> Callable[[Tensor, JointState], Tensor]:
    """Makes a step with scores ``(1 - w) log p_attention + w log p_ctc`` (Watanabe et al. 2017, eq. 47).

    For `mmattn.generate.generate`, with a `JointState` and with the blank among the config's suppress_tokens. The
    search normalizes scores; as the weighted product sums to less than one, the blank gets the remaining mass, so the
    normalizer is zero and the score of a hypothesis is exactly the sum above.

    Args:
        step: The decoder's step: new ids (N, L) and its state to logits (N, V).
        eos_id: Id of the end; its CTC score is the probability that the transcript is complete.
        ctc_weight: w, of 0..1.

    Raises:
        ValueError: ctc_weight is not within 0..1.

    >>> from mmattn.generate import GenerationConfig, generate
    >>> class NoState:
    ...     def select(self, rows): ...
    >>> frames = torch.eye(4)[torch.tensor([[0, 2, 2, 0, 3, 0]])].mul(9).log_softmax(-1)
    >>> step = joint_step(lambda ids, state: torch.zeros(len(ids), 4), eos_id=1, ctc_weight=0.5)
    >>> config = GenerationConfig(num_beams=2, max_new_tokens=6, eos_token_id=1, suppress_tokens=[0])
    >>> generate(step, JointState(NoState(), frames), torch.zeros(1, 1).long(), config).tokens()
    [[[2, 3, 1]]]
    """
    if not 0.0 <= ctc_weight <= 1.0:
        raise ValueError(f"ctc_weight: expected 0..1, found {ctc_weight}")

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
