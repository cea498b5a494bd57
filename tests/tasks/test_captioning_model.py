"""The captioning model: the tests of every task's model, and its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from mmattn.explain import capture
from mmattn.generate import GenerationConfig
from mmattn.tasks.captioning.data import CaptionBatch
from mmattn.tasks.captioning.export import export_captioning
from mmattn.tasks.captioning.model import CaptioningHead, CaptioningModel
from mmattn.tasks.captioning.module import doubly_stochastic_loss, grounding_loss
from mmattn.tasks.common.grid import cell_coverage
from mmattn.tasks.common.seq2seq.model import token_loss
from tests.conftest import learn, slow_but_first
from tests.tasks.base import TaskModelTests, written_step_by_step
from tests.tasks.text_models import SEARCH

SMALL: dict[str, Any] = {"vocab_size": 30, "image_size": 32, "channels": (8, 8), "embed_dim": 16, "num_heads": 2}
SMALL |= {"ffn_dim": 24}
BATCH = Dim("batch", max=64)


class TestCaptioningModel(TaskModelTests):
    task = "captioning"
    exported_elsewhere = True  # test_encoder_and_step_are_exported
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"num_object_labels": 3},
        "lstm": {"decoder": "lstm"},
        "mean": {"pooling": "mean"},
        "vit, untied": {"image_encoder": "vit", "patch_size": 8, "tied_output": False},
        "linear": {"attention": {"kind": "linear"}},
    }
    wrong: ClassVar = [
        ({"decoder": "gru"}, "unknown decoder 'gru'"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"decoder": "lstm", "decoder_attention": {"kind": "linear"}}, "decoder 'lstm' has no self-attention"),
        ({"image_encoder": "resnet"}, "unknown backbone 'resnet'"),
        ({"cross_attention": {"kind": "sliding_window"}}, "'sliding_window' does not support"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {
        "pixel_values": {0: BATCH},
        "target_ids": {0: BATCH, 1: Dim("target", max=64)},
    }

    def build(self, **keywords: Any) -> nn.Module:
        return CaptioningModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(4, 30, (batch, length), generator=generator)
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator), "target_ids": ids}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        return {**inputs, "target_ids": F.pad(inputs["target_ids"], (0, extra))}

    def heads(self) -> Any:
        given = (torch.randn(3, 9, 12), torch.randint(20, (3, 4)))
        kinds = ("transformer", "lstm")
        return [
            (CaptioningHead(16, 20, image_dim=12, num_heads=2, decoder=kind), given, [(3, 4, 20)]) for kind in kinds
        ]

    def test_exported_model_gives_equal_outputs(self, model: nn.Module, variant: str, tmp_path: Path) -> None:  # type: ignore[override]
        if variant == "lstm":
            pytest.skip("teacher forcing reads word by word; its step is exported below")
        super().test_exported_model_gives_equal_outputs(model, tmp_path)

    def test_captions_that_share_an_image(self, model: Any) -> None:
        model, inputs = model.double().eval(), self.inputs(4, 5)
        pixels, index = inputs["pixel_values"][:2].double(), torch.tensor([0, 1, 1, 0])
        shared = model(pixels, inputs["target_ids"], index).logits
        torch.testing.assert_close(shared, model(pixels[index], inputs["target_ids"]).logits, atol=1e-8, rtol=0)

    @pytest.mark.parametrize("beams", [1, 3])
    def test_stepwise_equals_teacher_forcing(self, model: Any, beams: int) -> None:
        model, pixels = model.double().eval(), self.inputs(3, 5)["pixel_values"].double()
        found = model.generate(pixels, GenerationConfig(num_beams=beams, beginning=[7, 9], **SEARCH))
        ids, lengths, scores = (part[:, 0].clone() for part in found)
        with torch.no_grad():
            logits = model(pixels, torch.cat([torch.tensor([[2, 7, 9]] * 3), ids[:, :-1]], dim=1)).logits[:, 2:]
        picked = logits.log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
        counts = torch.arange(ids.shape[1]) < lengths[:, None]
        torch.testing.assert_close((picked * counts).sum(1) / lengths, scores, atol=1e-8, rtol=0)

    def test_alignment(self, model: Any, variant: str) -> None:
        model, inputs = model.eval(), self.inputs(3, 6)
        plain = model(**inputs).logits
        with torch.no_grad(), capture(model) as maps:
            seen = model(**inputs).logits
        torch.testing.assert_close(plain, seen, atol=1e-5, rtol=0)
        weights = model.alignment(maps)
        assert weights.shape == (3, 6, model.grid_size[0] * model.grid_size[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 6))
        if variant == "mean":
            torch.testing.assert_close(weights, torch.full_like(weights, 1 / weights.shape[-1]))

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        if variant == "mean":
            pytest.skip("a failing baseline")
        inputs, labels = self.inputs(6, 5), torch.randint(4, 30, (6, 5))
        inputs["target_ids"] = torch.cat([torch.full((6, 1), 2), labels[:, :-1]], dim=1)
        real = torch.ones_like(labels, dtype=torch.bool)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        assert learn(optimizer, 150, lambda: token_loss(model(**inputs).logits, labels, real))[-1] < 0.1


@pytest.mark.parametrize("decoder", slow_but_first(["transformer", "lstm"]))
def test_encoder_and_step_are_exported(decoder: str, tmp_path: Path) -> None:
    model = CaptioningModel(**SMALL, decoder=decoder)  # type: ignore[arg-type]
    lines = export_captioning(model, (model.image_size,) * 2, tmp_path, ("torch",))
    assert [line.split()[0].rsplit("/", 1)[1] for line in lines] == ["encoder.pt2", "step.pt2"]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        given = torch.export.load(tmp_path / "encoder.pt2").module()(pixel_values=pixels)._asdict()
        written = written_step_by_step(tmp_path, None, given, layers=2)
    config = GenerationConfig(**{**SEARCH, "eos_token_id": None, "max_new_tokens": 5})
    assert torch.equal(written, model.eval().generate(pixels, config).ids[:, 0])


def test_head_generates_in_a_plain_loop() -> None:
    head = CaptioningHead(16, 20, image_dim=12, num_heads=2)
    features, labels = torch.randn(4, 9, 12), torch.tensor([[5, 6, 3], [7, 8, 3], [9, 10, 3], [11, 12, 3]])
    given = torch.cat([torch.full((4, 1), 2), labels[:, :-1]], 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    learn(optimizer, 80, lambda: F.cross_entropy(head(features, given).flatten(0, 1), labels.flatten()))
    found = head.eval().generate(features, GenerationConfig(num_beams=2, **SEARCH))
    assert [row[0] for row in found.tokens()] == labels.tolist()


def test_kept_features_of_a_whole_vit(tmp_path: Path) -> None:
    from mmattn.tasks.common.frozen import keep_features

    body = {"embed_dim": 24, "num_layers": 2, "num_heads": 2, "image_size": (32, 32), "patch_size": 8, "ffn_dim": 32}
    model = CaptioningModel(**SMALL, image_encoder="vit", image_options={"body": body})
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(4, 30, (2, 5))
    model(pixels, ids).logits.sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.image_encoder.stem.body.requires_grad_(False)
    expected = model.eval()(pixels, ids).logits
    assert model.grid_size == (4, 4)
    (store,) = keep_features(model, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(model(pixels, ids).logits, expected)
    assert len(store.places) == 2


def batch_with(regions: Tensor, tokens: Tensor) -> CaptionBatch:
    known = {"regions": regions, "region_mask": torch.ones(tokens.shape, dtype=torch.bool), "region_tokens": tokens}
    names = [field.name for field in dataclasses.fields(CaptionBatch) if field.name != "is_repeat"]
    return CaptionBatch(**{**dict.fromkeys(names), **known})  # type: ignore[arg-type]


def test_losses_of_the_attention_match_their_definitions() -> None:
    attention = torch.tensor([[[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6], [0.25, 0.25, 0.25, 0.25]]])  # 2x2 cells
    corners = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]]])
    found = grounding_loss(attention, batch_with(corners, torch.tensor([[0, 1, 1]])), (2, 2))
    torch.testing.assert_close(found, -(torch.tensor(0.7).log() + torch.tensor(0.8).log()) / 2)
    seen = torch.tensor([0.8, 0.2, 0.3, 0.7])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(doubly_stochastic_loss(attention, mask), (1 - seen).square().sum() / 2)
    assert cell_coverage(corners[0, 0], (2, 2)).tolist() == [1, 0, 0, 0]
