"""Causal models saved by transformers generate the ids of its `generate`, padded at the left; filters equal its own."""

import pytest
import torch
from causal import FAMILIES, V, exactly, model
from public import load

from mmattn import GenerationConfig, load_generation_config
from mmattn.generate.sampling import filtered
from tests.conftest import slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

WAYS = {
    "greedy": {"max_new_tokens": 12},
    "greedy, penalties": {"max_new_tokens": 12, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "beams": {"max_new_tokens": 10, "num_beams": 4, "length_penalty": 0.7},
    "beams, several": {"max_new_tokens": 10, "num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", slow_but_first(WAYS, lambda way: way.split(",")[0]))
@pytest.mark.parametrize("family", slow_but_first(FAMILIES, lambda family: family == "gpt2"))
def test_ids_equal_transformers(family, way, tmp_path):
    for seed in (4, 9):
        _, theirs = model(family, seed)
        theirs.generation_config.update(**WAYS[way])
        theirs.save_pretrained(tmp_path)
        ours, config = load(tmp_path), load_generation_config(tmp_path)
        ids = torch.randint(3, V, (4, 8), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[1, :5] = mask[2, :1] = False
        ids = ids.masked_fill(~mask, 0)
        with torch.no_grad(), exactly():
            expected = theirs.generate(input_ids=ids, attention_mask=mask.long())[:, 8:]
        found = ours.generate(ids, mask, config)
        for mine, length, row in zip(found.ids.flatten(0, 1), found.lengths.flatten(), expected, strict=True):
            assert mine[:length].tolist() == row[:length].tolist()
        assert int(found.lengths.min()) >= 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.6, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_filtered_distributions_equal_transformers(options):
    scores = 3 * torch.randn(6, V, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    warpers = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    expected = scores
    for name, value in options.items():
        expected = warpers[name](value)(None, expected)
    found, places = filtered(scores, GenerationConfig(do_sample=True, **options))
    if places is not None:
        found = torch.full_like(scores, -torch.inf).scatter(1, places, found)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-12, rtol=0)
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
