"""Plain loops for the modules that are not kernels: gates, pooling, deformable, space-time, documents, BiDAF.

Maps are grids (B, H, W, C) with masks (B, H, W) here, channels last, as the rows draw them.
"""

import math

import naive
import torch
from naive import Allowed, layer_norm, linear


def real(mask, *place):
    return mask is None or bool(mask[place])


def each_sample(x, mask, weigh):
    """All cells of a sample are multiplied by weigh(the vectors of the real cells, one vector)."""
    gates = [weigh(cells_of(x, mask, b), x[b, 0, 0]) for b in range(x.shape[0])]
    return each_cell(x, lambda b, r, c: gates[b])


def each_cell(x, weigh):
    """Each cell is multiplied by weigh(b, r, c), a number or vector."""
    B, H, W, _ = x.shape
    rows = [x[b, r, c] * weigh(b, r, c) for b in range(B) for r in range(H) for c in range(W)]
    return torch.stack(rows).view(x.shape)


def cells_of(x, mask, b):
    return [x[b, r, c] for r in range(x.shape[1]) for c in range(x.shape[2]) if real(mask, b, r, c)]


def mean_of(vectors, like):
    return sum(vectors) / len(vectors) if vectors else torch.zeros_like(like)


def max_of(vectors, like):
    highest = vectors[0] if vectors else torch.zeros_like(like)
    for vector in vectors[1:]:
        highest = torch.where(vector > highest, vector, highest)
    return highest


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def relu(x):
    return torch.where(x > 0, x, 0.0)


# Channels.


def squeeze_excitation(module, x, mask):
    def gate(cells, like):
        return sigmoid(linear(module.fc2, relu(linear(module.fc1, mean_of(cells, like)))))

    return each_sample(x, mask, gate)


def efficient_channel(module, x, mask):
    kernel, C = module.conv.weight[0, 0], x.shape[-1]
    reach = len(kernel) // 2
    near = [[(k, i + k - reach) for k in range(len(kernel)) if 0 <= i + k - reach < C] for i in range(C)]

    def gate(cells, like):
        mean = mean_of(cells, like)
        return sigmoid(torch.stack([sum(kernel[k] * mean[j] for k, j in pairs) for pairs in near]))

    return each_sample(x, mask, gate)


def channel_attention(module, x, mask):
    def mlp(v):
        return module.fc2.weight @ relu(module.fc1.weight @ v)

    return each_sample(x, mask, lambda cells, like: sigmoid(mlp(mean_of(cells, like)) + mlp(max_of(cells, like))))


def spatial_attention(module, x, mask):
    _, H, W, C = x.shape
    weight, reach = module.conv.weight[0], module.conv.weight.shape[-1] // 2

    def gate(b, r, c):
        score = module.conv.bias[0]
        for i in range(r - reach, r + reach + 1):
            for j in range(c - reach, c + reach + 1):
                if 0 <= i < H and 0 <= j < W and real(mask, b, i, j):
                    values = list(x[b, i, j])
                    at = (i - r + reach, j - c + reach)
                    score = score + weight[0][at] * sum(values) / C + weight[1][at] * max_of(values, None)
        return sigmoid(score)

    return each_cell(x, gate)


def cbam(module, x, mask):
    return spatial_attention(module.spatial, channel_attention(module.channel, x, mask), mask)


# Cells.


def resample(x, H, W):
    """Bilinear between the centers of cells; beyond the outermost centers the value is constant."""
    B, h, w, _ = x.shape

    def along(i, size, new):
        place = min(max((i + 0.5) * size / new - 0.5, 0.0), size - 1.0)
        low = min(int(place), size - 1)
        return [(low, 1 - (place - low)), (min(low + 1, size - 1), place - low)]

    rows = []
    for b in range(B):
        for r in range(H):
            for c in range(W):
                rows.append(sum(p * q * x[b, i, j] for i, p in along(r, h, H) for j, q in along(c, w, W)))
    return torch.stack(rows).view(B, H, W, -1)


