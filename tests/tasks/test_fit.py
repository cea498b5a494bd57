"""Options and errors of fit. The tests of every task are in test_fit_contract.py."""

import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks import load
from mmattn.tasks.common import rundir, trainer
from mmattn.tasks.common.callbacks import AtomicCheckpointIO, read_checkpoint
from mmattn.tasks.common.errors import CheckpointError, ConfigError, NonFiniteLossError, RunDirectoryError
from mmattn.tasks.common.parse_errors import in_words
from mmattn.tasks.common.schedule import schedule_factor
from mmattn.tasks.vqa.module import VQAModule
from tests.conftest import refused
from tests.tasks.runs import ROOT, read, run, write_lines

PIPES: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with weight averaging."""
    return run("fit", tmp_path_factory.mktemp("runs") / "vqa", "--optim.ema_decay 0.9 --trainer.max_epochs 2")


def test_finished_model_is_evaluated_unchanged(finished: Path, tmp_path: Path) -> None:
    message, options = r"has 'fusion_block', found 'additive'", f"--checkpoint {finished}/model --model.fusion additive"
    refused(rf"model\.fusion: the checkpoint .* {message}", run, "test", tmp_path, options, error=ConfigError)


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of the same question about a red image with these answers."""

    def write(*answers: str) -> Path:
        Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
        rows = [{"image": "a.png", "question": "what colour is it?", "answer": answer} for answer in answers]
        return write_lines(tmp_path / "mine.jsonl", rows)

    return write


def test_test_command_accepts_any_file(finished: Path, questions: Callable[..., Path], tmp_path: Path) -> None:
    mine = questions("red", "zebra")
    run("test", tmp_path / "out", f"--checkpoint {finished / 'model'} --data.test {mine}")
    figures = read(tmp_path / "out" / "metrics.json")["test"]
    assert figures["accuracy"] in (0.0, 0.5)  # an answer outside the vocabulary counts as wrong
    assert figures["data"]["test"]["samples"] == 2


def test_own_data_need_own_test_data(questions: Callable[..., Path], tmp_path: Path) -> None:
    mine = questions("red")
    message = r"expected at least two questions, to hold one out for validation, found 1"
    refused(message, run, "fit", tmp_path / "run", f"--data.train {mine}", error=DataError)
    folder = run("fit", tmp_path / "run", f"--data.train {mine} --data.val {mine} --data.batch_size 4")
    refused(r"give --data\.test PATH", run, "test", tmp_path / "out", f"--checkpoint {folder}/model", error=ConfigError)
    run("test", tmp_path / "out", f"--checkpoint {folder / 'model'} --data.test {mine}")


def test_used_run_directory_raises(finished: Path) -> None:
    before = (finished / "last.ckpt").read_bytes()
    refused(r"not empty\. Resume its run by --ckpt_path last", run, "fit", finished, error=RunDirectoryError)
    assert (finished / "last.ckpt").read_bytes() == before


def test_overwrite_clears_only_run_directories(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(r"no run\.json", run, "fit", tmp_path, "--overwrite true", error=RunDirectoryError)
    assert (tmp_path / "thesis.tex").exists()


def test_run_without_a_checkpoint_is_replaced(questions: Callable[..., Path], tmp_path: Path) -> None:
    mine = questions("red", "blue", "red", "blue")
    picture = next(tmp_path.rglob("*.png"))
    whole, words = picture.read_bytes(), f"--data.train {mine} --data.val {mine} --data.batch_size 4"
    picture.write_bytes(whole[:60])
    folder = tmp_path / "run"
    refused(re.escape(picture.name), run, "fit", folder, words, error=DataError)
    assert (folder / "run.json").exists()
    assert not list(folder.glob("*.ckpt"))
    picture.write_bytes(whole)
    for other in ("thesis.tex", "logs/version_0/thesis.tex"):
        (folder / other).write_text("years of work")
        refused("ended before its first checkpoint", run, "fit", folder, words, error=RunDirectoryError)
        assert (folder / other).exists()
        (folder / other).unlink()
    refused("first checkpoint", rundir.prepare, folder, resume=False, overwrite=False, error=RunDirectoryError)
    (folder / "logs" / "version_0" / "hparams.yaml").touch()
    run("fit", folder, words)
    assert (folder / "model").exists()


def test_invalid_data_keeps_the_earlier_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        run("fit", finished, f"--overwrite true --data.train {tmp_path / 'none.jsonl'} --data.val none")
    assert (finished / "last.ckpt").exists()


def test_unwritable_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused("cannot be written", run, "fit", tmp_path / "file" / "run", error=RunDirectoryError)


def test_missing_checkpoint_to_resume_raises(tmp_path: Path) -> None:
    either = (RunDirectoryError, CheckpointError)
    refused("found no such file|nothing to resume", run, "fit", tmp_path / "new", "--ckpt_path last", error=either)


def test_truncated_checkpoint_keeps_the_run(finished: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "last.ckpt"
    damaged.write_bytes((finished / "last.ckpt").read_bytes()[:3000])
    refused("damaged, truncated or foreign", run, "fit", finished, f"--ckpt_path {damaged}", error=CheckpointError)
    assert (finished / "model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optim.lr 0.5", r"optim\.lr: checkpoint 0\.\d+, now 0\.5"),
        ("--trainer.max_epochs 3", r"trainer\.max_epochs: checkpoint 2, now 3"),  # the cosine schedule depends on it
        ("--trainer.accumulate_grad_batches 2", r"trainer\.accumulate_grad_batches: checkpoint 1, now 2"),
        ("--trainer.precision bf16-mixed", r"trainer\.precision: checkpoint None, now 'bf16-mixed'"),
        ("--trainer.gradient_clip_val 0.5", r"trainer\.gradient_clip_val: checkpoint .*, now 0\.5"),
    ],
)
def test_resuming_with_other_settings_raises(options: str, message: str, finished: Path) -> None:
    options = f"--optim.ema_decay 0.9 --trainer.max_epochs 2 --ckpt_path last {options}"
    refused(message, run, "fit", finished, options, error=ConfigError)


