"""Models on the hub: uploaded with their card, found by its search, and loaded again, against a hub on the loopback."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmattn import load, push
from mmattn.data.errors import UserError
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.hub import LICENCES, PIPELINES, hub_card
from mmattn.tasks.common.sources import find_model, named_models
from mmattn.tasks.common.task import tasks
from tests.conftest import refused
from tests.tasks.fake_hub import Hub, fake_hub
from tests.tasks.runs import python


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose token is that of the environment, with an empty cache beside it."""
    from huggingface_hub import constants, hf_api

    from mmattn.pretrained import files

    with fake_hub() as hub:
        hub.tokens = {"hf_good"}
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
        files._is_reachable.cache_clear()
        yield hub
        files._is_reachable.cache_clear()


def test_push_and_load(hub: Hub, tmp_path: Path) -> None:
    address = push("text_classification/demo", "hf:me/mood", message="A first model")
    assert address.startswith(f"{hub.address}/me/mood/commit/")
    files = hub.repositories["me/mood"]
    assert {"README.md", "config.json", "model.safetensors", "processor/tokenizer.json"} <= files.keys()
    predictor = load("hf:me/mood", device="cpu")
    expected = load("text_classification/demo", device="cpu")
    texts = ["the soup was awful", "a splendid day"]
    assert predictor.predict(texts) == expected.predict(texts)
    assert str(predictor.parts.where) == "hf:me/mood"
    predictor.save(tmp_path / "again")
    assert load(tmp_path / "again").predict(texts) == expected.predict(texts)


def test_a_saved_model_keeps_its_card(tmp_path: Path) -> None:
    """Figures, data, licence and command, also of a model that was pushed by its predictor."""
    for name in ("asr/fsdd", "vqa/demo"):
        folder = load(name, device="cpu").save(tmp_path / name)
        first, second = (json.loads((place / "config.json").read_text()) for place in (find_model(name).folder, folder))
        kept = ("metrics", "about", "own_data")
        assert {key: second.get(key) for key in kept} == {key: first.get(key) for key in kept}
        before, after = ((place / "README.md").read_text() for place in (find_model(name).folder, folder))
        before = before.replace("float16 on disk, float32 in memory", "float32").replace(name, "FOLDER")
        assert after == before
        assert load(folder, device="cpu").save(tmp_path / "twice").joinpath("README.md").read_text() == after


def test_push_replaces_the_model(hub: Hub) -> None:
    """Also its processor's files that the new one has not."""
    push("text_classification/demo", "hf:me/model", private=True)
    assert hub.private["me/model"]
    push("classification/demo", "hf:me/model")
    assert "processor/tokenizer.json" not in hub.repositories["me/model"]
    assert load("hf:me/model", device="cpu").task == "classification"
    push(load("vqa/demo", device="cpu"), "hf:me/model")
    assert json.loads(hub.repositories["me/model"]["config.json"])["task"] == "vqa"


def test_errors_are_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("me/model", "hf:model", "hf:me/mo del", "hf:../x"):
        refused("expected a target hf:owner/name", push, "vqa/demo", target, error=UserError)
    refused("found no such folder", push, "./no where", "hf:me/model", error=CheckpointError)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    message = refused("hf:me/model: the hub refused it", push, "classification/demo", "hf:me/model", error=UserError)
    assert "\n" not in message
    assert not hub.repositories
    refused("hub does not give it", load, "hf:me/none", error=CheckpointError)


def test_card(hub: Hub) -> None:
    """The header is what the hub's own library reads; the text says how to load the model."""
    from huggingface_hub import ModelCard

    push("asr/fsdd", "hf:me/digits")
    written = hub.repositories["me/digits"]["README.md"].decode()
    card = ModelCard(written)
    assert card.data.license == "cc-by-sa-4.0"
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.eval_results[0].metric_type == "wer"
    assert "load('hf:me/digits')" in card.text
    assert "asr/fsdd" not in card.text
    config = json.loads(hub.repositories["me/digits"]["config.json"])
    assert hub_card(config, written, "hf:me/digits") == written, "the header is written once"


@pytest.mark.parametrize("task", tasks())
def test_cards_of_all_models_have_a_header(task: str) -> None:
    from huggingface_hub import ModelCard

    for folder in named_models(task).values():
        config = json.loads((folder / "config.json").read_text())
        card = ModelCard(hub_card(config, (folder / "README.md").read_text(), "hf:me/model"))
        assert card.data.pipeline_tag == PIPELINES[task]
        assert card.data.license in (*LICENCES, "other")
        assert card.data.to_dict()["library_name"] == "mmattn"


def test_models_are_listed() -> None:
    text = python("-S", "-m", "mmattn", "models").stdout
    for task in tasks():
        for name in named_models(task):
            assert re.search(rf"^{task}/{name} +\w+ [\d.]+ \(.*\) +[\d.]+ MB.* +\w", text, flags=re.MULTILINE), name
    (entry,) = json.loads(python("-m", "mmattn", "models", "translation", "--json").stdout)
    assert entry["model"] == "translation/demo"
    assert entry["bytes"] > 1e6
    assert "did you mean 'vqa'?" in python("-m", "mmattn", "models", "vqaa", code=2).stderr
