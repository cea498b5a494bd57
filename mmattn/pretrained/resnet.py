"""Residual networks inside detectors, in the formats of transformers and timm."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from .keymap import activation, read

COUNT = ".num_batches_tracked"


def conv_norm(conv: str, norm: str, ours: str) -> dict[str, str]:
    """Returns the table of a `ConvNorm` from the foreign names of its convolution and norm."""
    parts = ("*", "running_mean", "running_var", "num_batches_tracked")
    return {f"{conv}.weight": f"{ours}.conv.weight"} | {f"{norm}.{part}": f"{ours}.norm.{part}" for part in parts}


def _timm() -> dict[str, str]:
    table = conv_norm("conv1", "bn1", "stem.0")
    for stage in range(4):
        theirs, ours = f"layer{stage + 1}.#", f"stages.{stage}.#"
        for n in range(3):
            table |= conv_norm(f"{theirs}.conv{n + 1}", f"{theirs}.bn{n + 1}", f"{ours}.layers.{n}")
        table |= conv_norm(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}.shortcut")
    return table


def _transformers() -> dict[str, str]:
    names = {
        "embedder.embedder": "stem.0",
        "embedder.embedder.#": "stem.#",
        "encoder.stages.#.layers.#.layer.#": "stages.#.#.layers.#",
        "encoder.stages.#.layers.#.shortcut": "stages.#.#.shortcut",
        "encoder.stages.#.layers.#.shortcut.1": "stages.#.#.shortcut",  # after pooling
    }
    table: dict[str, str] = {}
    for name, ours in names.items():
        table |= conv_norm(f"{name}.convolution", f"{name}.normalization", ours)
    return table


OWN = ("resnet", "rt_detr_resnet")  # model_types of transformers' networks
PREFIXES = ("backbone.conv_encoder.model.", "backbone.model.")  # in files, and in memory
RESNET = {
    prefix + name: f"backbone.{ours}" for prefix in PREFIXES for name, ours in (_timm() | _transformers()).items()
}


def read_resnet(
    config: Mapping[str, Any], ours: Mapping[str, Tensor], out_indices: Sequence[int], usual: str = "timm_backbone"
) -> dict[str, Any]:
    """Returns the keywords of a detector's `ResNet`.

    Args:
        config: The detector's config.json.
        ours: The converted state, which determines the depths and sizes of timm's networks.
        out_indices: Maps of the usual backbone unless the config names them; 0 is the stem's.
        usual: Kind of the backbone unless the config names it.

    Raises:
        ValueError: A backbone that is not converted.
    """
    about = config.get("backbone_config") or {}
    if usual == "timm_backbone" and not read(config, "use_timm_backbone", True):
        usual, out_indices = "resnet", (4,)
    kind = about.get("model_type", usual)
    if kind == "timm_backbone":
        return _read_timm(config, about, ours, out_indices)
    if kind not in OWN:
        raise ValueError(f"backbone of model_type {kind!r} is not converted; there are timm_backbone, {', '.join(OWN)}")
    depths = tuple(read(about, "depths", (3, 4, 6, 3)))
    named = [int(name.removeprefix("stage")) for name in about.get("out_features") or () if name != "stem"]
    last = (len(depths),) if about else out_indices
    return {
        "channels": tuple(read(about, "hidden_sizes", (256, 512, 1024, 2048))),
        "depths": depths,
        "bottleneck": read(about, "layer_type", "bottleneck") == "bottleneck",
        "variant": "d" if kind == "rt_detr_resnet" else "b",
        "stem_dim": read(about, "embedding_size", 64),
        "out_stages": _stages(about.get("out_indices") or named or last),
        "halve_first": read(about, "downsample_in_first_stage", False),
        "stride_first": read(about, "downsample_in_bottleneck", False),
        "activation": activation(read(about, "hidden_act", "relu")),
        "frozen": read(config, "freeze_backbone_batch_norms", True),
        "in_channels": read(about, "num_channels", 3),
    }


def _read_timm(
    config: Mapping[str, Any], about: Mapping[str, Any], ours: Mapping[str, Tensor], out_indices: Sequence[int]
) -> dict[str, Any]:
    older = config.get("backbone_kwargs") or {}
    name = str(about.get("backbone") or config.get("backbone") or "resnet50")
    if not re.fullmatch(r"resnet\d+(\..+)?", name):  # others have the same names for other computations
        raise ValueError(
            f"backbone {name!r} of timm is not converted; there are resnet18, resnet50, resnet101 and such"
        )
    sizes: list[int] = []
    while (last := f"backbone.stages.{len(sizes)}.0.layers.{{}}.conv.weight").format(0) in ours:
        bottleneck = last.format(2) in ours
        sizes.append(ours[last.format(2 if bottleneck else 1)].shape[0])
    if not sizes:
        raise ValueError(f"missing backbone.stages: not the weights of {name}")
    first = ours["backbone.stem.0.conv.weight"]
    blocks = [re.match(r"backbone\.stages\.(\d+)\.(\d+)\.", key) for key in ours]
    found = [(int(match[1]), int(match[2])) for match in blocks if match]
    dilated = 16 if config.get("dilation") else None
    return {
        "channels": tuple(sizes),
        "depths": tuple(1 + max(block for stage, block in found if stage == n) for n in range(len(sizes))),
        "bottleneck": bottleneck,
        "stem_dim": first.shape[0],
        "out_stages": _stages(about.get("out_indices") or older.get("out_indices") or out_indices),
        "output_stride": about.get("output_stride") or older.get("output_stride") or dilated,
        "frozen": read(config, "freeze_backbone_batch_norms", True),
        "in_channels": first.shape[1],
    }


def _stages(indices: Sequence[int]) -> tuple[int, ...]:
    if min(indices) < 1:
        raise ValueError(
            f"out_indices {list(indices)} of the backbone: the stem's map and those from the end are not read"
        )
    return tuple(index - 1 for index in indices)


def without_counts(ours: MutableMapping[str, Tensor], part: str = "backbone.") -> None:
    """Removes the numbers of batches that norms have seen, which frozen ones do not have."""
    for name in [name for name in ours if name.startswith(part) and name.endswith(COUNT)]:
        del ours[name]
