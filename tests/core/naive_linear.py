"""Plain loops for linear (random features), low_rank, cosine and differential: weights_of of `naive.kernel`."""

import math

import torch
from naive import bias_at, seen_by, shares, softmax, visible


def favor(module, q, keys, b, head, allowed):
    """Choromanski et al. 2021, section 2.3: the features of one query and one key, multiplied."""
    L, d = q.shape

    def features(x):
        x = x / d**0.25
        values = [torch.exp((w * x).sum() - (x * x).sum() / 2) for w in module.features]
        return torch.stack(values) / math.sqrt(len(values))

    rows = []
    for i in range(L):
        seen = seen_by(keys, b, head, i, L, allowed)
        rows.append(shares({j: (features(q[i]) * features(keys[j])).sum() for j in seen}))
    return rows


def low_rank(module, q, keys, b, head, allowed):
    """Wang et al. 2020, equation 7, also with low-rank queries and keys; a key's weight sums over its projections."""
    L = q.shape[0]
    seen = seen_by(keys, b, head, 0, L, allowed)
    summaries = {j: keys[j] for j in seen}
    if module.projected_length is not None:
        E, F = (p[head if len(p) > 1 else 0] for p in (module.key_length, module.value_length))
        summaries = {
            s: sum((E[s, j] * keys[j] for j in seen), torch.zeros_like(keys[0])) for s in range(module.projected_length)
        }
    if module.query_rank is not None:
        q = q @ module.query_rank[head]
        summaries = {s: summary @ module.key_rank[head] for s, summary in summaries.items()}
    rows = []
    for i in range(L):
        weights = softmax({s: (q[i] * summary).sum() / math.sqrt(module.rank) for s, summary in summaries.items()})
        if module.projected_length is not None:
            weights = {j: sum(weight * F[s, j] for s, weight in weights.items()) for j in seen}
        rows.append(weights)
    return rows


def cosine(module, q, keys, b, head, allowed):
    """Liu et al. 2022, equation 2."""
    L, S = q.shape[0], keys.shape[0]
    scale = min(torch.exp(module.log_scale[head]), torch.tensor(module.max_scale).double())
    rows = []
    for i in range(L):
        scores = {}
        for j in seen_by(keys, b, head, i, L, allowed):
            lengths = torch.sqrt((q[i] * q[i]).sum()) * torch.sqrt((keys[j] * keys[j]).sum())
            scores[j] = scale * (q[i] * keys[j]).sum() / lengths + bias_at(allowed.bias, head, j - (i + S - L))
        rows.append(softmax(scores))
    return rows


def differential(module, q, keys, b, head, allowed):
    """Ye et al. 2024, equations 1 and 2."""
    L, d = q.shape
    half = d // 2
    first = sum(module.lambda_q1[c] * module.lambda_k1[c] for c in range(half))
    second = sum(module.lambda_q2[c] * module.lambda_k2[c] for c in range(half))
    weight = torch.exp(first) - torch.exp(second) + module.lambda_init
    rows = []
    for i in range(L):
        parts = (slice(0, half), slice(half, d))
        maps = [softmax(visible(q[:, part], keys[:, part], b, head, i, L, allowed)) for part in parts]
        rows.append({j: maps[0][j] - weight * maps[1][j] for j in maps[0]})
    return rows


def differential_norm(module, out):
    """Equation 3: each head's output (..., d_v) divided by its root mean square."""
    return (1 - module.lambda_init) * out / torch.sqrt((out * out).mean(-1, keepdim=True) + 1e-5)
