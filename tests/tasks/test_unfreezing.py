"""Gradual unfreezing: what is trained at each epoch, in one process and in two; a resumed run; errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import Tensor

from mmattn.tasks.classification.demo import make
from mmattn.tasks.classification.module import ClassificationModule
from mmattn.tasks.common.callbacks import LastCheckpoint, read_checkpoint
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.parameters import unfreezing_stages
from mmattn.tasks.common.unfreezing import Unfreezing
from scripts.kill_resume import compare
from tests.conftest import refused
from tests.tasks.runs import python, read, run, write_lines
from tests.tasks.test_parameters import Net

STAGES = [  # name prefixes of what becomes trainable at each epoch: what is new, and then from the last to the first
    ("head",),
    ("backbone.encoder.norm",),
    ("backbone.encoder.layers.1",),
    ("backbone.encoder.layers.0",),
    ("backbone.prefix", "backbone.positions", "backbone.patches"),
]
OPTIONS = "--optim.unfreeze_every 1 --optim.weight_decay 0.1 --optim.ema_decay 0.5 --optim.lr 0.01"
OPTIONS += " --trainer.max_epochs 5 --trainer.save_every_n_steps 1 --model.dropout 0.1"
BASE = "--trainer.accelerator cpu --trainer.enable_progress_bar false --data.batch_size 6 --optim.warmup_steps 1"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The options that train a model of other classes further: its head is new."""
    folder = tmp_path_factory.mktemp("start")
    run("fit", folder / "run", "--model.backbone vit --model.num_layers 2 --trainer.max_steps 1", task="classification")
    rows = []
    for n, sample in enumerate(make("train", 12)):
        Image.fromarray(sample.image).save(folder / f"{n}.png")
        rows.append({"path": f"{n}.png", "label": "one" if n % 2 else "two"})
    data = write_lines(folder / "all.jsonl", rows)
    return f"--init_from {folder / 'run'} --data.train {data} --data.val {data}"


def fit(folder: Path, options: str) -> Path:
    return run("fit", folder, options, BASE, task="classification")


class Recorded:
    """A run of two steps an epoch: which weights had gradients in each epoch, and all weights as it began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.trained: dict[int, set[str]] = {}
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.lines: list[str] = []


@pytest.fixture(scope="module")
def whole(start: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """An uninterrupted run, of which the third and the fourth step are kept: within an epoch, and at its end."""
    found = Recorded(tmp_path_factory.mktemp("whole"))
    save, begin, check = (
        LastCheckpoint.save,
        *(getattr(ClassificationModule, name) for name in ("on_train_epoch_start", "on_after_backward")),
    )

    def on_train_epoch_start(self: Any) -> None:
        state = self.model.state_dict()
        found.weights[self.current_epoch] = {name: value.clone() for name, value in state.items()}
        begin(self)

    def on_after_backward(self: Any) -> None:
        names = {name for name, parameter in self.model.named_parameters() if parameter.grad is not None}
        assert names == {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        assert found.trained.setdefault(self.current_epoch, names) == names
        check(self)

    def save_and_keep(self: Any, trainer: Any) -> None:
        save(self, trainer)
        shutil.copytree(found.folder, found.folder.parent / str(trainer.global_step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationModule, "on_train_epoch_start", on_train_epoch_start)
        patch.setattr(ClassificationModule, "on_after_backward", on_after_backward)
        patch.setattr(LastCheckpoint, "save", save_and_keep)
        fit(found.folder, f"{start} {OPTIONS}")
    return found


def test_a_stage_an_epoch(whole: Recorded) -> None:
    """Earlier than its stage no weight has a gradient, nor does it decay; in it all change."""
    last = read_checkpoint(whole.folder / "last.ckpt")["state_dict"]
    for epoch, prefixes in enumerate(STAGES):
        names = {name for name in whole.weights[0] if name.startswith(prefixes)}
        before = whole.trained[epoch - 1] if epoch else set()
        assert whole.trained[epoch] == before | names
        assert not before & names
        for name in names:
            assert torch.equal(whole.weights[epoch][name], whole.weights[0][name])
            if name.endswith("weight"):
                assert not torch.equal(last[f"model.{name}"], whole.weights[0][name])
    assert whole.trained[4] == whole.weights[0].keys()


@pytest.mark.parametrize("step", [3, 4])
def test_resumed_run_equals_uninterrupted(step: int, whole: Recorded, start: str, tmp_path: Path) -> None:
    """Bit by bit, whether it is resumed within an epoch or at the end of one."""
    folder = shutil.copytree(whole.folder.parent / str(step), tmp_path / "run")
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == step
    fit(folder, f"{start} {OPTIONS} --ckpt_path last")
    assert compare(whole.folder, folder) == []


def test_messages_and_early_stopping(start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each stage; a figure that does not improve ends training after the last stage alone."""
    still = f"{start} --optim.unfreeze_every 1 --optim.lr 1e-12 --optim.weight_decay 0 --trainer.early_stopping 1"
    folder = fit(tmp_path / "run", f"{still} --trainer.max_epochs 9")
    assert read(folder / "metrics.json")["fit"]["epochs"] == 6
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("From epoch")]
    assert len(lines) == 5
    assert lines[0].startswith("From epoch 0 on, head is trained (")
    assert lines[0].endswith(" weights); still frozen: 4 of 4 groups of layers, the next until epoch 1.")
    assert lines[2].startswith("From epoch 2 on, backbone.encoder.layers.1 is trained, too (")
    assert lines[4].startswith(
        "From epoch 4 on, backbone.prefix, backbone.positions, backbone.patches are trained, too"
    )
    weights = lines[4].partition("too (")[2].split()
    assert weights[0] == weights[2], "all"
    fit(tmp_path / "short", f"{start} --optim.unfreeze_every 3 --trainer.max_epochs 12 --trainer.max_steps 1")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("From epoch")]
    assert line.endswith("groups of layers, the next until epoch 3, the last beyond --trainer.max_epochs 12.")


