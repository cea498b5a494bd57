"""One training step of every task as on a GPU: mixed precision, compiled, fused optimizer; also run on a CPU.

`pytest -m gpu` runs the tests that need a CUDA device. The CPU tests omit only the compiler, which is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmattn.tasks import load, tasks
from mmattn.tasks.common import trainer
from mmattn.tasks.common.module import TaskModule
from tests.conftest import slow_but_first
from tests.tasks.runs import read, run

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
CLOSE = 0.05  # relative difference of the loss: bfloat16 has three digits


class Places(TorchDispatchMode):
    """Counts, by device type, the operations whose results have more than one element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > 1:
                self.found.setdefault(tensor.device.type, set()).add(str(func))
        return out


@dataclass
class Step:
    """The record of one training step."""

    loss: float = float("nan")
    places: dict[str, set[str]] = field(default_factory=dict)  # device types, and the operations run there
    autocast: torch.dtype | None = None
    compiled: bool = False
    fused: bool = False
    moved: int = 0  # parameters changed by the optimizer
    parameters: int = 0


@pytest.fixture
def take_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Step]:
    """Runs one step of a task from its command line and records it."""

    def take(task: str, device: str, options: str, *, watch_places: bool) -> Step:
        step = Step()
        original, optimizers = TaskModule.training_step, TaskModule.configure_optimizers

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            step.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            step.compiled = self.model._compiled_call_impl is not None
            (optimizer,) = self.trainer.optimizers
            step.fused = all(bool(group["fused"]) for group in optimizer.param_groups)
            self.before = [p.detach().clone() for p in self.model.parameters()]
            if watch_places:
                with Places() as places:
                    loss = original(self, batch, batch_idx)
                step.places = places.found
            else:
                loss = original(self, batch, batch_idx)
            assert {p.device.type for p in self.model.parameters()} | {loss.device.type} == {device}
            step.loss = loss.item()
            return loss

        def configure_optimizers(self: Any) -> Any:
            found = optimizers(self)
            if device == "cpu":  # which also supports fused but does not use it by default
                for group in found["optimizer"].param_groups:
                    group["fused"] = True
            return found

        def after(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            after_step = list(self.model.parameters())
            assert all(p.isfinite().all() for p in after_step)
            step.moved = sum(not torch.equal(a, b) for a, b in zip(self.before, after_step, strict=True))
            step.parameters = len(after_step)
            del self.before

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "computes_bfloat16", lambda: True)  # slow, but a single step
            patch.setattr(TaskModule, "training_step", training_step)
            patch.setattr(TaskModule, "configure_optimizers", configure_optimizers)
            patch.setattr(TaskModule, "on_train_batch_end", after, raising=False)
            shared = f"--trainer.accelerator {ACCELERATORS[device]} --trainer.devices 1 --trainer.max_steps 1"
            folder = run("fit", tmp_path / f"run{len(list(tmp_path.iterdir()))}", f"{shared} {options}", task=task)
        assert read(folder / "metrics.json")["fit"]["steps"] == 1
        return step

    return take


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", slow_but_first(tasks()))
def test_gpu_step_equals_plain_step(task: str, device: str, take_step: Callable[..., Step]) -> None:
    plain = take_step(task, device, "--trainer.precision 32-true --trainer.compile false", watch_places=True)
    assert set(plain.places) == {device}, f"elsewhere: { {k: v for k, v in plain.places.items() if k != device} }"
    compiled = str(device == "cuda").lower()
    fast = take_step(task, device, f"--trainer.precision bf16-mixed --trainer.compile {compiled}", watch_places=False)
    assert (fast.autocast, fast.compiled, fast.fused) == (torch.bfloat16, device == "cuda", True)
    assert fast.loss == pytest.approx(plain.loss, rel=CLOSE)
    assert fast.loss != plain.loss, "half precision rounds"
    assert fast.moved == plain.moved >= 0.9 * plain.parameters


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", tasks())
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_steps(task: str, precision: str, tmp_path: Path) -> None:
    options = f"--trainer.accelerator gpu --trainer.devices 1 --trainer.precision {precision} --trainer.compile true"
    folder = run("fit", tmp_path / "run", f"{options} --trainer.max_steps 3 --optim.ema_decay 0.9", task=task)
    assert read(folder / "metrics.json")["fit"]["steps"] == 3
    predictor = load(folder / "model", device="cuda")
    assert next(predictor.model.parameters()).is_cuda
