"""Every YAML config runs from the command line, and the demo's values equal the constructors' defaults."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmattn.data.errors import DataError
from mmattn.tasks.common.auto import AUTO, KEYS
from mmattn.tasks.common.datamodule import TaskDataModule
from mmattn.tasks.common.task import tasks
from tests.conftest import public_weights
from tests.tasks.runs import run

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").glob("*.yaml"))}


def task_of(name: str) -> str:
    """The task of a configuration: `text_classification_sst2.yaml` is text_classification's."""
    stem = name.removesuffix(".yaml")
    return max((task for task in tasks() if f"{stem}_".startswith(f"{task}_")), key=len)


REAL = {name for name, config in CONFIGS.items() if config["data"]["train"] != "demo"}
SECTIONS = ("data", "optim", "trainer")
QUICK = {"vqa_daquar.yaml", "asr_fsdd.yaml"}  # configs on real data whose first step takes only seconds
SLOW = [pytest.param(name, marks=[pytest.mark.slow] if name in REAL - QUICK else []) for name in CONFIGS]


@pytest.mark.parametrize("task", tasks())
def test_constructor_defaults_equal_the_config(task: str) -> None:
    config = yaml.safe_load((ROOT / "configs" / f"{task}.yaml").read_text())
    known = inspect.signature(tasks()[task].resolve("model")).parameters
    for key, value in config["model"].items():
        if key in known:
            default = known[key].default
            default = list(default) if isinstance(default, tuple) else default  # as in YAML
            assert default == value, f"model.{key}: the constructor has {default!r}, the config {value!r}"
    assert set(config) <= {"model", "optim", "loss", "decode", "data", "trainer", "seed_everything"}
    assert config["data"]["train"] == "demo"


@pytest.mark.parametrize("task", tasks())
def test_three_defaults_are_auto(task: str) -> None:
    """Batch size, epochs and warm-up depend on the data: the defaults are `auto`, the configurations give numbers."""
    module, data = tasks()[task].resolve("module"), tasks()[task].resolve("datamodule")
    shared = inspect.signature(TaskDataModule).parameters  # the tasks' data modules pass them on
    defaults = {f"data.{key}": value.default for key, value in {**shared, **inspect.signature(data).parameters}.items()}
    for section, kind in (("optim", module.Optim), ("loss", module.Loss), ("decode", module.Decode)):
        defaults |= {f"{section}.{key}": value.default for key, value in inspect.signature(kind).parameters.items()}
    assert {key for key, value in defaults.items() if value == AUTO} == set(KEYS) - {"trainer.max_epochs"}
    for config in (config for name, config in CONFIGS.items() if task_of(name) == task):
        given = {
            f"{section}.{key}": value
            for section, values in config.items()
            if section in SECTIONS
            for key, value in values.items()
        }
        assert isinstance(given["trainer.max_epochs"], int)
        assert isinstance(given["optim.warmup_steps"], int)
        assert data.train_size == "max_frames" or isinstance(given["data.batch_size"], int)


def fit(name: str, folder: Path, options: str) -> Any:
    given = f"--config {ROOT / 'configs' / name} --trainer.accelerator cpu --trainer.max_steps 1 {options}"
    return run("fit", folder, given, "--trainer.enable_progress_bar false", task_of(name))


@pytest.mark.parametrize("name", sorted(REAL))
def test_every_real_data_config_parses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything except data and public weights is available."""
    monkeypatch.setenv("MMATTN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"nowhere.*found no such"):
        fit(name, tmp_path / "run", "--data.train nowhere.jsonl --init_from null")


@pytest.mark.parametrize("name", SLOW)
def test_every_config_trains(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    header = (ROOT / "configs" / name).read_text().splitlines()[:6]
    task = task_of(name)
    command = f"{task} fit --config configs/{name}"
    assert any(command in line for line in header), "the header states the command, the time and the expected result"
    options = "--trainer.limit_val_batches 1 --data.batch_size 8"
    if name in REAL:
        request.getfixturevalue("real_data")
        given = CONFIGS[name].get("init_from")
        for weights in given.values() if isinstance(given, dict) else filter(None, [given]):
            if not weights.startswith("runs/"):
                public_weights(weights)
                continue
            folders = {config["trainer"].get("default_root_dir"): name for name, config in CONFIGS.items()}
            before = folders[weights.removesuffix("/model")]  # the configuration that trains them
            public_weights(CONFIGS[before]["init_from"])
            fit(before, tmp_path / "before", options)
            options += f" --init_from {tmp_path / 'before' / 'model'}"
    else:  # one step needs as little built-in data as a tiny run, whose first option is the size
        options += " " + " ".join(tasks()[task].tiny.split()[:2])
    fit(name, tmp_path / "run", options)