def attention_gate(module, x, g):
    (_, H, W, _), (B, h, w, _) = x.shape, g.shape
    low, gates = resample(x, h, w), []
    W_x, W_g, psi = (layer.weight[:, :, 0, 0] for layer in (module.x_proj, module.g_proj, module.psi))
    for b in range(B):
        for r in range(h):
            for c in range(w):
                hidden = relu(W_x @ low[b, r, c] + W_g @ g[b, r, c] + module.g_proj.bias)
                gates.append(sigmoid(psi @ hidden + module.psi.bias))
    gate = resample(torch.stack(gates).view(B, h, w, 1), H, W)
    return each_cell(x, lambda b, r, c: gate[b, r, c])


def flat(mask):
    return None if mask is None else mask.flatten(1)


def position_attention(module, x, mask):
    found = naive.attention(module.attention, x.flatten(1, 2), None, Allowed(flat(mask)))
    return x + module.gamma * found.view(x.shape)


def sinusoid(position, size):
    angles = [position / 10000 ** (2 * i / size) for i in range(size // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def map_pooling(module, y, mask, steer=None):
    _, H, W, C = y.shape
    places = [sinusoid(r, C // 2) + sinusoid(c, C // 2) for r in range(H) for c in range(W)]
    return pooling(module.pooling, y.flatten(1, 2) + torch.tensor(places, dtype=y.dtype), flat(mask), steer)


def temporal_pooling(module, y, mask):
    places = [sinusoid(t, y.shape[2]) for t in range(y.shape[1])]
    return pooling(module.pooling, y + torch.tensor(places, dtype=y.dtype), mask)


def pooling(module, x, mask, steer=None):
    queries = torch.stack([module.queries] * x.shape[0]) + (0.0 if steer is None else steer)
    return naive.attention(module.attention, queries, layer_norm(module.norm, x), Allowed(mask))


def deformable(module, query, levels, reference, masks):
    """levels: maps (B, H, W, C); reference (B, L, levels or 1, 2 or 4); masks (B, H, W) or None, one per level."""
    (B, L, E), h, points = query.shape, module.num_heads, module.num_points
    d = E // h
    outs = []
    for b in range(B):
        for i in range(L):
            offsets = linear(module.offset_proj, query[b, i]).view(h, len(levels), points, 2)
            heads = []
            for head, scores in enumerate(linear(module.weight_proj, query[b, i]).view(h, -1)):
                total, out = sum(torch.exp(score) for score in scores), torch.zeros(d, dtype=query.dtype)
                for n, level in enumerate(levels):
                    values = linear(module.v_proj, level[b])[..., head * d : (head + 1) * d]  # (H, W, d)
                    H, W, _ = values.shape
                    at = reference[b, i, n if reference.shape[2] > 1 else 0]
                    for k in range(points):
                        x, y = offsets[head, n, k]
                        if len(at) == 2:  # in cells; (0.5, 0.5) is the center of the first one
                            column, row = at[0] * W + x - 0.5, at[1] * H + y - 0.5
                        else:
                            column = (at[0] + x * at[2] / (2 * points)) * W - 0.5
                            row = (at[1] + y * at[3] / (2 * points)) * H - 0.5
                        mask = None if masks is None else masks[n][b]
                        weight = torch.exp(scores[n * points + k]) / total
                        out = out + weight * bilinear(values, row, column, mask)
                heads.append(out)
            outs.append(linear(module.out_proj, torch.cat(heads)))
    return torch.stack(outs).view(B, L, E)


def bilinear(values, row, column, mask):
    top, left = math.floor(float(row.detach())), math.floor(float(column.detach()))
    out = torch.zeros_like(values[0, 0])
    for i, share_i in ((top, top + 1 - row), (top + 1, row - top)):
        for j, share_j in ((left, left + 1 - column), (left + 1, column - left)):
            if 0 <= i < values.shape[0] and 0 <= j < values.shape[1] and real(mask, i, j):
                out = out + share_i * share_j * values[i, j]
    return out


# Frames.


def divided_space_time(module, x, cls, mask):
    B, T, N, _ = x.shape
    K = cls.shape[1]

    def attend(attention, tokens, allowed):
        return naive.attention(attention, tokens[None], None, Allowed(allowed[None]))[0]

    new_x, new_cls = [], []
    for b in range(B):
        kept = torch.ones(T, N, dtype=torch.bool) if mask is None else mask[b]
        tracks = []
        for n in range(N):
            normed = layer_norm(module.temporal_residual.norm, x[b, :, n])
            tracks.append(x[b, :, n] + attend(module.temporal_attention, normed, kept[:, n]))
        frames, heads = [], []
        for t in range(T):
            tokens = torch.cat([cls[b], torch.stack([track[t] for track in tracks])])
            allowed = torch.cat([torch.ones(K, dtype=torch.bool), kept[t]])
            found = attend(module.attention, layer_norm(module.attention_residual.norm, tokens), allowed)
            frames.append(tokens[K:] + found[K:])
            if kept[t].any():
                heads.append(cls[b] + found[:K])
        new_x.append(torch.stack(frames))
        new_cls.append(mean_of(heads, cls[b]))
    return tuple(
        naive.residual(module.ffn_residual, torch.stack(z), lambda n: naive.feed_forward(module.ffn, n))
        for z in (new_x, new_cls)
    )


# Documents.


def read(vectors, scores, like):
    """The mean of vectors, weighted by the softmax of {position: score}; zeros if there is none."""
    return sum((weight * vectors[j] for j, weight in naive.softmax(scores).items()), torch.zeros_like(like))


def context_pooling(module, vectors, like):
    """Attention pooling of a list of vectors."""
    scores = {j: (torch.tanh(linear(module.proj, x)) * module.context).sum() for j, x in enumerate(vectors)}
    return read(vectors, scores, like)


def gru(net, vectors):
    """Cho et al. 2014, with the reset gate after the product, as in torch."""
    state, states = torch.zeros(net.hidden_size, dtype=torch.float64), []
    for vector in vectors:
        new_r, new_z, new_n = (net.weight_ih_l0 @ vector + net.bias_ih_l0).chunk(3)
        own_r, own_z, own_n = (net.weight_hh_l0 @ state + net.bias_hh_l0).chunk(3)
        keep = sigmoid(new_z + own_z)
        state = (1 - keep) * torch.tanh(new_n + sigmoid(new_r + own_r) * own_n) + keep * state
        states.append(state)
    return states


def both_ways(module, vectors):
    for there, back in zip(module.forwards, module.backwards, strict=True):
        right, left = gru(there, vectors), gru(back, vectors[::-1])[::-1]
        vectors = [torch.cat(pair) for pair in zip(right, left, strict=True)]
    return vectors


def transformer(module, vectors):
    if not vectors:
        return []
    return list(naive.encoder(module, torch.stack(vectors)[None], Allowed())[0])


def hierarchical(module, y, mask, encode):
    documents = []
    for b in range(y.shape[0]):
        sentences = []
        for s in range(y.shape[1]):
            words = [y[b, s, w] for w in range(y.shape[2]) if real(mask, b, s, w)]
            if words:
                words = encode(module.word_encoder, words)
                sentences.append(context_pooling(module.pool_words, words, words[0]))
        sentences = encode(module.sentence_encoder, sentences)
        documents.append(context_pooling(module.pool_sentences, sentences, module.pool_sentences.proj.weight[0]))
    return torch.stack(documents)


# A context and a question.


def bidaf(module, a, b, a_mask, b_mask):
    w = torch.cat([module.score_a.weight[0], module.score_b.weight[0], module.score_both])
    outs = []
    for n in range(a.shape[0]):
        keys = [j for j in range(b.shape[1]) if real(b_mask, n, j)]
        of_b, best = [], {}
        for i in range(a.shape[1]):
            scores = {j: (w * torch.cat([a[n, i], b[n, j], a[n, i] * b[n, j]])).sum() for j in keys}
            of_b.append(read(b[n], scores, a[n, i]))
            if scores and real(a_mask, n, i):
                best[i] = max_of([*scores.values()], None)
        of_a = read(a[n], best, a[n, 0])
        outs += [torch.cat([a[n, i], of_b[i], a[n, i] * of_b[i], a[n, i] * of_a]) for i in range(a.shape[1])]
    return torch.stack(outs).view(*a.shape[:2], -1)
