"""Outputs are never inputs, never written twice, and replace nothing of others; devices and links remain."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn.data.errors import UserError
from mmattn.tasks.common import files
from mmattn.tasks.common.checkpoint import CheckpointError
from mmattn.tasks.common.errors import DiskFullError
from mmattn.tasks.common.outputs import Outputs, save_png
from mmattn.tasks.segmentation.demo import make
from mmattn.tasks.segmentation.predict import SegmentationPredictor, load
from tests.conftest import refused
from tests.tasks.runs import ROOT, ask, lines

ENDINGS = (".png", ".jpg")
SCENE = make("test", 1)[0].image


@pytest.fixture(scope="module")
def predictor() -> SegmentationPredictor:
    return load(device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, two of which differ in their ending, or in a part of their name, alone."""
    for name in ("photos/frame.0001.png", "photos/frame.0002.png", "photos/deep/b.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(SCENE).save(tmp_path / name)
    return tmp_path / "photos"


def run(command: str, *words: object) -> None:
    ask(command, *words, task="segmentation")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Inputs and files of others


@pytest.mark.parametrize("words", ["--masks photos", "--overlays photos/../photos", "--masks link", "--masks ."])
def test_inputs_are_never_overwritten(
    words: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos if words.endswith(" .") else tmp_path)
    (tmp_path / "link").symlink_to(photos)
    before = content(photos)
    message = r"frame\.0001\.png: expected a name for an output, found an input"
    refused(message, run, "predict", *words.split(), "--input", photos, error=UserError)
    assert content(photos) == before, "an error before any prediction"


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_output_is_not_the_input(command: str, photos: Path, tmp_path: Path) -> None:
    image, link, hard = photos / "frame.0001.png", tmp_path / "link.png", tmp_path / "hard.png"
    link.symlink_to(image)
    os.link(image, hard)
    before = image.read_bytes()
    for target in (image, link, hard, photos / ".." / "photos" / image.name):
        message = "expected a name for an output, found an input"
        refused(message, run, command, "--image", image, "--output", target, error=UserError)
    assert image.read_bytes() == before
    model = Path(__file__).parents[2] / "tasks/segmentation/checkpoints/demo/config.json"
    refused(r"config\.json: .* found an input", run, "predict", "--image", image, "--output", model, error=UserError)
    assert json.loads(model.read_text())["task"] == "segmentation"


def test_outputs_in_the_working_directory_are_replaced(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / "m")
    for _ in range(2):
        run("predict", "--input", photos, "--masks", ".")
    assert len(content(tmp_path / "m")) == 3, "they have the names of inputs in another folder"


def test_what_exists_is_replaced_only_if_it_is_ours(photos: Path, tmp_path: Path) -> None:
    masks, shown = tmp_path / "m", tmp_path / "e"
    for command, words, folder in (("predict", "--masks", masks), ("explain", "--output", shown)):
        for _ in range(2):
            run(command, "--input", photos, words, folder)
        strange = sorted(folder.rglob("*.png"))[0]
        Image.fromarray(SCENE).save(strange)
        before = strange.read_bytes()
        message = f"{strange.name}: exists, and was not written by mmattn"
        refused(message, run, command, "--input", photos, words, folder, error=UserError)
        assert strange.read_bytes() == before
    assert content(masks).keys() == {"frame.0001.png", "frame.0002.png", "deep/b.png"}, "names keep their dots"
    refused("--overlays .*: expected another folder", run, "predict", "--input", photos, "--masks", masks,
            "--overlays", masks / ".." / "m", error=UserError)  # fmt: skip
    refused("found an input", run, "predict", "--input", masks, "--masks", masks, error=UserError)


def test_names_of_items_stay_inside(predictor: SegmentationPredictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    ids = ["../a", "/etc/passwd", "a/../../b.jpg", "..", "", ".", "x.v1.2", "a", "deep/a.jpg", "deep/a"]
    found = predictor.predict([{"image": SCENE, "id": name} for name in ids], masks=out, overlays=out / "deep")
    assert [Path(one.mask).relative_to(out).as_posix() for one in found] == [
        *("a.png", "passwd.png", "b.png", "item.png", "item-2.png", "item-3.png", "x.v1.2.png", "a-2.png"),
        *("deep/a.jpg.png", "deep/a-3.png"),  # deep/a.png and deep/a-2.png are overlays
    ]
    assert len({path for one in found for path in (one.mask, one.overlay)}) == 2 * len(ids)
    assert all(Path(path).is_file() for one in found for path in (one.mask, one.overlay))
    assert {path.name for path in tmp_path.iterdir()} == {"m", "photos"}
    (out / "out").symlink_to(photos)
    item = {"image": SCENE, "id": "out/new"}
    refused("found a link that leads out of it", predictor.predict, [item], masks=out, error=UserError)
    assert "new.png" not in os.listdir(photos)


def test_json_lines_and_masks_are_different_files(photos: Path, tmp_path: Path) -> None:
    words = ("--image", photos / "frame.0001.png", "--masks", tmp_path, "--output", tmp_path / "frame.0001.png")
    run("predict", *words)
    assert lines(tmp_path / "frame.0001.png")[0]["mask"] == str(tmp_path / "frame.0001.png.png")


def test_many_items_of_one_name_take_linear_time(tmp_path: Path) -> None:
    outputs = Outputs(())
    begun = time.process_time()
    assert outputs.place(tmp_path, "a.jpg", ENDINGS).name == "a.png"
    assert [outputs.place(tmp_path, "/b/a.jpg", ENDINGS) for _ in range(3000)][-1].name == "a-3000.png"
    assert time.process_time() - begun < 5


def test_exports_and_saved_models_replace_only_their_own(predictor: SegmentationPredictor, tmp_path: Path) -> None:
    (tmp_path / "photo").touch()
    for target in (tmp_path, tmp_path / "photo"):
        refused("expected a model of mmattn to replace", predictor.save, target, error=CheckpointError)
    assert os.listdir(tmp_path) == ["photo"]
    model = predictor.save(predictor.save(tmp_path / "model"))
    before = content(model)
    refused("found a model or a run", predictor.export, model, error=UserError)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "own.onnx").touch()
    refused(r"own\.onnx: exists, and was not written by an export", predictor.export, tmp_path / "e", error=UserError)
    assert content(model) == before


# Links, devices, pipes


def save(path: Path) -> None:
    """The three writers of files."""
    if path.suffix == ".png":
        save_png(path, Image.fromarray(SCENE).save)
    else:
        with files.atomic_write(path, "w") as file:
            file.write("text\n")


@pytest.mark.parametrize("name", ["a.txt", "a.png"])
def test_links_are_followed(name: str, tmp_path: Path) -> None:
    target, link, new = tmp_path / "real" / name, tmp_path / name, tmp_path / f"new{name[1:]}"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    new.symlink_to(tmp_path / "real" / f"new{name[1:]}")
    for path in (link, new):
        save(path)
        assert path.is_symlink()
        assert path.stat().st_size > 4
    assert stat.S_IMODE(target.stat().st_mode) == 0o640 or name == "a.png"
    assert {path.name for path in target.parent.iterdir()} == {name, f"new{name[1:]}"}
    loop = tmp_path / f"loop{name[1:]}"
    loop.symlink_to(loop.name)
    refused("symbolic links", save, loop, error=OSError)
    assert loop.is_symlink()
    folder = files.atomic_folder(tmp_path / "real", lambda place: (place / "x").touch())
    (tmp_path / "f").symlink_to(folder)
    files.atomic_folder(tmp_path / "f", lambda place: (place / "y").touch())
    assert (tmp_path / "f").is_symlink()
    assert os.listdir(folder) == ["y"]


@pytest.mark.parametrize("name", ["pipe", "pipe.png"])
def test_pipes_are_written_in_place(name: str, tmp_path: Path) -> None:
    pipe, read = tmp_path / name, list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    save(pipe)
    reader.join(10)
    assert read[0][:4] == (b"text" if name == "pipe" else b"\x89PNG")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == [name]


def test_folders_are_no_output(photos: Path) -> None:
    words = ("--image", photos / "frame.0001.png", "--output", photos)
    refused("Is a directory", run, "predict", *words, error=IsADirectoryError)


def shell(command: str, cwd: Path) -> bytes:
    program = f"{sys.executable} -m mmattn segmentation"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["bash", "-c", command.replace("MMATTN", program)]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_standard_output(photos: Path) -> None:
    found = shell("MMATTN explain --image frame.0001.png --output /dev/stdout | cat > e.png; echo", photos)
    assert found == b"\n"
    Image.open(photos / "e.png").load()  # messages are on stderr


def test_devices(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = ("--image", photos / "frame.0001.png", "--output")
    (photos / "o").write_text("before\n")
    with (photos / "o").open("a") as appended:
        run("predict", *image, f"/dev/fd/{appended.fileno()}")
    assert [line[0] for line in (photos / "o").read_text().splitlines()] == ["b", "{"]
    end, pipe = os.pipe()
    run("predict", *image, f"/dev/fd/{pipe}")  # as of >(cat) in a shell
    os.close(pipe)
    with os.fdopen(end) as reader:
        assert reader.read()[0] == "{"
    run("predict", *image, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert capfd.readouterr().out == "", "messages are on stderr"
    run("predict", *image, "/dev/stdout")
    assert capfd.readouterr().out[0] == "{"


# Full disks


def caused(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
REPORTS = {
    "Python": FULL,
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "PyTorch": caused(RuntimeError("unexpected pos 64 vs 0"), FULL),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("writer", ["atomic_write", "atomic_path", "atomic_folder"])
def test_a_full_disk_is_named(writer: str, report: str, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        def fill(_: object) -> None:
            raise REPORTS[report]

        if writer == "atomic_folder":
            files.atomic_folder(path, fill)
        with getattr(files, writer)(path) as place:
            fill(place)

    refused(r"(No space left on device|quota exceeded): '.*a\.png'", write, tmp_path / "a.png", error=DiskFullError)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["export", "explain"])
def test_a_full_disk_ends_the_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", fail)  # PyTorch's own writer would abort the process
    words = ("--input", "demo", "--on_error", "skip") if command == "explain" else ("--format", "torch")
    given = (command, *words, "--output", tmp_path / "o")
    refused("No space left on device: '", ask, *given, task="classification", error=DiskFullError)
    assert not list(tmp_path.rglob("*.*"))


# Killed runs


@pytest.mark.parametrize("writer", ["atomic_write", "atomic_path"])
def test_files_of_killed_runs_are_removed(writer: str, tmp_path: Path) -> None:
    code = (
        f"import sys, time; from mmattn.tasks.common.files import {writer} as writer\n"
        f"with writer(sys.argv[1]) as file: print(flush=True); time.sleep(60)"
    )
    path = tmp_path / "a.png"
    process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (left,) = os.listdir(tmp_path)
    (tmp_path / ".other.tmp").touch()
    Outputs(()).claim(path)
    assert left in os.listdir(tmp_path), "its writer lives"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left in os.listdir(tmp_path)
    Outputs(()).claim(path)
    assert os.listdir(tmp_path) == [".other.tmp"]


@pytest.mark.parametrize("words", ["--masks m --output o/a.jsonl", "--output m/frame.0001.png"])
def test_the_next_command_removes_them(words: str, photos: Path, tmp_path: Path) -> None:
    for folder in ("m", "o"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".x.abc.mmattn.tmp").write_bytes(np.zeros(4))
    given = [word if word.startswith("--") else tmp_path / word for word in words.split()]
    run("predict" if "--masks" in words else "explain", "--image", photos / "frame.0001.png", *given)
    assert os.listdir(tmp_path / "m") == ["frame.0001.png"]
    assert os.listdir(tmp_path / "o") == (["a.jsonl"] if "--masks" in words else [".x.abc.mmattn.tmp"])
