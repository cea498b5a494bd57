"""Adapters of video classification: own models, public TimeSformer and VideoMAE, and public image encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmattn.backbones.timesformer import TimeSformer
from mmattn.backbones.videomae import TubeletTransformer
from mmattn.data.image.processor import ImageProcessor
from mmattn.data.image.public import PREPROCESSING
from mmattn.data.readers import read_settings
from mmattn.pretrained.files import open_source, read_state
from mmattn.pretrained.videomae import convert_videomae_pretraining
from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import init_others, read_network
from mmattn.tasks.common.images import read_image_encoder, statistics
from mmattn.tasks.common.labels.adapter import LabelAdapter
from mmattn.tasks.common.sources import Source
from mmattn.tasks.video.processor import PublicInputs, VideoProcessor

# Keywords that do not affect the weights of an encoder.
HEAD = ("temporal_attention", "pooling", "temporal_layers", "modality")
FRAMES = ("embed_dim", "num_heads", "ffn_dim", "image_layers", "num_layers", "patch_size", "tubelet_size", "channels")
DECODER = ("decoder_layers", "decoder_dim", "decoder_heads", "decoder_ffn_dim")
SIZES = ("image_size", "num_frames")
# Keywords of the public encoders that the task's model has under the same name.
OWN: tuple[str, ...] = ("embed_dim", "num_layers", "num_heads", "ffn_dim", "patch_size", "tubelet_size", "dropout")
OWN += ("attention", "temporal_attention")


class VideoAdapter(LabelAdapter):
    """Reads models of this toolkit; positions in time and space are interpolated for clips of other sizes."""

    scores = ("head.out.",)
    head = ("head.", "head.out.", "grid_positions.", "encoder.norm.", "encoder.encoder.norm.")

    def read_own(self, source: Source, **options: Any) -> CheckpointParts:
        parts = super().read_own(source, **options)
        free = (*FREE, *HEAD, *DECODER)
        return dataclasses.replace(parts, free=free, headless=not parts.keywords.get("num_classes"))

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        keywords, state = dict(parts.keywords), dict(parts.state)
        changed = {key: keywords[key] for key in SIZES if keywords.get(key, sizes[key]) != sizes[key]}
        if (
            keywords.get("encoder", "factorized") != "factorized" and changed
        ):  # the size that positions were learned for
            before = {"image_size": (keywords["image_size"],) * 2, "num_frames": keywords["num_frames"]}
            keywords["encoder_options"] = before | dict(keywords.get("encoder_options") or {})
        if processor.labels:  # the decoder of pretraining has no use
            state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
            keywords |= dict.fromkeys(DECODER)
        pooling = keywords.get("pooling", "attention")
        if (pooling == "attention") != ("head.time.queries" in state):  # the head is of another kind
            state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "grid_pos"))}
        if keywords.get("encoder") == "tubelet":
            other = "encoder.encoder.norm." if pooling == "mean" else "encoder.norm."
            state = {name: tensor for name, tensor in state.items() if not name.startswith(other)}
        parts = dataclasses.replace(parts, keywords=keywords, state=state)
        return super().adapt(parts, processor, sizes, seed)


class PublicVideoAdapter(VideoAdapter):
    """Reads a public model of whole clips, with its classifier and the names of its classes if it has any."""

    kind: type[Any]
    names: str
    encoder: str

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        converted = read_network(source, self.kind, self.names)
        keywords = {key: value for key, value in converted.keywords.items() if value is not None}
        if keywords.pop("in_channels") != 3:
            raise CheckpointError(f"{source.name}: expected a model of color videos.")
        size, frames = keywords["image_size"], keywords["num_frames"]
        own = {key: keywords.pop(key) for key in OWN if key in keywords}
        pooling = self.pooling(keywords)
        model = {"encoder": self.encoder, "pooling": pooling, "encoder_options": keywords, **own}
        state = {f"encoder.{name}": tensor for name, tensor in converted.state.items()}
        free = (*FREE, *HEAD, *DECODER)
        image = clip_image_processor(source, size)
        whole = read_state(open_source(**source.place), source.name)
        classifier = {name: whole.get(f"classifier.{name}") for name in ("weight", "bias")}
        labels = class_names(source.config)
        if classifier["weight"] is None or len(labels) != len(classifier["weight"]) or len(set(labels)) != len(labels):
            more, given = self.decoder(source, whole)
            parts = CheckpointParts(self, source.where, model | more, state | given, VideoProcessor(image, [], frames))
            return dataclasses.replace(parts, headless=True, free=free)
        state |= {f"head.out.{name}": tensor.float() for name, tensor in classifier.items() if tensor is not None}
        model |= {"num_classes": len(labels), "image_size": size[0], "num_frames": frames}
        processor = VideoProcessor(image, labels, frames)
        return CheckpointParts(self, source.where, model, state, processor, free=free)

    def pooling(self, keywords: dict[str, Any]) -> str:
        """The pooling of the task's model; removes it from the encoder's keywords."""
        raise NotImplementedError

    def decoder(self, source: Source, whole: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and weights of the decoder of pretraining, if the files have one."""
        return {}, {}


class TimesformerAdapter(PublicVideoAdapter):
    """Reads TimeSformer."""

    kind, names, encoder = TimeSformer, "TimeSformer", "divided"

    def pooling(self, keywords: dict[str, Any]) -> str:
        return "token"


class VideoMAEAdapter(PublicVideoAdapter):
    """Reads VideoMAE, as a classifier or with the decoder of its pretraining."""

    kind, names, encoder = TubeletTransformer, "VideoMAE", "tubelet"

    def pooling(self, keywords: dict[str, Any]) -> str:
        return "mean" if keywords.pop("pooling") == "mean" else "attention"

    def decoder(self, source: Source, whole: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if "mask_token" not in whole:
            return {}, {}
        try:
            found = convert_videomae_pretraining(source.config, dict(whole))
        except ValueError as error:
            raise CheckpointError(f"{source.name}: {error}.") from None
        given = found.keywords
        options = {"decoder_layers": given["decoder_layers"], "decoder_dim": given["decoder_dim"]}
        options |= {"decoder_heads": given["decoder_heads"], "decoder_ffn_dim": given["decoder_ffn_dim"]}
        return options, {name: t.float() for name, t in found.state.items() if name.startswith("decoder.")}


class ImageAdapter(Adapter):
    """Reads a public image encoder for each frame; all other layers are initialized."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        encoder = read_image_encoder(source)
        keywords = {"encoder": "factorized", **encoder.keywords}
        free, inputs = (*FREE, *HEAD, *FRAMES), PublicInputs(encoder.image)
        return CheckpointParts(self, source.where, keywords, encoder.state, inputs, headless=True, free=free)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(init_others(parts, sizes, seed), processor, sizes, seed)


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes of a public model, in the order of its logits."""
    given = config.get("id2label")
    if not isinstance(given, Mapping):
        return []
    return [str(given[key]) for key in sorted(given, key=int)]


def clip_image_processor(source: Source, size: tuple[int, int]) -> ImageProcessor:
    """The frames of a public model: the shorter side is resized, and the middle cropped, unless its files say no."""
    path = source.fetch(PREPROCESSING)
    config = {} if path is None else read_settings(path)
    mode = "crop" if config.get("do_center_crop", True) else "squash"
    return ImageProcessor(size, resize=mode, **statistics(source))
