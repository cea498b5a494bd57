"""Which tokens a score rests on: attention weighted by its gradient, followed through self- and cross-attentions."""

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

START = -1  # a sequence as it came, before any step


class Step(NamedTuple):
    """One call of one attention, in a plan.

    Attributes:
        path: of the attention; its second mention is its second call.
        query: the name of the sequence that asks.
        key: of the one it looks at; the same in self-attention.
        reads: after which steps of the plan it sees the two, START (-1) = as they came. None: after the last before it
            that changed them. Needed where two sequences look at each other at once.
    """

    path: str
    query: str
    key: str
    reads: tuple[int, int] | None = None


def relevance(
    model: nn.Module, run: Callable[[], Tensor], plan: Sequence[Step] | None = None
) -> dict[tuple[str, str], Tensor]:
    """Relevancy maps of a score, for any mixture of self-, co- and encoder-decoder attention (Chefer et al. 2021).

    Each map begins as ``R_ss = I``, ``R_sq = 0``, and each attention, with
    ``A = mean over heads of (d score / d W * W)^+`` (equation 5), adds to it:

    - within a sequence s (6, 7): ``R_ss += A R_ss``, ``R_sq += A R_sq``;
    - s looking at q (10, 11): ``R_sq += N(R_ss)^T A N(R_qq)``, ``R_ss += A R_qs``;

    where N divides the rows of R - I by their sums and adds I again (8, 9); rows of zeros stay. What q has from a third
    sequence r comes along as in (11): ``R_sr += A R_qr``. An encoder never looks back, so that an encoder-decoder is
    the case without (11) (section 3.2). A row whose gradients are all negative adds nothing. What is no
    MultiHeadAttention's map, such as a gate's, takes part where a plan names it.

    Without a plan, sequences are found by following each attention's input back to the attention it came from; an
    input with another number of tokens (joined, pooled) is a sequence of its own. A sequence is named by the path of
    the attention that first met it, and ".key" where it was looked at. Samples must keep their places in the batch.

    Args:
        model: Holds the attentions; better in evaluation mode.
        run: Runs the model once and returns the score, or one a sample, (B,): samples are independent.
        plan: The steps in order, where they cannot be found or names are wanted.

    Returns:
        ``R[s, q]``: (B, tokens of s, tokens of q) for each sequence s that asked and each q it learned from. Read the
        row that the score was read from.

    Raises:
        ValueError: Nothing was captured, or the score does not depend on it; an attention outside MultiHeadAttention
            without a plan; a plan that does not fit; a batch that is folded on the way.

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
                raise ValueError(f"{path!r} is no MultiHeadAttention, so who asks whom is not known: give a plan")
        plan = trail.steps
    weights = _in_order(plan, maps)
    if not weights:
        raise ValueError("no attention ran: there is nothing to follow")
    if not score.requires_grad:
        raise ValueError("the score has no gradient: compute it from the model's output, outside inference mode")
    gradients = torch.autograd.grad(score, weights, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError("the score does not depend on any attention of the plan")
    fused = [_fuse(w.detach(), g) for w, g in zip(weights, gradients, strict=True)]
    return _propagate(plan, fused)


def _fuse(weights: Tensor, gradient: Tensor | None) -> Tensor:
    """Equation 5: (B, h, L, S) to (B, L, S)."""
    if gradient is None:
        return torch.zeros_like(weights[:, 0])
    return (gradient * weights).clamp_min(0.0).mean(1)


def _in_order(plan: Sequence[Step], maps: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """The map of each step."""
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
    """The rules, step by step; what a sequence has learned after each step is kept, for steps that run at once."""
    after: list[dict[str, Tensor]] = []  # after each step, what its query sequence has from each sequence
    last: dict[str, int] = {}  # the step that changed a sequence last
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
    """Equations 8 and 9: (B, L, L)."""
    one = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    gained = R - one
    total = gained.sum(-1, keepdim=True)
    return gained / total.where(total > 0, 1.0) + one


# Who asks whom --------------------------------------------------------------------------------------------------------


@dataclass
class _Sequence:
    """A sequence on its first sight: what later inputs are compared with."""

    name: str
    first_met: str
    tensor: Tensor  # kept, so that no other takes its identity
    nodes: set[Any]  # of the autograd graph behind it


@dataclass
class _Trail:
    """Makes the plan while the model runs."""

    steps: list[Step] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # L of each step
    made: dict[Any, int] = field(default_factory=dict)  # the graph's node of an attention's output: its step
    sequences: list[_Sequence] = field(default_factory=list)

    def add(self, path: str, query: Tensor, key: Tensor | None, output: Tensor) -> None:
        """Notes one call."""
        asks, asks_after = self._origin(query, path)
        seen, seen_after = (asks, asks_after) if key is None else self._origin(key, f"{path}.key".lstrip("."))
        self.made[output.grad_fn] = len(self.steps)
        self.lengths.append(query.shape[1])
        self.steps.append(Step(path, asks, seen, (asks_after, seen_after)))

    def _origin(self, x: Tensor, name: str) -> tuple[str, int]:
        """The sequence that x (B, L, .) belongs to, and the step it comes from."""
        steps, nodes = self._behind(x)
        steps = [n for n in steps if self.lengths[n] == x.shape[1]]
        if steps:  # residual connections lead to earlier steps, too
            return self.steps[max(steps)].query, max(steps)
        for known in self.sequences:
            if known.tensor is x or (known.tensor.shape[1] == x.shape[1] and known.nodes & nodes):
                return known.name, START
        again = sum(known.first_met == name for known in self.sequences)  # shared weights meet several
        self.sequences.append(_Sequence(f"{name} ({again + 1})" if again else name, name, x, nodes))
        return self.sequences[-1].name, START

    def _behind(self, x: Tensor) -> tuple[list[int], set[Any]]:
        """The steps next behind x in the autograd graph, and the nodes on the way, without parameters."""
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
