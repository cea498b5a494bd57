"""The report of a run, its pictures in loggers, and the folder that `explain` writes by default."""

from __future__ import annotations

import json
import re
import sys
from html import escape
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError, UserError
from mmattn.tasks.classification.data import ClassificationSample
from mmattn.tasks.common import page, report
from mmattn.tasks.common.chance import Chance
from mmattn.tasks.common.labels.processor import LabelPrediction
from mmattn.tasks.common.review import Reviewing, by_kind, review
from mmattn.tasks.common.task import tasks
from mmattn.tasks.common.trainer import named_loggers
from tests.conftest import refused
from tests.tasks.runs import ask, run

HOSTILE = "<script>alert('x')</script>&\udcff\n$a$"


class Stub(Reviewing):
    """A predictor of ten items, the third of which cannot be read; even ones are wrong."""

    batch_size = 32

    def stream(self, items: list[Any], *_: Any) -> Any:
        for item in items:
            number = int(item.id)
            given = LabelPrediction(item.id, HOSTILE if number % 2 else "other", number / 10)
            yield UserError("bad") if number == 3 else given

    def explain(self, item: Any) -> Any:
        raise UserError(f"no attention of {HOSTILE}")


def samples(count: int = 10) -> list[ClassificationSample]:
    return [ClassificationSample(str(n), np.zeros((8, 8, 3), np.uint8), [HOSTILE]) for n in range(count)]


def evaluation(**other: Any) -> report.Evaluation:
    figures = {"top1": 0.5, "signature": HOSTILE}
    given: dict[str, Any] = {"confusion": torch.tensor([[3, 1], [0, 2]]), "labels": [HOSTILE, "other"]}
    given |= {"items": samples(), "data": f"10 items of {HOSTILE}", "chance": Chance(0.25, HOSTILE)} | other
    return report.Evaluation("validation", "top1", figures, **given)


def test_texts_of_the_user_are_escaped() -> None:
    text = report.Renderer(Stub(), 5.0).evaluation(evaluation())
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10
    for heading in ("Confusion", "Classes", "Worst mistakes", "Examples with explanations"):
        assert f"<h3>{heading}</h3>" in text
    assert "By chance" in text
    assert "Of 9 of the 10 items, 5 were not entirely right" in text


def test_worst_and_surest_mistakes_come_first() -> None:
    rows = review(Stub(), samples(), 5.0)
    assert [row.item.id for row in rows] == ["8", "6", "4", "2", "0", "9", "7", "5", "1"]
    assert not list(by_kind(rows))
    assert len(review(Stub(), samples(), 0.0)) == 7, "a batch, but for the bad item"
    assert not review(Stub(), [ClassificationSample("1", b"")], 5.0), "no truth"


def test_many_classes_are_listed_by_confusion() -> None:
    many = torch.eye(40, dtype=torch.long) * 5
    many[7, 9] = 4
    text = report.Renderer(Stub(), 0.0).evaluation(evaluation(confusion=many, labels=[f"c{n}" for n in range(40)]))
    assert "<td>c7</td><td>c9</td>" in text
    assert "The 30 lowest of 40" in text


def test_parts_are_kept_and_files_of_others_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    data = {"test": {"path": "x", "samples": 3, "sha256": "0" * 64}}
    report.save(tmp_path, "vqa", {"validation": "first\nlines", "training": "curves"}, "m", data)
    report.save(tmp_path, "vqa", {"test": "second", "validation": "third"}, "m", data)
    text = (tmp_path / "report.html").read_text()
    assert text.index("third") < text.index("second") < text.index("curves")
    assert "first" not in text
    (tmp_path / "report.html").write_text("<html>mine</html>")
    refused("exists, and was not written by mmattn", report.save, tmp_path, "vqa", {}, "m", data, error=UserError)


def test_failures_do_not_reach_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SimpleNamespace(report=True)
    trainer = SimpleNamespace(lightning_module=SimpleNamespace(training_options=options), datamodule=None)
    report.write(tmp_path, trainer, "validation", "model", {}, None)
    said, failed = capsys.readouterr()
    assert said.startswith(f"Writing the report, {tmp_path}/report.html: ")
    (line,) = failed.splitlines()
    assert re.fullmatch(rf"{tmp_path}/report.html was not written: AttributeError: .* not affected\.", line)
    assert not list(tmp_path.iterdir())


