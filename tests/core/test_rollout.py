"""Rollout and head statistics against plain loops."""

import math

import pytest
import torch

from mmattn import Encoder, Mask, capture, head_statistics, rollout
from tests.conftest import refused


def maps_of(layers=3, batch=2, heads=3, L=5, S=None, key_mask=None):
    torch.manual_seed(0)
    scores = 2 * torch.randn(layers, batch, heads, L, S or L, dtype=torch.float64)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], float("-inf"))
    return list(scores.softmax(-1).unbind())


HIDDEN = torch.tensor([[True] * 5, [True, True, False, True, False]])
FUSE = {"mean": lambda found: sum(found) / len(found), "min": min, "max": max}


def naive_rollout(maps, b, heads="mean", discard=0.0, real=None):
    L = maps[0].shape[-1]
    real = [True] * L if real is None else real
    total = [[float(i == j and real[j]) for j in range(L)] for i in range(L)]
    for weights in maps:
        A = [[FUSE[heads](weights[b, :, i, j].tolist()) * (real[i] and real[j]) for j in range(L)] for i in range(L)]
        ranked = sorted(value for row in A for value in row if value > 0)
        dropped = ranked[: int(discard * len(ranked))]
        A = [[0.0 if value in dropped else value for value in row] for row in A]
        mixed = [[(A[i][j] + float(i == j and real[j])) / 2 for j in range(L)] for i in range(L)]
        mixed = [[value / (sum(row) or 1.0) for value in row] for row in mixed]
        total = [[sum(mixed[i][k] * total[k][j] for k in range(L)) for j in range(L)] for i in range(L)]
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("key_mask", [None, HIDDEN], ids=["open", "padded"])
@pytest.mark.parametrize("discard", [0.0, 0.4])
@pytest.mark.parametrize("heads", ["mean", "min", "max"])
def test_rollout_equals_naive(heads, discard, key_mask):
    maps = maps_of(key_mask=key_mask)
    found = rollout(maps, key_mask=key_mask, heads=heads, discard=discard)
    for b in range(2):
        expected = naive_rollout(maps, b, heads, discard, None if key_mask is None else key_mask[b].tolist())
        torch.testing.assert_close(found[b], expected, rtol=1e-8, atol=1e-8)
    real = torch.ones(2, 5, dtype=torch.float64) if key_mask is None else key_mask.double()
    torch.testing.assert_close(found.sum(-1), real)  # rows are distributions
    torch.testing.assert_close(found * real[:, None], found)


@pytest.mark.parametrize("discard", [0.0, 0.5])
def test_single_sample_rollout_equals_batched(discard):
    torch.manual_seed(0)
    model, x = Encoder(8, 3, 2).double(), torch.randn(2, 6, 8).double()
    key_mask = torch.arange(6) < torch.tensor([[6], [4]])
    with capture(model) as both:
        model(x, Mask(key_mask))
    with capture(model) as alone:
        model(x[1:, :4])
    padded = rollout(both, key_mask=key_mask, discard=discard)
    torch.testing.assert_close(padded[1:, :4, :4], rollout(alone, discard=discard))
    assert padded[1, 4:].abs().max() == 0
    assert padded[1, :, 4:].abs().max() == 0
    open_rows = rollout(both, discard=0.0)  # without the mask padding keeps its own rows and nothing else
    if not discard:
        torch.testing.assert_close(open_rows[1, :4], padded[1, :4])


def test_rollout_of_empty_and_single_token_samples():
    key_mask = torch.tensor([[False] * 5, [True] * 5])
    maps = maps_of()
    for weights in maps:
        weights[0] = 0.0
    found = rollout(maps, key_mask=key_mask)
    assert found[0].abs().max() == 0
    torch.testing.assert_close(rollout(maps)[0], torch.eye(5, dtype=torch.float64))  # no mixing
    assert rollout(maps_of(L=1)).flatten().tolist() == [1.0, 1.0]


def test_rollout_within_a_submodule():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": Encoder(8, 2, 2), "ab": Encoder(8, 2, 2)})
    with capture(model) as maps:
        model["a"](torch.randn(1, 3, 8))
        model["ab"](torch.randn(1, 4, 8))
    assert rollout(maps, within="a").shape == (1, 3, 3)
    torch.testing.assert_close(rollout(maps, within="ab"), rollout([w[0] for p, w in maps.items() if "ab." in p]))
    refused(r"expected \(1, h, 3, 3\), found \(1, 2, 4, 4\)", rollout, maps)
    refused("no maps within 'c'", rollout, maps, within="c")
    with capture(model) as maps:
        model["a"](torch.randn(1, 3, 8))
        model["a"](torch.randn(1, 3, 8))
    refused(r"'a.layers.0.attention' was called 2 times", rollout, maps)


def test_gradients_flow_through_rollout():
    maps = [weights.requires_grad_() for weights in maps_of()]
    assert torch.autograd.gradcheck(lambda *given: rollout(given, key_mask=HIDDEN), maps, fast_mode=True)


# Heads ----------------------------------------------------------------------------------------------------------------


