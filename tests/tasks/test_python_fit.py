"""`mmattn.fit`: the command from Python, on paths and on samples in memory."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmattn import fit
from mmattn.data.errors import DataError
from mmattn.tasks.common.errors import ConfigError, RunDirectoryError
from mmattn.tasks.common.task import tasks
from mmattn.tasks.vqa.module import VQAModule
from tests.conftest import refused
from tests.tasks.runs import read, weights

CHEAP = "vqa"
SOME_SLOW = [pytest.param(name, marks=() if name == CHEAP else pytest.mark.slow) for name in tasks()]
QUICK: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "limit_val_batches": 1}


def small(task: str) -> dict[str, Any]:
    """The options of a tiny model, by dotted names."""
    words = tasks()[task].tiny.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return {name.removeprefix("--"): value for name, value in pairs if not name.startswith("--data.demo_size")}


def samples_of(task: str) -> Any:
    return tasks()[task].resolve("demo")("train", 12)


@pytest.mark.parametrize("task", SOME_SLOW)
def test_samples_in_memory(task: str, tmp_path: Path) -> None:
    samples = samples_of(task)
    options = {**small(task), "optim.schedule": "constant", "optim.warmup_steps": 1}
    run = fit(task, samples, dir=tmp_path / "run", trainer=QUICK, **options)
    assert run.dir == tmp_path / "run"
    assert run.metrics == read(run.dir / "metrics.json")["validation"]
    assert tasks()[task].metric in run.metrics
    assert type(run.predictor) is tasks()[task].resolve("predictor")
    assert run.predictor.parts.own_data
    record = read(run.dir / "run.json")["data"]
    assert [record[split]["path"] for split in ("train", "val")] == ["in memory", "held out from samples in memory"]
    before = weights(run.dir)
    more = {"dir": run.dir, "ckpt_path": "last", "trainer": QUICK | {"max_epochs": 2}, **options}
    refused("data.train: expected the", fit, task, samples[len(samples) // 2 :], error=ConfigError, **more)
    fit(task, samples, **more)
    assert read(run.dir / "metrics.json")["fit"]["epochs"] == 2
    assert before.keys() == weights(run.dir).keys()


def test_paths_rows_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colors = [("red", "blue")[number % 2] for number in range(12)]
    rows = [(Image.new("RGB", (16, 16), color), "what colour is it?", color) for color in colors]
    for number, (image, *_) in enumerate(rows):
        image.save(tmp_path / f"{number}.png")
    files = [(tmp_path / f"{number}.png", *rest) for number, (_, *rest) in enumerate(rows)]
    config = tmp_path / "config.yaml"
    config.write_text("optim: {lr: 0.02}\ndata: {batch_size: 7}\n")
    found = []
    for name, train in (("rows", rows), ("files", files)):
        options = {key: value for key, value in small("vqa").items() if key != "data.batch_size"}
        run = fit(
            "vqa", train, train, config=config, dir=tmp_path / name, data={"image_size": 16}, trainer=QUICK, **options
        )
        found.append(run)
        assert f"Next: `mmattn vqa test --checkpoint {run.dir}/model" in capsys.readouterr().out
        assert read(run.dir / "run.json")["command"].startswith("mmattn vqa fit --config ")
        text = (run.dir / "config.yaml").read_text()
        assert "lr: 0.02" in text
        assert "batch_size: 7" in text
    assert weights(found[0].dir).keys() == weights(found[1].dir).keys()
    figure = found[0].plot()
    assert [axis.get_ylabel() for axis in figure.axes] == ["train/loss", "val/accuracy"]
    assert len(figure.axes[1].lines[0].get_xdata()) == 1
    assert (found[0].dir / "curves.png").stat().st_size > 1000
    answer = found[0].predictor({"image": rows[0][0], "question": "what colour is it?"})
    assert answer.answer in ("red", "blue")


def test_interrupted_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = VQAModule.training_loss, []

    def interrupted(self: Any, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(VQAModule, "training_loss", interrupted)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    options = {"dir": tmp_path / "run", "trainer": QUICK, "optim.schedule": "constant", **small("vqa")}
    samples = samples_of("vqa")
    with pytest.raises(KeyboardInterrupt):
        fit("vqa", samples, **options)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = fit("vqa", samples, ckpt_path="last", **options)
    assert read(run.dir / "metrics.json")["fit"]["steps"] == len(calls)
    refused("not empty", fit, "vqa", samples, error=RunDirectoryError, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "vqaa"}, r"expected a task, asr, .*did you mean 'vqa'"),
        ({"optim": 3}, "optim: expected options and their values, found 3"),
        ({"optm": {}}, r"optm: unknown option \(did you mean 'optim'\?\)"),
        ({"optim": {"lrr": 1}}, "did you mean 'optim.lr'"),
        ({"optim": {"lr": object()}}, "optim.lr: expected a number, a text, or a list or mapping, found <object"),
        ({"train": None}, "data.train: expected the path of your training data"),
        ({"train": "in memory"}, "data.train: expected a path, found 'in memory'"),
        ({"train": 7}, "expected a path, samples, rows or a DataFrame, found 7"),
        ({"train": [("a.png", "what?", "red")]}, r"in memory, row 1: expected its image a\.png"),
    ],
)
def test_errors_from_python(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = {"task": "vqa", "train": "demo", "dir": tmp_path / "run", **given}
    refused(message, fit, error=(ConfigError, DataError), **options)
    assert not (tmp_path / "run").exists()
