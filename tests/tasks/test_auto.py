"""`auto` sizes, the held-out split, and the end of a run: with few data, limits of time and of steps."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from mmattn.tasks.common import auto, finish
from mmattn.tasks.common.callbacks import read_checkpoint
from mmattn.tasks.common.chance import Chance, constant
from mmattn.tasks.common.errors import ConfigError, RunDirectoryError
from mmattn.tasks.common.task import tasks
from tests.conftest import refused
from tests.tasks.runs import STILL, read, run

TINY = "--data.image_size 16 --model.channels [8,8] --model.embed_dim 16 --model.num_heads 2 --model.num_queries 2"
TINY += " --trainer.accelerator cpu --trainer.enable_progress_bar false"


def fit(folder: Path, options: str, command: str = "fit") -> Path:
    return run(command, folder, options, base=TINY, task="classification")


def options_of(folder: Path) -> dict[str, Any]:
    """The sizes in a run's config.yaml."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    keys = (*auto.KEYS, "trainer.check_val_every_n_epoch", "trainer.early_stopping", "trainer.max_time")
    return {key: config[key.split(".")[0]][key.split(".")[1]] for key in keys}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of two classes that cannot be told apart."""
    folder, stream = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(10):
            Image.fromarray(stream.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / label / f"{number}.png")
    return folder


def test_few_data_just_work(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(tmp_path / "run", f"--data.train {few} {STILL.replace(' --optim.warmup_steps 1', '')}")
    assert options_of(folder) == {
        "data.batch_size": 8,
        "trainer.max_epochs": 120,
        "optim.warmup_steps": 24,
        "trainer.check_val_every_n_epoch": 5,
        "trainer.early_stopping": 12,
        "trainer.max_time": auto.TIME,
    }
    said = capsys.readouterr().out
    assert "auto: --data.batch_size 8, --trainer.max_epochs 120, --optim.warmup_steps 24, at most 00:02:00:00" in said
    assert "4 of 20 samples are held out for validation (seed 0); --data.val PATH gives your own." in said
    assert "ended early at step 130 of 240: val/top1 had not improved in 12 validations" in said
    last = said.splitlines()[-1]
    assert "is at chance level, as far as 4 validation samples tell: 0.5000 is the figure of the most " in last
    assert "of the most frequent label, 'cat'. Try public weights (--init_from)" in last
    record = read(folder / "run.json")["data"]
    assert {split: (part["path"], part["samples"]) for split, part in record.items()} == {
        "train": (str(few), 16),
        "val": (f"held out from {few}", 4),
    }
    fit(folder, f"--data.train {few} {STILL.replace(' --optim.warmup_steps 1', '')} --ckpt_path last")
    assert read(folder / "metrics.json")["fit"]["steps"] == 130, "a run that has stopped early does not go on"
    assert read(folder / "run.json")["refit"] == {"samples": 20, "epochs": 65, "seconds": ANY}, "no model was worse"
    tuned = fit(tmp_path / "tuned", f"--data.train {few} --init_from {folder}/model --trainer.limit_val_batches 0")
    assert options_of(tuned)["trainer.max_epochs"] == 40, "given weights need a third of the steps"


def test_the_model_of_few_data_is_trained_on_all_of_them(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run would be whose validation data are others."""
    words = f"--data.train {few} --optim.warmup_steps 2 --data.batch_size 8 --trainer.max_epochs 3 {TINY}"
    folder = fit(tmp_path / "run", f"{words} --trainer.refit true")
    said = capsys.readouterr().out
    assert "20 samples are few: training goes over all of them again, with those that were held out" in said
    assert "It was trained on all 20 samples at last; the figures are those of the model before" in said
    whole = fit(tmp_path / "whole", f"{words} --data.val {few}")
    expected = read_checkpoint(whole / "last.ckpt")["state_dict"]
    found = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(value, expected[f"model.{name}"]) for name, value in found.items())
    assert not (folder / "refit").exists()
    assert "on all 20 samples" in (folder / "model" / "README.md").read_text()
    kept = fit(tmp_path / "kept", words)
    assert read(folder / "metrics.json")["validation"] == read(kept / "metrics.json")["validation"]
    assert "refit" not in read(kept / "run.json"), "epochs are given"
    message = f"was trained on all 20 samples after the validation, whose figures are in {folder}/metrics.json"
    given = f"--checkpoint {folder}/model --data.train {few}"
    refused(message, fit, folder, given, "validate", error=ConfigError)
    fit(folder, f"{words} --ckpt_path last")
    assert "refit" not in read(folder / "run.json"), "--trainer.refit is not given"
    fit(folder, f"--checkpoint {folder}/model --data.train {few}", "validate")


