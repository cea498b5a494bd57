"""Naive implementations of the core: plain loops over samples, heads, queries and keys, from the definitions.

Nothing here calls the code under test; only its parameters are read.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Allowed:
    """Which query may attend to which key, from the definitions."""

    key_mask: torch.Tensor | None = None
    attn_mask: torch.Tensor | None = None
    is_causal: bool = False
    window: int | None = None
    bias: object = None  # a T5Bias or ALiBi, of which only the parameters are used
    global_mask: torch.Tensor | None = None

    def __call__(self, b, h, i, j, L, S):
        offset = j - (i + S - L)  # bottom-right aligned
        if self.key_mask is not None and not self.key_mask[b, j]:
            return False
        if self.attn_mask is not None:
            index = zip((b, h, i, j)[-self.attn_mask.dim() :], self.attn_mask.shape, strict=True)
            if not self.attn_mask[tuple(0 if size == 1 else place for place, size in index)]:
                return False
        if self.is_causal and offset > 0:
            return False
        if self.global_mask is not None and (self.global_mask[b, i + S - L] or self.global_mask[b, j]):
            return True
        return self.window is None or abs(offset) <= self.window


def bias_at(bias, h, offset):
    """The position bias of head h at key position minus query position."""
    if bias is None:
        return 0.0
    if hasattr(bias, "slopes"):  # ALiBi: the slopes of a power of two heads are powers of 2^(-8/n)
        return -(2 ** (-8 * (h + 1) / bias.num_heads)) * abs(offset)
    count, bucket = bias.num_buckets, 0
    if bias.bidirectional:
        count //= 2
        if offset > 0:
            bucket = count
    elif offset > 0:
        offset = 0
    distance, exact = abs(offset), count // 2
    if distance < exact:
        bucket += distance
    else:
        ratio = math.log(distance / exact) / math.log(bias.max_distance / exact)
        bucket += min(exact + int(ratio * (count - exact)), count - 1)
    return bias.weight[bucket, h]


def kernel(module, q, k, v, allowed, weights_of=None):
    """Any kernel: q (B, h, L, d), k (B, h_kv, S, d), v (B, h_kv, S, d_v) to (B, h, L, d_v).

    weights_of(module, q (L, d), keys (S, d), b, head, allowed) returns one {key: weight} per query; the kinds in this
    file do not need it.
    """
    B, h, L, _ = q.shape
    group = h // k.shape[1]
    rows = []
    for b in range(B):
        for head in range(h):
            keys, values = k[b, head // group], v[b, head // group]
            if weights_of is not None:
                weights = weights_of(module, q[b, head], keys, b, head, allowed)
            elif module.kind == "monotonic":
                weights = monotonic(module, q[b, head], keys, b, head, allowed)
            else:
                weights = [row(module, q[b, head], keys, b, head, i, L, allowed) for i in range(L)]
            for weight in weights:
                out = torch.zeros_like(values[0])
                for j, w in weight.items():
                    out = out + w * values[j]
                rows.append(out)
    return torch.stack(rows).view(B, h, L, v.shape[-1])


def softmax(scores):
    """The softmax of {key: score}."""
    total = sum(torch.exp(score) for score in scores.values())
    return {j: torch.exp(score) / total for j, score in scores.items()}


def shares(products):
    """{key: product} divided by their sum."""
    total = sum(products.values())
    return {j: product / total for j, product in products.items()}


def seen_by(keys, b, head, i, L, allowed):
    """The keys that query i of L may attend to."""
    return [j for j in range(len(keys)) if allowed(b, head, i, j, L, len(keys))]


def visible(q, keys, b, head, i, L, allowed):
    """The scaled scores, {key: score}, of the keys allowed for query i of q (L, d), including the position bias."""
    S, d = keys.shape
    return {
        j: (q[i] * keys[j]).sum() / math.sqrt(d) + bias_at(allowed.bias, head, j - (i + S - L))
        for j in seen_by(keys, b, head, i, L, allowed)
    }


def row(module, q, keys, b, head, i, L, allowed):
    """The weights of query i of q (L, d): {key: weight}."""
    if module.kind == "linear":
        return shares({j: (phi(q[i]) * phi(keys[j])).sum() for j in seen_by(keys, b, head, i, L, allowed)})
    scores = visible(q, keys, b, head, i, L, allowed)
    if module.kind == "additive":
        for j in scores:
            score = (module.score[head] * torch.tanh(q[i] + keys[j] + module.shift[head])).sum()
            scores[j] = score + bias_at(allowed.bias, head, j - (i + len(keys) - L))
    if module.kind == "sigmoid" and head < module.num_sigmoid_heads:
        return {j: 1 / (1 + torch.exp(-(score + module.bias[head]))) for j, score in scores.items()}
    return softmax(scores)


def phi(x):
    return torch.where(x > 0, x + 1, torch.exp(x))


def monotonic(module, q, keys, b, head, allowed):
    """Raffel et al. 2017: algorithm 1 in evaluation, its expectation in training; chunks of Chiu and Raffel 2018."""
    (L, d), S = q.shape, keys.shape[0]
    last = [1.0] + [0.0] * (S - 1)
    position, weights = 0, []
    for i in range(L):
        p = []
        for j in range(S):
            energy = module.gain[head] * (q[i] * keys[j]).sum() / math.sqrt(d) + module.offset[head]
            p.append(1 / (1 + torch.exp(-energy)) if allowed(b, head, i, j, L, S) else 0.0)
        if not module.training:
            while position < S and p[position] <= 0.5:
                position += 1
            stops = {position: 1.0} if position < S else {}
        else:
            now = []
            for j in range(S):
                reach = 0.0
                for start in range(j + 1):
                    passed = last[start]
                    for between in range(start, j):
                        passed = passed * (1 - p[between])
                    reach = reach + passed
                now.append(p[j] * reach)
            last = now
            stops = dict(enumerate(now))
        weights.append(stops if module.chunk == 1 else chunks(module, q[i], keys, b, head, i, L, allowed, stops))
    return weights


def chunks(module, q, keys, b, head, i, L, allowed, stops):
    """The softmax over the keys up to each stop, weighted by the probability of the stop."""
    S, d = keys.shape
    turned = sum(q[c] * module.chunk_query[head, c] for c in range(d))
    weights = {}
    for stop, probability in stops.items():
        chunk = [j for j in range(max(0, stop - module.chunk + 1), stop + 1) if allowed(b, head, i, j, L, S)]
        exponentials = [torch.exp((turned * keys[j]).sum() / math.sqrt(d)) for j in chunk]
        for j, exponential in zip(chunk, exponentials, strict=True):
            weights[j] = weights.get(j, 0.0) + probability * exponential / sum(exponentials)
    return weights


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def layer_norm(norm, x):
    if not hasattr(norm, "weight"):  # identity
        return x
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def head_norm(norm, x):
    """The norm of queries and keys: x (B, h, L, d)."""
    if norm is None or hasattr(norm, "bias"):
        return x if norm is None else layer_norm(norm, x)
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps) * norm.weight


def feed_forward(ffn, x):
    hidden = linear(ffn.fc1, x)
    hidden = hidden / (1 + torch.exp(-hidden)) if ffn.activation == "silu" else gelu(hidden)
    return linear(ffn.fc2, hidden if ffn.gate is None else hidden * linear(ffn.gate, x))


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def residual(module, x, sublayer):
    gamma = getattr(module.scale, "gamma", 1.0)
    if module.norm_first:
        return x + gamma * sublayer(layer_norm(module.norm, x))
    return layer_norm(module.norm, x + gamma * sublayer(x))


def rotate(x, base=10000.0):
    """Rotary positions by complex multiplication: channel i and i + d/2 are one complex number."""
    L, half = x.shape[-2], x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    rows = []
    for position in range(L):
        angles = torch.tensor([position * base ** (-i / half) for i in range(half)], dtype=x.dtype)
        rows.append(pairs[..., position, :] * torch.complex(angles.cos(), angles.sin()))
    turned = torch.stack(rows, dim=-2)
    return torch.cat([turned.real, turned.imag], dim=-1)


def attention(module, query, key=None, allowed=None, bias=None, query_pos=0.0, key_pos=0.0):
    """MultiHeadAttention."""
    source, key_pos = (query, query_pos) if key is None else (key, key_pos)
    allowed = allowed or Allowed()
    window = getattr(module.kernel, "window", None)
    bias = module.position_bias if bias is None else bias
    allowed = Allowed(allowed.key_mask, allowed.attn_mask, allowed.is_causal, window, bias, allowed.global_mask)

    def heads(projection, x, count):
        projected = linear(projection, x)
        return torch.stack(projected.chunk(count, dim=-1), dim=1)  # (B, h, L, d)

    q = head_norm(module.q_norm, heads(module.q_proj, query + query_pos, module.num_heads))
    k = head_norm(module.k_norm, heads(module.k_proj, source + key_pos, module.num_kv_heads))
    v = heads(module.v_proj, source, module.num_kv_heads)
    if module.rotary is not None:
        q, k = rotate(q), rotate(k)
    out = kernel(module.kernel, q, k, v, allowed)
    return linear(module.out_proj, torch.cat(out.unbind(1), dim=-1))


def encoder_layer(layer, x, allowed, bias=None):
    x = residual(layer.attention_residual, x, lambda n: attention(layer.attention, n, None, allowed, bias))
    return residual(layer.ffn_residual, x, lambda n: feed_forward(layer.ffn, n))


def encoder(module, x, allowed):
    for layer in module.layers:
        x = encoder_layer(layer, x, allowed, module.position_bias)
    return layer_norm(module.norm, x)


def decoder_layer(layer, x, memory, allowed, memory_allowed, bias=None):
    x = residual(layer.self_residual, x, lambda n: attention(layer.self_attention, n, None, allowed, bias))
    x = residual(layer.cross_residual, x, lambda n: attention(layer.cross_attention, n, memory, memory_allowed))
    return residual(layer.ffn_residual, x, lambda n: feed_forward(layer.ffn, n))


def decoder(module, x, memory, allowed, memory_allowed):
    for layer in module.layers:
        x = decoder_layer(layer, x, memory, allowed, memory_allowed, module.position_bias)
    return layer_norm(module.norm, x)


def cross_modal(module, a, b, a_allowed, b_allowed):
    na, nb = (layer_norm(module.norm_a, a), layer_norm(module.norm_b, b)) if module.norm_first else (a, b)
    new_a = a + attention(module.a_to_b, na, nb, b_allowed)
    new_b = b + attention(module.b_to_a, nb, na, a_allowed)
    if module.norm_first:
        return new_a, new_b
    return layer_norm(module.norm_a, new_a), layer_norm(module.norm_b, new_b)


def co_attention(module, a, b, a_allowed, b_allowed):
    for layer in module.layers:
        a, b = cross_modal(layer.exchange, a, b, a_allowed, b_allowed)
        a = residual(layer.ffn_residual_a, a, lambda n, m=layer: feed_forward(m.ffn_a, n))
        b = residual(layer.ffn_residual_b, b, lambda n, m=layer: feed_forward(m.ffn_b, n))
        a, b = encoder_layer(layer.layer_a, a, a_allowed), encoder_layer(layer.layer_b, b, b_allowed)
    return layer_norm(module.norm_a, a), layer_norm(module.norm_b, b)


def pooling(module, x, allowed):
    queries = torch.stack([module.queries] * x.shape[0])
    return attention(module.attention, queries, layer_norm(module.norm, x), allowed)
