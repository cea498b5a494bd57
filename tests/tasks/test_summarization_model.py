"""The summarization model: the tests of every task's model, and its own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from mmattn.explain import capture
from mmattn.tasks.summarization.copying import CopyHead, worth_copying
from mmattn.tasks.summarization.hierarchy import HierarchicalEncoder, sentence_of
from mmattn.tasks.summarization.model import SummarizationModel
from tests.tasks.text_models import STARTS, TextModelTests, batch_of

SMALL: dict[str, Any] = {"vocab_size": 30, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "dropout": 0.0}
SMALL |= {"hierarchical": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "generated only": {"copy": False},
    "hierarchical": {"hierarchical": True},
    "window": {"attention": {"kind": "sliding_window", "window": 2}},
    "window, first": {"attention": {"kind": "sliding_window", "window": 2}, "global_tokens": "first"},
    "window, sentences": {"attention": {"kind": "sliding_window", "window": 2}, "global_tokens": "sentences"},
    "mean": {"copy": False, "pooling": "mean"},
}


class TestSummarizationModel(TextModelTests):
    task, model_class, small, variants = "summarization", SummarizationModel, SMALL, VARIANTS
    dynamic: ClassVar[dict[str, dict[int, Any]]] = TextModelTests.dynamic | STARTS
    wrong: ClassVar = [
        ({"global_tokens": "last"}, "global_tokens: expected none, first or sentences, found 'last'"),
        ({"global_tokens": "first"}, "'dense' does not support global tokens"),
        ({"pooling": "mean"}, "leaves no tokens to copy"),
        ({"hierarchical": True, "global_tokens": "first"}, "words attend within sentences"),
    ]

    @pytest.mark.slow
    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        super().test_overfits_one_batch(model, variant)


def test_pointer_generator_matches_definition() -> None:
    """Against a loop over batch, position and token."""
    head, E, V = CopyHead(8).double(), 8, 12
    states, logits, memory = torch.randn(2, 3, E).double(), torch.randn(2, 3, V).double(), torch.randn(2, 5, E).double()
    ids, mask = (
        torch.tensor([[4, 5, 4, 6, 0], [7, 7, 7, 0, 0]]),
        torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool(),
    )
    salience = head.salience(memory)
    found = head(states, logits, memory, head.keys(memory), salience, mask, ids)
    for b in range(2):
        real = mask[b].sum()
        for t in range(3):
            scores = torch.stack([head.q_proj(states[b, t]) @ head.k_proj(memory[b, s]) for s in range(real)]) / E**0.5
            weights = (scores + salience[b, :real].sigmoid().log()).softmax(0)
            context = sum(weights[s] * memory[b, s] for s in range(real))
            gate = head.gate_proj(torch.cat([states[b, t], context])).sigmoid()
            p = gate * logits[b, t].softmax(0)
            for s in range(real):
                p[ids[b, s]] = p[ids[b, s]] + (1 - gate[0]) * weights[s]
            torch.testing.assert_close(found[b, t], p.log(), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3).double())


def test_masked_tokens_are_copied_by_copy_ids() -> None:
    model = SummarizationModel(**SMALL).eval()
    given = batch_of(2, 9)
    hidden = given | {"source_ids": torch.ones_like(given["source_ids"])}
    as_unknown = model(**hidden).logits.exp()
    as_itself = model(**hidden, copy_ids=given["source_ids"]).logits.exp()
    assert (as_unknown[..., 1] > as_itself[..., 1]).all()
    torch.testing.assert_close(as_unknown.sum(-1), as_itself.sum(-1))


def test_worth_copying() -> None:
    source, mask = torch.tensor([[5, 6, 7, 3, 6]]), torch.tensor([[True, True, True, True, False]])
    labels, label_mask = torch.tensor([[6, 9, 7, 5]]), torch.tensor([[True, True, True, False]])
    assert worth_copying(source, mask, labels, label_mask).tolist() == [[False, True, True, False, False]]


def test_sentence_level_attention() -> None:
    assert sentence_of(torch.tensor([[0, 2, 5], [0, 4, -1]]), 6).tolist() == [[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1]]
    encoder = HierarchicalEncoder(16, 1, 2, ffn_dim=24, sentence_layers=1).double().eval()
    x, mask, starts = torch.randn(1, 6, 16).double(), torch.ones(1, 6).bool(), torch.tensor([[0, 3]])
    with capture(encoder) as maps:
        encoder(x, mask, starts)
    weights = maps["pool.weights"][0]  # (1, 2, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2).double())
    assert (weights[0, 0, 3:] == 0).all()
    assert (weights[0, 1, :3] == 0).all()
    words = maps["words.layers.0.attention"][0]  # (1, h, 6, 6)
    assert (words[:, :, :3, 3:] == 0).all()
    assert (words[:, :, 3:, :3] == 0).all()
    changed = x.clone()
    changed[0, 5] += 1.0  # another sentence: affects the first word through the sentence level
    assert not torch.equal(encoder(x, mask, starts)[0, 0], encoder(changed, mask, starts)[0, 0])


def test_global_tokens_extend_the_receptive_field() -> None:
    given = batch_of(1, 12)
    changed = given | {"source_ids": given["source_ids"].clone()}
    changed["source_ids"][0, 11] = (given["source_ids"][0, 11] - 3) % 26 + 4

    def moved(**keywords: Any) -> bool:
        torch.manual_seed(0)
        options = SMALL | {"encoder_layers": 2, "attention": {"kind": "sliding_window", "window": 1}}
        model = SummarizationModel(**options, **keywords).eval()
        names = ("source_ids", "source_mask", "sentence_starts")
        a, b = (model.encode(*(one[name] for name in names)) for one in (given, changed))
        return not torch.equal(a[0, 1], b[0, 1])

    assert not moved()
    assert moved(global_tokens="first")
    assert moved(global_tokens="sentences")
