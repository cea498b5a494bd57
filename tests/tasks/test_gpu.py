"""On a GPU: mixed precision, a compiled model and the fused optimiser train every task."""

from pathlib import Path

import pytest
import torch

from tasks import TASKS, load
from tests.tasks.runs import read, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_steps(task: str, precision: str, tmp_path: Path) -> None:
    options = f"--trainer.accelerator gpu --trainer.devices 1 --trainer.precision {precision} --model.compile true"
    folder = run("fit", tmp_path / "run", f"{options} --trainer.max_steps 3 --model.ema_decay 0.9", task=task)
    assert read(folder / "metrics.json")["fit"]["steps"] == 3
    predictor = load(folder / "model", device="cuda")
    assert next(predictor.model.parameters()).is_cuda
