"""What a classifier can begin with: a model of ours, whatever its classes, or a public ViT, DeiT, DINOv2 or SigLIP."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.classification import ClassificationProcessor
from data.image import ImageProcessor
from tasks.classification.model import ClassificationModel
from tasks.common.checkpoint import CONFIG
from tasks.common.errors import CheckpointError
from tasks.common.pretrained import Parts

# Keywords of VisionTransformer that the task's model has itself.
OWN = ("embed_dim", "num_layers", "num_heads", "ffn_dim", "patch_size", "dropout", "attention")
STATISTICS = {  # where a folder does not say how its pictures were normalised: ImageNet's, as most were
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclasses.dataclass
class PublicProcessor:
    """In the place of a processor: a public backbone knows how it wants its pictures, and no classes of ours."""

    image: ImageProcessor
    labels: tuple[str, ...] = ()
    multi_label: bool = False


def is_public(name: str | Path) -> bool:
    """Whether a source is laid out as the hub has it, not as ours."""
    if str(name).startswith("hf:"):
        return True
    for path in (Path(name) / CONFIG, Path(name) / "model" / CONFIG):
        if path.is_file():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                return False
            return isinstance(config, dict) and "format" not in config
    return False


def read_public(name: str | Path) -> Parts:
    """A public image backbone as the beginning of a classifier, without a head.

    Args:
        name: a folder of transformers' or timm's, or hf:owner/name, if wanted with @revision.

    Raises:
        CheckpointError: there is none, it is damaged, or of a family that is no picture's.
    """
    from mmattn.backbones.vit import VisionTransformer
    from mmattn.pretrained import read_pretrained
    from mmattn.pretrained.files import open_source

    hub = str(name).startswith("hf:")
    source, _, revision = str(name).removeprefix("hf:").partition("@") if hub else (str(name), "", "")
    where: dict[str, Any] = {"download": hub, "revision": revision or None}
    try:
        kind, converted = read_pretrained(source, **where)
        find = open_source(source, **where)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise CheckpointError(f"init_from: {str(error).splitlines()[0]}") from None
    if kind is not VisionTransformer:
        raise CheckpointError(f"init_from: {name} holds a {kind.__name__}, expected a ViT, DeiT, DINOv2 or SigLIP.")
    keywords = dict(converted.keywords)
    size = tuple(keywords["image_size"])
    own = {key: keywords.pop(key) for key in OWN if key in keywords}
    # Positions stay those of the public pictures' size, and are resized for others.
    keywords = {"resize_positions": "bicubic"} | {k: v for k, v in keywords.items() if v is not None}
    pooled = {"pooling": "token"} | keywords
    model = {"backbone": "vit", "hidden_dim": 0, "backbone_options": pooled, **own}
    state = {f"backbone.{key}": value for key, value in converted.state.items()}
    return Parts(str(name), model, state, PublicProcessor(ImageProcessor(size, **_statistics(find))))


def _statistics(find: Any) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the pictures, from transformers' or timm's file."""
    for file, section in (("preprocessor_config.json", None), (CONFIG, "pretrained_cfg")):
        path = find(file)
        if path is None:
            continue
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = config if section is None else config.get(section) or {}
        mean, std = (config.get(key) or config.get(f"image_{key}") for key in ("mean", "std"))
        if mean and std:
            return {"mean": tuple(mean), "std": tuple(std)}
    return dict(STATISTICS)


def fitted(start: Parts, sizes: Mapping[str, Any], seed: int) -> Parts:
    """What training begins with, for these data: their number of classes, their size of pictures.

    Where there is no head, a new one is drawn from the seed; learned positions of a model of ours are resized
    (Dosovitskiy et al. 2021, section 3.2). Everything else must fit.

    Args:
        start: what was found.
        sizes: num_classes and image_size of the data.
        seed: of the new head.
    """
    keywords = {**start.keywords, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = ClassificationModel(**keywords).state_dict()
    state = dict(start.state)
    if not any(name.startswith("head.") for name in state):
        state |= {name: value for name, value in fresh.items() if name.startswith("head.")}
    for name in ("backbone.positions", "backbone.positions.weight"):
        if name in state and name in fresh and state[name].shape != fresh[name].shape:
            state[name] = _resized(state[name], fresh[name])
    return dataclasses.replace(start, keywords=keywords, state=state)


def _resized(positions: Tensor, like: Tensor) -> Tensor:
    """(1, E, h, w) to the other's height and width."""
    return torch.nn.functional.interpolate(positions, size=like.shape[2:], mode="bicubic", antialias=True)


def adopt(start: Parts, labels: list[str], multi_label: bool, **image: Any) -> ClassificationProcessor:
    """The processor to go on with: pictures as the model knows them, classes as the data have them.

    Where these are not the model's own, its head goes.

    Args:
        start: what was found.
        labels: of the data.
        multi_label: likewise.
        image: what is to be changed of how pictures are read; none is as it was.
    """
    known = start.processor
    changes = {key: value for key, value in image.items() if value is not None}
    processor = ClassificationProcessor(ImageProcessor(**(known.image.config() | changes)), labels, multi_label)
    if (list(known.labels), known.multi_label) != (processor.labels, processor.multi_label):
        for name in [name for name in start.state if name.startswith("head.")]:
            del start.state[name]  # type: ignore[attr-defined]
    return processor
