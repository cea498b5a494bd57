"""MiniLM's public weights, if the package is installed."""

import minilm
import pytest
import torch

from mmattn import capture

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder():
    found = minilm.locate()
    if found is None:
        pytest.skip(f"MiniLM: {minilm.INSTALL}")
    return found


def test_embeddings_equal_transformers(folder):
    pytest.importorskip("transformers")
    for row in minilm.compare(folder, (8,)):
        assert row.difference <= minilm.TOLERANCE
        assert row.padded > 0.2  # the batches contain padding


def test_similarities_and_attention_maps(folder):
    """Similar sentences have similar embeddings; single equals padded batch; attention maps can be captured."""
    ours = minilm.Ours(folder)
    texts = ["The cat sleeps on the sofa.", "A kitten is napping on the couch.", "Interest rates rose by one percent."]
    vectors, _ = ours(texts)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6 > 0.2 > likeness[0, 2]
    torch.testing.assert_close(ours(texts[:1])[0], vectors[:1], atol=1e-5, rtol=0)
    with capture(ours.model) as maps:
        captured, _ = ours(texts)
    torch.testing.assert_close(captured, vectors, atol=1e-5, rtol=0)
    assert len(maps) == 6


def test_comparison_detects_differences(folder):
    ours, theirs = minilm.Ours(folder), minilm.Theirs(folder)
    with torch.no_grad():
        ours.model.encoder.layers[3].attention.k_proj.weight[0, 0] += 1.0
    texts = minilm.sentences(8)
    assert float((ours(texts)[0] - theirs(texts)[0]).abs().max()) > 10 * minilm.TOLERANCE
