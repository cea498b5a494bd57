"""Cut the boxes of a COCO file out of their images: a folder for each class, as image classification reads them.

python scripts/crop_boxes.py annotations/instances_train.json images crops/train [--margin 0.1]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmattn.data.errors import DataError, UserError, shorten
from mmattn.data.image.processor import load_image
from mmattn.data.readers import read_json
from mmattn.tasks.common.files import atomic_folder


def crop(annotations: Path, images: Path, out: Path, margin: float = 0.1) -> Counter[str]:
    """Write a PNG of each box, ``out/CLASS/IMAGE_NUMBER.png``, and return their numbers by class.

    Args:
        annotations: A COCO instances JSON, whose boxes are ``[x, y, width, height]`` in pixels.
        images: Folder of its images.
        out: The new folder.
        margin: Share of the box's larger side that is added around it, as far as the image goes.

    Raises:
        DataError: The file is not in COCO's format, or an image cannot be read.
        UserError: The folder exists.
    """
    if out.exists():
        raise UserError(f"{out}: expected a new folder, found one that exists.")
    content = read_json(annotations)
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        files = {one["id"]: str(one["file_name"]) for one in content["images"]}
        boxes: dict[str, list[Any]] = {}  # by image
        for one in content["annotations"]:
            boxes.setdefault(files[one["image_id"]], []).append((names[one["category_id"]], one["bbox"]))
    except (KeyError, TypeError) as error:
        raise DataError(str(annotations), "COCO's images, annotations and categories", shorten(error)) from None
    counts: Counter[str] = Counter()

    def fill(folder: Path) -> None:
        for file, own in boxes.items():
            image = load_image(images / file)
            for number, (name, (x, y, width, height)) in enumerate(own):
                extra = margin * max(width, height)
                edges = (x - extra, y - extra, x + width + extra, y + height + extra)
                left, top, right, bottom = map(round, edges)
                part = image.crop((max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)))
                (folder / name).mkdir(exist_ok=True)
                part.save(folder / name / f"{Path(file).stem}_{number}.png")
                counts[name] += 1

    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_folder(out, fill)
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--margin", type=float, default=0.1, help="share of a box's side around it (default: 0.1)")
    given: Mapping[str, Any] = vars(parser.parse_args(arguments))
    try:
        counts = crop(**given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given['out']} written: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
