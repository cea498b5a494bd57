"""Tests of every text-to-text model, in addition to those of every task's model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.explain import capture
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.seq2seq.model import token_loss
from tests.conftest import learn
from tests.tasks.base import TaskModelTests

SEARCH: dict[str, Any] = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_new_tokens": 8}
BATCH, LENGTH = Dim("batch", max=64), Dim("length", max=128)
SOURCE: dict[str, dict[int, Any]] = {name: {0: BATCH, 1: LENGTH} for name in ("source_ids", "source_mask")}
STARTS = {"sentence_starts": {0: BATCH, 1: Dim("sentences", max=128)}}


def batch_of(batch: int, length: int) -> dict[str, Tensor]:
    """Random texts of decreasing lengths, a sentence every three tokens, and targets that are two tokens longer."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(4, 30, (batch, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([[max(1, length - n)] for n in range(batch)])
    starts = torch.arange(0, length, 3).expand(batch, -1)
    return {
        "source_ids": ids.masked_fill(~mask, 0),
        "source_mask": mask,
        "target_ids": torch.randint(4, 30, (batch, length + 2), generator=generator),
        "sentence_starts": torch.where(starts < mask.sum(1, keepdim=True), starts, -1),
    }


class TextModelTests(TaskModelTests):
    """A subclass defines `model_class` and its keywords `small`; the variant "mean" is a baseline that must fail."""

    model_class: type[nn.Module]
    small: ClassVar[dict[str, Any]]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = SOURCE | {"target_ids": {0: BATCH, 1: Dim("target", max=128)}}

    def build(self, **keywords: Any) -> nn.Module:
        return self.model_class(**{**self.small, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in batch_of(batch, length).items() if name in self.dynamic}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        wrong = {"source_ids": 0, "source_mask": False, "sentence_starts": -1}
        padded = {n: nn.functional.pad(inputs[n], (0, extra), value=v) for n, v in wrong.items() if n in inputs}
        return {**inputs, **padded}

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        if variant == "mean":
            pytest.skip("a failing baseline")
        inputs, labels = self.inputs(6, 5), torch.randint(4, 30, (6, 7))
        inputs["target_ids"] = torch.cat([torch.full((6, 1), 2), labels[:, :-1]], dim=1)
        real = torch.ones_like(labels, dtype=torch.bool)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        assert learn(optimizer, 240, lambda: token_loss(model(**inputs).logits, labels, real))[-1] < 0.1

    @pytest.mark.parametrize("beams", [1, 3])
    def test_stepwise_equals_teacher_forcing(self, model: Any, beams: int) -> None:
        """Reordered beams keep their source."""
        model, inputs = model.double().eval(), self.inputs(3, 6)
        config = GenerationConfig(num_beams=beams, **SEARCH)
        inputs.pop("target_ids")
        beside = {name: inputs[name] for name in model.beside if name in inputs}
        found = model.generate(inputs["source_ids"], inputs["source_mask"], config, **beside)
        ids, lengths, scores = (part[:, 0].clone() for part in found)
        with torch.no_grad():
            forced = torch.cat([torch.full((3, 1), 2), ids[:, :-1]], dim=1)
            logits = model(**inputs, target_ids=forced).logits
        picked = logits.log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
        counts = torch.arange(ids.shape[1]) < lengths[:, None]
        torch.testing.assert_close((picked * counts).sum(1) / lengths, scores, atol=1e-8, rtol=0)

    def test_alignment(self, model: Any) -> None:
        model, inputs = model.eval(), self.inputs(3, 6)
        with torch.no_grad(), capture(model) as maps:
            model(**inputs)
        weights = model.alignment(maps)
        assert weights.shape == (3, 8, 6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 8))
        assert (weights.transpose(1, 2)[~inputs["source_mask"]] == 0).all()
