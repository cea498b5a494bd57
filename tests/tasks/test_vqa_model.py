"""The VQA model: the tests of every task's model, and its own."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.explain import capture
from mmattn.tasks.common.grid import cell_coverage, object_loss
from mmattn.tasks.common.pointing import peaks_in_regions
from mmattn.tasks.vqa.losses import attention_supervision_loss
from mmattn.tasks.vqa.model import VQAHead, VQAModel, VQAOutput, mean_over_layers
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"vocab_size": 30, "num_answers": 7, "image_size": 32, "channels": (8, 8)}
SMALL |= {"embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "fusion_layers": 2}
FUSIONS = ("fusion_block", "co_attention", "single_stream", "additive")


class TestVQAModel(TaskModelTests):
    task = "vqa"
    exported_elsewhere = True  # test_fit_contract.py
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"num_object_labels": 3},
        "co_attention": {"fusion": "co_attention"},
        "single_stream": {"fusion": "single_stream"},
        "additive": {"fusion": "additive"},
        "mean": {"pooling": "mean"},
        "vit": {"image_encoder": "vit", "patch_size": 8},
        "window": {"attention": {"kind": "sliding_window", "window": 3}},
        "linear": {"attention": {"kind": "linear"}},
    }
    wrong: ClassVar = [
        ({"fusion": "bilinear"}, "unknown fusion 'bilinear'"),
        ({"image_encoder": "resnet"}, "unknown backbone 'resnet'"),
        ({"attention": {"kind": "monotonic"}}, "'monotonic' does not support"),
        ({"cross_attention": {"kind": "sliding_window"}}, "'sliding_window' does not support"),
    ]
    batch, length = Dim("batch", max=64), Dim("length", max=32)
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {
        "pixel_values": {0: batch},
        "input_ids": {0: batch, 1: length},
        "key_mask": {0: batch, 1: length},
    }

    def build(self, **keywords: Any) -> nn.Module:
        return VQAModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(1, 30, (batch, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([[max(1, length - n)] for n in range(batch)])
        pixels = torch.randn(batch, 3, 32, 32, generator=generator)
        return {"pixel_values": pixels, "input_ids": ids.masked_fill(~mask, 0), "key_mask": mask}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        width = (0, extra)
        padded = {name: nn.functional.pad(inputs[name], width) for name in ("input_ids", "key_mask")}
        return {**inputs, **padded}

    def heads(self) -> Any:
        given = (torch.randn(3, 9, 12), torch.randn(3, 4, 20))
        return [(VQAHead(16, 5, image_dim=12, text_dim=20, num_heads=2), given, [(3, 5)])]

    def test_questions_that_share_an_image(self, model: nn.Module) -> None:
        model = model.double().eval()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs(5, 6).items()}
        index = torch.tensor([2, 0, 2, 1, 2])
        shared = model(inputs["pixel_values"][:3], inputs["input_ids"], inputs["key_mask"], index)
        single = model(inputs["pixel_values"][index], inputs["input_ids"], inputs["key_mask"])
        torch.testing.assert_close(shared.logits, single.logits, atol=1e-8, rtol=0)

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        if variant == "mean":
            pytest.skip("a failing baseline")
        inputs, targets = self.inputs(8, 6), torch.randint(7, (8,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        assert learn(optimizer, 60, lambda: nn.functional.cross_entropy(model(**inputs).logits, targets))[-1] < 0.1


@pytest.mark.parametrize("options", [*({"fusion": fusion} for fusion in FUSIONS), {"pooling": "mean"}], ids=str)
@pytest.mark.parametrize("index", [None, [0, 2, 2, 1]])
def test_image_and_word_attention_maps(options: dict[str, Any], index: list[int] | None) -> None:
    model = VQAModel(**SMALL, **options).eval()
    pixels, ids = torch.randn(4 if index is None else 3, 3, 32, 32), torch.randint(1, 30, (4, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    which = None if index is None else torch.tensor(index)
    plain = model(pixels, ids, mask, which).logits
    with capture(model) as maps:
        seen = model(pixels, ids, mask, which).logits
    torch.testing.assert_close(plain, seen, atol=1e-5, rtol=0)
    words = model.word_attention(maps, mask)
    assert words.shape == (4, 5)
    torch.testing.assert_close(words.sum(-1), torch.ones(4))
    assert (words[~mask] == 0).all()
    if "pooling" in options:
        refused("does not attend to the image", model.grid_attention, maps, which, mask)
        return
    found = model.grid_attention(maps, which, mask)
    assert found.shape == (4, *model.grid_size) == (4, 8, 8)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(4))
    # The map of a question is independent of the batch.
    with capture(model) as alone:
        model(pixels[2:3] if index else pixels[1:2], ids[1:2, :2], mask[1:2, :2])
    torch.testing.assert_close(model.grid_attention(alone, None, mask[1:2, :2])[0], found[1], atol=1e-5, rtol=0)


def test_timm_backbone() -> None:
    pytest.importorskip("timm")
    model = VQAModel(**{**SMALL, "image_size": 64}, image_encoder="timm/resnet18").eval()
    output = model(torch.randn(2, 3, 64, 64), torch.randint(1, 30, (2, 4)), torch.ones(2, 4, dtype=torch.bool))
    assert isinstance(output, VQAOutput)
    assert output.logits.shape == (2, 7)


def test_cell_coverage() -> None:
    covered = cell_coverage(torch.tensor([0.25, 0.0, 1.0, 0.5]), (2, 2))
    torch.testing.assert_close(covered, torch.tensor([0.5, 1.0, 0.0, 0.0]))


def test_attention_supervision_matches_definition() -> None:
    attention = torch.tensor([[[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]]])  # two latents over 2x2 cells
    regions = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    mask, together, apart = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 0]]), torch.tensor([[0, 1]])
    both = attention_supervision_loss(attention, regions, mask, together, (2, 2))
    torch.testing.assert_close(both, -torch.tensor(0.5 * (0.7 + 0.1) + 0.5 * (0.1 + 0.6)).log())
    each = attention_supervision_loss(attention, regions, mask, apart, (2, 2))
    torch.testing.assert_close(each, -(torch.tensor(0.7).log() + torch.tensor(0.6).log()) / 2)
    none = attention_supervision_loss(attention, regions, ~mask, apart, (2, 2))
    assert none == 0


def test_supervision_moves_attention() -> None:
    model = VQAModel(**SMALL)
    inputs = TestVQAModel().inputs(4, 5)
    regions = torch.tensor([[0.0, 0.0, 0.25, 0.25]]).expand(4, 1, 4)

    def loss() -> Tensor:
        with capture(model) as maps:
            model(**inputs)
        layers = mean_over_layers(model.grid_maps(maps, None, inputs["key_mask"]))
        return attention_supervision_loss(
            layers, regions, torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1).long(), (8, 8)
        )

    losses = learn(torch.optim.Adam(model.parameters(), lr=0.01), 30, loss)
    assert losses[-1] < 0.5 * losses[0]


def test_object_loss_matches_definition() -> None:
    logits = torch.zeros(1, 4, 2)
    boxes, mask = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]]), torch.ones(1, 1, dtype=torch.bool)
    labels = torch.tensor([[[1.0, 0.0]]])
    torch.testing.assert_close(object_loss(logits, boxes, mask, labels, (2, 2)), torch.tensor(2.0).log() * 2)
    logits[0, 0] = torch.tensor([50.0, -50.0])
    logits[0, 1:] = -50.0
    assert object_loss(logits, boxes, mask, labels, (2, 2)) < 1e-6


def test_peaks_in_regions() -> None:
    attention = torch.tensor([[0.1, 0.6], [0.1, 0.2]])
    assert peaks_in_regions(attention, [(0.7, 0.2, 0.8, 0.3)])
    assert not peaks_in_regions(attention, [(0.8, 0.3, 0.9, 0.4)])
    assert peaks_in_regions(attention, [(0.8, 0.3, 0.9, 0.4)], (0.1, 0.1))
