"""Damaged and hostile files of a model: one CheckpointError each, before they cost time or memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmattn.data.errors import ConfigError
from mmattn.pretrained.files import open_source
from mmattn.tasks import load
from mmattn.tasks.common.callbacks import KEYS, check_resumable
from mmattn.tasks.common.checkpoint import CONFIG, PROCESSOR, WEIGHTS
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.common.yaml_limits import load_yaml
from tests.conftest import refused
from tests.tasks.runs import damage, edited, read

TASKS = ("asr", "classification", "qa", "segmentation", "summarization", "text_classification", "translation", "vqa")
HOSTILE = (10**9, -1, 10**30, 1e308, "x", [], {"kind": 1}, float("nan"))
DEEP, LONG = "[" * 100_000, f'{{"format": {"9" * 5000}}}'
SETTINGS = f"{PROCESSOR}/processor.json"


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a task's demo model."""
    return shutil.copytree(named_models(request.param)["demo"], tmp_path / "model")


of = pytest.mark.parametrize("folder", TASKS, indirect=True)
of_one = pytest.mark.parametrize("folder", ["vqa"], indirect=True)


def fails(folder: Path, message: str = ".") -> None:
    found = refused(message, load, folder, device="cpu", error=CheckpointError)
    assert "\n" not in found
    assert len(found) < 800


def hostile(values: Any) -> Iterator[tuple[Any, ...]]:
    """Settings, one of them changed: sizes, lists of sizes, and the whole."""
    for key, value in values.items():
        if isinstance(value, (int, list)) and not isinstance(value, bool):
            for bad in HOSTILE:
                yield key, bad
                if isinstance(value, list):
                    yield key, [bad, *value[1:]]


@of
def test_hostile_keywords(folder: Path) -> None:
    right = read(folder / CONFIG)
    tried = [*hostile(right["model"]), *((key, bad) for key in ("attention", "dropout") for bad in ("x", -1, 10**9))]
    for key, bad in tried if os.environ.get("MMATTN_ALL") else tried[::5]:
        damage(folder / CONFIG, json.dumps(right | {"model": right["model"] | {key: bad}}))
        fails(folder)
    for key, bad in (("model", "x"), ("model", []), ("network", []), ("task", []), ("format", {}), ("format", True)):
        damage(folder / CONFIG, json.dumps(right | {key: bad}))
        fails(folder, r"config\.json: expected")


@of
def test_processor_and_model_disagree(folder: Path) -> None:
    """A labels or tokenizer file of one class or token more."""
    with edited(folder / SETTINGS) as settings:
        if lists := [value for key, value in settings.items() if key in ("labels", "answers", "classes")]:
            named = lists[0].get("", lists[0]) if isinstance(lists[0], dict) else {"names": lists[0]}
            names = named["names"]
            names.append("one more")
            if "classes" in settings:
                settings["classes"]["ids"].append(200)
        else:
            with edited(folder / PROCESSOR / "tokenizer.json") as tokenizer:
                vocabulary = tokenizer["model"]["vocab"]
                vocabulary["one more"] = len(vocabulary)
    size, heads = r"(num_classes|num_answers|vocab_size) \d+, found \d+", r"heads \{.*2\]\}, found \{.*3\]\}"
    fails(folder, rf"expected a processor with the model's ({size}|{heads})\.$")


@pytest.mark.parametrize(
    ("folder", "section", "values"),
    [("classification", "image", {"size": [64, bad]}) for bad in (10**9, 10**30, 0, -1, "x", None, 1e308)]
    + [("vqa", "image", {"size": [64, 10**9]}), ("vqa", "text", {"max_len": -1}), ("vqa", "text", {"kind": 7})]
    + [("segmentation", "image", {"size": bad}) for bad in (10**9, 0, "x", [])]
    + [("asr", "mel", {key: bad}) for key in ("sample_rate", "n_fft", "hop") for bad in (10**9, 0, -1, "x")]
    + [("translation", "max_source_len", bad) for bad in (1e308, "x", None, -1)]
    + [(task, "options", bad) for task in ("summarization", "translation") for bad in (7, "x", [1])],
    indirect=["folder"],
)
def test_hostile_processors(folder: Path, section: str, values: Any) -> None:
    with edited(folder / SETTINGS) as settings:
        settings[section] = settings[section] | values if isinstance(values, dict) else values
    fails(folder)