def test_charts() -> None:
    text = page.chart({"a<b": [(0, 1.0), (1, float("nan")), (2, 3.0)], "c": [(1, 2.0)]}, "x & y")
    assert text.startswith("<svg")
    assert "a&lt;b" in text
    assert "x &amp; y" in text
    assert "nan" not in text
    assert page.chart({"a": []}, "none") == ""
    assert len(page.some([(n, 1.0) for n in range(5000)])) == 500
    for low, high in ((0.1, 0.1), (0, 0), (-3, 1e6), (1e-5, 3e-5), (0.999, 1)):
        found = page.ticks(low, high)
        assert found[0] <= low <= high <= found[-1]
        assert 2 <= len(found) <= 7


def test_curves_of_resumed_runs_continue(tmp_path: Path) -> None:
    for number, rows in ((2, "0,0.5,\n5,,0.1"), (10, "5,,0.2\n9,0.3,")):
        folder = tmp_path / "logs" / f"version_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/loss,val/top1\n{rows}\n")
    rows = report.logged(tmp_path)
    assert report.column(rows, "train/loss") == [(0, 0.5), (9, 0.3)]
    assert report.column(rows, "val/top1") == [(5, 0.2)]


class Split:
    skipped = ()

    def __init__(self, facts: list[dict[str, Any]], opened: dict[str, Any]) -> None:
        self.rows, self.opened = facts, opened

    def originals(self) -> list[dict[str, Any]]:
        return self.rows

    def facts(self, sample: dict[str, Any], files: bool = True) -> dict[str, Any]:
        if files and sample.get("broken"):
            raise DataError("a.png", "an image", "text")
        return {key: value for key, value in sample.items() if key != "broken"} | (self.opened if files else {})


def test_summary_of_data() -> None:
    train = Split([{"seconds": n, "class": ["<a>"]} for n in range(600)], {"width": 8, "in the mask": ["sky"]})
    val = Split([{"seconds": 2.5, "class": "b", "broken": True}, {"seconds": 30, "class": "b"}], {"width": 9})
    splits = {"train": train, "val": val}
    found = report.summary(SimpleNamespace(contents=lambda: splits, dataset=splits.__getitem__))
    rows = [re.findall("<td.*?>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", found)]
    assert ["items", "600", "2"] in rows
    total = f"{sum(range(600)) / 60:,.1f}"
    seconds = [f"0 / 299.5 / 599; {total} minutes in all", "2.5 / 16.25 / 30; 0.5 minutes in all"]
    assert ["seconds: min / median / max", *seconds] in rows
    assert ["width: min / median / max", "8 / 8 / 8", "9 / 9 / 9"] in rows, "an item that cannot be read is left out"
    assert [escape("<a>"), "600", "0"] in rows
    assert ["b", "0", "2"] in rows
    assert ["sky", "200", "0"] in rows
    assert "width, in the mask: of at most 200 items" in found


# Runs


def test_validation_lands_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run directory of its own, `validate` refreshes the report of the model's run."""
    from mmattn.tasks.common import cli

    monkeypatch.setattr(report, "SECONDS", (0.3, 0.3))
    monkeypatch.setattr(report, "EXAMPLES", 1)
    folder = run("fit", tmp_path / "run", "--trainer.report true --trainer.log_every_n_steps 1", task="classification")
    text = (folder / "report.html").read_text()
    for heading in ("Validation", "Training", "Data"):
        assert text.count(f"<h2>{heading}</h2>") == 1
    assert text.count("<svg") >= 3
    assert json.loads((folder / "run.json").read_text())["machine"] in text
    monkeypatch.chdir(tmp_path)
    words = "--trainer.accelerator cpu --trainer.limit_val_batches 2 --trainer.enable_progress_bar false"
    cli.run(tasks()["classification"], "validate", ["--checkpoint", "run/model", *words.split()])
    after = (folder / "report.html").read_text()
    assert after.count("<h2>Validation</h2>") == after.count("<h2>Training</h2>") == 1
    assert after != text
    assert Image.open(folder / "confusion_val.png").width > 100
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_explain_writes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mmattn.tasks.vqa.predict.VQAExplanation.save", lambda _, path: Image.new("L", (9, 9)).save(path)
    )
    ask("explain", "--input", "demo")
    assert len(list((tmp_path / "explanations").glob("*.png"))) == 9
    ask("explain", "--input", "demo")
    mine = tmp_path / "explanations" / "00004.png"
    Image.new("L", (9, 9)).save(mine)
    refused("00004.png: exists, and was not written by mmattn", ask, "explain", "--input", "demo", error=UserError)