def test_resuming_with_other_data_raises(questions: Callable[..., Path], tmp_path: Path) -> None:
    answers = ["red", "blue"] * 10
    mine = questions(*answers)
    options = f"--data.train {mine} --data.val {mine} --data.min_answer_count 1"
    folder = run("fit", tmp_path / "run", options)
    questions(*answers[:-1])
    message = "data.train: expected the 20 samples that the run began with, found 19 that are not the same"
    refused(message, run, "fit", folder, f"{options} --ckpt_path last", error=ConfigError)


def test_run_directory_is_locked(finished: Path, tmp_path: Path) -> None:
    code = "from pathlib import Path; from mmattn.tasks.common.rundir import locked\n"
    code += f"with locked(Path({str(finished)!r})):"
    with subprocess.Popen([sys.executable, "-c", f"{code} print('held', flush=True); input()"], **PIPES) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for options in ("--overwrite true", "--optim.ema_decay 0.9 --trainer.max_epochs 2 --ckpt_path last"):
            refused("another process is training", run, "fit", finished, options, error=RunDirectoryError)
        other.kill()
    run("fit", finished, "--optim.ema_decay 0.9 --trainer.max_epochs 2 --ckpt_path last")  # the lock died with it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_resumes(number: signal.Signals, tmp_path: Path) -> None:
    words = "fit --data.train demo --data.demo_size 6 --data.batch_size 8 --trainer.max_epochs 500"
    words += " --optim.schedule constant --model.embed_dim 16 --model.num_heads 2"
    words += " --trainer.limit_val_batches 1 --trainer.accelerator cpu"
    words += f" --trainer.default_root_dir {tmp_path}/run"
    with subprocess.Popen([sys.executable, "-m", "tasks.vqa", *words.split()], cwd=ROOT, **PIPES) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "auto: --optim.warmup_steps 500\n"
        assert training.stdout.readline().startswith("epoch 0")
        training.send_signal(number)
        error = training.communicate()[1]
    assert training.returncode == 128 + number
    assert f"resume it by `python -m tasks.vqa {words} --ckpt_path last`" in error
    assert "Traceback" not in error
    saved = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert f"step {saved['global_step']}" in error
    run("fit", tmp_path / "run", f"{words[4:]} --ckpt_path last --trainer.max_epochs {saved['epoch'] + 1}", base="")
    assert read(tmp_path / "run" / "metrics.json")["fit"]["epochs"] == saved["epoch"] + 1


def test_bfloat16_without_support_is_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: False)
    kinds = []
    monkeypatch.setattr(VQAModule, "on_train_end", lambda self: kinds.append(self.trainer.precision))
    run("fit", tmp_path / "run", "--trainer.precision bf16-mixed --trainer.max_steps 1")
    assert kinds == ["32-true"]
    assert "this CPU does not compute in bfloat16" in capsys.readouterr().err


