"""The public captioning set from a server on loopback: converted as documented, or one error and no files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mmattn.tasks.captioning.data import CaptionDataset
from scripts.fetch.archive import FetchError, fetch, sources
from tests.conftest import refused
from tests.data.fetching import NOWHERE, archive, measured_on, png, serve

LISTS = {"train": ["b.jpg", "a.jpg", "made-up.jpg"], "dev": ["c.jpg"], "test": ["d.jpg"]}
TOKENS = "".join(f"{name}.jpg#{n}\tA  {name} {n} .\n" for name in "abcde" for n in range(2))
IMAGES = {f"data/images/{name}.jpg": png(n, (22, 22), "JPEG") for n, name in enumerate("abcde")}


def texts(**lists: list[str]) -> dict[str, bytes]:
    files = {f"Flickr_8k.{part}Images.txt": "\n".join(names).encode() for part, names in (LISTS | lists).items()}
    return {
        f"Flickr8k_text/{name}": content for name, content in (files | {"Flickr8k.token.txt": TOKENS.encode()}).items()
    }


def get(out: Path, images: dict[str, bytes], captions: dict[str, bytes]) -> Path:
    source = replace(sources()["flickr8k"], sha256={})
    (url, other), contents = source.urls(""), (images, captions)
    with serve(dict(zip((url, other), map(archive, contents), strict=True))) as base:
        return fetch(source, out, base)


def test_flickr8k(tmp_path: Path) -> None:
    folder = get(tmp_path, IMAGES, texts())
    parts = {p: CaptionDataset(folder / f"annotations/captions_{p}.json").samples for p in ("train", "val", "test")}
    assert {part: [Path(s.image).name for s in samples] for part, samples in parts.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg"],
        "test": ["d.jpg"],
    }
    assert parts["train"][0].captions == ["A a 0 .", "A a 1 ."]
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    with Image.open(folder / "test" / "d.jpg") as image:
        assert image.size == (128, 128)


def test_missing_parts(tmp_path: Path) -> None:
    message = "flickr8k: the archives have no images with captions of val"
    refused(message, get, tmp_path, IMAGES, texts(dev=["z.jpg"]), error=FetchError)
    refused("files that match", get, tmp_path, IMAGES, {"README.md": b"no"}, error=FetchError)
    assert not list(tmp_path.iterdir())


def test_it_is_the_measured_set(real_data: Path, tmp_path: Path) -> None:
    """The checksums are those of the data of the measurements, and the conversion writes the same annotations."""
    folder = measured_on(real_data, "flickr8k")
    (tmp_path / "flickr8k").symlink_to(folder)
    assert fetch(sources()["flickr8k"], tmp_path, NOWHERE) == tmp_path / "flickr8k"
    content = json.loads((folder / "annotations" / "captions_val.json").read_text())
    from scripts.fetch.captioning import write_captions

    samples = CaptionDataset(folder / "annotations" / "captions_val.json").samples
    names = {str(image["id"]): image["file_name"] for image in content["images"]}
    write_captions(tmp_path, "Flickr8k", {"val": {names[sample.id]: sample.captions for sample in samples}})
    assert (tmp_path / "annotations" / "captions_val.json").read_bytes() == (
        folder / "annotations" / "captions_val.json"
    ).read_bytes()
