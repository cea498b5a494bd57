"""The exponential moving average: of weights and statistics, swapped in for validation, and saved."""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mmattn.tasks.common.callbacks import EMA, shipped_weights


class Model(nn.Module):
    """Weights under two names, statistics, and buffers that are not saved or no floats."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.b.weight = self.a.weight
        self.register_buffer("table", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(self.a(x)))


def test_average() -> None:
    torch.manual_seed(0)
    model = Model()
    module, trainer, ema = SimpleNamespace(model=model), SimpleNamespace(global_step=0), EMA(0.5)
    given: list[Any] = [trainer, module]
    ema.on_train_start(*given)
    wanted = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for n in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 3) * 3 + 1).square().sum().backward()
        optimizer.step()
        trainer.global_step += 1
        for _ in range(2):  # as if gradients were accumulated
            ema.on_train_batch_end(*given, None, None, 0)
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = {k: decay * v + (1 - decay) * model.state_dict()[k] for k, v in wanted.items()}
    weights = copy.deepcopy(model.state_dict())
    ema.on_validation_start(*given)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted.get(name, weights[name]))
    ema.on_validation_epoch_end(*given)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    saved = {"state_dict": {f"model.{name}": value for name, value in weights.items()}}
    shipped = shipped_weights(saved | {"callbacks": {"EMA": ema.state_dict()}})
    assert "table" not in shipped
    assert shipped["norm.num_batches_tracked"] == 4
    for name in ("a.weight", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(shipped[name], wanted[name])
    again = EMA(0.5)  # a checkpoint of an earlier version, whose buffers are not averaged
    again.load_state_dict({"average": {"a.weight": wanted["a.weight"].clone()}, "updates": 4, "step": 4})
    again.on_train_start(*given)
    torch.testing.assert_close(again.average["a.weight"], wanted["a.weight"])
    torch.testing.assert_close(again.average["norm.running_var"], weights["norm.running_var"])
