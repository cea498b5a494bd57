"""The models in the repository: their sizes, cards, licences and figures."""

import json
from pathlib import Path

import pytest

from mmattn.tasks.common.cards import about_of, summary
from mmattn.tasks.common.task import tasks

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(path.parent for path in ROOT.glob("tasks/*/checkpoints/*/config.json"))
A_MODEL, ALL_MODELS = 8_000_000, 60_000_000  # bytes


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_sizes_are_limited() -> None:
    sizes = {f"{model.parents[1].name}/{model.name}": size(model) for model in MODELS}
    assert not {name: found for name, found in sizes.items() if found > A_MODEL}
    assert sum(sizes.values()) <= ALL_MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_cards_state_data_licence_and_figure(model: Path) -> None:
    config, card = json.loads((model / "config.json").read_text()), (model / "README.md").read_text()
    about, metric = about_of(config), tasks()[config["task"]].metric
    value = next(figures[metric] for figures in config["metrics"].values())
    assert f"Trained on {about['data']}" in card
    assert f"Licence: {about['licence']}." in card
    assert f"| {metric} | {value:.4f} |" in card
    assert f"load('{config['task']}/{model.name}')" in card
    assert f"{metric} {value:.3f}" in summary(config)


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_every_task_ships_its_default_model(task: tuple) -> None:
    assert (task.folder / "checkpoints" / task.default_checkpoint / "config.json").exists()


def test_summary_of_other_data() -> None:
    about = {"data": "FSDD", "licence": "CC BY-SA 4.0"}
    config = {"task": "asr", "metrics": {"FSDD validation": {"wer": 0.0033}}, "own_data": True, "about": about}
    assert summary(config) == "was trained on FSDD (CC BY-SA 4.0; wer 0.003, FSDD validation)"
