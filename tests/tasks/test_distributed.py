"""Two gloo processes on an odd number of ragged batches compute the same metrics as one process."""

from pathlib import Path

import pytest
import torch

from mmattn.tasks import load
from mmattn.tasks.common.task import tasks
from mmattn.tasks.vqa.demo import make
from tests.tasks.runs import python, read, run, weights, write_lines

MODEL = "--model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32 --model.fusion_layers 1"  # its stem has BatchNorm


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 205 questions: five batches of 50, the last one smaller."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for sample in make("test", size=12)[:205]:
        Image.fromarray(sample.image).save(folder / f"{sample.image_id}.png")
        row = {"image": f"{sample.image_id}.png", "question": sample.question, "answer": sample.answers[0]}
        rows.append(row | {"question_type": sample.question_type})
    return write_lines(folder / "questions.jsonl", rows)


def call(command: str, folder: Path, options: str, processes: int) -> dict:
    words = f"{command} --trainer.accelerator cpu --trainer.default_root_dir {folder} {options}".split()
    words += ["--data.batch_size", "50"]
    words += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"] if processes > 1 else []
    python("-m", "tasks.vqa", *words)
    return read(folder / "metrics.json")


def figures(part: dict) -> dict[str, float]:
    return {name: value for name, value in part.items() if name.startswith("accuracy")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder: Path, questions: Path) -> dict[str, float]:
    """One process's metrics of a model trained by two; they equal the metrics computed during training."""
    options = (
        f"{MODEL} --data.train demo --trainer.max_epochs 2 --data.demo_size 17 --data.val {questions} --optim.lr 0.01"
    )
    fitted = call("fit", folder / "two", options, processes=2)
    shipped = folder / "two" / "model"
    norms = [m for m in load(shipped, device="cpu").model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms, "the model must have running statistics"
    words = f"--checkpoint {shipped} --data.val {questions} --data.batch_size 50 --trainer.accelerator cpu"
    alone = read(run("validate", folder / "one", words, base="") / "metrics.json")
    assert figures(fitted["validation"]) == figures(alone["validation"]), "the validation during fit"
    return figures(alone["validation"])


def test_validation_in_two_processes_equals_that_in_one(alone: dict[str, float]) -> None:
    assert alone, "compared by the fixture"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 1])
def test_metrics_do_not_depend_on_the_number_of_processes(
    processes: int, folder: Path, questions: Path, alone: dict[str, float]
) -> None:
    test = f"--checkpoint {folder / 'two' / 'model'} --data.test {questions}"
    assert figures(call("test", folder / f"test{processes}", test, processes)["test"]) == alone


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(tasks()))
def test_two_processes_equal_one_in_every_task(task: str, tmp_path: Path) -> None:
    def measured(command: str, options: str, processes: int) -> dict[str, float]:
        folder = tmp_path / f"{command}{processes}"
        words = f"{command} {options} --trainer.accelerator cpu --trainer.default_root_dir {folder}"
        if processes > 1:
            words += f" --trainer.devices {processes} --trainer.strategy ddp"
        python("-m", f"tasks.{task}", *words.split())
        found = read(folder / "metrics.json")["test" if command == "test" else "validation"]
        return {name: value for name, value in found.items() if isinstance(value, float) and "second" not in name}

    assert measured("fit", f"--config configs/{task}.yaml {tasks()[task].tiny} --trainer.max_epochs 1", 2)
    shipped = f"--checkpoint {tmp_path}/fit2/model"  # measured as it ships: fit may validate by a faster search
    for command in ("validate", "test"):
        assert measured(command, shipped, 2) == pytest.approx(measured(command, shipped, 1), rel=1e-5)


@pytest.mark.slow
def test_two_processes_resume_the_states_that_they_carry(tmp_path: Path) -> None:
    """Each has the states of its own rows: a run stopped within an epoch ends as one that was not."""
    (tmp_path / "a.txt").write_text("".join(f"{n} and {n * n}; " for n in range(300)))
    words = f"{tasks()['text_generation'].tiny} --model.positions relative --model.memory_len 8 --data.batch_size 2 "
    words += f"--data.train {tmp_path / 'a.txt'} --data.tokenizer character --optim.lr 0.1 --optim.schedule constant "
    words += "--optim.warmup_steps 1 --trainer.max_epochs 1 --trainer.accelerator cpu --trainer.report false "

    def fit(folder: str, more: str, processes: int = 2, code: int = 0) -> str:
        devices = f"--trainer.devices {processes} --trainer.default_root_dir {tmp_path / folder}"
        devices += " --trainer.strategy ddp" if processes > 1 else ""
        return python("-m", "tasks.text_generation", "fit", *f"{words} {more} {devices}".split(), code=code).stderr

    fit("whole", "")
    fit("part", "--trainer.max_steps 5")
    message = fit("part", "--trainer.max_steps -1 --ckpt_path last", processes=1, code=2)
    assert "expected 2 processes, whose carried states the checkpoint has, found 1" in message
    fit("part", "--trainer.max_steps -1 --ckpt_path last")
    whole, part = (weights(tmp_path / name) for name in ("whole", "part"))
    assert all(torch.equal(part[name], whole[name]) for name in whole)