@pytest.mark.slow
def test_two_processes(start: str, tmp_path: Path) -> None:
    """Both have the same weights after each epoch, which they could not without the mean of their gradients."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "from mmattn.tasks.classification.module import ClassificationModule\n"
        "from mmattn.tasks.common import cli\n"
        "from mmattn.tasks.common.task import tasks\n"
        "def on_train_epoch_end(self):\n"
        "    weights = torch.nn.utils.parameters_to_vector(self.model.parameters())\n"
        "    every = self.all_gather(weights.detach())\n"
        "    assert len(every) == 2 and torch.equal(*every), self.current_epoch\n"
        "    if self.global_rank == 0: print('equal after epoch', self.current_epoch, flush=True)\n"
        "ClassificationModule.on_train_epoch_end = on_train_epoch_end\n"
        "cli.run(tasks()['classification'], 'fit', sys.argv[1:])\n"
    )
    words = f"{BASE} --data.batch_size 3 {start} {OPTIONS} --trainer.devices 2 --trainer.strategy ddp"
    output = python(script, *words.split(), "--trainer.default_root_dir", tmp_path / "run").stdout
    assert [f"equal after epoch {epoch}" in output for epoch in range(5)] == [True] * 5
    assert read(tmp_path / "run" / "metrics.json")["fit"]["epochs"] == 5


class Chain(Net):
    def forward(self, x: Tensor) -> Tensor:
        for part in (self.stem, *self.blocks, self.norm, self.head):
            x = part(x)
        return x


def test_frozen_layers_are_in_evaluation_mode() -> None:
    """Their batch norms keep their statistics, their dropout is off; what is frozen by name stays so."""
    module = ClassificationModule({})
    module.model = net = Chain()
    net.stem.requires_grad_(False)
    module.frozen = [net.stem]
    given = {name for name, _ in net.named_parameters() if not name.startswith("head.1")}
    module.stages = unfreezing_stages(net, given)
    callback, trainer = Unfreezing(2), stub(0)
    callback.setup(trainer, module, "fit")
    modes, statistics = [], []
    for epoch in range(12):
        callback.on_train_batch_start(stub(epoch), module, None, 0)
        net(torch.randn(8, 4)).sum().backward()
        modes.append([net.stem.training, *(part.training for block in net.blocks for part in block[1:])])
        statistics.append([block[1].num_batches_tracked.item() for block in net.blocks])
    # The new layer; the norm and the rest of the head; a norm and a linear map of the second block, of the first.
    assert [stage[0] for stage in module.stages] == [
        "head.1.weight",
        "norm.weight",
        "blocks.1.1.weight",
        "blocks.1.0.weight",
        "blocks.0.1.weight",
        "blocks.0.0.weight",
    ]
    assert [sum(row) for row in statistics] == [0, 0, 0, 0, 1, 2, 3, 4, 6, 8, 10, 12]
    assert modes[0] == [False] * 5
    assert modes[11] == [False] + [True] * 4
    assert net.stem.weight.grad is None
    assert callback.setup(trainer, module, "fit") is None
    assert not net.stem.weight.requires_grad


def stub(epoch: int) -> Any:
    strategy = SingleDeviceStrategy("cpu")
    return SimpleNamespace(current_epoch=epoch, strategy=strategy, callbacks=[], is_global_zero=False, max_epochs=12)


def test_without_new_layers() -> None:
    """The last layers are the first; all weights are in one stage."""
    names = {name for name, _ in Net().named_parameters()}
    stages = unfreezing_stages(Net(), names)
    assert [name.rpartition(".")[0] for name in stages[0] if name.endswith("weight")] == ["norm", "head.0", "head.1"]
    assert len(stages) == 6
    assert sorted(name for stage in stages for name in stage) == sorted(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optim.unfreeze_every 0", "optim.unfreeze_every: expected a value of at least 1, found 0"),
        ("--model.freeze pretrained", "expected layers of --init_from that can be unfrozen after others, found none"),
        ("--model.lora.rank 2", "optim.unfreeze_every: expected no --model.lora"),
        ("--init_from null", "optim.unfreeze_every: expected --init_from, whose layers are unfrozen; found none"),
    ],
)
def test_mistakes(options: str, message: str, start: str, tmp_path: Path) -> None:
    refused(message, fit, tmp_path / "run", f"{start} {OPTIONS} {options}", error=ConfigError)
    assert not (tmp_path / "run").exists()


def test_other_strategies_raise() -> None:
    message = "expected one device or --trainer.strategy ddp, found object"
    refused(message, Unfreezing(1).setup, SimpleNamespace(strategy=object()), None, "fit", error=ConfigError)


def test_evaluation_with_the_options_of_training(whole: Recorded, start: str, tmp_path: Path) -> None:
    """A configuration with which a model was trained also measures it: nothing is frozen, or refused."""
    data = start.split()[-1]
    words = f"--checkpoint {whole.folder}/model --optim.unfreeze_every 1 --model.freeze pretrained --data.test {data}"
    run("test", tmp_path / "run", words, "--trainer.accelerator cpu", task="classification")
    assert read(tmp_path / "run" / "metrics.json")["test"]["top1"] >= 0
