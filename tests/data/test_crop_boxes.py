"""The script that cuts the boxes of a COCO file out of their images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn.tasks.classification.data import ClassificationDataset
from scripts.crop_boxes import crop, main


def write(folder: Path, **changes: object) -> Path:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:10, 10:20] = 200
    Image.fromarray(pixels).save(folder / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "no_boxes.png"}],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "old cell"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10, 5, 10, 5]},
            {"image_id": 7, "category_id": 2, "bbox": [25, 0, 5, 20]},
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_boxes_become_images_of_their_class(tmp_path: Path) -> None:
    counts = crop(write(tmp_path), tmp_path, tmp_path / "out", 0.0)
    assert counts == {"cell": 1, "old cell": 1}
    found = Image.open(tmp_path / "out" / "cell" / "a_0.png")
    assert found.size == (10, 5)
    assert (np.asarray(found) == 200).all()
    data = ClassificationDataset(tmp_path / "out")
    assert [sample.labels for sample in data.samples] == [["cell"], ["old cell"]]
    crop(write(tmp_path), tmp_path, tmp_path / "wide", 0.5)
    assert Image.open(tmp_path / "wide" / "cell" / "a_0.png").size == (20, 15)
    assert Image.open(tmp_path / "wide" / "old cell" / "a_1.png").size == (15, 20)  # as far as the image goes


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"categories": []}, "expected COCO's images"), ({"images": [{"id": 7, "file_name": "none.png"}]}, "none.png")],
)
def test_bad_files(
    changes: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(write(tmp_path, **changes)), str(tmp_path), str(tmp_path / "out")]
    assert main(given) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([str(write(tmp_path)), *given[1:]]) == 0
    assert "1 cell, 1 old cell" in capsys.readouterr().out
    assert main(given) == 1  # the folder exists
