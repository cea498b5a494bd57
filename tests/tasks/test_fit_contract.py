"""Tests of every task from the command line and from Python: one class over all tasks."""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import mmattn
from mmattn.data.errors import DataError
from mmattn.tasks.common import page, report, review
from mmattn.tasks.common.callbacks import read_checkpoint, shipped_weights
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.common.task import tasks
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import ask, lines, read, run, weights

CHEAP = "vqa"  # whose slow tests always run
SOME_SLOW = [pytest.param(name, marks=() if name == CHEAP else pytest.mark.slow) for name in tasks()]
BASELINES = [(task.name, words) for task in tasks().values() for words in task.baselines.values()]
SOME_BASELINES = slow_but_first(BASELINES, lambda baseline: baseline[0])
SECTIONS = ("--data.", "--model.", "--optim.", "--loss.", "--decode.")
# The rate does not depend on the length of training.
OPTIONS = "--optim.schedule constant --optim.warmup_steps 100 --optim.ema_decay 0.9"

BAD_ITEMS: dict[str, list[tuple[Any, str]]] = {  # items given to `predict`, and its error messages
    "asr": [
        ([{"sound": "a.wav"}], "item 0: expected the key audio, a recording, found sound"),
        ("a.wav", "write predict"),
    ],
    "captioning": [
        ([{"id": "x"}], "item x: expected the key image, found id"),
        ([{"image": "none.png", "id": "x7"}], r"none\.png: expected an image file, found no such file"),
        ("a.png", "a list of items"),
    ],
    "classification": [
        ([{"id": "x"}], "item x: expected the key image, found id"),
        ({"image": "a.png"}, r"predict\(\[item\]\)"),
        (b"\x89PNG", r"predict\(\[item\]\)"),
        ([7], r"item 0: image: expected a readable image file"),
    ],
    "qa": [
        ([{"question": "Who?"}], "item 0: expected the keys question and context, found question"),
        ([{"question": "Who?", "context": " ", "id": "x7"}], "item x7: expected a context that is not empty"),
        ("Who?", "write predict"),
    ],
    "summarization": [
        ([" "], "item 0: expected a document, found an empty one"),
        ([{"txt": "x", "id": "a"}], "item a: expected the key document, a text, found id, txt"),
        ([{"document": 3}], "item 0: expected the key document, a text"),
        ("a document", "write predict"),
    ],
    "text_classification": [
        ([" "], "item 0: expected a text that is not empty"),
        ([{"txt": "x", "id": "a"}], "item a: expected the key text, found id, txt"),
        ([{"text": "x", "text_pair": ""}], "item 0: expected a text_pair that is not empty"),
        ([7], "item 0: expected a text, or a mapping with text or words, found int"),
        ("a text", "write predict"),
    ],
    "text_generation": [
        ([{"text": "x", "id": "a"}], "item a: expected the key prompt, found id, text"),
        (["\udcff"], "item 0: expected a prompt of valid Unicode"),
        ([{"prompt": 3}], "item 0: expected a prompt of valid Unicode, found 3"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "expected a model with a chat template, found none"),
        ("a text", "write predict"),
    ],
    "translation": [
        ([{"de": "x"}], "item 0: expected a source sentence .en., found the keys de"),
        (["\udcff"], "item 0: expected a source sentence"),
        ([{"en": 3}], "item 0: expected a source sentence .en., found 3"),
        ("the lion", "a list of items"),
    ],
    "video": [
        ([{"id": "x"}], "item x: expected the key video, found id"),
        (
            [{"video": "none.mp4", "id": "x7"}],
            r"item x7: video none\.mp4: expected a video file, .* found no such file",
        ),
        ("a.mp4", r"predict\(\[item\]\)"),
    ],
    "vqa": [
        ([{"image": "a.png"}], "item 0: expected the keys image and question, found image"),
        ([{"image": "none.png", "question": "why?"}], r"none\.png"),
        ([{"image": "none.png", "question": "  ", "id": "x7"}], "item x7: expected a question, found an empty one"),
        (["none.png"], "item 0: expected a mapping with the keys image and question, found str"),
    ],
}
BAD_ARGUMENTS: dict[str, list[tuple[str, str]]] = {  # run in an empty folder
    "asr": [
        ("", "expected --audio, or --input PATH, found neither"),
        ("--audio a.wav --input demo", "expected --audio, or --input PATH, found both"),
        ("--input nowhere", "expected a manifest .jsonl, a .csv or .tsv"),
        ("--input nowhere.wav", "no such file"),
        ("--input .", "expected a folder with recordings"),
        ("--audio .", "--audio .: expected a recording, found a folder; --input takes folders"),
        ("--audio a.wav --num_beams 0", "--num_beams: expected 1 or more, found 0"),
        ("--audio a.wav --window 0", "--window: expected seconds from 0.5 to 600, found 0"),
        ("--audio a.wav --ctc_weight 2", "--ctc_weight: expected a value from 0 to 1, found 2"),
    ],
    "captioning": [
        ("", "expected --image, or --input PATH, found neither"),
        ("--input none", "none: .*found no such file"),
        ("--image none.png --num_beams 0", "--num_beams: expected 1 or more, found 0"),
        ("--image none.png", r"^image none\.png: expected an image file, found no such file"),
    ],
    "classification": [
        ("", "expected --image, or --input PATH, found neither"),
        ("--image a.png --input demo", "expected --image, or --input PATH, found both"),
        ("--input none", "none: .*found no such file"),
        ("--image none.png", r"^image none\.png: expected an image file, found no such file"),
    ],
    "qa": [
        ("", "expected --question and --context, or --input PATH, found neither"),
        ("--question Who?", "expected --question and --context, or --input PATH, found only --question"),
        ("--input demo --top_k 0", "--top_k: expected 1 or more, found 0"),
        ("--input nowhere", "nowhere: expected a JSON, JSONL or CSV file of questions, found no such file"),
    ],
    "segmentation": [
        ("--input nowhere", "nowhere: expected a folder of images, found no such folder"),
        ("--input demo --tile 8", "--tile: expected 32 pixels or more, found 8"),
    ],
    "text_classification": [
        ("", "expected --text, or --input PATH, found neither"),
        ("--input none.csv", r"none\.csv: expected a CSV, TSV, JSONL, CoNLL, CoNLL-U or text file, found no such file"),
        ("--input demo --top_k 0", "--top_k: expected 1 or more, found 0"),
        ("--input demo --task sst2", "task: expected no name, since the model has one task, found 'sst2'"),
    ],
    "text_generation": [
        ("", "expected --prompt, or --input PATH, found neither"),
        ("--input none.txt", "none.txt: expected a JSONL, CSV, TSV or text file of prompts, found no such file"),
        ("--prompt x --temperature -1", "--temperature: expected 0 or more, found -1"),
        ("--prompt x --on_long drop", "--on_long: expected cut or refuse, found 'drop'"),
        ("--prompt x --chat", "expected a model with a chat template, found none"),
    ],
    "translation": [
        ("", "--text, or --input PATH"),
        ("--input none.txt", "none.txt: expected a text file, found no such file"),
    ],
    "video": [
        ("", "expected --video, or --input PATH, found neither"),
        ("--video none.mp4 --stride 1", "--stride: expected --window"),
        ("--input none", "video none: expected a video file, or a folder of numbered images, found no such file"),
    ],
}

