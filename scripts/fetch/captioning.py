"""The public captioning set of ``scripts/fetch_data.py``: COCO's captions JSON of each of the official splits.

Images of train and val are in ``images/``, those of test in ``test/``, where ``captions_test.json`` finds them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.fetch.archive import Archive, FetchError

PARTS = {"train": "train", "val": "dev", "test": "test"}  # and the names of their lists
SIDE, QUALITY = 128, 80  # of the images, which are squares of 224 pixels in the archive
TEXTS = "Flickr8k_text/Flickr"


def write_captions(folder: Path, title: str, parts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Write ``annotations/captions_PART.json``, with the images in the order of their file names."""
    (folder / "annotations").mkdir()
    for part, captions in parts.items():
        images, notes = [], []
        for number, name in enumerate(sorted(captions), start=1):
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            for text in captions[name]:
                notes.append({"id": len(notes) + 1, "image_id": number, "caption": text})
        content = {"info": {"description": f"{title} {part}"}, "licenses": [], "images": images, "annotations": notes}
        path = folder / "annotations" / f"captions_{part}.json"
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8", newline="\n")


def convert_flickr8k(archive: Archive, folder: Path, texts: Archive) -> None:
    """Join the images of one repository and the captions of another; names without an image or caption are left out."""
    captions: dict[str, list[str]] = {}
    for line in texts.text(rf"{TEXTS}8k\.token\.txt").splitlines():
        name, _, text = line.partition("\t")
        if text.strip():
            captions.setdefault(name.rpartition("#")[0], []).append(" ".join(text.split()))
    part_of: dict[str, str] = {}
    for part, listed in PARTS.items():
        part_of |= dict.fromkeys(texts.text(rf"{TEXTS}_8k\.{listed}Images\.txt").split(), part)
    for kind in ("images", "test"):
        (folder / kind).mkdir()
    parts: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for path, content in archive.files(r"data/images/[^/]+\.jpg"):
        name = Path(path).name
        if name in part_of and name in captions:
            part = part_of[name]
            parts[part][name] = captions[name]
            _shrink(content, folder / ("test" if part == "test" else "images") / name)
    empty = next((part for part, images in parts.items() if not images), None)
    if empty is not None:
        raise FetchError(f"flickr8k: the archives have no images with captions of {empty}")
    write_captions(folder, "Flickr8k", parts)


def _shrink(content: bytes, path: Path) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path, "JPEG", quality=QUALITY)
