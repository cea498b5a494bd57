"""Sources of weights, and the name tables that rename them: errors name every mismatch."""

import json
import shutil
from unittest import mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from torch import nn

from mmattn import load_pretrained
from mmattn.backbones.bert import BertEncoder
from mmattn.pretrained import FAMILIES
from mmattn.pretrained.bert import BERT, convert_bert
from mmattn.pretrained.keymap import Converted, load_into, rename
from tests.conftest import refused

CONFIG = {"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 12, "max_position_embeddings": 10, "hidden_dropout_prob": 0.0}


def foreign_state(model):
    """Our state dict under BERT's names, by the inverse of the converter's table."""
    patterns = {ours: name for name, ours in BERT.items() if "gamma" not in name and "beta" not in name}
    state = {}
    for key, tensor in model.state_dict().items():
        parts = key.split(".")
        layer = [part for part in parts if part.isdigit()]
        for pattern, name in patterns.items():
            for leaf in ("weight", "bias"):
                if pattern.replace("#", layer[0] if layer else "#").replace("*", leaf) == key:
                    state[name.replace("#", layer[0] if layer else "#").replace("*", leaf)] = tensor
    assert len(state) == len(model.state_dict())
    return state


@pytest.fixture
def model():
    return BertEncoder(20, 8, 2, 2, ffn_dim=12, max_len=10).eval()


@pytest.fixture
def folder(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(foreign_state(model), tmp_path / "model.safetensors")
    return tmp_path


def same(left, right):
    return all(torch.equal(left.state_dict()[name], tensor) for name, tensor in right.state_dict().items())


def shards(folder, suffix="safetensors"):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(state)
    halves = {f"{stem}-1-of-2.{suffix}": names[:9], f"{stem}-2-of-2.{suffix}": names[9:]}
    for name, keys in halves.items():
        part = {key: state[key] for key in keys}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
    places = {key: name for name, keys in halves.items() for key in keys}
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index, places


def not_found(message, source, **keywords):
    refused(message, load_pretrained, source, error=FileNotFoundError, **keywords)


class TestFiles:
    def test_folder_or_file(self, folder, model):
        for source in (folder, str(folder), folder / "model.safetensors", folder / "config.json"):
            assert same(load_pretrained(source), model)

    def test_pickle_of_tensors(self, folder, model):
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
        assert same(load_pretrained(folder), model)

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_shards(self, folder, model, suffix):
        shards(folder, suffix)
        assert same(load_pretrained(folder), model)

    def test_missing_shard_raises(self, folder):
        _, places = shards(folder)
        name = sorted(places.values())[0]
        (folder / name).unlink()
        not_found(f"shard {name} is missing", folder)

    def test_inconsistent_index_raises(self, folder):
        index, places = shards(folder)
        for wrong, message in (
            (places | {"more.weight": places["embeddings.LayerNorm.bias"]}, r"more\.weight is not in model-1-of-2"),
            (places | {"more.weight": "../secret.safetensors"}, "is not the name of a file beside it"),
            ({}, "no weight_map"),
        ):
            index.write_text(json.dumps({"weight_map": wrong}))
            refused(message, load_pretrained, folder)

    @pytest.mark.parametrize("keep", [0, 5, 900, -1])
    def test_truncated_file_raises(self, folder, keep):
        for name in ("model.safetensors", "pytorch_model.bin"):
            path = folder / name
            if name.endswith("bin"):
                torch.save(load_file(folder / "copy.safetensors"), path)
            else:
                shutil.copy(path, folder / "copy.safetensors")
            path.write_bytes(path.read_bytes()[:keep])
            refused(f"{name}: not a whole", load_pretrained, folder)
            path.unlink()

    def test_pickle_with_code_raises(self, folder):
        (folder / "model.safetensors").unlink()
        torch.save({"a": torch.zeros(1), "b": nn.Linear(1, 1)}, folder / "pytorch_model.bin")
        refused(r"pytorch_model\.bin: not a whole file of tensors alone", load_pretrained, folder)
        torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
        refused(r"pytorch_model\.bin: not a dictionary of tensors", load_pretrained, folder)

    def test_missing_files_raise(self, folder):
        (folder / "model.safetensors").unlink()
        not_found(r"no weights; looked for model\.safetensors, pytorch_model\.bin", folder)
        for content, message in (
            ("{", r"config\.json: not JSON"),
            ("[]", r"config\.json: expected a JSON object, found list"),
            ("{}", f"config.json has no model_type; known are {', '.join(FAMILIES)}"),
        ):
            (folder / "config.json").write_text(content)
            refused(message, load_pretrained, folder)
        (folder / "config.json").unlink()
        not_found(r"no config\.json", folder)

    def test_dtype(self, folder):
        model = load_pretrained(folder, dtype=torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


class TestHub:
    @pytest.fixture
    def hub(self, folder, monkeypatch):
        """The folder as a repository; the requests that it received."""
        asked = []

        def download(repo, name, revision=None, local_files_only=False):
            asked.append((repo, name, revision))
            response = mock.MagicMock(headers={})
            if repo == "no/repo":
                raise errors.RepositoryNotFoundError("no such repository", response=response)
            if repo == "off/line":
                raise errors.LocalEntryNotFoundError("no connection")
            if not (folder / name).is_file():
                raise errors.RemoteEntryNotFoundError("no such file", response=response)
            return str(folder / name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return asked

    def test_downloads_only_on_request(self, hub):
        not_found("no folder own/er; if it is a name .* pass download=True", "own/er")
        refused("weights are not read from a web address", load_pretrained, "https://hub/own/er", download=True)
        assert hub == []

    def test_downloads_only_the_files_read(self, hub, model, folder):
        assert same(load_pretrained("own/er", download=True, revision="v1"), model)
        assert hub == [("own/er", "config.json", "v1"), ("own/er", "model.safetensors", "v1")]
        shards(folder, "bin")
        assert same(load_pretrained("own/er", download=True), model)

    def test_missing_repository_raises(self, hub):
        not_found("no/repo: no such folder, and the hub does not give it", "no/repo", download=True)
        not_found("off/line: no such folder, nor in the hub's cache", "off/line", download=True)


class TestTables:
    def test_rename(self):
        state = {"m.a.2.w.weight": torch.arange(6), "m.head.bias": torch.zeros(1), "m.head_new": torch.ones(())}
        found, names = rename(state, {"a.#.w.*": ("x.#.*", "y.*"), "head_new": "h"}, prefix="m.", ignore=("head",))
        assert {name: tensor.tolist() for name, tensor in found.items()} == {
            "x.2.weight": [0, 1, 2],
            "y.weight": [3, 4, 5],
            "h": 1.0,
        }
        assert names == {"x.2.weight": "m.a.2.w.weight", "y.weight": "m.a.2.w.weight", "h": "m.head_new"}

    def test_required_patterns(self):
        table, state = {"a.*": "x.*", "head.#.*": "h.#.*"}, {"a.bias": torch.zeros(1)}
        assert list(rename(state, table, required=["a.*"])[0]) == ["x.bias"]
        refused(r"missing key: head\.#\.\*", rename, state, table, required=table)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (["b"], "unknown key: b$"),
            (["z", "b", "a.1.scale", "aweight"], r"unknown keys: a\.1\.scale, aweight, b, z$"),
            ([f"b{i}" for i in range(9)], "b0, b1, b2, b3, b4, b5 and 3 more"),
            (["a.weight", "old.weight"], "keys 'a.weight' and 'old.weight' have the same name here"),
            (["packed.weight"], r"'packed.weight' of shape \(3,\) does not split into 2 equal parts"),
        ],
    )
    def test_mismatched_keys_raise(self, keys, message):
        table = {"a.*": "x.*", "old.*": "x.*", "packed.*": ("p.*", "q.*")}
        refused(message, rename, {key: torch.zeros(3) for key in keys}, table)

    def test_load_into_reports_foreign_keys(self, model):
        converted = convert_bert(CONFIG, foreign_state(model))
        wrong = dict(converted.state, **{"norm.weight": torch.zeros(7)})
        message = r"'embeddings\.LayerNorm\.weight' \(norm\.weight\) is \(7,\), should be"
        refused(message, load_into, model, Converted({}, wrong, converted.names))

    def test_converted_model_trains(self, folder):
        model = load_pretrained(folder).train()
        ids = torch.randint(20, (2, 5))
        model(ids, None, torch.randint(2, (2, 5))).pooled.square().sum().backward()
        # A key bias shifts all scores of a softmax equally: its gradient is zero.
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
