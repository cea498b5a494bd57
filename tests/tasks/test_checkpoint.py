"""The model folder: written atomically, read strictly, and no code in it is run."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmattn.tasks import load
from mmattn.tasks.common import files
from mmattn.tasks.common.callbacks import AtomicCheckpointIO, read_checkpoint
from mmattn.tasks.common.checkpoint import CONFIG, WEIGHTS, load_weights, read_config, read_weights, save_directory
from mmattn.tasks.common.errors import CheckpointError, DiskFullError
from tests.conftest import refused


class Processor:
    """Saves one file."""

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "processor.json").write_text("{}")


def make(folder: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"task": "vqa", "model": nn.Linear(3, 2), "keywords": {"a": 1}, "processor": Processor()}
    return save_directory(folder, **(options | changes))


def test_weights_round_trip(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    folder = make(tmp_path / "model", model=model, metrics={"test": {"accuracy": 0.5}}, command="fit")
    other = nn.Linear(3, 2)
    load_weights(other, read_weights(folder / WEIGHTS), folder)
    assert torch.equal(other.weight, model.weight)
    assert read_config(folder)["model"] == {"a": 1}
    assert "| test | accuracy | 0.5000 |" in (folder / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_half_precision_weights(tmp_path: Path) -> None:
    model = nn.Linear(300, 20)
    whole, half = make(tmp_path / "a", model=model), make(tmp_path / "b", model=model, half=True)
    state = read_weights(half / WEIGHTS)
    assert all(value.dtype == torch.float32 for value in state.values())
    torch.testing.assert_close(state["weight"], model.weight.detach(), atol=1e-3, rtol=1e-3)
    assert (half / WEIGHTS).stat().st_size < 0.55 * (whole / WEIGHTS).stat().st_size


def test_mismatched_weights_raise(tmp_path: Path) -> None:
    given = (read_weights(make(tmp_path / "model") / WEIGHTS), "here")
    unlike = r"weight is \(2, 3\), the model's \(2, 4\)"
    refused(unlike, load_weights, nn.Linear(4, 2), *given, error=CheckpointError)
    refused("left over bias", load_weights, nn.Linear(3, 2, bias=False), *given, error=CheckpointError)


def test_truncated_weights_raise(tmp_path: Path) -> None:
    path = make(tmp_path / "model") / WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a safetensors file, found a damaged"):
        read_weights(path)


class Trap:
    """Runs code when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_with_code_is_never_loaded(tmp_path: Path) -> None:
    path, checkpoint, trap = tmp_path / WEIGHTS, tmp_path / "last.ckpt", Trap(tmp_path / "trap")
    for write in (lambda: path.write_bytes(pickle.dumps(trap)), lambda: torch.save({"a": torch.ones(2)}, path)):
        write()
        refused("pickle", read_weights, path, error=CheckpointError)
    torch.save({"state_dict": trap}, checkpoint)
    refused(r"last\.ckpt: expected a checkpoint of this toolkit", read_checkpoint, checkpoint, error=CheckpointError)
    assert not trap.path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ('{"architectures": ["Bert"]}', "missing: format, task, model"),
        ('{"format": 9, "task": "vqa", "model": {}}', "expected format 1 to 3, found 9"),
        ('{"format": 1, "task": "golf", "model": {}}', "found 'golf'"),
    ],
)
def test_invalid_config_raises(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    refused(message, load, tmp_path, error=CheckpointError)


def test_missing_folders_and_urls_raise(tmp_path: Path) -> None:
    refused("no such folder", load, tmp_path / "none", error=CheckpointError)
    (tmp_path / "a").touch()
    refused(r"expected a shipped model with config\.json, found: a", load, tmp_path, error=CheckpointError)
    refused("local folders only", load, "https://example.org/model", error=CheckpointError)
    refused("local files only", read_checkpoint, "https://example.org/last.ckpt", error=CheckpointError)


def test_truncated_training_checkpoint_raises(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(1000)}, "loops": {}}, path)
    path.write_bytes(path.read_bytes()[:800])
    refused(r"last\.ckpt: expected a checkpoint of this toolkit", read_checkpoint, path, error=CheckpointError)
    torch.save({"weights": torch.ones(3)}, path)
    refused("expected a training checkpoint", read_checkpoint, path, error=CheckpointError)


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {"a": torch.ones(3)}, "loops": {}}, path)
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written: the disk is full"):
        writer.save_checkpoint({"state_dict": {"a": torch.zeros(3)}, "loops": {}}, path)
    monkeypatch.undo()
    assert torch.equal(read_checkpoint(path)["state_dict"]["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_full_disk_keeps_the_previous_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "model", keywords={"a": 1})
    monkeypatch.setattr(files.os, "fsync", full_disk)
    refused("No space left on device: '.*model'", make, tmp_path / "model", keywords={"a": 2}, error=DiskFullError)
    monkeypatch.undo()
    assert json.loads((folder / CONFIG).read_text())["model"] == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_recovers_after_a_kill(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    os.replace(folder, tmp_path / ".model.x1y2.old.tmp")  # killed between the two renames
    (tmp_path / ".model.x1y2.tmp").mkdir()
    (tmp_path / ".last.ckpt.q9.tmp").write_bytes(b"half")
    files.clean_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert read_config(tmp_path / "model")["task"] == "vqa"
