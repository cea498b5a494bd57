"""Naive loops of the kernels local, hard and adaptive_span: the weights of every query, as in the papers."""

import math
from dataclasses import replace

import torch
from naive import shares, softmax, visible


def local(module, q, keys, b, head, allowed):
    """Luong et al. 2015, section 3.2: local-p or local-m."""
    L, S, D = q.shape[0], keys.shape[0], module.window
    allowed = replace(allowed, window=None)  # the kernel's window is not the mask's
    rows = []
    for i in range(L):
        scores = visible(q, keys, b, head, i, L, allowed)
        if not module.predict:
            aligned = i + S - L if allowed.is_causal else i
            rows.append(softmax({j: score for j, score in scores.items() if abs(j - aligned) <= D}))
            continue
        hidden = torch.tanh(sum(q[i, c] * module.project[head, c] for c in range(q.shape[1])))
        aligned = len(scores) / (1 + torch.exp(-(module.place[head] * hidden).sum()))
        place = {j: s for s, j in enumerate(scores)}  # masked keys are not counted
        weights = softmax({j: score for j, score in scores.items() if abs(place[j] - aligned) <= D})
        sigma = D / 2
        rows.append({j: w * torch.exp(-((place[j] - aligned) ** 2) / (2 * sigma**2)) for j, w in weights.items()})
    return rows


class StraightThrough(torch.autograd.Function):
    """One-hot of the best score, with the gradient of the softmax."""

    @staticmethod
    def forward(ctx, scores):
        exponentials = [math.exp(score) for score in scores]
        ctx.save_for_backward(torch.tensor([e / sum(exponentials) for e in exponentials], dtype=scores.dtype))
        best = 0
        for j in range(len(scores)):
            if scores[j] > scores[best]:
                best = j
        return torch.tensor([1.0 if j == best else 0.0 for j in range(len(scores))], dtype=scores.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (p,) = ctx.saved_tensors
        mean = sum(p[j] * gradient[j] for j in range(len(p)))
        return torch.stack([p[j] * (gradient[j] - mean) for j in range(len(p))])


def hard(module, q, keys, b, head, allowed):
    """The best key, straight-through; or a softmax over the k best."""
    rows = []
    for i in range(q.shape[0]):
        scores = visible(q, keys, b, head, i, q.shape[0], allowed)
        if not scores:
            rows.append({})
        elif module.top_k == 1:
            chosen = StraightThrough.apply(torch.stack(list(scores.values())))
            rows.append(dict(zip(scores, chosen, strict=True)))
        else:
            best = sorted(scores, key=lambda j, scores=scores: (-scores[j].item(), j))[: module.top_k]
            rows.append(softmax({j: scores[j] for j in best}))
    return rows


def adaptive_span(module, q, keys, b, head, allowed):
    """Sukhbaatar et al. 2019, section 2.2: the mask multiplies the exponentials, whose sum is taken after it."""
    L, S = q.shape[0], keys.shape[0]
    z = module.fraction[head] * module.max_span
    rows = []
    for i in range(L):
        exponentials = {}
        for j, score in visible(q, keys, b, head, i, L, allowed).items():
            distance = abs(j - (i + S - L))
            soft = (module.ramp + z - distance) / module.ramp
            if soft > 0 and distance <= module.max_span:
                exponentials[j] = (soft if soft < 1 else 1.0) * torch.exp(score)
        rows.append(shares(exponentials))
    return rows
