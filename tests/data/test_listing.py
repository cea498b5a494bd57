"""The lister of folders, and that every task lists by it: links, loops, hidden files."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.data.files import files_below, is_hidden
from mmattn.tasks.asr.data import ASRDataset
from mmattn.tasks.asr.predict import ASRPredictor
from mmattn.tasks.classification.data import ClassificationDataset
from mmattn.tasks.classification.predict import ClassificationPredictor
from mmattn.tasks.segmentation.data import SegmentationDataset
from mmattn.tasks.segmentation.predict import SegmentationPredictor
from mmattn.tasks.summarization.predict import SummarizationPredictor
from mmattn.tasks.vqa.predict import VQAPredictor

PNG, WAV, TXT = ".png", ".wav", ".txt"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(folder: Path) -> list[str]:
    return [name for name, _ in files_below(folder, (PNG,))]


def test_hidden_names() -> None:
    assert not is_hidden("a/b.png")
    assert all(is_hidden(name) for name in ("a/._b.png", ".ipynb_checkpoints/b.png", "__MACOSX/a/b.png"))


def test_links_are_followed_once(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    touch(root / "a" / "1.png", root / "a" / "z" / "2.PNG", other / "deep" / "3.png", other / "4.txt")
    for link, target in (("b", other), ("c", other), ("a/up", root), ("a/loop", root / "a"), ("a/again", root / "b")):
        (root / link).symlink_to(target)
    for link in ("back", "twice"):  # to each other by way of their parents: no product of all paths
        (other / link).symlink_to(tmp_path)
    found = names(root)
    assert {name for name in found if name.count("/") < 3} >= {"a/1.png", "a/z/2.PNG", "b/deep/3.png", "c/deep/3.png"}
    assert "a/again/deep/3.png" in found
    assert len(found) < 30
    assert found == sorted(found, key=lambda name: name.split("/"))


def test_many_folders_that_link_to_each_other(tmp_path: Path) -> None:
    for n in range(12):
        touch(tmp_path / str(n) / "a.png")
        for other in range(12):
            (tmp_path / str(n) / f"to{other}").symlink_to(tmp_path / str(other))
    assert 12 < len(names(tmp_path)) < 12**3


def test_links_to_nothing_and_special_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "a.png")
    for name in ("b.png", "dog"):
        (tmp_path / name).symlink_to(tmp_path / "none")
    (tmp_path / "c.png").symlink_to("c.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(tmp_path) == ["a.png", "b.png", "c.png"], "reading b and c is an error that names them"
    assert "dog: a link to a file or folder that does not exist, ignored" in caplog.text


def listed(kind: Any) -> Callable[[Path], list[str]]:
    """Names of the items that a predictor lists in a folder; no model is needed."""

    def open_input(folder: Path) -> list[str]:
        items = kind.open_input(None, str(folder), question="What?")
        return [item["id"] if isinstance(item, dict) else item.id for item in items]

    return open_input


def members(folder: Path) -> list[str]:
    with tarfile.open(folder.parent / "all.tar", "w") as archive:
        archive.add(folder.resolve(), "set")
        archive.add((folder / "dog").resolve(), "set/dog")
    return [sample.id for sample in ClassificationDataset(folder.parent / "all.tar").samples]


LISTERS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "class folders": (PNG, lambda folder: [s.id for s in ClassificationDataset(folder).samples]),
    "members of a tar": (PNG, members),
    "LibriSpeech's tree": (WAV, lambda folder: [f"{s.audio}"[len(f"{folder}/") :] for s in ASRDataset(folder).samples]),
    **{
        f"{kind.task} predict": (ending, listed(kind))
        for kind, ending in (
            (ClassificationPredictor, PNG),
            (SegmentationPredictor, PNG),
            (VQAPredictor, PNG),
            (ASRPredictor, WAV),
            (SummarizationPredictor, TXT),
        )
    },
}


@pytest.mark.parametrize("name", LISTERS)
def test_every_task_follows_links_and_ignores_hidden_files(name: str, tmp_path: Path) -> None:
    ending, lister = LISTERS[name]
    folder, real = tmp_path / "in", tmp_path / "elsewhere"
    hidden = (".ipynb_checkpoints/d-1", "__MACOSX/cat/d-1", "cat/._a-1", "cat/.b-1")
    for stem in (*(f"in/{name}" for name in ("cat/a-1", *hidden)), "elsewhere/b-1"):
        touch(tmp_path / f"{stem}{ending}")
        if "LibriSpeech" in name:
            place = tmp_path / stem
            place.with_name(f"{place.name}.trans.txt").write_text(f"{place.name} YES\n")
        (tmp_path / f"{stem}{ending}").write_text("text")
    if "LibriSpeech" in name:
        import soundfile

        for path in (folder / "cat" / "a-1.wav", real / "b-1.wav"):
            soundfile.write(path, np.zeros(800), 8000)
    (folder / "dog").symlink_to(real, target_is_directory=True)
    assert lister(folder) == [f"cat/a-1{ending}", f"dog/b-1{ending}"]


def test_links_below_images_and_masks(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / "real" / part).mkdir(parents=True)
        (tmp_path / "set" / part).mkdir(parents=True)
        for name in ("a.png", "._a.png"):
            Image.new("L", (4, 4)).save(tmp_path / "real" / part / name)
        (tmp_path / "set" / part / "deep").symlink_to(tmp_path / "real" / part)
    assert [sample.id for sample in SegmentationDataset(tmp_path / "set").samples] == ["deep/a"]