LATE = ("loss.consistency: expected views that differ", "data.max_frames", "max_tokens: expected at least")
WRONG = {  # the errors of LATE are raised after the run has created its folder
    "vqa": [
        ("--model.embd_dim 3", r"did you mean 'model\.embed_dim'"),
        ("--trainer.max_epoch 3", r"did you mean 'trainer\.max_epochs'"),
        ("--epochs 3", r"did you mean 'trainer\.max_epochs'"),
        ("--train a.csv", r"did you mean 'data\.train'"),
        ("--data.batch_size x", r"^data\.batch_size: expected an integer or auto, found 'x'\.$"),
        ("--trainer.max_epochs two", r"^trainer\.max_epochs: expected an integer, auto or null, found 'two'\.$"),
        ("--optim.schedule cosin", r"^optim\.schedule: expected cosine, linear, .* or constant, found 'cosin'\.$"),
        ("--data.batch_size 0", r"data\.batch_size must be at least 1"),
        ("--optim.lr -1", r"optim\.lr: expected a value above 0, found -1"),
        ("--model.attention.kind sliding_windo", "did you mean 'sliding_window'"),
        ("--model.attention.kind sliding_window --model.attention.windo 3", "did you mean 'window'"),
        ("--model.attention.kind monotonic", "'monotonic' does not support"),
        ("--model.cross_attention.kind sliding_window", "'sliding_window' does not support"),
        ("--model.num_heads 3", "model: .*3"),
        ("--trainer.callbacks os.system", "may not be imported"),
        ("--trainer.logger.class_path tests.tasks.runs.run", "may not be imported"),
        ("--config none.yaml", r"none\.yaml"),
    ],
    "asr": [
        ("--loss.ctc_weight 1.5", "loss.ctc_weight: expected a value of at least 0 and at most 1, found 1.5"),
        ("--loss.consistency -1", "loss.consistency: expected a value of at least 0, found -1"),
        (
            "--loss.consistency 0.2 --loss.ctc_weight 0",
            "loss.consistency: expected 0, since this model is not trained with CTC",
        ),
        ("--loss.consistency 0.2 --model.dropout 0", "loss.consistency: expected views that differ"),
        ("--decode.num_beams 0", "expected 1 or more"),
        ("--model.decoder gru", "decoder"),
        ("--model.subsampling 3", "subsampling=3"),
        ("--model.cross_attention.kind sliding_window", "does not support"),
        ("--data.augment.speeed [0.9,1.1]", "data.augment.speeed: unknown option.*speed"),
        ("--data.max_frames 20", "data.max_frames"),
        ("--data.tokenizer bpe --data.vocab_size 5", "vocab_size: expected at least"),
        ("--data.num_mels 400", "n_mels"),
        ("--data.lm_order 4", "needs CTC alone"),
        ("--model.decoder none --decode.lm_weight 0.5", "there is no language model"),
        ("--model.decoder none --data.lm_order 3 --decode.num_beams 1", "expected num_beams above 1, found 1"),
        ("--model.decoder none --data.lm_order 21", "expected 0 to 20, found 21"),
        ("--model.decoder none --data.lm_text x", "needs data.lm_order"),
        ("--model.decoder none --data.lm_order 3 --data.lm_text /nowhere/x", "no such file"),
        ("--model.decoder none --data.lm_order 3 --decode.lm_weight -1", "expected 0 or more, found -1"),
    ],
    "classification": [
        ("--data.augment.pda 4", r"data\.augment\.pda: unknown option \(did you mean 'pad'\?\)"),
        ("--data.augment.erase 3", r"data\.augment\.erase: expected 0 to 1"),
        ("--model.backbone resnt", "unknown backbone 'resnt'"),
        ("--optim.layer_decay 0", r"optim\.layer_decay: expected a value above 0"),
        ("--model.attention.kind slidingwindow", "sliding_window"),
        ("--model.attention.kind linear", "has no self-attention kernel to choose"),
    ],
    "segmentation": [
        ("--loss.objective.tversky 1.0", "loss.objective: expected cross_entropy, dice, focal"),
        ("--model.attention.kind dense", "attention: of segformer alone"),
        ("--data.augment.flip 3", r"data\.augment\.flip: expected 0 to 1"),
        ("--data.augment.flipp 1", r"data\.augment\.flipp: unknown option \(did you mean 'flip'\?\)"),
        ("--model.network fcn", "network"),
    ],
    "summarization": [
        ("--loss.salience 0.5 --model.copy false", "salience: expected 0 for a model without a copy mechanism"),
        ("--model.pooling mean", "leaves no tokens to copy"),
        ("--model.global_tokens first", "global_tokens to none"),
        ("--data.shared_vocab false", "one language"),
    ],
    "translation": [
        ("--data.max_tokens 5", "max_tokens: expected at least"),
        ("--data.vocab_size 100", "vocab_size: byte-level BPE needs at least 260"),
        ("--loss.word_dropout 1.5", "word_dropout: expected a value of at least 0 and at most 1"),
        ("--decode.num_beams 0", "num_beams: expected a value of at least 1"),
        ("--model.decoder lstm --model.pooling mean", "supports only cross_attention"),
        ("--model.attention.kind slidingwindow", "sliding_window"),
    ],
}


