"""The classification model: the tests of every task's model, and its own."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.tasks.classification.model import ClassificationHead, ClassificationModel, ClassificationOutput
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"num_classes": 7, "image_size": 32, "channels": (8, 12), "embed_dim": 16, "num_heads": 2}
SMALL |= {"num_layers": 2, "num_queries": 2, "hidden_dim": 16}


class TestClassificationModel(TaskModelTests):
    task = "classification"
    exported_elsewhere = True  # tests/test_readme.py
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "eca": {"channel_attention": "eca"},
        "cbam": {"channel_attention": "cbam", "hidden_dim": 0},
        "mean": {"pooling": "mean", "channel_attention": "none"},
        "cct": {"backbone": "cct", "tokenizer_layers": 2},
        "cct mean": {"backbone": "cct", "tokenizer_layers": 2, "pooling": "mean"},
        "vit": {"backbone": "vit"},
        "deit": {"backbone": "vit", "backbone_options": {"num_prefix": 2, "pooling": "prefix"}},
        "vit mean, window": {
            "backbone": "vit",
            "pooling": "mean",
            "attention": {"kind": "sliding_window", "window": 3},
        },
        "cct linear": {"backbone": "cct", "tokenizer_layers": 2, "attention": {"kind": "linear"}},
    }
    wrong: ClassVar = [
        ({"backbone": "resnet"}, "unknown backbone 'resnet'.*; expected one of: residual, cct, vit, timm/NAME"),
        ({"attention": {"kind": "linear"}}, "backbone 'residual' has no self-attention kernel to choose"),
        ({"backbone": "vit", "attention": {"kind": "monotonic"}}, "'monotonic' does not support"),
        ({"channel_attention": "sse"}, "unknown channel attention 'sse'"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {"pixel_values": {0: Dim("batch", max=64)}}

    def build(self, **keywords: Any) -> nn.Module:
        return ClassificationModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}

    def heads(self) -> Any:
        options = {"embed_dim": 16, "num_heads": 2, "num_queries": 3, "hidden_dim": 8}
        for batch in (3, 1):  # a batch of one has no variance
            yield ClassificationHead(12, 5, **options), (torch.randn(batch, 12, 7, 5),), [(batch, 5)]
        yield ClassificationHead(12, 5, features="vector"), (torch.randn(3, 12),), [(3, 5)]

    def test_overfits_one_batch(self, model: nn.Module) -> None:
        # Each image has its own tint: the means of pure noise are hard to distinguish.
        inputs = {"pixel_values": self.inputs(8, 0)["pixel_values"] + 2 * torch.randn(8, 3, 1, 1)}
        targets = torch.randint(7, (8,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        assert learn(optimizer, 60, lambda: nn.functional.cross_entropy(model(**inputs).logits, targets))[-1] < 0.1

    def test_relevance_map_per_image(self, model: ClassificationModel) -> None:
        model = model.eval()
        pixels, classes = self.inputs(3, 0)["pixel_values"], torch.tensor([1, 0, 4])
        found = model.relevance(pixels, classes)
        side = {"residual": 16, "cct": 8, "vit": 4}[model.kind]
        assert found.shape == (3, side, side)
        assert (found >= 0).all()
        total = found.sum((1, 2))
        assert ((total - 1).abs() < 1e-4).logical_or(total == 0).all()
        alone = model.relevance(pixels[1:2], classes[1:2])
        torch.testing.assert_close(alone[0], found[1], atol=1e-4, rtol=0)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_pooling_attention_map(self, model: ClassificationModel, variant: str) -> None:
        found = model.eval().attention_map(self.inputs(3, 0)["pixel_values"])
        if "mean" in variant or model.kind == "vit":
            assert found is None
        else:
            assert found.shape == (3, 8, 8)
            torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))


def test_relevance_localizes_the_object() -> None:
    """After training on the color of a small square on background noise, the map peaks at it."""
    model = ClassificationModel(2, **{k: v for k, v in SMALL.items() if k != "num_classes"})

    def images(number: int) -> tuple[Tensor, Tensor, Tensor]:
        x, labels = 0.5 * torch.randn(number, 3, 32, 32), torch.arange(number) % 2
        rows, cols = torch.randint(4, (2, number))
        for n in range(number):
            x[n, int(labels[n]), 8 * rows[n] : 8 * rows[n] + 8, 8 * cols[n] : 8 * cols[n] + 8] += 3
        return x, rows * 4 + cols, labels

    def loss() -> Tensor:
        x, _, labels = images(32)
        return nn.functional.cross_entropy(model(x).logits, labels)

    learn(torch.optim.Adam(model.parameters(), lr=0.01), 80, loss)
    x, cells, labels = images(40)
    model.eval()
    assert (model(x).logits.argmax(1) == labels).float().mean() > 0.9
    found = nn.functional.avg_pool2d(model.relevance(x, labels)[:, None], 4).flatten(1).argmax(1)
    hits = [(found == cells)[labels == label].float().mean() for label in (0, 1)]
    assert max(hits) > 0.9  # one of two classes may be recognized by the absence of the other


@pytest.mark.parametrize("options", [{"backbone": "vit"}, {"backbone": "cct", "tokenizer_layers": 2}, {}])
def test_other_resolutions(options: dict[str, Any]) -> None:
    """Positions are resized for images of another size and of another shape."""
    model = ClassificationModel(**{**SMALL, **options}).eval()
    for size in ((32, 32), (48, 48), (32, 64)):
        assert isinstance(output := model(torch.randn(2, 3, *size)), ClassificationOutput)
        assert output.logits.shape == (2, 7)


def test_timm_backbone() -> None:
    pytest.importorskip("timm")
    keywords: dict[str, Any] = {**SMALL, "image_size": 64, "backbone": "timm/test_resnet"}
    model, pixels, classes = ClassificationModel(**keywords).eval(), torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    assert model(pixels).logits.shape == (2, 7)
    assert model.relevance(pixels, classes).shape == (2, 4, 4)
    refused("has no attention", ClassificationModel(**keywords, pooling="mean").relevance, pixels, classes)