def naive_statistics(weights, key_mask, query_mask, is_causal, cells=None):
    """Lists of each statistic per head; cells: (row, column) of each token, None = not on the map."""
    B, h, L, S = weights.shape

    def rows(head, keys_of):
        """(i, {key: share}) of every real query."""
        for b in range(B):
            for i in range(L):
                if query_mask is not None and not query_mask[b, i]:
                    continue
                keys = [j for j in range(S) if (key_mask is None or key_mask[b, j]) and keys_of(j)]
                total = sum(float(weights[b, head, i, j]) for j in keys)
                if total > 0:
                    yield b, i, {j: float(weights[b, head, i, j]) / total for j in keys}

    def entropy(p):
        return -sum(w * math.log(w) for w in p.values() if w > 0)

    def mean(found):
        found = list(found)
        return sum(found) / len(found) if found else math.nan

    def choices(b, i):
        keys = [j for j in range(S) if (key_mask is None or key_mask[b, j]) and (not is_causal or j <= i + S - L)]
        return len(keys)

    def placed(j):
        return cells is None or cells[j] is not None

    def far(i, j):
        return abs(i - j) if cells is None else math.dist(cells[i], cells[j])

    def distance(head):
        return mean(sum(w * far(i, j) for j, w in p.items()) for _, i, p in rows(head, placed) if placed(i))

    everything = [list(rows(head, lambda j: True)) for head in range(h)]
    found = [[mean(entropy(p) for _, _, p in everything[head]) for head in range(h)]]
    found.append(
        [mean(entropy(p) / math.log(choices(b, i)) for b, i, p in all_ if choices(b, i) > 1) for all_ in everything]
    )
    found.append([distance(head) if L == S else math.nan for head in range(h)])
    apart = []
    for a in range(h):
        others = []
        for c in range(h):
            pairs = []
            for (b, i, p), (b2, i2, q) in zip(everything[a], everything[c], strict=True):
                assert (b, i) == (b2, i2)
                middle = {j: (p[j] + q[j]) / 2 for j in p}
                pairs.append(math.sqrt(max(entropy(middle) - (entropy(p) + entropy(q)) / 2, 0.0)))
            if c != a:
                others.append(mean(pairs))
        apart.append(mean(others))
    return [*found, apart]


def check(found, maps, *given, **keywords):
    for layer, weights in enumerate(maps):
        expected = naive_statistics(weights, *given, **keywords)
        for name, ours, loops in zip(found._fields, found, expected, strict=True):
            loops = torch.tensor(loops, dtype=ours.dtype)
            torch.testing.assert_close(ours[layer], loops, rtol=1e-7, atol=1e-8, equal_nan=True, msg=name)


@pytest.mark.parametrize("key_mask", [None, HIDDEN], ids=["open", "padded"])
def test_statistics_equal_naive(key_mask):
    maps = maps_of(key_mask=key_mask)
    check(head_statistics(maps, key_mask=key_mask), maps, key_mask, key_mask, False)


def test_statistics_of_causal_maps():
    maps = [weights.tril() for weights in maps_of()]
    check(head_statistics(maps, key_mask=HIDDEN, is_causal=True), maps, HIDDEN, HIDDEN, True)


def test_statistics_of_cross_attention():
    maps = maps_of(L=3, key_mask=HIDDEN, S=5)
    query_mask = torch.tensor([[True, True, True], [True, False, True]])
    found = head_statistics(maps, key_mask=HIDDEN, query_mask=query_mask)
    check(found, maps, HIDDEN, query_mask, False)
    assert found.distance.isnan().all()


def test_statistics_on_a_grid():
    height, width = 2, 3
    cells = [None, *((row, column) for row in range(height) for column in range(width))]
    maps = maps_of(L=7)
    check(head_statistics(maps, grid=(height, width)), maps, None, None, False, cells=cells)
    ahead = [weights[..., 1:, 1:] for weights in maps]  # without a token outside the map
    check(head_statistics(ahead, grid=(height, width)), ahead, None, None, False, cells=cells[1:])


def test_statistics_edge_cases():
    """Rows that do not sum to one (sigmoid), empty rows, negative weights (differential), one head, one token."""
    maps = maps_of()
    maps[0][:, :, 1] = 0.0
    maps[1] *= 0.3
    check(head_statistics(maps), maps, None, None, False)
    signed = maps_of()[0] - 0.1
    torch.testing.assert_close(head_statistics([signed]), head_statistics([signed.clamp_min(0.0)]))
    alone = head_statistics(maps_of(heads=1))
    assert alone.disagreement.isnan().all()
    assert alone.entropy.isfinite().all()
    single = head_statistics(maps_of(L=1))
    assert single.entropy.abs().max() == 0
    assert single.relative_entropy.isnan().all()  # only one key


def test_invalid_arguments():
    maps = maps_of()
    refused(r"found \[2, 3\]", head_statistics, [maps[0], maps[1][:, :2]])
    sizes = r"key_mask must be \(2, 5\) for a map \(2, 3, 5, 5\), found \(2, 4\)"
    refused(sizes, head_statistics, maps, key_mask=HIDDEN[:, :4])
    refused("a grid of 2 x 3 cells does not fit a map of 5 tokens", head_statistics, maps, grid=(2, 3))
    refused("a grid needs self-attention", head_statistics, maps_of(L=3, S=5), grid=(1, 3))
    refused(r"expected maps \(B, h, L, S\)", rollout, [maps[0][0]])
    refused("there are no maps", rollout, {})
    refused("unknown heads 'sum'", rollout, maps, heads="sum")
    refused("discard must be from 0 to below 1", rollout, maps, discard=1.0)
