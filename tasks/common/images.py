"""Helpers of the image tasks: samples from users' inputs, and the normalization of public models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mmattn.data.errors import DataError
from mmattn.data.files import some_below
from mmattn.data.image.processor import IMAGE_EXTENSIONS, ImageProcessor
from mmattn.data.image.public import (
    PREPROCESSING,
    CenterCrop,
    Cropped,
    FittedImages,
    ShorterSide,
    make_image_processor,
    normalization,
)
from mmattn.data.readers import read_settings
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.finetune import read_network
from mmattn.tasks.common.items import mapping_of, name_of
from mmattn.tasks.common.outputs import Outputs
from mmattn.tasks.common.sources import TIMM, Source

if TYPE_CHECKING:
    from torch import Tensor

S = TypeVar("S")


def image_files(path: str | Path) -> list[tuple[str, Path]]:
    """The images that an input names, each with its name: an image file, or a folder's at any depth; else none.

    Raises:
        DataError: The folder has no images.
    """
    place = Path(path)
    if place.is_dir():
        return some_below(place, IMAGE_EXTENSIONS, "images")
    return [(place.name, place)] if place.suffix.lower() in IMAGE_EXTENSIONS else []


def image_sample(item: Any, number: int, kind: type[S]) -> S:
    """Convert a user's item to a sample.

    Args:
        item: An image (a path, the file's bytes, a uint8 array (H, W, 3) or a PIL image); a mapping with `image` and,
            optionally, `id`; or a sample.
        number: Position of the item in its list.
        kind: Class of the sample, whose first fields are `id` and `image`.

    Raises:
        DataError: The item has no image; names the item.
    """
    if isinstance(item, kind):
        return item
    given = mapping_of(item, "image")
    return kind(name_of(given, number, ("image",)), given["image"])  # type: ignore[call-arg]


def resized(image: ImageProcessor, given: Mapping[str, Any]) -> ImageProcessor:
    """The image processor with the size and the mode of resizing of a configuration.

    Args:
        image: The processor, of a public model or of this toolkit.
        given: Options of the data; `image_size` and `resize` are read, None or no such key: as they are.

    Raises:
        ConfigError: The public processor has a mode of its own.
    """
    size, mode = given.get("image_size"), given.get("resize")
    config = image.config()
    if isinstance(image, (Cropped, FittedImages)) and mode is not None:
        raise ConfigError(
            f"data.resize: expected none, since the public model's images are resized in its own way; found {mode!r}."
        )
    if mode is not None:
        config["resize"] = mode
    if size is not None and isinstance(image, FittedImages):
        config["shortest"] = size
    elif size is not None:
        if isinstance(image, CenterCrop):  # the same part of the image
            sides = (size, size) if isinstance(size, int) else size
            ratios = [whole / side for whole, side in zip(image.scaled, image.size, strict=True)]
            config["scaled"] = [round(ratio * side) for ratio, side in zip(ratios, sides, strict=True)]
        if isinstance(image, ShorterSide):
            largest = size if isinstance(size, int) else max(size)
            config["shorter"] = round(image.shorter / max(image.size) * largest)
        config["size"] = size
    return make_image_processor(config)


def with_side(parts: CheckpointParts, image: ImageProcessor) -> CheckpointParts:
    """The parts of a model of this toolkit for images of another size, on which its weights do not depend.

    Args:
        parts: The parts, with a keyword `image_size`.
        image: Image processor of the new data.
    """
    return replace(parts, keywords=parts.keywords | {"image_size": image.size[0]})


def claim_pngs(
    predictor: Any, items: Sequence[Any], folders: Mapping[str, str | Path | None]
) -> dict[int, dict[str, Path]]:
    """Claim a PNG for each item in each folder, so that a wrong folder is an error before any prediction.

    Args:
        predictor: The predictor, for the items' names.
        items: The items.
        folders: Folders by the kind of PNG; None: none of this kind.

    Returns:
        The paths by kind, by the item's index; without items that are not valid, which are reported in their turn.

    Raises:
        UserError: See `Outputs.claim`.
    """
    given = {kind: folder for kind, folder in folders.items() if folder is not None}
    outputs, files = Outputs(items if given else (), predictor.reserved), dict[int, dict[str, Path]]()
    for number, item in enumerate(items if given else ()):
        with suppress(DataError):
            name = predictor.to_sample(item, number).id
            files[number] = {kind: outputs.place(folder, name, IMAGE_EXTENSIONS) for kind, folder in given.items()}
    return files


def read_timm(source: Source, kind: Any, name: str) -> Any:
    """Make a timm model with its public weights.

    Args:
        source: The location of the weights.
        kind: A class of `mmattn.backbones.timm`.
        name: The architecture.

    Raises:
        CheckpointError: The weights are missing, or those of another model.
    """
    path = _weights(source)
    try:
        model = kind(name)
        model.load_weights(path)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise CheckpointError(f"{source.name}: {str(error).splitlines()[0]}") from None
    return model


class ImageEncoder(NamedTuple):
    """A public image encoder as the stem of a `GridEncoder` of the task's model."""

    keywords: dict[str, Any]  # of the task's model
    state: dict[str, Tensor]
    image: ImageProcessor


def read_image_encoder(source: Source) -> ImageEncoder:
    """Read all layers of one of timm's models, or of ViT, DeiT, DINOv2 or SigLIP, without their poolers.

    Raises:
        CheckpointError: The folder is damaged, or does not state the preprocessing of its images.
    """
    if source.family == TIMM:
        from mmattn.backbones.timm import TimmTrunk

        name = str(source.config["architecture"])
        state = read_timm(source, TimmTrunk, name).state_dict()
        keywords: dict[str, Any] = {"image_encoder": f"timm/{name}", "image_options": {"whole": True}}
        size, prefix = timm_size(source), "image_encoder.stem."
    else:
        from mmattn.backbones.vit import VisionTransformer

        if source.fetch(PREPROCESSING) is None:
            raise CheckpointError(
                f"{source.name}: expected {PREPROCESSING}, which states the size and normalization "
                "of the images; found no such file."
            )
        converted = read_network(source, VisionTransformer, "ViT, DeiT, DINOv2 or SigLIP")
        body = {key: value for key, value in converted.keywords.items() if value is not None}
        if body.get("in_channels", 3) != 3:
            raise CheckpointError(
                f"{source.name}: expected a model of color images, found {body['in_channels']} channels."
            )
        state = {key: value for key, value in converted.state.items() if not key.startswith(("pooler.", "head."))}
        body = {key: value for key, value in body.items() if not key.startswith("pool")} | {
            "resize_positions": "bicubic"
        }
        keywords = {"image_encoder": "vit", "image_options": {"body": body}}
        size, prefix = tuple(body["image_size"]), "image_encoder.stem.body."
    image = ImageProcessor(size, **statistics(source))
    return ImageEncoder(keywords, {f"{prefix}{key}": value for key, value in state.items()}, image)


def read_timm_classifier(source: Source, trunk: Any) -> tuple[Tensor, Tensor] | None:
    """The classifier of a `TimmTrunk` from its public weights; see `TimmTrunk.read_classifier`."""
    found: tuple[Tensor, Tensor] | None = trunk.read_classifier(_weights(source))
    return found


def timm_labels(source: Source) -> list[str]:
    """Names of the classes that a timm model was trained with; those of ImageNet are timm's; empty: unknown.

    The first name of a class, with others or its WordNet id where another class has the same.
    """
    from timm.data import ImageNetInfo

    config = dict(source.config) | dict(source.config.get("pretrained_cfg") or {})
    given = config.get("label_names")
    if isinstance(given, list) and len(set(map(str, given))) == len(given):
        return [str(name) for name in given]
    info = ImageNetInfo()
    if config.get("num_classes") != info.num_classes():
        return []
    whole = [info.index_to_description(n) for n in range(info.num_classes())]
    short = [text.split(", ")[0] for text in whole]
    of_whole, of_short = Counter(whole), Counter(short)
    longer = [
        text if of_whole[text] == 1 else f"{text} ({info.index_to_label_name(n)})" for n, text in enumerate(whole)
    ]
    return [name if of_short[name] == 1 else more for name, more in zip(short, longer, strict=True)]


def _weights(source: Source) -> Path:
    from mmattn.pretrained.files import WEIGHTS

    path = next((path for file in WEIGHTS if (path := source.fetch(file)) is not None), None)
    if path is None:
        raise CheckpointError(f"{source.name}: expected weights, one of {', '.join(WEIGHTS)}; found neither.")
    return path


def timm_size(source: Source) -> tuple[int, int]:
    """Height and width of the images that a timm model was trained with; 224 if its files do not state them."""
    config = dict(source.config) | dict(source.config.get("pretrained_cfg") or {})
    size = tuple(config.get("input_size") or (3, 224, 224))[1:]
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise CheckpointError(f"{source.name}: input_size: expected [channels, height, width], found {size!r}.")
    return size


def statistics(source: Source) -> dict[str, Any]:
    """Mean and standard deviation of pixel values in 0..1, from transformers' or timm's configuration file.

    See `normalization`.
    """
    config: Mapping[str, Any] = dict(source.config) | dict(source.config.get("pretrained_cfg") or {})
    path = source.fetch(PREPROCESSING)
    if path is not None:
        config = read_settings(path)
    try:
        return normalization(config)
    except ValueError as error:
        raise CheckpointError(f"{source.name}: {error}.") from None
