"""Every YAML goes through the command line, and the demo's says what the constructors say."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmattn.tasks import TASKS
from tests.tasks.runs import run

ROOT = Path(__file__).resolve().parents[1]
SMALLER = {
    "asr": "--data.clips",
    "classification": "--data.pictures",
    "segmentation": "--data.scenes",
    "summarization": "--data.documents",
    "translation": "--data.pairs",
    "vqa": "--data.scenes",
}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("task", TASKS)
def test_constructor_defaults_equal_the_config(task: str) -> None:
    import importlib

    module, _ = importlib.import_module(f"tasks.{task}.module").LIGHTNING
    config = yaml.safe_load((ROOT / "configs" / f"{task}.yaml").read_text())

    def defaults(*classes: type) -> dict[str, Any]:
        return {n: p.default for c in classes for n, p in inspect.signature(c.__init__).parameters.items()}

    known = defaults(module.model_class)
    for key, value in config["model"].items():
        if key in known:
            default = list(known[key]) if isinstance(known[key], tuple) else known[key]  # as YAML has it
            assert default == value, f"model.{key}: the constructor says {known[key]!r}, the config {value!r}"
    assert set(config) <= {"model", "data", "trainer", "seed_everything"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_trains(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    header = path.read_text().splitlines()[:6]
    assert any("python -m tasks." in line for line in header), (
        "the header gives the command, the time and the expected figure"
    )
    config = yaml.safe_load(path.read_text())
    options = f"--config {path} --trainer.max_steps 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
    task = path.stem.split("_")[0]
    if config.get("data", {}).get("train"):
        request.getfixturevalue("real_data")
    else:
        options += f" {SMALLER[task]} 64"  # one step needs no more of the built-in data
    run(
        "fit",
        tmp_path / "run",
        options + " --data.batch_size 8",
        base="--trainer.enable_progress_bar false",
        task=task,
    )
