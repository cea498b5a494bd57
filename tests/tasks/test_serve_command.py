"""The command `serve`: its examples, models and mistakes."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from mmattn import fit, load
from mmattn.data.errors import UserError
from mmattn.tasks.common import serve
from mmattn.tasks.common.dispatch import guarded
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.serving.examples import example_of
from mmattn.tasks.common.serving.models import ServedModel, open_models, state_version
from mmattn.tasks.common.sources import find_model
from tests.conftest import refused
from tests.tasks.servers import request, serving

GRADES = [("tasty", "good"), ("burnt", "bad")]


def test_examples_of_a_model_of_own_data(tmp_path: Path) -> None:
    """They are items of its run's validation; away from the run, there are none."""
    texts = [(f"the {word} soup number {n}", label) for n in range(12) for word, label in GRADES]
    small = {"embed_dim": 8, "num_heads": 2, "num_layers": 1}
    sizes = {"max_epochs": 1, "logger": "csv", "report": True}
    folder = fit("text_classification", train=texts, dir=tmp_path / "run", model=small, trainer=sizes).dir / "model"
    (model,) = open_models([str(folder)], device="cpu")
    assert 1 <= len(model.examples) <= 6
    assert {item["text"] for item in model.examples} <= {text for text, _ in texts}
    assert "blue: for good; red: against it" in model.predictor.explain(texts[0][0], label="good").words.shades()[1]
    shutil.copytree(folder, tmp_path / "shipped")
    (model,) = open_models([str(tmp_path / "shipped")], device="cpu")
    assert model.examples == []
    with serving([model]) as address:
        assert request(address, "/examples").json["items"] == []


def test_examples_of_a_named_model() -> None:
    (model,) = open_models(["text_generation/tinyshakespeare"], device="cpu")
    assert model.examples[0] == {"prompt": "ROMEO:"}


def test_examples_of_several_models(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    names = ["a=classification/demo", "translation/demo"]
    one, other = open_models(names, device="cpu", examples=[f"a={tmp_path}"])
    assert (len(one.examples), len(other.examples)) == (1, 6)
    wrong = "--examples: expected NAME=PATH with a name of a, translation/demo, found"
    refused(wrong, lambda: list(open_models(names, device="cpu", examples=[str(tmp_path)])), error=UserError)


def test_examples_of_own_files(tmp_path: Any) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (model,) = open_models(["classification/demo"], device="cpu", examples=[str(tmp_path)])
    (item,) = model.examples
    assert item["image"].startswith("data:image/png;base64,")
    assert example_of(model.predictor, model.fields, {"image": tmp_path / "none.png"}) is None


def test_packed_models_predict_and_do_not_explain() -> None:
    (model,) = open_models(["text_classification/demo"], device="cpu", precision="int8")
    with serving([model]) as address:
        item = model.examples[0]
        expected = load("text_classification/demo", device="cpu")(item["text"]).label
        assert request(address, "/predict", {"item": item}).json["results"][0]["answer"] == expected
        assert request(address, "/explain", {"item": item}).status == 422
        assert request(address, "/models").json["models"][0]["explains"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vqa/demo", "x=vqa/demo", "x=asr/demo"], "found x twice; write NAME=MODEL"),
        (["vqa/demo", "vqa/demo"], "found vqa/demo twice"),
        (["vqa/demi"], "did you mean 'vqa/demo'?"),
        (["vqa/demo", "--port", "99999"], "--port: expected a number from 0 to 65535, found 99999."),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], message: str) -> None:
    refused(re.escape(message), serve.main, words, error=UserError)


def test_no_download_is_suggested_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name in ("runs/nothing", "own/nothing"):
        assert "did you mean" not in refused(name, serve.main, [name, "--port", "0"], error=CheckpointError)
    refused("did you mean 'hf:other/nothing'", serve.main, ["other/nothing", "--port", "0"], error=CheckpointError)


@pytest.mark.parametrize("name", [(), ("serve",)])
def test_damaged_examples_end_in_one_line(tmp_path: Any, capsys: pytest.CaptureFixture[str], name: Any) -> None:
    """Without advice to give an option that the command does not have."""
    (tmp_path / "a.csv").write_bytes(b"text\n\xff\n")
    words = ["text_classification/demo", "--examples", str(tmp_path / "a.csv"), "--port", "0"]
    with pytest.raises(SystemExit):
        guarded(lambda: serve.main(words), name)
    assert capsys.readouterr().err.endswith("a.csv, line 2: expected UTF-8 text, found '\\udcff'\n")


def test_a_taken_port_is_refused() -> None:
    place = serve.bound("127.0.0.1", 0)
    place.listen()
    port = place.getsockname()[1]
    refused(f"--port {port}: cannot listen there", serve.main, ["vqa/demo", "--port", str(port)], error=UserError)
    place.close()


def test_an_interrupt_stops_the_server() -> None:
    words = [sys.executable, "-m", "mmattn", "serve", "text_classification/demo", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(" (Ctrl-C stops it)\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("stopped\n", "")
    assert process.returncode == 0


def test_names_of_models(tmp_path: Any) -> None:
    folder = tmp_path / "runs" / "my pets" / "model"
    shutil.copytree(find_model("classification/demo").folder, folder)
    (model,) = open_models([str(folder.parent)], device="cpu")
    assert model.name == "classification/my_pets"
    assert model.version == next(open_models(["a=classification/demo"], device="cpu")).version, "of the same files"
    assert state_version(model.predictor) == ServedModel("b", model.predictor).version
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert next(open_models([str(folder)], device="cpu")).version != model.version
