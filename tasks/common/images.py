"""What the tasks on images have in common: what users give for one, and how public models want it normalized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from mmattn.data.readers import read_json
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.predictor import mapping_of, name_of
from mmattn.tasks.common.sources import Source

S = TypeVar("S")
PREPROCESSING = "preprocessor_config.json"  # transformers'
STATISTICS = {  # where a folder does not say how its images were normalized: ImageNet's, as most were
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def image_sample(item: Any, number: int, kind: type[S]) -> S:
    """A sample from what a user gives, the number-th item.

    Args:
        item: An image: a path, the file's bytes, a uint8 array (H, W, 3) or a PIL image; a mapping with `image` and, if
            wanted, `id`; or a sample.
        number: Its place.
        kind: The sample's class, whose first fields are `id` and `image`.

    Raises:
        DataError: There is no image; names the item.
    """
    if isinstance(item, kind):
        return item
    given = mapping_of(item, "image")
    return kind(name_of(given, number, ("image",)), given["image"])  # type: ignore[call-arg]


def statistics(source: Source) -> dict[str, Any]:
    """Mean and standard deviation of the images, of pixel values in 0..1, from transformers' or timm's file."""
    told: Mapping[str, Any] = dict(source.config) | dict(source.config.get("pretrained_cfg") or {})
    path = source.fetch(PREPROCESSING)
    if path is not None:
        told = read_json(path)
    given: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if told.get("do_normalize") is not False:
        given = {key: told.get(f"image_{key}") or told.get(key) or STATISTICS[key] for key in given}
    mean, std = given["mean"], given["std"]
    # What is normalized are pixel values from 0 to this.
    top = 255.0 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255.0
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(f"{source.name}: expected a model of images in colour, found mean {list(mean)}.")
    if abs(top - 1) < 1e-6:
        return {"mean": tuple(mean), "std": tuple(std)}
    return {"mean": tuple(m / top for m in mean), "std": tuple(s / top for s in std)}