each = pytest.mark.parametrize("task", tasks())
each_slowly = pytest.mark.parametrize("task", SOME_SLOW)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a task with two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    options = f"{OPTIONS} --trainer.max_epochs 2 --data.num_workers 0 --trainer.report true"

    @functools.cache
    def trained(task: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "SECONDS", (0.3, 0.3))
            patch.setattr(report, "EXAMPLES", 1)
            patch.setattr(review, "BATCH", 2)
            return run("fit", folder / task, options, task=task)

    return trained


@pytest.fixture(scope="module")
def predictor(trained: Callable[[str], Path]) -> Callable[[str], Predictor[Any, Any]]:
    """The model of the run."""
    return functools.cache(lambda task: mmattn.load(trained(task) / "model", device="cpu"))


def plain(found: Any) -> Any:
    """A prediction's values in comparable form."""
    if isinstance(found, list):
        return [plain(one) for one in found]
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in dataclasses.asdict(found).items()}


def saved_whole(figure: Figure, save: Callable[..., None], *given: Any, **options: Any) -> None:
    """Saves a figure, which must have a title and contain all that is drawn: no label is cut."""
    save(figure, *given, **options)
    figure.dpi = options["dpi"]  # at which the layout was computed
    box, tolerance = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer()), 0.05  # inches
    assert -tolerance <= min(box.x0, box.y0)
    assert box.x1 <= figure.get_figwidth() + tolerance
    assert box.y1 <= figure.get_figheight() + tolerance
    assert "\npredicted: " in figure.get_suptitle()


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs end with bitwise equal models and training states."""
    pairs = [[weights(run) for run in (one, other)]]
    pairs += [[read_checkpoint(run / "last.ckpt")["state_dict"] for run in (one, other)]]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


class TestContract:
    @each
    def test_task_description_resolves(self, task: str) -> None:
        described = tasks()[task]
        assert (described.name, described.folder.name) == (task, task)
        assert described.tiny
        named = [name for name in described if isinstance(name, str) and re.fullmatch(r"[\w.]+:\w+", name)]
        assert len(named) >= 6
        for name in (*named, *described.families.values(), *described.encoders.values()):
            assert described.resolve(name)
        assert any(words.startswith("--data.") for words in described.baselines.values()), "an ablation baseline"
        for words in (described.tiny, *described.baselines.values(), *described.variants.values()):
            assert all(word.startswith(SECTIONS) for word in words.split()[::2])

    @each
    def test_fit_writes_the_run_directory(self, task: str, trained: Callable[[str], Path]) -> None:
        folder = trained(task)
        files = {
            ".lock", "config.yaml", "run.json", "metrics.json", "report.html", "examples.json", "last.ckpt",
            "best.ckpt", "processor", "model", "logs",
        }  # fmt: skip
        assert {path.name for path in folder.iterdir()} == files
        assert {path.name for path in (folder / "model").iterdir()} == {
            "config.json", "model.safetensors", "processor", "README.md"
        }  # fmt: skip
        metrics, record = read(folder / "metrics.json"), read(folder / "run.json")
        assert metrics["fit"]["epochs"] == 2
        assert isinstance(metrics["validation"][tasks()[task].metric], float)
        assert record["seed"] == 0
        assert {"python", "torch", "lightning"} <= record["versions"].keys()
        assert len(record["data"]["train"]["sha256"]) == 64
        assert record["command"].startswith(f"python -m tasks.{task} fit ")
        config, words = yaml.safe_load((folder / "config.yaml").read_text()), tasks()[task].tiny.split()
        for name, value in zip(words[::2], words[1::2], strict=True):
            group, key = name.removeprefix("--").split(".")
            assert config[group][key] == yaml.safe_load(value)
        assert config["seed_everything"] == 0

    @each
    def test_report(self, task: str, trained: Callable[[str], Path]) -> None:
        text = (trained(task) / "report.html").read_text()
        value = read(trained(task) / "metrics.json")["validation"][tasks()[task].metric]
        assert f'<span class="big">{page.number(value)}</span> {tasks()[task].metric}' in text
        for part in ("<h2>Validation", "<h3>Worst mistakes", "<h2>Training", "<h2>Data"):
            assert part in text
        assert "<svg" in text
        assert "data:image/jpeg" in text or "Not all were explained" in text, "a model of two epochs may output nothing"
        assert not re.search(r"(src|href)=\"(?!data:)|<script|<link|url\(", text), "one file, without links"
        assert len(text) < 3e6

    @each
    def test_log_contains_the_metric(self, task: str, trained: Callable[[str], Path]) -> None:
        logs = trained(task) / "logs"
        assert any(path.name.startswith("events") for path in logs.rglob("*"))
        with next(logs.rglob("metrics.csv")).open() as file:
            assert sum(bool(row[f"val/{tasks()[task].metric}"]) for row in csv.DictReader(file)) == 2

    @each
    def test_shipped_model_is_the_best_average(self, task: str, trained: Callable[[str], Path]) -> None:
        checkpoint = read_checkpoint(trained(task) / "best.ckpt")
        best, shipped = shipped_weights(checkpoint), weights(trained(task))
        assert shipped
        assert all(torch.equal(best[name], shipped[name]) for name in shipped)
        raw = checkpoint["state_dict"]
        assert any(not torch.equal(raw[f"model.{name}"], value) for name, value in shipped.items())

    @each
    def test_validate_and_test(self, task: str, trained: Callable[[str], Path], tmp_path: Path) -> None:
        for command in ("validate", "test"):
            run(command, tmp_path, f"--checkpoint {trained(task) / 'model'}", task=task)
        mine, theirs = read(tmp_path / "metrics.json"), read(trained(task) / "metrics.json")
        main = tasks()[task].metric
        assert mine["validation"][main] == theirs["validation"][main]
        assert isinstance(mine["test"][main], float)

    @each_slowly
    def test_resumed_run_equals_uninterrupted(self, task: str, trained: Callable[[str], Path], tmp_path: Path) -> None:
        folder = run("fit", tmp_path / "run", OPTIONS, task=task)
        steps = read(folder / "metrics.json")["fit"]["steps"]
        run("fit", folder, f"{OPTIONS} --trainer.max_epochs 2 --ckpt_path last", task=task)
        assert read(folder / "metrics.json")["fit"]["steps"] == 2 * steps
        assert same_weights(folder, trained(task))

    @each_slowly
    def test_results_do_not_depend_on_workers(self, task: str, trained: Callable[[str], Path], tmp_path: Path) -> None:
        options = f"{OPTIONS} --trainer.max_epochs 2 --data.num_workers 2"
        assert same_weights(run("fit", tmp_path / "run", options, task=task), trained(task))

    @pytest.mark.parametrize("baseline", SOME_BASELINES, ids=" ".join)
    def test_baselines_train(self, baseline: tuple[str, str], tmp_path: Path) -> None:
        task, words = baseline
        metrics = read(run("fit", tmp_path / "run", words, task=task) / "metrics.json")
        assert metrics["fit"]["steps"] > 0
        assert tasks()[task].metric in metrics["validation"]

    @each
    def test_predict_and_explain(
        self, task: str, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("--checkpoint", trained(task) / "model", "--input", "demo", "--output")
        ask("predict", *words, tmp_path / "answers.jsonl", task=task)
        answers = lines(tmp_path / "answers.jsonl")
        assert len({answer["id"] for answer in answers}) == len(answers) > 1
        kind = tasks()[task].resolve("predictor")
        some = kind.demo_samples
        monkeypatch.setattr(kind, "demo_samples", lambda self: some(self)[:2])  # pictures take half a second each
        monkeypatch.setattr(Figure, "savefig", functools.partialmethod(saved_whole, Figure.savefig))
        ask("explain", *words, tmp_path / "plots", task=task)
        images = sorted((tmp_path / "plots").iterdir())
        assert len(images) == 2
        with Image.open(images[0]) as image:
            assert image.format == "PNG"
            assert min(image.size) > 50

    @each_slowly
    def test_export(self, task: str, trained: Callable[[str], Path], tmp_path: Path) -> None:
        """Each exported program was compared with the model before it was saved."""
        pytest.importorskip("onnxruntime")
        ask("export", "--checkpoint", trained(task) / "model", "--output", tmp_path, task=task)
        programs = {path.stem for path in tmp_path.glob("*.pt2")}
        assert programs in ({task}, {"encoder", "step"})
        names = {f"{name}.{kind}" for name in programs for kind in ("pt2", "onnx")}
        assert {path.name for path in tmp_path.iterdir()} == names | {"processor"}

    @each
    def test_single_and_multiple_items(self, task: str, predictor: Callable[[str], Predictor[Any, Any]]) -> None:
        model = predictor(task)
        first, second = model.demo_samples()[:2]
        expected = plain(model.predict([first, second], batch_size=1))
        assert plain(model(first)) == plain(model.predict([first])[0]) == expected[0]
        found = model.predict([first, {}, second], batch_size=1, on_error="skip")
        assert found[1] is None
        assert plain([found[0], found[2]]) == expected
        refused("item 1", model.predict, [first, {}])
        for ask_it in (model.predict, model.explain_all):
            refused(rf"^batch_sizes: {task} has no such option", ask_it, [first], batch_sizes=1, error=ConfigError)

    @pytest.mark.parametrize("task", BAD_ITEMS)
    def test_invalid_items_raise(self, task: str, predictor: Callable[[str], Predictor[Any, Any]]) -> None:
        for items, message in BAD_ITEMS[task]:
            refused(message, predictor(task).predict, items, error=DataError)

    @pytest.mark.parametrize("task", BAD_ARGUMENTS)
    def test_invalid_arguments_raise(
        self, task: str, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for words, message in BAD_ARGUMENTS[task]:
            given = ("--checkpoint", trained(task) / "model", *words.split(), "--output", "o")
            refused(message, ask, "predict", *given, task=task, error=(ConfigError, DataError))
        assert not list(tmp_path.iterdir()), "a rejected command leaves no files"

    @each
    def test_saved_model_predicts_the_same(
        self, task: str, predictor: Callable[[str], Predictor[Any, Any]], tmp_path: Path
    ) -> None:
        model = predictor(task).to("cpu")
        other = mmattn.load(model.save(tmp_path / "model"), device="cpu")
        assert type(other) is type(model) is tasks()[task].resolve("predictor")
        assert (other.task, other.labels, other.device.type) == (task, model.labels, "cpu")
        assert other.labels is None or len(other.labels) > 1
        samples = model.demo_samples()[:3]
        assert plain(other.predict(samples)) == plain(model.predict(samples))

    @each
    def test_named_model(self, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not named_models(task):
            pytest.skip(f"{task} ships no model yet")
        monkeypatch.chdir(tmp_path)
        named = mmattn.load(f"{task}/demo", device="cpu")
        assert named.task == task
        if tasks()[task].localisation is not None:
            rows = tasks()[task].resolve("localisation")(named, 3).rows.values()
            assert rows
            assert all(0 <= value <= count for count, *values in rows for value in values)
        with pytest.raises(CheckpointError, match=rf"a named model of .*{task}/demo.*did you mean '{task}/demo'"):
            mmattn.load(f"{task}/dem")
        shutil.copytree(tasks()[task].folder / "checkpoints" / "demo", Path(task, "demo"))
        with pytest.raises(CheckpointError, match=rf"both a named model and a folder; write \./{task}/demo"):
            mmattn.load(f"{task}/demo")
        assert mmattn.load(f"./{task}/demo", device="cpu").labels == named.labels
