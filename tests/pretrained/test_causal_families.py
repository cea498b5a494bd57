"""Random GPT-2s, Llamas, Mistrals and Qwens: ours equal transformers' in every layer, padded at either side."""

import pytest
import torch
from causal import FAMILIES, V, exactly, model
from public import SHAPES, TOLERANCE, difference, load

from tests.conftest import slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@torch.no_grad()
def compare(family, seed, folder):
    """The difference of ours from theirs: the logits and the output of each layer, at real tokens."""
    draw, theirs = model(family, seed)
    theirs.save_pretrained(folder)
    ours = load(folder)
    assert (ours.output.weight is ours.embedding.weight) == theirs.config.tie_word_embeddings
    length = draw.randint(4, 14)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (3, length), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, : draw.randint(1, length - 1)] = False  # prompts are padded at the left
    mask[2, draw.randint(1, length - 1) :] = False
    ids = ids.masked_fill(~mask, 0)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with exactly():
        expected = theirs(input_ids=ids, attention_mask=mask.long(), position_ids=positions, output_hidden_states=True)
    states = [*ours.hidden_states(ids, mask)[:-1], ours.states(ids, mask)]
    found = difference([s[mask] for s in states], [s[mask] for s in expected.hidden_states])
    return max(found, difference([ours(ids, mask)[mask]], [expected.logits[mask]]))


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", FAMILIES)
def test_parity(family, seed, tmp_path):
    assert compare(family, seed, tmp_path) <= TOLERANCE
