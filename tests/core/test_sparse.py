"""Properties specific to sparse and lsh: patterns, buckets, chunks."""

import naive
import naive_sparse
import pytest
import rows_sparse
import torch
from cases import close, draw, equals_its_map, make
from checks import TOLERANCE, apart, with_gradients

from mmattn import ALiBi, Encoder, Mask, T5Bias
from mmattn.kernels import gather_attention


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(gather_attention, "SCORES", 300)


@pytest.mark.parametrize("kind", ["sparse", "lsh"])
@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_chunked_equals_full(kind, precision, small_chunks, monkeypatch):
    """Backward recomputes the attention in the precision of forward: gradients equal those of autograd in one chunk."""
    kernel = (make(kind, chunk=4) if kind == "lsh" else make(kind, block=2, num_random=1)).float()
    found = []
    for at_once in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda at_once=at_once: at_once)
        torch.manual_seed(0)
        q, k, v = (x.float().requires_grad_() for x in draw(2, 2, 40, 40))
        mask = Mask(torch.arange(40) < torch.tensor([[40], [25]]), bias=T5Bias(2))
        with torch.autocast("cpu", precision, enabled=precision is not None):
            out = kernel(q, q if kernel.shares_qk else k, v, mask)
        out.float().square().sum().backward()
        found.append((out, q.grad, v.grad, mask.bias.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


class TestSparse:
    @pytest.mark.parametrize("L", [1, 3, 48, 49, 101])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("bias", [None, ALiBi(2), T5Bias(2)], ids=["no bias", "ALiBi", "T5"])
    def test_blocks_equal_the_pattern(self, L, is_causal, bias, small_chunks):
        kernel, (q, k, v) = make("sparse", block=4, num_random=2), draw(3, 2, L, L, h_kv=1)
        key_mask = torch.rand(3, L) > 0.3
        key_mask[0, L // 2 :] = False
        mask = Mask(key_mask, is_causal=is_causal, bias=None if bias is None else bias.double())
        equals_its_map(kernel, q, k, v, mask)

    @pytest.mark.parametrize("real", [1, 7, 8, 41, 79])
    def test_padding_of_many_blocks_has_no_effect(self, real):
        kernel, (q, k, v) = make("sparse", block=2, num_random=2), draw(2, 2, 80, 80)
        key_mask = torch.ones(2, 80, dtype=torch.bool)
        key_mask[1, real:] = False
        for is_causal in (False, True):
            alone = kernel(*(x[1:, :, :real] for x in (q, k, v)), Mask(is_causal=is_causal))
            close(kernel(q, k, v, Mask(key_mask, is_causal=is_causal))[1:, :, :real], alone)

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("num_global", [0, 1, 2])
    def test_no_block_is_attended_twice(self, is_causal, num_global):
        kernel = make("sparse", num_global=num_global, num_random=3)
        for n in (1, 2, 5, 8, 30):
            index, seen = kernel.plan(torch.arange(n), torch.tensor(n).view(1, 1, 1, 1), is_causal)
            for head in range(2):
                for i in range(n):
                    blocks = index[0, head, i][seen[0, head, i]].tolist()
                    assert len(set(blocks)) == len(blocks)
                    assert all(0 <= j < (i + 1 if is_causal else n) for j in blocks)
                    others = i - 1 - num_global if is_causal else n - 2 * num_global - 3
                    assert len(blocks) >= min(n, 3 - is_causal - (i in (0, n - 1)) + min(3, max(0, others)))

    def test_random_blocks_are_deterministic(self):
        """And uniform: over 400 rows and 2 heads each of 20 equal parts is drawn about equally often."""
        kernel, count = make("sparse", seed=3), torch.tensor(400).view(1, 1, 1, 1)
        index, seen = kernel.plan(torch.arange(400), count, False)
        drawn = index[0, :, 2:-2, -3:]
        assert drawn[:, 10].tolist() == [[31, 233, 364], [46, 185, 341]]
        assert seen[0, :, 2:-2, -3:].all()
        parts = torch.histc(drawn.double(), bins=20, min=0, max=400)
        assert parts.min() > 85
        assert parts.max() < 155
        assert not torch.equal(index, make("sparse", seed=4).plan(torch.arange(400), count, False)[0])
        assert (drawn[0] == drawn[1]).double().mean() < 0.05

    def test_longer_sequence_keeps_the_causal_past(self):
        kernel, (q, k, v) = make("sparse", block=2, num_random=2), draw(1, 2, 60, 60)
        out = kernel(q, k, v, Mask(is_causal=True))
        close(kernel(*(x[:, :, :45] for x in (q, k, v)), Mask(is_causal=True)), out[:, :, :45])


class TestLSH:
    @pytest.mark.parametrize("L", [1, 7, 8, 9, 150])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("across_buckets", [False, True])
    @pytest.mark.parametrize("num_buckets", [None, 6])
    def test_chunks_equal_explicit_map(self, L, is_causal, across_buckets, num_buckets, small_chunks):
        options = {"num_buckets": num_buckets, "across_buckets": across_buckets}
        kernel, (q, _, v) = make("lsh", num_hashes=3, chunk=8, **options), draw(3, 2, L, L)
        key_mask = torch.rand(3, L) > 0.3
        key_mask[0, L // 2 :] = False
        for bias in (None, T5Bias(2).double()):
            mask = Mask(key_mask, is_causal=is_causal, bias=bias)
            equals_its_map(kernel, q, q, v, mask)

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_across_buckets_equals_naive(self, is_causal):
        """Also causal, for which there is no row, since its chunks depend on later tokens."""
        row = rows_sparse.lsh("", {"num_hashes": 3, "num_buckets": 4, "chunk": 4, "across_buckets": True})
        module, (x, y) = row.module(), row.inputs()
        y_mask = torch.rand(2, 19) > 0.2
        found = with_gradients(row.call, module, x, y, None, y_mask, is_causal)
        expected = with_gradients(row.naive, module, x, y, None, y_mask, is_causal)
        assert apart(found, expected) <= TOLERANCE

    def test_bias_equals_naive(self):
        kernel, (q, _, v), bias = make("lsh", num_hashes=2, chunk=3), draw(2, 2, 20, 20), T5Bias(2).double()
        loop = naive.kernel(kernel, q, q, v, naive.Allowed(is_causal=True, bias=bias), naive_sparse.lsh)
        close(kernel(q, q, v, Mask(is_causal=True, bias=bias)), loop)

    @pytest.mark.parametrize("num_hashes", [1, 4])
    def test_short_sequence_is_one_bucket(self, num_hashes):
        """Regardless of how often keys collide: softmax over all others."""
        for across_buckets in (False, True):
            kernel, (q, _, v) = make("lsh", num_hashes=num_hashes, across_buckets=across_buckets), draw(2, 2, 30, 30)
            k = q / (q.square().sum(-1, keepdim=True) + 4e-6).sqrt()
            scores = (q @ k.transpose(-2, -1)).masked_fill(torch.eye(30, dtype=torch.bool), float("-inf"))
            close(kernel(q, q, v), scores.softmax(-1) @ v)

    def test_parallel_vectors_share_a_bucket(self):
        kernel, (q, _, _) = make("lsh", num_hashes=8, num_buckets=16), draw(1, 2, 200, 200)
        names = kernel.buckets(torch.cat([q, 3 * q, -q], 2), torch.tensor([600]))
        first, scaled, opposite = names.split(200, -1)
        assert torch.equal(first, scaled)
        assert torch.equal((first + 8) % 16, opposite)
        assert names.unique().tolist() == list(range(16))

    @pytest.mark.parametrize(("length", "most"), [(15, 1), (16, 4), (63, 4), (64, 16), (500, 100)])
    def test_bucket_count_follows_the_length(self, length, most):
        """Of the real tokens: about two buckets per chunk."""
        kernel, (q, _, _) = make("lsh", chunk=8), draw(1, 2, 500, 500)
        names = kernel.buckets(q, torch.tensor([length]))[:, :, :, :length]
        assert most / 4 <= names[0, 0, 0].unique().numel() <= most

    def test_rotations_follow_the_seed_and_are_not_saved(self):
        kernels = [make("lsh", seed=seed) for seed in (1, 1, 2)]
        assert torch.equal(kernels[0].rotations, kernels[1].rotations)
        assert not torch.equal(kernels[0].rotations, kernels[2].rotations)
        assert not kernels[0].state_dict()

    def test_queries_and_keys_share_a_projection(self):
        names = Encoder(16, 2, 2, attention={"kind": "lsh", "chunk": 4}).state_dict()
        assert not [name for name in names if "k_proj" in name or "rotations" in name]
