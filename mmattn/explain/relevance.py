"""Relevance of tokens for a score: gradient-weighted attention, propagated through self- and cross-attentions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attention import MultiHeadAttention
from ..probe import Probe
from .maps import capture, plain_path

START = -1  # a sequence before any step


class Step(NamedTuple):
    """One call of one attention, in a plan.

    Attributes:
        path: Path of the attention; its second occurrence is its second call.
        query: Name of the query sequence.
        key: Name of the key sequence; the same in self-attention.
        reads: The steps of the plan after which it reads the two sequences, START (-1) = before any step. None: after
            the last preceding steps that changed them. Needed if two sequences attend to each other simultaneously.
    """

    path: str
    query: str
    key: str
    reads: tuple[int, int] | None = None


def relevance(
    model: nn.Module, run: Callable[[], Tensor], plan: Sequence[Step] | None = None
) -> dict[tuple[str, str], Tensor]:
    """Relevancy maps of a score, for any mixture of self-, co- and encoder-decoder attention (Chefer et al. 2021).

    Maps are initialized to ``R_ss = I``, ``R_sq = 0``, and each attention, with
    ``A = mean over heads of (d score / d W * W)^+`` (equation 5), adds to them:

    - within a sequence s (6, 7): ``R_ss += A R_ss``, ``R_sq += A R_sq``;
    - s attending to q (10, 11): ``R_sq += N(R_ss)^T A N(R_qq)``, ``R_ss += A R_qs``;

    where N divides the rows of R - I by their sums and adds I again (8, 9); rows of zeros are unchanged. Relevance of a
    third sequence r for q is propagated as in (11): ``R_sr += A R_qr``. An encoder does not attend to the decoder, so
    an encoder-decoder is the case without (11) (section 3.2). A row whose gradients are all negative adds nothing. Maps
    not made by a MultiHeadAttention, such as gates, are included only by a plan.

    Without a plan, sequences are inferred by tracing each attention's input back to the attention that produced it; an
    input with another number of tokens (concatenated, pooled) is a new sequence. A sequence is named by the path of the
    first attention that reads it, with ".key" for a key sequence. Samples must keep their positions in the batch.

    Args:
        model: The model with the attentions, preferably in evaluation mode.
        run: Runs the model once and returns the score, or one per sample, (B,): samples are independent.
        plan: The steps in order, if they cannot be inferred or names are needed.

    Returns:
        ``R[s, q]``: (B, tokens of s, tokens of q) for each query sequence s and each q that influences it. The relevant
        row is that from which the score is computed.

    Raises:
        ValueError: Nothing was captured, or the score does not depend on it; an attention outside MultiHeadAttention
            without a plan; a plan that does not fit; a batch that is reshaped in the model.

    >>> from mmattn import Encoder
    >>> model, x = Encoder(32, 2, 4), torch.randn(3, 5, 32)
    >>> found = relevance(model, lambda: model(x)[:, 0].sum(-1))
    >>> {names: tuple(R.shape) for names, R in found.items()}
    {('layers.0.attention', 'layers.0.attention'): (3, 5, 5)}
    """
    with torch.enable_grad(), capture(model, differentiable=True) as maps, _following(model, maps) as trail:
        score = run().sum()
    if plan is None:
        probes = {plain_path(name) for name, module in model.named_modules() if isinstance(module, Probe)}
        for path, calls in maps.items():
            if path not in probes and len(calls) != sum(step.path == path for step in trail.steps):
                raise ValueError(f"{path!r} is no MultiHeadAttention, so its sequences cannot be inferred: give a plan")
        plan = trail.steps
    weights = _in_order(plan, maps)
    if not weights:
        raise ValueError("no attention ran: expected at least one call inside run")
    if not score.requires_grad:
        raise ValueError("the score has no gradient: compute it from the model's output, outside inference mode")
    gradients = torch.autograd.grad(score, weights, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError("the score does not depend on any attention of the plan")
    fused = [_fuse(w.detach(), g) for w, g in zip(weights, gradients, strict=True)]
    return _propagate(plan, fused)


def _fuse(weights: Tensor, gradient: Tensor | None) -> Tensor:
    """Computes A by equation 5: (B, h, L, S) to (B, L, S)."""
    if gradient is None:
        return torch.zeros_like(weights[:, 0])
    return (gradient * weights).clamp_min(0.0).mean(1)


def _in_order(plan: Sequence[Step], maps: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """Returns the map of each step."""
    calls: dict[str, int] = {}
    found = []
    for step in plan:
        n = calls[step.path] = calls.get(step.path, 0) + 1
        if len(maps.get(step.path, ())) < n:
            raise ValueError(
                f"the plan's call {n} of {step.path!r} did not happen; "
                f"captured were: {', '.join(f'{path} ({len(seen)})' for path, seen in maps.items()) or 'none'}"
            )
        weights = maps[step.path][n - 1]
        if weights.dim() != 4:
            raise ValueError(f"{step.path!r} gave no map (B, h, L, S) but {tuple(weights.shape)}")
        found.append(weights)
    return found


def _propagate(plan: Sequence[Step], fused: Sequence[Tensor]) -> dict[tuple[str, str], Tensor]:
    """Applies the rules step by step; the state after each step is kept, for simultaneous steps."""
    after: list[dict[str, Tensor]] = []  # after each step, the relevance of each sequence for its query sequence
    last: dict[str, int] = {}  # the last step that changed each sequence
    batch = fused[0].shape[0]
    for n, (step, A) in enumerate(zip(plan, fused, strict=True)):
        if A.shape[0] != batch:
            raise ValueError(
                f"{step.path!r} ran on a batch of {A.shape[0]}, {plan[0].path!r} on {batch}: samples must keep their "
                "places; give each its own row in every sequence"
            )
        reads = step.reads or (last.get(step.query, START), last.get(step.key, START))
        known = []
        for name, place, tokens in zip((step.query, step.key), reads, A.shape[1:], strict=True):
            if not START <= place < n or (place != START and plan[place].query != name):
                raise ValueError(f"step {n} of the plan ({step.path!r}) cannot read {name!r} after step {place}")
            state = {name: torch.eye(tokens, dtype=A.dtype, device=A.device).expand(batch, tokens, tokens)}
            state = after[place] if place != START else state
            if state[name].shape[1] != tokens:
                raise ValueError(
                    f"{step.path!r} sees {tokens} tokens of {name!r}, which had {state[name].shape[1]}: it is another "
                    "sequence"
                )
            known.append(state)
        own, other = known
        new = dict(own)
        for source, R in other.items():
            if source == step.key != step.query:
                gain = _normalized(own[step.query]).mT @ A @ _normalized(R)
            else:
                gain = A @ R
            new[source] = new[source] + gain if source in new else gain
        after.append(new)
        last[step.query] = n
    return {(name, source): R for name, n in last.items() for source, R in after[n].items()}


def _normalized(R: Tensor) -> Tensor:
    """Normalizes by equations 8 and 9: (B, L, L)."""
    one = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    gained = R - one
    total = gained.sum(-1, keepdim=True)
    return gained / total.where(total > 0, 1.0) + one


# Inference of the plan ------------------------------------------------------------------------------------------------


@dataclass
class _Sequence:
    """A sequence at its first occurrence, with which later inputs are compared."""

    name: str
    first_met: str
    tensor: Tensor  # kept alive, so that no other tensor gets its id
    nodes: set[Any]  # of the autograd graph behind it


@dataclass
class _Trail:
    """Infers the plan while the model runs."""

    steps: list[Step] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # L of each step
    made: dict[Any, int] = field(default_factory=dict)  # autograd node of an attention's output: its step
    sequences: list[_Sequence] = field(default_factory=list)

    def add(self, path: str, query: Tensor, key: Tensor | None, output: Tensor) -> None:
        """Records one call."""
        asks, asks_after = self._origin(query, path)
        seen, seen_after = (asks, asks_after) if key is None else self._origin(key, f"{path}.key".lstrip("."))
        self.made[output.grad_fn] = len(self.steps)
        self.lengths.append(query.shape[1])
        self.steps.append(Step(path, asks, seen, (asks_after, seen_after)))

    def _origin(self, x: Tensor, name: str) -> tuple[str, int]:
        """Returns the sequence of x (B, L, .), and the step that produced it."""
        steps, nodes = self._behind(x)
        steps = [n for n in steps if self.lengths[n] == x.shape[1]]
        if steps:  # residual connections also lead to earlier steps
            return self.steps[max(steps)].query, max(steps)
        for known in self.sequences:
            if known.tensor is x or (known.tensor.shape[1] == x.shape[1] and known.nodes & nodes):
                return known.name, START
        again = sum(known.first_met == name for known in self.sequences)  # shared weights read several sequences
        self.sequences.append(_Sequence(f"{name} ({again + 1})" if again else name, name, x, nodes))
        return self.sequences[-1].name, START

    def _behind(self, x: Tensor) -> tuple[list[int], set[Any]]:
        """Returns the nearest steps before x in the autograd graph, and the nodes in between, without parameters."""
        steps, nodes, stack = [], set(), [x.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in nodes or isinstance(getattr(node, "variable", None), nn.Parameter):
                continue
            if node in self.made:
                steps.append(self.made[node])
                continue
            nodes.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
        return steps, nodes


@contextmanager
def _following(model: nn.Module, maps: Mapping[str, Sequence[Tensor]]) -> Iterator[_Trail]:
    trail = _Trail()

    def hook(path: str) -> Callable[..., None]:
        def note(module: Any, args: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | keywords
            trail.add(path, given["query"], given.get("key"), output)

        return note

    named = [(plain_path(name), m) for name, m in model.named_modules() if isinstance(m, MultiHeadAttention)]
    handles = [module.register_forward_hook(hook(path), with_kwargs=True) for path, module in named]
    try:
        yield trail
    finally:
        for handle in handles:
            handle.remove()
