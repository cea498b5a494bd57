"""The models of text classification: the tests of every task's model, of each encoder and kind of label."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.backbones.deberta import DebertaEncoder, DisentangledAttention, PairBias, distance_buckets
from mmattn.masks import Mask
from mmattn.tasks.text_classification.model import TextClassificationModel, TextHead
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"vocab_size": 30, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "num_layers": 2}
SINGLE = {"": ["single_label", 3]}
TAGS = {"": ["tagging", 4]}
BOTH = {"a": ["single_label", 3], "b": ["tagging", 4], "c": ["multi_label", 2]}
DYNAMIC = {0: Dim("batch", max=64), 1: Dim("length", max=64)}


class TestTextClassificationModel(TaskModelTests):
    task = "text_classification"
    exported_elsewhere = True  # test_fit_contract.py
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "characters": {"characters": 5, "num_characters": 12},
        "recurrent": {"encoder": "recurrent"},
        "bag": {"encoder": "bag", "pooling": "mean"},
        "tagging": {"heads": TAGS, "hidden": "tanh"},
        "several": {"heads": BOTH},
        "window": {"attention": {"kind": "sliding_window", "window": 3}},
        "bert": {"encoder": "bert", "text_options": {"embed_dim": 16, "num_layers": 2, "num_heads": 2}},
        "albert": {
            "encoder": "bert",
            "text_options": {"embed_dim": 16, "num_layers": 4, "num_heads": 2, "num_groups": 2},
        },
        "modernbert": {
            "encoder": "modernbert",
            "text_options": {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "window": 2},
        },
        "deberta": {
            "encoder": "deberta",
            "text_options": {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "buckets": 4},
        },
    }
    wrong: ClassVar = [
        ({"encoder": "lstm"}, "expected an encoder of own, recurrent"),
        ({"pooling": "max"}, "a pooling of attention, mean, first"),
        ({"encoder": "bert"}, "text_options: expected with an encoder of public weights"),
        ({"encoder": "recurrent", "attention": {"kind": "linear"}}, "has no self-attention"),
        ({"encoder": "hierarchical", "heads": TAGS}, "expected labels of whole texts"),
        ({"encoder": "hierarchical", "language": True}, "expected no masked language model"),
        ({"characters": 4, "language": True}, "which would read the hidden words"),
        ({"hidden": "step"}, "hidden: expected one of"),
        ({"attention": {"kind": "monotonic"}}, "'monotonic' does not support"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {
        **dict.fromkeys(("input_ids", "key_mask", "token_types", "characters"), DYNAMIC),
        "word_starts": {0: DYNAMIC[0], 1: Dim("words", max=64)},
    }

    def build(self, **keywords: Any) -> nn.Module:
        given = {"heads": SINGLE, "dropout": 0.0, **keywords}
        if "text_options" in given:
            return TextClassificationModel(30, **given)
        return TextClassificationModel(**{**SMALL, **given})

    @pytest.fixture
    def model(self, variant: str) -> nn.Module:
        torch.manual_seed(0)
        built = self.build(**self.variants[variant])
        self.names = built.inputs
        return built

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        length += 4
        ids = torch.randint(1, 30, (batch, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([[max(4, length - n)] for n in range(batch)])
        types = (torch.arange(length) >= 3).long().expand(batch, length) * mask
        found = {"input_ids": ids.masked_fill(~mask, 0), "key_mask": mask, "token_types": types}
        found["word_starts"] = torch.arange(0, 4, 2).expand(batch, 2).clone()
        found["characters"] = torch.randint(1, 12, (batch, length, 5), generator=generator)
        return {name: found[name] for name in getattr(self, "names", ("input_ids", "key_mask", "token_types"))}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        sides = {"word_starts": (0, 0), "characters": (0, 0, 0, extra)}
        return {name: nn.functional.pad(value, sides.get(name, (0, extra))) for name, value in inputs.items()}

    def heads(self) -> Any:
        head = TextHead(12, 5, hidden="gelu", norm=True, bias=False)
        return [(TextHead(7, 3), (torch.randn(2, 7),), [(2, 3)]), (head, (torch.randn(2, 9, 12),), [(2, 9, 5)])]

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        inputs, targets = self.inputs(8, 6), torch.randint(3, (8,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

        def loss() -> Tensor:
            output = model(**inputs)
            scores = output.logits[:, :3] if output.logits.shape[1] else output.tag_logits[:, 0, :3]
            return nn.functional.cross_entropy(scores, targets)

        assert learn(optimizer, 80, loss)[-1] < 0.2


def test_scores_of_several_tasks_are_apart() -> None:
    model = TextClassificationModel(**SMALL, heads=BOTH)
    assert model.slices == {"a": slice(0, 3), "b": slice(0, 4), "c": slice(3, 5)}
    assert model.inputs == ("input_ids", "key_mask", "token_types", "word_starts")
    ids = torch.randint(4, 30, (2, 6))
    given = (ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
    output = model(*given, torch.tensor([[0, 2, 4], [1, 3, -1]]))
    assert (output.logits.shape, output.tag_logits.shape) == ((2, 5), (2, 3, 4))
    refused("word_starts: expected the first token", model, *given)
    refused("too long: max_len=128", model, *(torch.zeros(1, 129, dtype=torch.long),) * 3)


def test_order_and_negation_change_the_scores() -> None:
    model = TextClassificationModel(**SMALL, heads=SINGLE).eval()
    bag = TextClassificationModel(**SMALL, heads=SINGLE, encoder="bag", pooling="mean").eval()
    ids = torch.randint(4, 30, (2, 6))
    mask, types = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    for one, same in ((model, False), (bag, True)):
        found = torch.allclose(one(ids, mask, types).logits, one(ids.flip(1), mask, types).logits, atol=1e-6)
        assert found is same


def test_hierarchical_model() -> None:
    """The sentences and their padding; a document alone and in a batch; a program with dynamic sizes."""
    model = TextClassificationModel(**SMALL, heads=SINGLE, encoder="hierarchical", dropout=0.0).double().eval()
    ids = torch.randint(4, 30, (2, 3, 5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 2], mask[1, :, 3:] = False, False
    logits = model(ids, mask, torch.zeros_like(ids)).logits
    wider, longer = nn.functional.pad(ids, (0, 2, 0, 1)), nn.functional.pad(mask, (0, 2, 0, 1))
    torch.testing.assert_close(logits, model(wider, longer, torch.zeros_like(wider)).logits, atol=1e-8, rtol=0)
    alone = model(ids[:1, :2], mask[:1, :2], torch.zeros_like(ids[:1, :2])).logits
    torch.testing.assert_close(logits[:1], alone, atol=1e-8, rtol=0)


def test_masked_language_model() -> None:
    model = TextClassificationModel(**SMALL, heads={}, language=True)
    ids = torch.randint(4, 30, (2, 6))
    states = model.states(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
    assert model.token_logits(states).shape == (2, 6, 30)
    plain = TextClassificationModel(**SMALL, heads=SINGLE)
    refused("expected a masked language model", plain.token_logits, states)


def test_distance_buckets() -> None:
    """Small distances are apart, large ones share buckets, to the last; opposite offsets have opposite ones."""
    offsets = torch.arange(-600, 601)
    found = distance_buckets(offsets, 8, 512)
    assert found[offsets.abs() <= 4].tolist() == list(range(-4, 5))
    assert found.flip(0).tolist() == (-found).tolist()
    assert found[offsets == 511].item() == 7
    assert (found.diff() >= 0).all()
    assert torch.equal(distance_buckets(offsets, 0, 512), offsets)


def naive_disentangled(attention: Any, x: Tensor, table: Tensor) -> Tensor:
    """The scores of He et al. 2021, equation 4, one pair after another."""
    q, k, v = (getattr(attention, f"{name}_proj")(x).unflatten(-1, (attention.num_heads, -1)) for name in "qkv")
    keys, queries = (
        getattr(attention, f"{name}_proj")(table).unflatten(-1, (attention.num_heads, -1)) for name in "kq"
    )
    length, span = len(x), attention.span
    out = torch.zeros_like(q)
    for head in range(attention.num_heads):
        scores = torch.zeros(length, length, dtype=x.dtype)
        for i in range(length):
            for j in range(length):
                place = int(distance_buckets(torch.tensor(i - j), attention.buckets, attention.max_distance)) + span
                place = min(max(place, 0), 2 * span - 1)
                content = q[i, head] @ k[j, head]
                scores[i, j] = content + q[i, head] @ keys[place, head] + k[j, head] @ queries[place, head]
        out[:, head] = (scores / (3 * q.shape[-1]) ** 0.5).softmax(-1) @ v[:, head]
    return attention.out_proj(out.flatten(1))


def test_disentangled_attention_equals_a_loop() -> None:
    attention = DisentangledAttention(8, 2, buckets=3, max_distance=6).double().eval()
    x, table = torch.randn(7, 8).double(), torch.randn(6, 8).double()
    found = attention(x[None], query_pos=table[None])[0]
    torch.testing.assert_close(found, naive_disentangled(attention, x, table), atol=1e-10, rtol=0)
    refused("with embeddings of relative positions", attention, x[None])
    refused("has no value for an offset", PairBias(torch.zeros(1, 2, 3, 3)).offsets, torch.tensor([1]))
    mask = Mask(torch.tensor([[True] * 5 + [False] * 2]))
    masked = attention(x[None], mask=mask, query_pos=table[None])[0, :5]
    torch.testing.assert_close(masked, attention(x[None, :5], query_pos=table[None])[0], atol=1e-10, rtol=0)


def test_explained_disentangled_attention() -> None:
    """Captured maps, which the kernel's weights compute, give the outputs of the fused path."""
    from mmattn.explain import capture

    encoder = DebertaEncoder(20, 8, 2, 2, buckets=4).double().eval()
    ids = torch.randint(20, (2, 6))
    with torch.no_grad(), capture(encoder) as maps:
        captured = encoder(ids).states
        assert len(maps) == 2
    torch.testing.assert_close(captured, encoder(ids).states, atol=1e-10, rtol=0)
    refused(
        "a text of 7 tokens is too long: max_len=6", DebertaEncoder(20, 8, 1, 2, max_len=6), torch.zeros(1, 7).long()
    )
