"""Random GPT-2s, Llamas, Mistrals and Qwens: ours equal transformers' in every layer, padded at either side."""

import json

import pytest
import torch
from causal import FAMILIES, V, exactly, model
from public import SHAPES, TOLERANCE, difference, load

from mmattn.pretrained import load_pretrained
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


@torch.no_grad()
def test_a_mistral_without_the_key_has_the_window_of_transformers(tmp_path):
    """A missing sliding_window is 4096 tokens, null is none; beyond the window the two differ."""
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 8192, "vocab_size": V}
    torch.manual_seed(0)
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ids, found = torch.randint(V, (1, 4200)), []
    for given in ({}, {"sliding_window": None}):
        rest = {key: value for key, value in config.items() if key != "sliding_window"}
        (tmp_path / "config.json").write_text(json.dumps(rest | given))
        theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        found.append(load_pretrained(tmp_path)(ids)[:, -8:])
        torch.testing.assert_close(found[-1], theirs(ids, logits_to_keep=8).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*found, rtol=1e-3, atol=1e-3)