# Loggers


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stand-ins of the packages wandb and mlflow, which record their calls."""
    calls: list[tuple[Any, ...]] = []

    def module(name: str, **content: Any) -> None:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(content)

    class Recorder:
        info = SimpleNamespace(run_id="r", experiment_id="e")
        id = name = "r"

        def __init__(self, *given: Any, **named: Any) -> None:
            calls.append((type(self).__name__, *given, named))

        def __getattr__(self, name: str) -> Any:
            return lambda *given, **named: calls.append((name, *given)) or self

    kinds = [type(name, (Recorder,), {}) for name in ("Run", "RunDisabled", "MlflowClient")]
    init = lambda **named: kinds[0](**named)  # noqa: E731
    module("wandb", run=None, init=init, Image=lambda image: ("image", image.size))
    module("wandb.sdk")
    module("wandb.sdk.lib", RunDisabled=kinds[1])
    module("wandb.wandb_run", Run=kinds[0])
    module("mlflow", set_tracking_uri=lambda uri: calls.append(("uri", uri)))
    module("mlflow.tracking", MlflowClient=kinds[2])
    module("mlflow.tracking.context")
    module("mlflow.tracking.context.registry", resolve_tags=lambda tags: tags)
    module("mlflow.utils")
    module("mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return calls


def test_named_loggers_take_pictures(services: list[tuple[Any, ...]], tmp_path: Path) -> None:
    names = ["wandb", "mlflow", "tensorboard"]
    loggers = named_loggers(names, tmp_path / "runs" / "pets", "vqa", fit=True)
    assert [type(one).__name__ for one in loggers] == [
        "WandbLogger", "MLFlowLogger", "TensorBoardLogger", "CSVLogger"
    ]  # fmt: skip
    assert loggers[2].log_dir == loggers[3].log_dir
    assert not list(tmp_path.iterdir()), "a run directory must be empty when training starts"
    report.log_pictures(loggers, {"val/confusion": Image.new("RGB", (30, 20))}, 7)
    init = next(call[-1] for call in services if call[0] == "Run")
    assert (init["project"], init["name"], init["dir"]) == ("mmattn-vqa", "pets", str(tmp_path / "runs" / "pets"))
    logged = next(call[1] for call in services if call[0] == "log")
    assert logged == {"val/confusion": [("image", (30, 20))], "trainer/global_step": 7}
    client, image, file = next(call[1:] for call in services if call[0] == "log_image")
    assert (client, image.size, file) == ("r", (30, 20), "val/confusion.png")
    assert ("uri", f"file:{tmp_path}/runs/mlruns") in services
    assert any(path.name.startswith("events") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("given", [None, True, False, "csv", ["csv", "tensorboard"]])
def test_default_loggers(given: Any, tmp_path: Path) -> None:
    kinds = [type(one).__name__ for one in named_loggers(given, tmp_path, "vqa", fit=True) or ()]
    assert kinds == ([] if given is False else ["CSVLogger"] if given == "csv" else ["TensorBoardLogger", "CSVLogger"])
    assert named_loggers(given, tmp_path, "vqa", fit=False) or given in (None, False)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "WandbLogger"])
def test_missing_package_is_one_line(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    if name.lower().removesuffix("logger") in sys.modules:
        pytest.skip("installed here")
    found = refused("is not installed: pip install", run, "fit", tmp_path / "r", f"--trainer.logger {name}")
    assert "\n" not in found
    assert not list(tmp_path.iterdir())


def test_unknown_logger(tmp_path: Path) -> None:
    expected = r"^trainer\.logger: expected tensorboard, csv, wandb, mlflow, a list, .* found 'wand'\.$"
    refused(expected, run, "fit", tmp_path / "r", "--trainer.logger wand")
