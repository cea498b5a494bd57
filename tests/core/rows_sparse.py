"""The rows of sparse and lsh, and transformers' BigBird and Reformer with the same weights."""

from dataclasses import replace

import naive
import naive_sparse
import torch
from cases import HEAD_DIM, HEADS, V_HEAD_DIM, kernel
from checks import difference

from mmattn import Mask, build_kernel
from mmattn.kernels.lsh import LSH


def bigbird():
    """Each sample against transformers' block-sparse layer with our random blocks: full, with a hole, padded."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    block, heads, d, length = 4, 2, 6, 64
    torch.manual_seed(0)
    sizes = {"hidden_size": heads * d, "num_attention_heads": heads, "max_position_embeddings": length}
    config = BigBirdConfig(**sizes, block_size=block, num_random_blocks=2)
    theirs = BigBirdBlockSparseAttention(config).double().eval()
    ours = build_kernel("sparse", {"block": block, "num_random": 2, "seed": 3}, num_heads=heads, head_dim=d).double()
    x = torch.randn(3, length, heads * d, dtype=torch.float64)
    real = torch.ones(3, length, dtype=torch.bool)
    real[0, 20:31] = False
    real[1, -3:] = False  # within the last block
    real[2, 48:] = False  # four blocks fewer: as a single sample its length is 48
    worst = 0.0

    q, k, v = (f(x).unflatten(-1, (heads, d)).transpose(1, 2) for f in (theirs.query, theirs.key, theirs.value))
    out = ours(q, k, v, Mask(real)).transpose(1, 2).flatten(2)
    assert not torch.equal(out, ours(q, k, v, Mask(real.flip(0))).transpose(1, 2).flatten(2))
    for sample, size in ((0, length), (1, length), (2, 48)):
        n = size // block
        index, seen = ours.plan(torch.arange(1, n - 1), torch.tensor(n).view(1, 1, 1, 1), False)
        assert seen[..., -2:].all()
        theirs._bigbird_block_rand_mask_with_head = lambda plan=index[0, :, :, -2:], **_: plan.numpy()
        masks = BigBirdModel.create_masks_for_block_sparse_attn(real[sample : sample + 1, :size].double(), block)
        blocked, band, row, column = masks
        expected = theirs(x[sample : sample + 1, :size], band, row, column, blocked, blocked)[0]
        kept = real[sample, :size]
        worst = max(worst, difference(out[sample, :size][kept], expected[0][kept]))
    return worst


def reformer():
    """Against transformers' LSH layer with our rotations: plain, with a hole and padding in the last chunk, causal."""
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    chunk, heads, d, length, rounds, buckets = 8, 2, 6, 48, 3, 6
    torch.manual_seed(0)
    x = torch.randn(2, length, heads * d, dtype=torch.float64)
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, 9:11] = real[1, -3:] = False
    worst = 0.0
    for is_causal in (False, True):
        sizes = {"hidden_size": heads * d, "num_attention_heads": heads, "attention_head_size": d}
        sizes |= {"num_hashes": rounds, "num_buckets": buckets, "lsh_attn_chunk_length": chunk}
        after = 0 if is_causal else 1
        config = ReformerConfig(**sizes, lsh_num_chunks_after=after, is_decoder=is_causal, hash_seed=7)
        theirs = LSHSelfAttention(config, layer_idx=0).double().eval()
        ours = LSH(heads, d, num_hashes=rounds, num_buckets=buckets, chunk=chunk, across_buckets=True).double()
        torch.manual_seed(config.hash_seed)
        rotations = torch.randn(heads, d, rounds, buckets // 2, dtype=torch.float64)
        ours.rotations.copy_(rotations.permute(0, 2, 1, 3)[None])
        q, v = (f(x).unflatten(-1, (heads, d)).transpose(1, 2) for f in (theirs.query_key, theirs.value))
        for mask in (None, real):
            expected = theirs(x, attention_mask=mask)
            if mask is None:
                names = ours.buckets(q, torch.full((2,), length)) + buckets * torch.arange(rounds)[:, None]
                assert torch.equal(names, expected.buckets)
            kept = real if mask is not None else torch.ones_like(real)
            out = ours(q, q, v, Mask(mask, is_causal=is_causal)).transpose(1, 2).flatten(2)
            worst = max(worst, difference(out[kept], expected.hidden_states[kept]))
    return worst


def shared(x, y):
    q, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (x, y))
    return q, q, v


def call_lsh(module, x, y, x_mask, y_mask, is_causal):
    return module(*shared(x, y), Mask(y_mask, is_causal=is_causal)).transpose(1, 2).flatten(2)


def naive_lsh(module, x, y, x_mask, y_mask, is_causal):
    allowed = naive.Allowed(y_mask, None, is_causal)
    return naive.kernel(module, *shared(x, y), allowed, naive_sparse.lsh).transpose(1, 2).flatten(2)


def lsh(name, options, **keywords):
    """Reformer's: x holds the queries, which are the keys, y the values."""
    keywords = {"decode": None, "same_length": True, "lengths": (19, 19)} | keywords
    widths = (HEADS * HEAD_DIM, HEADS * V_HEAD_DIM)
    return replace(kernel(name, "lsh", options, **keywords), call=call_lsh, naive=naive_lsh, widths=widths)


SPARSE = {"weights": naive_sparse.sparse, "same_length": True}
SEEDED = {"num_random": 1, "seed": 5}
ACROSS = {"num_hashes": 2, "chunk": 3, "across_buckets": True}
ROWS = [
    kernel("kernel sparse", "sparse", SEEDED, block=2, lengths=(27, 27), reference=bigbird, **SPARSE),
    lsh("kernel lsh", {"num_hashes": 3, "chunk": 2}),
    # Causal chunks depend on later tokens: so does the naive loop in test_sparse.py.
    lsh("kernel lsh, across buckets", ACROSS, causal=(False,), reference=reformer),
]

# Rows that test_promises.py also asserts, without the export, which takes seconds.
MORE = [
    kernel("sparse, wide ends", "sparse", {"num_global": 2, "num_random": 2}, block=1, lengths=(19, 19), **SPARSE),
    kernel("sparse, window alone", "sparse", {"num_global": 0, "num_random": 0}, block=2, lengths=(14, 14), **SPARSE),
    lsh("lsh, 4 buckets", {"num_hashes": 2, "num_buckets": 4, "chunk": 3, "seed": 1}),
]
