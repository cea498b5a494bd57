"""The models of question answering: the tests of every task's model, and the parity of public heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.qa.model import QAModel, SpanHead
from tests.conftest import learn
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"vocab_size": 30, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "num_layers": 2}
DYNAMIC = {0: Dim("batch", max=64), 1: Dim("length", max=64)}
ASKED = 3  # tokens of the question


class TestQAModel(TaskModelTests):
    task = "qa"
    exported_elsewhere = True  # test_fit_contract.py
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"evidence": True},
        "recurrent": {"encoder": "recurrent"},
        "mean": {"pooling": "mean"},
        "without convolutions": {"convolution": 0},
        "window": {"attention": {"kind": "sliding_window", "window": 3}},
        "linear": {"attention": {"kind": "linear"}},
        "bert": {"encoder": "bert", "text_options": {"embed_dim": 16, "num_layers": 2, "num_heads": 2}},
    }
    wrong: ClassVar = [
        ({"encoder": "lstm"}, "expected an encoder of own, bert, recurrent"),
        ({"encoder": "bert"}, "text_options: expected with encoder bert"),
        ({"encoder": "recurrent", "pooling": "mean"}, "pooling: expected attention"),
        ({"encoder": "recurrent", "attention": {"kind": "linear"}}, "has no self-attention"),
        ({"convolution": 4}, "expected an odd number"),
        ({"attention": {"kind": "monotonic"}}, "'monotonic' does not support"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = dict.fromkeys(("input_ids", "key_mask", "token_types"), DYNAMIC)

    def build(self, **keywords: Any) -> nn.Module:
        if keywords.get("encoder") == "bert":
            return QAModel(30, **keywords)
        return QAModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        length += 6
        ids = torch.randint(1, 30, (batch, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([[max(6, length - n)] for n in range(batch)])
        types = (torch.arange(length) >= ASKED).long().expand(batch, length) * mask
        return {"input_ids": ids.masked_fill(~mask, 0), "key_mask": mask, "token_types": types}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        return {name: nn.functional.pad(value, (0, extra)) for name, value in inputs.items()}

    def test_padding_invariance(self, model: nn.Module) -> None:
        """Scores of padding are not used."""
        model, inputs = model.double().eval(), self.inputs(3, 5)
        mask = inputs["key_mask"]
        for mine, theirs in zip(model(**inputs), model(**self.pad(inputs, 4)), strict=True):
            if mine.shape[1]:
                torch.testing.assert_close(mine[mask], theirs[:, : mine.shape[1]][mask], atol=1e-8, rtol=0)

    def heads(self) -> Any:
        return [(SpanHead(12), (torch.randn(3, 9, 12),), [(3, 9), (3, 9)])]

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        inputs, targets = self.inputs(8, 6), torch.randint(ASKED, 6, (8,))
        distinct = torch.stack([torch.randperm(29)[:12] + 1 for _ in range(8)])  # equal words of a text score alike
        inputs["input_ids"] = distinct.masked_fill(~inputs["key_mask"], 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        assert (
            learn(optimizer, 80, lambda: nn.functional.cross_entropy(model(**inputs).start_logits, targets))[-1] < 0.1
        )

    def test_the_question_changes_the_scores(self, model: nn.Module) -> None:
        model, inputs = model.eval(), self.inputs(2, 6)
        other = {**inputs, "input_ids": inputs["input_ids"].clone()}
        other["input_ids"][:, 1] = (other["input_ids"][:, 1] + 7) % 28 + 1
        assert not torch.allclose(model(**inputs).start_logits[:, ASKED:], model(**other).start_logits[:, ASKED:])


FAMILIES = ("Bert", "Roberta", "DistilBert", "Electra")


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_equal_transformers(family: str, tmp_path: Path, pair_tokenizer: Any) -> None:
    """Twenty random shapes, pairs with padding, in float64."""
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, f"{family}ForQuestionAnswering")
    for seed in range(20):
        torch.manual_seed(seed)
        width, heads = 8 * (1 + seed % 3), 1 + seed % 2
        names = {"dim": width, "n_layers": 1 + seed % 2, "n_heads": heads, "hidden_dim": 24}
        if family != "DistilBert":
            names = {"hidden_size": width, "num_hidden_layers": 1 + seed % 2, "num_attention_heads": heads}
            names |= {"intermediate_size": 24}
        if family == "Electra":
            names |= {"embedding_size": 8 if seed % 2 else width}
        if family == "Roberta":
            names |= {"pad_token_id": 0, "type_vocab_size": 1}
        config = kind.config_class(vocab_size=30, max_position_embeddings=48, **names)
        theirs = kind(config).double().eval()
        folder = tmp_path / str(seed)
        theirs.float().save_pretrained(folder)
        theirs.double()
        pair_tokenizer.save(str(folder / "tokenizer.json"))
        parts = read_parts("qa", folder)
        assert not parts.headless
        ours = parts.build(parts.keywords).double().eval()
        length = 9 + seed
        ids = torch.randint(5, parts.keywords["vocab_size"], (3, length))
        mask = torch.arange(length) < torch.tensor([[length], [length - 2], [length - 5]])
        types = (torch.arange(length) >= 4).long().expand(3, length) * mask
        given: dict[str, Any] = {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}
        if family in ("Bert", "Electra"):
            given["token_type_ids"] = types
        wanted, found = (
            theirs(**given),
            ours(given["input_ids"], mask, types if "token_type_ids" in given else 0 * types),
        )
        for mine, other in ((found.start_logits, wanted.start_logits), (found.end_logits, wanted.end_logits)):
            torch.testing.assert_close(mine[mask], other[mask], atol=1e-8, rtol=0)
