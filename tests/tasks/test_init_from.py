"""Fine-tuning of a public or shipped folder: kept options, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmattn
from mmattn.tasks.common.checkpoint import read_config, read_weights
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.sources import named_models
from tests.conftest import refused
from tests.tasks.public_folders import TARGETS, TEXTS, write
from tests.tasks.runs import BRIEF, STILL, assert_kept, read, run, weights, write_lines

SHIPPED = named_models("translation")["demo"]
REFUSED = (ConfigError, CheckpointError)
TASK = {"marian": "translation", "bart": "summarization", "t5": "summarization"}


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training data of both tasks."""
    rows = [{"en": a, "de": b, "document": a, "summary": b} for a, b in zip(TEXTS, TARGETS, strict=False)]
    return write_lines(tmp_path_factory.mktemp("data") / "both.jsonl", rows * 2)


def fit(task: str, folder: Path, source: Any, data: Path | None, options: str = "") -> Path:
    own = "--data.demo_size 60" if data is None else f"--data.train {data} --data.val {data}"
    words = f"--init_from {source} {own} --data.max_tokens 300 --data.batch_size 4 {options}"
    return run("fit", folder, words, base=BRIEF, task=task)


def answers(place: Any) -> list[str]:
    found = mmattn.load(place, device="cpu").predict(TEXTS, num_beams=2)
    return [getattr(answer, "translation", getattr(answer, "summary", "")) for answer in found]


@pytest.mark.parity
@pytest.mark.parametrize("family", TASK)
def test_fine_tuning_a_public_folder(family: str, tmp_path: Path, own_data: Path) -> None:
    task, start = TASK[family], tmp_path / family
    write(family, start, num_beams=3, length_penalty=0.7, no_repeat_ngram_size=2)
    still = "--loss.salience 0" if task == "summarization" else ""
    folder = fit(task, tmp_path / "still", start, own_data, f"{STILL} {still}")
    assert answers(folder) == answers(start), "the untrained model gives equal outputs from our own format"
    config, processor = read_config(folder / "model"), read(folder / "model" / "processor" / "processor.json")
    assert config["task"] == task
    assert config["own_data"]
    assert processor["options"]["generation"]["no_repeat_ngram_size"] == 2
    assert processor["options"]["generation"]["length_penalty"] == 0.7
    moved = fit(task, tmp_path / "moved", start, own_data, f"--optim.lr 0.01 --optim.warmup_steps 1 {still}")
    before, after = map(weights, (folder, moved))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * len(before)
    measured = f"--checkpoint {moved}/model --data.test {own_data} --data.batch_size 4"
    run("test", moved, measured, base="--trainer.accelerator cpu --trainer.enable_progress_bar false", task=task)
    assert read(moved / "metrics.json")["test"]["loss"] < read(folder / "metrics.json")["validation"]["loss"]
    again = fit(task, tmp_path / "again", moved, own_data, f"{STILL} {still}")
    assert answers(again) == answers(moved), "and fine-tuned once more"


@pytest.mark.parity
def test_public_folder_is_evaluated(tmp_path: Path, own_data: Path) -> None:
    write("marian", tmp_path / "marian")
    words, own = f"--checkpoint {tmp_path}/marian", f"--data.test {own_data} --decode.num_beams 1"
    run("test", tmp_path / "run", f"{words} {own}", base="--trainer.accelerator cpu", task="translation")
    assert read(tmp_path / "run" / "metrics.json")["test"]["loss"] > 0
    refused(r"give --data\.test PATH", run, "test", tmp_path / "run", words, "", "translation", error=ConfigError)


def test_fine_tuning_a_shipped_folder(tmp_path: Path) -> None:
    words = f"{STILL} --model.dropout 0.3 --optim.schedule constant"
    folder = fit("translation", tmp_path / "run", SHIPPED, None, words)
    assert answers(folder) == answers(SHIPPED)
    assert read_config(folder / "model")["model"] == read_config(SHIPPED)["model"] | {"dropout": 0.3}
    fit("translation", tmp_path / "run", SHIPPED, None, f"{words} --trainer.max_steps 3 --ckpt_path last")
    assert read(tmp_path / "run" / "metrics.json")["fit"]["steps"] == 3, "a resumed run continues"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.embed_dim 64", r"model\.embed_dim: .*demo has 128, the configuration says 64; .*leave the key"),
        ("--model.decoder lstm", r"model\.decoder: .* has 'transformer', the configuration says 'lstm'"),
        ("--data.vocab_size 300", r"data\.vocab_size: expected \d+, .* found 300"),
        ("--data.tokenizer word", r"data\.tokenizer: expected 'bpe', .* found 'word'"),
        ("--data.lowercase true", r"data\.lowercase: expected False, as in the model to fine-tune, found True"),
        ("--model.attention.kind nonesuch", r"model\.attention\.kind: expected one of"),
    ],
)
def test_conflicting_options_raise(options: str, message: str, tmp_path: Path) -> None:
    refused(message, fit, "translation", tmp_path / "run", SHIPPED, None, options, error=(ConfigError, CheckpointError))
    assert not (tmp_path / "run").exists()


