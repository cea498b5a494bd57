"""BigBird's and Reformer's attention as plain loops: see naive.kernel for arguments and return values."""

import torch
from naive import bias_at, softmax, visible

PRIME = 2**31 - 1


def hashed(seed, *values):
    x = pow(1_234_567_891 + seed, 5, PRIME)
    for value in values:
        x = pow(x + value, 5, PRIME)
    return x


def random_blocks(module, head, i, others):
    """One block from each of num_random equal parts of the other blocks, which may be empty."""
    r = module.num_random
    parts = [others[len(others) * t // r : len(others) * (t + 1) // r] for t in range(r)]
    return {part[hashed(module.seed, head, i, t) % len(part)] for t, part in enumerate(parts) if part}


def blocks_of(module, head, i, count, is_causal):
    """The blocks, of count, that block i attends to."""
    g, last = module.num_global, count - module.num_global
    if is_causal:
        near, ends, others = {i - 1, i}, set(range(min(g, i))), list(range(g, i - 1))
    else:
        near, ends = {i - 1, i, i + 1}, set(range(g)) | set(range(last, count))
        others = [j for j in range(g, last) if abs(i - j) > 1]
        if i < count and (i < g or i >= last):
            return set(range(count))
    seen = near | ends | random_blocks(module, head, i, others)
    return {j for j in seen if 0 <= j < (i + 1 if is_causal else count)}


def sparse(module, q, keys, b, head, allowed):
    L, S = q.shape[0], keys.shape[0]
    size, real = module.block, range(S)
    if allowed.key_mask is not None:
        real = [j for j in range(S) if allowed.key_mask[b, j]]
    count = -(-(1 + max(real)) // size) if real else 0
    weights = []
    for i in range(L):
        seen = blocks_of(module, head, (i + S - L) // size, count, allowed.is_causal)
        scores = visible(q, keys, b, head, i, L, allowed)
        weights.append(softmax({j: score for j, score in scores.items() if j // size in seen}))
    return weights


def bucket(module, vector, head, turn, count):
    """The bucket of a query in one round: for each hash, the direction of the largest component."""
    used = [module.rotations.shape[-1]]
    if module.num_buckets is None:
        used = [sum(2 * u * u * module.chunk <= count for u in range(1, 65))] * 2
    found = []
    for which, size in enumerate(used):
        along = [float((vector.detach() * module.rotations[which, head, turn, :, f]).sum()) for f in range(size)]
        ways = along + [-x for x in along]
        found.append(ways.index(max(ways)) if ways else 0)
    return tuple(found if module.num_buckets is None else found[:1])


def met(module, tokens, buckets, turn, is_causal):
    """{query: [keys]}: the keys of each real token in one round; buckets is {(token, turn): bucket}."""
    if not module.across_buckets:
        together = {}
        for i in tokens:
            together.setdefault(buckets[i, turn], []).append(i)
        places = {i: (mates, mates.index(i)) for mates in together.values() for i in mates}
        reach = module.chunk
        return {
            i: mates[max(0, place - reach) : place + 1 if is_causal else place + reach + 1]
            for i, (mates, place) in places.items()
        }

    def chunks(at):
        ordered = sorted(tokens, key=lambda i: (buckets[i, at], i))
        return [ordered[start : start + module.chunk] for start in range(0, len(ordered), module.chunk)]

    R = module.num_hashes
    line = [chunks((turn + step) % R) for step in (-1, 0, 1)]
    found = {}
    for place, own in enumerate(line[1]):
        before = line[1][place - 1] if place else line[0][-1]
        after = line[1][place + 1] if place + 1 < len(line[1]) else line[2][0]
        for i in own:
            keys = before + own + ([] if is_causal else after)
            found[i] = [j for j in keys if not (is_causal and j > i)]
    return found


def lsh(module, q, keys, b, head, allowed):
    """The keys are the queries, normalized to length 1."""
    L = q.shape[0]
    tokens = [i for i in range(L) if allowed.key_mask is None or allowed.key_mask[b, i]]
    buckets = {
        (i, turn): bucket(module, q[i], head, turn, len(tokens)) for i in tokens for turn in range(module.num_hashes)
    }
    unit = q / torch.sqrt((q**2).sum(-1, keepdim=True) + 1e-6 * q.shape[1])
    rounds = [met(module, tokens, buckets, turn, allowed.is_causal) for turn in range(module.num_hashes)]
    weights = []
    for i in range(L):
        seen = [j for found in rounds for j in found.get(i, [])]
        if not module.across_buckets:
            seen = sorted(set(seen))
        others = [j for j in seen if j != i]
        scores = {j: (q[i] * unit[j]).sum() + bias_at(allowed.bias, head, j - i) for j in set(others)}
        if not others:
            weights.append({i: 1.0} if i in seen else {})
            continue
        total = sum(torch.exp(scores[j]) for j in others)
        weights.append({j: others.count(j) * torch.exp(score) / total for j, score in scores.items()})
    return weights
