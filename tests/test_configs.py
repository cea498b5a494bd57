"""Every YAML goes through the command line, and the demo's says what the constructors say."""

import inspect
from pathlib import Path

import pytest
import yaml

from mmattn.tasks.common.task import tasks
from tests.tasks.runs import run

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("task", tasks())
def test_constructor_defaults_equal_the_config(task: str) -> None:
    config = yaml.safe_load((ROOT / "configs" / f"{task}.yaml").read_text())
    known = inspect.signature(tasks()[task].resolve("model")).parameters
    for key, value in config["model"].items():
        if key in known:
            default = known[key].default
            default = list(default) if isinstance(default, tuple) else default  # as YAML has it
            assert default == value, f"model.{key}: the constructor says {default!r}, the config {value!r}"
    assert set(config) <= {"model", "data", "trainer", "seed_everything"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_trains(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    task = path.stem.split("_")[0]
    header = path.read_text().splitlines()[:6]
    command = f"{task} fit --config configs/{path.name}"
    assert any(command in line for line in header), "the header gives the command, the time and the expected figure"
    options = f"--config {path} --trainer.max_steps 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
    if yaml.safe_load(path.read_text()).get("data", {}).get("train"):
        request.getfixturevalue("real_data")
    else:  # one step needs no more of the built-in data than a tiny training, whose first words say how much that is
        options += " " + " ".join(tasks()[task].tiny.split()[:2])
    run("fit", tmp_path / "run", options + " --data.batch_size 8", "--trainer.enable_progress_bar false", task)