@pytest.mark.parametrize(("figure", "said"), [(0.5, "is at chance level"), (1.0, "4 validation samples are too few")])
def test_figures_within_the_error_of_chance(figure: float, said: str) -> None:
    data = SimpleNamespace(dataset=lambda split: range(4))
    module: Any = SimpleNamespace(monitor="val/top1", mode="max", init_from=None, data=data)
    module.chance_level = Chance(0.5, "heads")
    (line,) = finish._at_chance(module, figure, "mmattn classification")
    assert said in line
    assert "0.5000 is the figure of heads" in line
    module.data = SimpleNamespace(dataset=lambda split: range(400))
    assert len(list(finish._at_chance(module, figure, "mmattn classification"))) == (figure == 0.5)


def test_the_split_is_repeated(few: Path, tmp_path: Path) -> None:
    folder = fit(tmp_path / "run", f"--data.train {few} --trainer.max_epochs 1 --seed_everything 5")
    words = f"--checkpoint {folder}/model"
    message = f"was validated on data held out from {few}: --data.train with this path repeats the split"
    refused(message, fit, tmp_path / "out", words, "validate", error=ConfigError)
    fit(tmp_path / "out", f"{words} --data.train {few}", "validate")
    mine, theirs = (read(path / "metrics.json")["validation"]["top1"] for path in (tmp_path / "out", folder))
    assert mine == theirs
    refused(message, fit, tmp_path / "out", f"{words} --data.train {few}/..", "validate", error=ConfigError)


def test_numbers_of_a_resumed_run_are_kept(few: Path, tmp_path: Path) -> None:
    words = f"--data.train {few} --optim.schedule constant"
    folder = fit(tmp_path / "run", f"{words} --trainer.max_epochs 2")
    before = options_of(folder)
    assert before == {**before, "data.batch_size": 8, "trainer.max_epochs": 2, "trainer.early_stopping": None}
    fit(folder, f"{words} --trainer.max_epochs 4 --ckpt_path last")
    assert read_checkpoint(folder / "last.ckpt")["mmattn"]["settings"]["data.batch_size"] == 8
    assert read(folder / "metrics.json")["fit"]["epochs"] == 4
    fit(tmp_path / "other", f"--config {folder}/config.yaml --trainer.max_epochs 2 --data.train {few}")
    assert options_of(tmp_path / "other") == before, "numbers stay what they are"


