"""What segmentation can begin with: a model of ours, whatever its classes, a public SegFormer, or a timm backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmattn.tasks.common.pretrained import FREE, TIMM, Parts, Source

from mmattn.data.image.masks import MAX_CLASSES, ClassList
from mmattn.data.readers import read_json
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import completed, read_network, without
from mmattn.tasks.common.public_images import PREPROCESSING, statistics
from mmattn.tasks.segmentation.data import SegmentationDataset, SegmentationProcessor
from mmattn.tasks.segmentation.model import SegmentationModel

# Keywords of SegFormer, as the task's model calls them.
NAMES = {
    "embed_dims": "channels",
    "num_layers": "num_blocks",
    "num_heads": "num_heads",
    "reductions": "reductions",
    "attention": "attention",
    "classifier_dropout": "dropout",
}
SCORES = ("head.classifiers.", "head.decoder.classifier.")  # of the U-Net and of SegFormer: one row a class
HEAD = ("head.decoder.", *SCORES)  # all that may be missing
BILINEAR = 2  # as preprocessor_config.json and PIL number it
UNET = ("decoder_channels", "gates", "deep_supervision")  # keywords that decide nothing of an encoder


def read_public(source: Source, task: str, processor_class: type[SegmentationProcessor]) -> Parts:
    """A public SegFormer, with its classes where it has a decoder; or a timm backbone, to stand below a U-Net.

    Raises:
        CheckpointError: damaged, incomplete, or pictures are prepared in a way that is not known here; named.
    """
    if source.family == TIMM:
        return _read_timm(source)
    from mmattn.backbones.segformer import SegFormer

    converted = read_network(source, SegFormer, "SegFormer")
    options = {key: value for key, value in converted.keywords.items() if value is not None}
    headless = options.pop("num_classes", None) is None
    if options.pop("in_channels") != 3:
        raise CheckpointError(f"{source.name}: expected a model of pictures in colour, found other channels.")
    own = {ours: options.pop(name) for name, ours in NAMES.items() if name in options}
    keywords = {"network": "segformer", "decoder_channels": (options.pop("decoder_dim"),), **own}
    classes, size = ClassList((), ()), None
    told = _preprocessing(source)
    if not headless:
        classes = _classes(source, bool(told.get("do_reduce_labels", told.get("reduce_labels"))))
        keywords["num_classes"] = len(classes.names)
    if told.get("do_resize", bool(told)):
        size = _size(source, told)
    processor = processor_class(classes, size, **statistics(source))
    state = {f"head.{name}": value for name, value in converted.state.items()}
    keywords["backbone_options"] = options
    free = (*FREE, "decoder_channels") if headless else FREE
    return Parts(source.name, keywords, state, processor, headless=headless, free=free)


def _read_timm(source: Source) -> Parts:
    from mmattn.backbones.timm import TimmPyramid
    from mmattn.pretrained.files import WEIGHTS

    name = str(source.config["architecture"])
    path = next((path for file in WEIGHTS if (path := source.fetch(file)) is not None), None)
    if path is None:
        raise CheckpointError(f"{source.name}: expected weights, one of {', '.join(WEIGHTS)}; found neither.")
    try:
        encoder = TimmPyramid(name)
        encoder.load_weights(path)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise CheckpointError(f"{source.name}: {str(error).splitlines()[0]}") from None
    keywords = {"network": "unet", "backbone": f"timm/{name}"}
    processor = SegmentationProcessor(ClassList((), ()), **statistics(source))
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    return Parts(source.name, keywords, state, processor, headless=True, free=(*FREE, *UNET))


def _preprocessing(source: Source) -> Mapping[str, Any]:
    path = source.fetch(PREPROCESSING)
    told: Mapping[str, Any] = {} if path is None else read_json(path)
    if told.get("resample", BILINEAR) != BILINEAR:
        raise CheckpointError(f"{path}: expected resample {BILINEAR}, bilinear; found {told['resample']!r}.")
    return told


def _size(source: Source, told: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width to which every picture is brought; SegFormer's own where the file does not say."""
    size = told.get("size", 512)
    sides = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise CheckpointError(f"{source.name}: {PREPROCESSING}: expected size with height and width, found {size!r}.")
    return sides


def _classes(source: Source, reduced: bool) -> ClassList:
    """The classes by id2label. Of reduced labels masks hold numbers one higher, and 0 is void."""
    number = source.config.get("num_labels", len(source.config.get("id2label") or ()) or 2)
    labels = source.config.get("id2label") or {n: f"LABEL_{n}" for n in range(number)}
    names = [str(labels.get(str(n), labels.get(n, ""))) for n in range(len(labels))]
    if not all(names) or len(set(names)) != len(names) or len(names) + reduced > MAX_CLASSES:
        raise CheckpointError(
            f"{source.name}: id2label: expected at most {MAX_CLASSES - reduced} names, numbered from 0, each its own."
        )
    return ClassList(tuple(names), tuple(n + reduced for n in range(len(names))), (0,) if reduced else ())


def fitted(start: Parts, sizes: Mapping[str, Any], seed: int) -> Parts:
    """What training begins with, for this number of classes; layers that are missing are drawn from the seed."""
    return completed(start, SegmentationModel, sizes, seed, HEAD)


def adopt(start: Parts, train: SegmentationDataset, image_size: int | None) -> tuple[Parts, SegmentationProcessor]:
    """The processor to go on with: pictures as the model knows them, classes and their shares as the data have them.

    Args:
        start: what was found.
        train: the training pictures.
        image_size: in place of the size that the model knows; none: as it was.

    Returns:
        The parts, without the layer that scores where the classes are not the model's own, and the processor.
    """
    known = start.processor
    size = known.size if image_size is None else image_size
    processor = SegmentationProcessor.fit(train, size, mean=known.mean, std=known.std)
    if known.classes.names != processor.classes.names:
        start = without(start, SCORES, f"knows {len(known.classes.names)} other classes")
    return start, processor