@pytest.mark.parametrize(("task", "options", "message"), [(task, *row) for task, rows in WRONG.items() for row in rows])
def test_invalid_keys_and_values_raise(task: str, options: str, message: str, tmp_path: Path) -> None:
    error = (ConfigError, DataError) if task == "asr" else ConfigError
    refused(message, run, "fit", tmp_path / "run", options, task=task, error=error)
    assert message in LATE or not (tmp_path / "run").exists(), "a rejected run leaves no files"
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_type_errors_are_readable() -> None:
    found = in_words("Parser key \"a.b\":\n  Expected a typing.Literal['16-mixed', 16, '16']. Got value: 7")
    assert found == "a.b: expected 16-mixed or 16, found '7'."
    for kind in ("Not of type PositiveInt", "Expected a typing.Callable[[int], int]"):
        assert in_words(f'Parser key "a.b":\n  {kind}. Got value: 7') is None


def test_invalid_keys_in_a_file_raise(tmp_path: Path) -> None:
    for text, message in (("model:\n  embd_dim: 3\n", r"did you mean 'model\.embed_dim'"), ("model: [\n", r"a\.yaml")):
        (tmp_path / "a.yaml").write_text(text)
        refused(message, run, "fit", tmp_path / "run", f"--config {tmp_path}/a.yaml", error=ConfigError)


def test_options_of_the_replaced_kernel_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("model:\n  attention: {kind: sliding_window, window: 4}\n")
    run(
        "fit",
        tmp_path / "run",
        f"--config {tmp_path / 'a.yaml'} --model.attention.kind linear --trainer.max_steps 1 --data.train demo",
    )
    assert "model.attention.window dropped: linear attention has no such option" in capsys.readouterr().err
    assert read(tmp_path / "run" / "model" / "config.json")["model"]["attention"] == {"kind": "linear"}


@pytest.mark.parametrize("part", ["loss", "norm of the gradient"])
def test_non_finite_values_name_their_samples(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, ids = VQAModule.training_loss, []

    def poisoned(self: Any, batch: Any) -> Any:
        loss, parts = original(self, batch)
        ids.append(batch.ids[0])
        if len(ids) == 7:  # the first of the two batches of step 3
            loss = loss * math.nan if part == "loss" else loss + (loss * 0).sqrt()  # whose derivative is 0 * inf
        return loss, parts

    monkeypatch.setattr(VQAModule, "training_loss", poisoned)
    options = "--trainer.save_every_n_steps 2 --trainer.accumulate_grad_batches 2 --data.batch_size 6"
    message = rf"the {part} is nan at step 3 .*, batch 6\), samples: "
    found = refused(message, run, "fit", tmp_path / "run", options, error=NonFiniteLossError)
    assert ids[-1] in found
    saved = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("before")
    weights = {"good": torch.ones(2), "bad": torch.tensor([1.0, math.inf])}
    save = AtomicCheckpointIO().save_checkpoint
    refused(
        "not written, since bad has", save, {"state_dict": weights}, tmp_path / "last.ckpt", error=NonFiniteLossError
    )
    assert (tmp_path / "last.ckpt").read_text() == "before"


def test_training_features_combine(tmp_path: Path) -> None:
    options = (
        "--optim.schedule inverse_sqrt --loss.label_smoothing 0.1 --trainer.early_stopping 1 "
        "--trainer.precision bf16-mixed --trainer.gradient_checkpointing true "
        "--trainer.accumulate_grad_batches 2 --trainer.gradient_clip_val 0.5 --optim.fused true "
        "--data.num_workers 1 --loss.word_dropout 0.2 --loss.attention_supervision 0.1 --loss.object_supervision 0.1"
    )
    folder = run("fit", tmp_path / "run", options)
    assert read(folder / "metrics.json")["fit"]["attention"] > 0


@pytest.mark.slow
def test_learning_rate_finder_sets_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", tmp_path / "run", "--find_lr true --data.demo_size 40 --data.batch_size 6")
    assert "learning rate found" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_model_trains(tmp_path: Path) -> None:
    run("fit", tmp_path / "run", "--trainer.compile true --trainer.max_steps 2")
    assert load(tmp_path / "run" / "model", device="cpu").model is not None


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt", "constant"])
def test_schedules(schedule: Any) -> None:
    rates = [schedule_factor(schedule, step, 10, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1.0 or schedule == "inverse_sqrt"
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))
    assert rates[100] == pytest.approx({"constant": 1.0, "inverse_sqrt": (10 / 101) ** 0.5}.get(schedule, 0.0))
