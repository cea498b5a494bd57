"""The rows of kernels that select keys: local, hard, adaptive_span."""

from functools import partial

import naive_hard
import torch
from cases import SQUARE, kernel, split

from mmattn import Mask, build_kernel


def decode_cross(module, x, y, mask, steps):
    """Stepwise cross-attention, for kernels that also support self-attention."""
    cache = module.make_cache(*split(x[:, :0], y[:, :0])[1:], cross=True)
    pieces = [module(*split(piece, y), Mask(mask), cache) for piece in x.split(list(steps), dim=1)]
    return torch.cat(pieces, dim=2).transpose(1, 2).flatten(2)


CROSS = {"causal": (False,), "together": False, "decode": decode_cross}


def x_transformers(**options) -> float:
    """Forward and gradients of x-transformers' hard or top-k attention."""
    from x_transformers.attend import Attend

    ours = build_kernel("hard", options, num_heads=2, head_dim=4).double()
    top_k = options.get("top_k", 1)
    theirs = Attend(heads=2, **({"hard": True} if top_k == 1 else {"sparse_topk": top_k})).double()
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [draw(3, 2, L, 4).requires_grad_() for L in (5, 7, 7)]
    key_mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    aim = draw(3, 2, 5, 4)
    found = [ours(*inputs, Mask(key_mask)), theirs(*inputs, mask=key_mask)[0]]
    everything = [(out, *torch.autograd.grad((out * aim).sum(), inputs)) for out in found]
    return max(float((a - b).detach().abs().max()) for a, b in zip(*everything, strict=True))


LOCAL, HARD = {"weights": naive_hard.local}, {"weights": naive_hard.hard}
SPAN = {"max_span": 4, "ramp": 3, "initial_span": 2.0}

ROWS = [
    kernel("kernel local", "local", {"window": 2}, **LOCAL),
    kernel("kernel local, cross", "local", {"window": 2}, **LOCAL, **CROSS),
    kernel("kernel local, own position", "local", {"window": 2, "predict": False}, **LOCAL),
    kernel(
        "kernel local, own position, cross", "local", {"window": 1, "predict": False}, lengths=(7, 5), **LOCAL, **CROSS
    ),
    kernel("kernel hard", "hard", reference=x_transformers, **HARD),
    kernel("kernel hard, top 3", "hard", {"top_k": 3}, reference=partial(x_transformers, top_k=3), **HARD),
    kernel("kernel adaptive_span", "adaptive_span", SPAN, weights=naive_hard.adaptive_span, **SQUARE),
]