def test_time_limit_ends_a_run_that_can_be_resumed(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = r"^--trainer\.max_time: expected DD:HH:MM:SS, found '5m'; "
    refused(wrong, fit, tmp_path / "run", f"--data.train {few} --trainer.max_time 5m", error=ConfigError)
    words = f"--data.train {few} --trainer.max_epochs 4000 --optim.warmup_steps 3 --optim.schedule constant"
    bar = "--trainer.enable_progress_bar true"
    folder = fit(tmp_path / "run", f"{words} {bar} --trainer.max_time 00:00:00:01")
    said = capsys.readouterr().out
    assert "ended by --trainer.max_time at step" in said
    assert set(re.findall(r", (\d+) s left", said)) <= {"0", "1"}, "no more than max_time leaves"
    assert ", 0 s left" in said
    assert (folder / "model" / "model.safetensors").exists()
    steps = read(folder / "metrics.json")["fit"]["steps"]
    assert 0 < steps < 8000
    assert read(folder / "metrics.json")["validation"]["step"] <= steps
    fit(folder, f"{words} --trainer.max_epochs {steps // 2 + 2} --ckpt_path last")
    assert read(folder / "metrics.json")["fit"]["steps"] == 2 * (steps // 2 + 2)


def test_the_learning_rate_falls_until_time_is_up(few: Path, tmp_path: Path) -> None:
    """A cosine over more epochs than the time allows ends near zero; one that does not need the time goes by steps."""
    words = f"--data.train {few} --optim.schedule cosine --trainer.log_every_n_steps 1"
    short = fit(tmp_path / "short", f"{words} --trainer.max_epochs 4000 --trainer.max_time 00:00:00:03")
    rates = learning_rates(short)
    assert rates[-1] < 0.1 * max(rates)
    assert len(rates) < 8000
    limited = fit(tmp_path / "limited", f"{words} --trainer.max_epochs 4 --trainer.max_time 00:01:00:00")
    free = fit(tmp_path / "free", f"{words} --trainer.max_epochs 4")
    assert learning_rates(limited) == learning_rates(free)


def learning_rates(folder: Path) -> list[float]:
    """That of each step that was logged."""
    with open(next((folder / "logs").rglob("metrics.csv")), newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file) if row.get("lr")]


def test_epochs_that_are_cut_short_are_resumed_exactly(few: Path, tmp_path: Path) -> None:
    words = f"--data.train {few} --data.batch_size 4 --optim.schedule constant --optim.warmup_steps 0"
    whole = fit(tmp_path / "whole", f"{words} --trainer.max_epochs 2")
    folder = fit(tmp_path / "run", f"{words} --trainer.max_epochs 2 --trainer.max_steps 6")
    assert read(folder / "metrics.json")["validation"]["step"] in (4, 6), "the last step is validated, too"
    fit(folder, f"{words} --trainer.max_epochs 2 --ckpt_path last")
    one, other = (read_checkpoint(path / "last.ckpt") for path in (whole, folder))
    assert one["global_step"] == other["global_step"] == 8
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_last_weights_are_validated(few: Path, tmp_path: Path) -> None:
    """Whatever `check_val_every_n_epoch` skips. Steps that change nothing have equal figures: the last one counts."""
    words = f"--data.train {few} --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 2 {STILL}"
    assert read(fit(tmp_path / "run", words) / "metrics.json")["validation"]["step"] == 6


def test_max_steps_shortens_the_warmup(few: Path, tmp_path: Path) -> None:
    words = f"--data.train {few} --trainer.max_epochs 10 --optim.warmup_steps 10 --trainer.max_steps 8"
    saved = read_checkpoint(fit(tmp_path / "run", words) / "last.ckpt")
    assert saved["mmattn"]["warmup_steps"] == 4
    assert options_of(tmp_path / "run")["optim.warmup_steps"] == 10, "the configuration gives the same run again"


def test_full_disk_raises_before_anything_is_written(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    message = r"expected 0\.0 GB of free space for checkpoints, found 0\.0 GB"
    refused(message, fit, tmp_path / "run", f"--data.train {few}", error=RunDirectoryError)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("samples", "size"), [(4, 8), (48, 16), (100, 32), (50_000, 64)])
def test_batches(samples: int, size: int) -> None:
    assert auto.batch_size(samples, 64) == size


@pytest.mark.parametrize(("steps", "epochs"), [(1, 240), (3, 80), (12, 20), (700, 14), (20_000, 1)])
def test_epochs(steps: int, epochs: int) -> None:
    assert auto.epochs(steps) == epochs


@pytest.mark.parametrize("task", tasks())
def test_chance(task: str) -> None:
    """A constant prediction on the built-in data."""
    module, data = tasks()[task].resolve("module")({}), tasks()[task].resolve("datamodule")(demo_size=20)
    data.processor = data.make_processor(data.dataset("train"))
    data._datasets["val"] = data.make_dataset(tasks()[task].resolve("demo")("val", 20), "val")
    data._datasets = {split: data.prepare_dataset(dataset, split) for split, dataset in data._datasets.items()}
    module._trainer = type("Trainer", (), {"datamodule": data})()
    found = module.chance()
    assert 0 <= found.value <= found.scale
    assert found.value < 0.6 * found.scale or task in ("asr", "text_generation")  # 1, and the scale itself
    assert found.includes(found.value, 20, module.mode)
    assert not found.includes(0.0 if module.mode == "min" else found.scale, 20, module.mode)


def test_most_frequent_answer() -> None:
    found = constant(["a", "b", "b"], lambda answer: float(answer == "b"))
    assert found == Chance(1.0, "the most frequent answer, 'b'")
    assert constant([], lambda answer: 0.0) is None
    assert Chance(1.0, "none").includes(0.99, 10, "min")
    assert not Chance(1.0, "none").includes(0.5, 10, "min")