@of_one
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "deep", "long"])
@pytest.mark.parametrize("name", [CONFIG, SETTINGS, f"{PROCESSOR}/tokenizer.json"])
def test_files_without_end(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_text(DEEP if kind == "deep" else LONG)
    fails(folder, path.name)


@of_one
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.fill_(float("nan")), "expected finite weights, found NaN or infinite ones"),
        (lambda value: value.to(torch.int32), "is torch.int32, the model's torch.float32"),
        (lambda value: value[..., None], r"the weights do not fit the model: .* is \("),
    ],
)
def test_wrong_weights(change: Any, message: str, folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    name = next(name for name, value in state.items() if value.is_floating_point() and value.dim())
    save_file(state | {name: change(state[name]).contiguous()}, folder / WEIGHTS)
    fails(folder, message)


@of_one
@pytest.mark.parametrize(
    "header",
    [b"\xff" * 8, (2).to_bytes(8, "little") + b"[]", (1 << 40).to_bytes(8, "little") + b"{}", b"", b"\0" * 4096]
    + [len(text).to_bytes(8, "little") + text for text in (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',)],
)
def test_damaged_safetensors(header: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(header)
    fails(folder, "expected a safetensors file, found a damaged or truncated one")


@of_one
def test_tokenizer_that_panics(folder: Path) -> None:
    with edited(folder / PROCESSOR / "tokenizer.json") as tokenizer:
        split = {"type": "Split", "pattern": {"Regex": "(?<=a+)b|(" * 40}, "behavior": "Isolated", "invert": False}
        tokenizer["pre_tokenizer"] = split
    fails(folder, "expected a tokenizer of the tokenizers library")


@pytest.mark.parametrize(
    "missing", ["optimizer_states", "callbacks", "epoch", "mmattn.task", "mmattn.settings", "loops.fit_loop"]
)
def test_training_checkpoint_without_a_key(missing: str) -> None:
    parts: dict[str, dict[str, Any]] = {prefix: {key: {} for key in keys} for prefix, keys in KEYS.items()}
    checkpoint = parts[""] | {"state_dict": {}, "mmattn": parts["mmattn."], "loops": parts["loops."]}
    check_resumable(checkpoint, "a")
    first, _, last = missing.rpartition(".")
    del (checkpoint[first] if first else checkpoint)[last]
    refused(f"a: .*, found one without {missing}", check_resumable, checkpoint, "a", error=CheckpointError)


# Configurations -------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqr", "bcdefghijklmnopqrs", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "a: " + DEEP, "a: " + "9" * 5000])
def test_yaml_without_end(text: str, tmp_path: Path) -> None:
    refused("expected at most 100,000 values|limit", load_yaml, text, error=yaml.YAMLError)


def test_yaml_within_limits() -> None:
    assert load_yaml("a: &a {b: [1, 2]}\nc: [*a, *a]") == {"a": {"b": [1, 2]}, "c": [{"b": [1, 2]}] * 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.logger", "WandbLogger"], "trainer: the package wandb>=0.12.10 is not installed"),
        (["--config", "bomb.yaml"], "bomb.yaml: expected YAML, found .* 100,000 values"),
        (["--config", "latin.yaml"], "latin.yaml: expected YAML, found .*can't decode byte 0xe9"),
    ],
)
def test_command_line(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmattn.tasks.common import cli
    from mmattn.tasks.common.task import tasks

    monkeypatch.chdir(tmp_path)
    Path("bomb.yaml").write_text(BOMB)
    Path("latin.yaml").write_bytes("seed_everything: é".encode("latin-1"))
    refused(message, cli.run, tasks()["vqa"], "fit", ["--data.train", "demo", *words], error=ConfigError)


def test_checkpoint_of_invalid_instructions(tmp_path: Path) -> None:
    from mmattn.tasks.common.callbacks import read_checkpoint

    torch.save({}, tmp_path / "good.ckpt")
    with ZipFile(tmp_path / "good.ckpt") as good, ZipFile(tmp_path / "bad.ckpt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"\x80\x02e." if name.endswith("data.pkl") else good.read(name))
    refused("bad.ckpt: expected a checkpoint .* damaged", read_checkpoint, tmp_path / "bad.ckpt", error=CheckpointError)


# The hub --------------------------------------------------------------------------------------------------------------


def test_hub_never_reads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pytest.importorskip("mmattn.pretrained.files")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_is_reachable", lambda *_: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    shutil.copytree(named_models("vqa")["demo"], tmp_path / "own" / "er")
    assert open_source("own/er", download=True)(CONFIG) == Path("own/er") / CONFIG
    for name in ("hf:own/er", "hf:own/er@main"):
        refused("nor in the hub's cache: the hub cannot be reached", load, name, error=CheckpointError)
    for name in ("hf:own/er@../../x", "hf:own/er@a/../b", "hf:own/e..r"):
        refused("without '..'", load, name, error=CheckpointError)


def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    files = pytest.importorskip("mmattn.pretrained.files")
    pytest.importorskip("huggingface_hub")
    assert not files._is_reachable("http://192.0.2.1", -1), "an address that no machine has"
