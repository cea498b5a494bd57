"""Model folders of earlier formats: they load and give equal outputs; removed options raise one error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mmattn
from mmattn.tasks.common.checkpoint import CONFIG, FORMAT, read_config, upgrade
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.common.task import tasks
from tests.conftest import refused
from tests.tasks.runs import edited

OLD: dict[str, dict[str, Any]] = {  # keywords of version 0.1
    "vqa": {"memory": 0.0, "memory_picture": 6.0, "memory_ridge": 4.0, "memory_size": [0, 0, 0]},
    "asr": {"memory": "frames"},
    "classification": {"pool": "attention"},
    "summarization": {"memory": "tokens"},
    "translation": {"memory": "tokens"},
}
SHIPPED = [task for task in tasks() if task in OLD or task == "segmentation"]  # the tasks of version 0.1


def as_format_1(task: str, folder: Path, **keywords: Any) -> Path:
    """The shipped model in the format of version 0.1."""
    shutil.copytree(named_models(task)["demo"], folder)
    with edited(folder / CONFIG) as config:
        del config["network"]
        config["model"].pop("pooling", None)
        config["model"] |= OLD.get(task, {}) | keywords
        config["format"] = 1
    return folder


@pytest.mark.parametrize("task", SHIPPED)
def test_format_1_loads_unchanged(task: str, tmp_path: Path) -> None:
    before, now = mmattn.load(as_format_1(task, tmp_path / "old"), "cpu"), mmattn.load(f"{task}/demo", "cpu")
    assert read_config(now.parts.where)["format"] == FORMAT
    assert before.parts.keywords == now.parts.keywords
    state = now.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.model.state_dict().items())
    samples = now.demo_samples()[:2]
    assert repr(before.predict(samples)) == repr(now.predict(samples))


def test_public_networks_of_format_1_are_upgraded() -> None:
    for name, wanted in ((None, "seq2seq"), ("whisper", "whisper"), ("wav2vec2", "wav2vec2")):
        public = {"embed_dim": 8} | ({} if name is None else {"network": name})
        task = "translation" if name is None else "asr"
        config = upgrade({"format": 1, "task": task, "model": {"public": public}})
        assert (config["format"], config["network"], config["model"]) == (FORMAT, wanted, {"embed_dim": 8})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"memory": "mean"}, {"pooling": "mean"}),
        ({"pool": "mean"}, {"pooling": "mean"}),
        ({"fusion": "mean"}, {"fusion": "fusion_block", "pooling": "mean"}),
        ({"fusion": "additive"}, {"fusion": "additive", "pooling": "attention"}),
    ],
)
def test_pooling_of_format_2_is_upgraded(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert upgrade({"format": 2, "task": "vqa", "network": None, "model": old})["model"] == new


def test_removed_memory_option_raises(tmp_path: Path) -> None:
    folder = as_format_1("vqa", tmp_path / "old", memory=0.9)
    message = r"config\.json: expected a model without a memory .* version 0\.1 of mmattn"
    refused(message, mmattn.load, folder, error=CheckpointError)