@pytest.mark.parity
def test_incompatible_options_of_a_public_folder_raise(tmp_path: Path, own_data: Path) -> None:
    write("bart", tmp_path / "bart")
    for start, options, message in (
        ("bart", "--loss.salience 0.5", r"loss\.salience: expected 0, since public models have no copy mechanism"),
        ("bart", "--model.embed_dim 64", r"model\.embed_dim: .* has 32, the configuration says 64"),
        ("bart", "--model.pooling mean --model.copy false", r"model\.pooling: .* has 'attention'"),
        (
            "bart",
            "--data.max_source_len 200",
            "max_source_len: expected at most 128, the number of learned positions of .*, found 200",
        ),
        ("none", "", "expected a model's folder, a named model"),
        (SHIPPED, "", "expected a model of summarization, found one of translation"),
    ):
        refused(message, fit, "summarization", tmp_path / "run", tmp_path / start, own_data, options, error=REFUSED)
    assert not (tmp_path / "run").exists()


def test_low_rank_updates_are_merged(tmp_path: Path) -> None:
    """What is shipped is a plain model, of which only the adapted maps differ from the start; the run resumes."""
    words = "--model.lora.rank 2 --model.lora.targets [q_proj,out_proj] --optim.lr 0.1 --optim.schedule constant"
    folder = fit("translation", tmp_path / "run", SHIPPED, None, f"{words} --trainer.max_steps 2")
    before, after = read_weights(SHIPPED / "model.safetensors"), weights(folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "out_proj"}
    assert all(name.endswith(".weight") for name in changed)
    fit("translation", folder, SHIPPED, None, f"{words} --trainer.max_steps 4 --ckpt_path last")
    resumed = weights(folder)
    assert any(not torch.equal(resumed[name], after[name]) for name in changed)
    again = mmattn.load(folder, device="cpu").predict(TEXTS)
    assert len(again) == len(TEXTS)


def test_errors_of_low_rank_updates(tmp_path: Path) -> None:
    message = "model.lora: expected --init_from"
    refused(message, run, "fit", tmp_path / "a", "--model.lora.rank 2", BRIEF, "vqa", error=ConfigError)
    message = "model.lora.targets: expected some of q_proj"
    words = "--model.lora.targets [queries]"
    refused(message, fit, "translation", tmp_path / "b", SHIPPED, None, words, error=ConfigError)
    message = "model.lora.ranks: unknown option"
    refused(message, fit, "translation", tmp_path / "c", SHIPPED, None, "--model.lora.ranks 2", error=ConfigError)


@pytest.mark.parametrize("task", ["captioning", "vqa"])
def test_images_of_another_size(task: str, tmp_path: Path) -> None:
    """A model of this toolkit takes them, and its grid is that of the new size."""
    first = run("fit", tmp_path / "first", task=task)
    base = f"{BRIEF} --data.demo_size 12 --data.batch_size 4"
    options = f"--init_from {first / 'model'} --data.image_size 32 {STILL}"
    folder = run("fit", tmp_path / "second", options, base=base, task=task)
    predictor = mmattn.load(folder / "model", device="cpu")
    assert predictor.processor.image.size == (32, 32)
    assert read_config(folder / "model")["model"]["image_size"] == 32
    assert predictor.model.grid_size == (4, 4), "half of that for 64 pixels"
    assert_kept(weights(first), weights(folder))


@pytest.mark.parametrize("task", ["captioning", "qa", "text_classification", "text_generation", "vqa"])
def test_options_of_tokenizers_are_refused(task: str, tmp_path: Path) -> None:
    """The model's tokenizer is kept, so that they have no effect."""
    start = f"--init_from {task}/demo --data.demo_size 20"
    for option, message in (
        ("min_count 2", r"data\.min_count: expected none, since the tokens are those of the model .*, found 2; leave"),
        ("vocab_size 10", r"data\.vocab_size: expected \d+, as in the model to fine-tune, found 10; .*leave"),
        ("tokenizer bpe", r"data\.tokenizer: expected 'word', as in the model to fine-tune, found 'bpe'; .*leave"),
    ):
        options = f"{start} --data.{option}"
        refused(message, run, "fit", tmp_path / "run", options, base=BRIEF, task=task, error=ConfigError)
    assert not (tmp_path / "run").exists()
