"""Learning rates of pretrained weights and of layers, and frozen weights."""

from typing import Any

import pytest
from torch import nn

from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.parameters import (
    freeze,
    layer_depths,
    learning_rates,
    parameter_groups,
    pretrained_norms,
)
from tests.conftest import refused


class Net(nn.Module):
    """A stem, two layers with dropout and a batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in "ab")
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def test_depths() -> None:
    """Those of timm's nested blocks and of torch's sequences; a head is above all layers."""
    depths = layer_depths(name for name, _ in Net().named_parameters())
    assert {name.rsplit(".", 1)[0]: depth for name, depth in depths.items()} == {
        "stem": 0,
        "blocks.0.0": 1,
        "blocks.0.1": 2,
        "blocks.1.0": 3,
        "blocks.1.1": 4,
        "norm": 5,
        "head.0": 5,
        "head.1": 5,
    }
    nested = [
        "conv_stem.weight",
        "blocks.0.0.conv.weight",
        "blocks.1.0.conv.weight",
        "blocks.1.1.conv.weight",
        "head.w",
    ]
    assert list(layer_depths(nested).values()) == [0, 1, 2, 3, 4]


def test_groups() -> None:
    """Every trained parameter is in one group, with its rate and decay."""
    model = Net()
    names = [name for name, _ in model.named_parameters()]
    assert learning_rates(names, set(), 0.1, 1.0) is None
    pretrained = {name for name in names if not name.startswith("head")}
    scales = learning_rates(names, pretrained, 0.1, 0.5)
    assert scales is not None
    assert scales["head.1.weight"] == 1.0
    assert scales["norm.weight"] == pytest.approx(0.1)
    assert scales["blocks.1.1.weight"] == pytest.approx(0.05)
    model.stem.requires_grad_(False)
    groups = parameter_groups(model, 0.3, 2.0, scales)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(names) - 2
    assert found[id(model.head[1].weight)] == (2.0, 0.3)
    assert found[id(model.head[1].bias)] == (2.0, 0.0)
    assert found[id(model.norm.bias)] == (pytest.approx(0.2), 0.0)


@pytest.mark.parametrize("which", ["pretrained", "stem, blocks, norm"])
def test_frozen_modules_stay_in_evaluation_mode(which: str) -> None:
    model = Net()
    frozen = freeze(model, which, {name for name, _ in model.named_parameters() if not name.startswith("head")})
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("head")
    }
    assert {id(module) for module in frozen} == {id(model.stem), id(model.blocks), id(model.norm)}


def test_pretrained_batch_norms() -> None:
    model = Net()
    names = {name for name in model.state_dict() if name.startswith("blocks.0")}
    assert pretrained_norms(model, names) == [model.blocks[0][1]]
    assert pretrained_norms(model, set()) == []


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("pretrained", "needs --init_from"),
        ("block", r"a module of the model \(stem, blocks, norm, head, .*found 'block' \(did you mean 'blocks'"),
        ("stem,blocks,norm,head", "left to train"),
        ("", "found ''"),
    ],
)
def test_mistakes(which: str, message: str) -> None:
    refused(f"model.freeze: .*{message}", freeze, Net(), which, set(), error=ConfigError)


def test_fit_keeps_what_is_frozen() -> None:
    """The module's `train` leaves frozen batch norms and dropout in evaluation mode."""
    from mmattn.tasks.classification.module import ClassificationModule

    keywords: dict[str, Any] = {"channels": (8, 12), "embed_dim": 16, "num_heads": 2}
    module = ClassificationModule(keywords, freeze="backbone")
    module.build({"num_classes": 3, "image_size": 32})
    for _ in range(2):
        assert module.model.head.training
        assert not any(part.training for part in module.model.backbone.modules())
        module.train()
    assert not any(p.requires_grad for p in module.model.backbone.parameters())
    trained = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in module.model.head.parameters()}
