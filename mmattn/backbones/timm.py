"""timm backbones as stems and feature pyramids."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in a gray image (ITU-R BT.601), as in Pillow


def color_weights(weight: Tensor) -> Tensor:
    """Converts the first convolution (E, 1, h, w) of a model of gray images to one of color images.

    Its output for an RGB image equals that of the given one for the gray image, if all channels are normalized alike.

    >>> color_weights(torch.ones(8, 1, 2, 2)).shape
    torch.Size([8, 3, 2, 2])
    """
    return weight * weight.new_tensor(LUMA)[:, None, None]


def nearest_models(name: str) -> list[str]:
    """Returns up to three names of timm models that begin like a name, hyphens or not; none if timm is not installed.

    Of the names that begin so, the shortest: "deit-tiny" is deit_tiny_patch16_224.
    """
    try:
        import timm
    except ModuleNotFoundError:
        return []
    wanted = _squeezed(name)
    close = [model for model in timm.list_models() if wanted and _squeezed(model).startswith(wanted)]
    exact = [model for model in close if _squeezed(model) == wanted]
    return exact or sorted(close, key=lambda model: (len(model), model))[:3]


def _squeezed(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


class TimmFeatures(nn.Module):
    """A feature map of a timm model, projected to embed_dim by a 1x1 convolution. Weights are random.

    Args:
        name: Name of the timm model.
        embed_dim: E of the map.
        max_stride: The deepest map with at most this stride is used; later layers are removed.
        image_size: (H, W) for models with a fixed input size; ignored by the others.
        in_channels: Channels of the image.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: An unknown model, or no map at that stride.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int,
        *,
        max_stride: int = 16,
        image_size: tuple[int, int] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.name, self.in_channels = name, in_channels
        self._size: dict[str, Any] = {} if image_size is None else {"img_size": tuple(image_size)}
        strides = self._create(None).feature_info.reduction()
        fitting = [i for i, stride in enumerate(strides) if stride <= max_stride]
        if not fitting:
            raise ValueError(f"timm model {name!r} has maps of stride {strides}, none within max_stride={max_stride}")
        self._indices: tuple[int, ...] | None = (fitting[-1],)
        self.stride = strides[fitting[-1]]
        self.body = self._create(self._indices)
        self.channels_last = _keeps_channels_last(self.body)
        self.project: nn.Module = nn.Conv2d(self.body.feature_info.channels()[-1], embed_dim, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W), normalized as the weights require. Returns (N, E, h, w)."""
        features = self.body(pixel_values)[-1]
        return self.project(features.permute(0, 3, 1, 2) if self.channels_last else features)

    def load_weights(self, path: str | Path) -> None:
        """Loads the public weights of this model from a local file: safetensors, or a pickle of tensors only.

        Weights for gray images are converted if the model has three channels, see ``color_weights``.

        Raises:
            ValueError: The file does not contain this model.
        """
        overlay = {"state_dict": self._read(path)}
        try:
            with _extra_weights_expected():
                source, twin = (
                    self._create(self._indices, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
                    for _ in range(2)
                )
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path}: not the weights of timm model {self.name!r}: {error}") from None
        # For feature maps timm ignores missing tensors; they remain random, and so differ between two models.
        missing = [name for name, tensor in source.items() if not torch.equal(tensor, twin[name])]
        if missing:
            raise ValueError(f"{path}: not the weights of timm model {self.name!r}: no {missing[0]}")
        self.body.load_state_dict(source)

    def _read(self, path: str | Path) -> dict[str, Tensor]:
        """Reads a file of weights; those of a first convolution for gray images are converted."""
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        import timm

        first = f"{getattr(timm.get_pretrained_cfg(self.name), 'first_conv', None)}.weight"
        if self.in_channels == 3 and first in state and state[first].shape[1] == 1:
            state[first] = color_weights(state[first])
        return state

    def _create(self, indices: tuple[int, ...] | None, **keywords: Any) -> Any:
        try:
            import timm
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"backbone 'timm/{self.name}' needs timm: pip install 'mmattn[train]'") from None
        keywords = {"pretrained": False, "features_only": True, "in_chans": self.in_channels} | keywords
        if indices is not None:
            keywords["out_indices"] = indices
        if not timm.is_model(self.name):
            close = nearest_models(self.name) or timm.list_models(f"*{self.name[:6]}*")[:3]
            raise ValueError(f"timm has no model {self.name!r}" + (f"; near: {', '.join(close)}" if close else ""))
        try:
            return timm.create_model(self.name, **keywords, **self._size)
        except TypeError:
            if not self._size:
                raise
            self._size = {}  # a convolutional network: any size
            return timm.create_model(self.name, **keywords)


class TimmPyramid(TimmFeatures):
    """All feature maps of a timm model, the finest first. Weights are random.

    Args:
        name: Name of the timm model.
        image_size: (H, W) for models with a fixed input size; ignored by the others.
        in_channels: Channels of the image.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: An unknown model.
    """

    def __init__(self, name: str, *, image_size: tuple[int, int] | None = None, in_channels: int = 3) -> None:
        nn.Module.__init__(self)
        self.name, self.in_channels = name, in_channels
        self._size = {} if image_size is None else {"img_size": tuple(image_size)}
        self._indices = None
        self.body = self._create(None)
        self.channels_last = _keeps_channels_last(self.body)
        self.channels = tuple(self.body.feature_info.channels())
        self.stride = max(self.body.feature_info.reduction())

    def forward(self, pixel_values: Tensor) -> list[Tensor]:  # type: ignore[override]
        """pixel_values: (N, in_channels, H, W). Returns (N, channels[n], h_n, w_n) each."""
        return [m.permute(0, 3, 1, 2) if self.channels_last else m for m in self.body(pixel_values)]


class TimmTrunk(TimmFeatures):
    """The whole of a timm model but for its pooling and classifier: the map that they would receive.

    Weights are random.

    Args:
        name: Name of the timm model.
        embed_dim: E of a 1x1 convolution over the map; None = the map itself.
        image_size: (H, W) for models with a fixed input size; ignored by the others.
        in_channels: Channels of the image.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: An unknown model.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        in_channels: int = 3,
    ) -> None:
        nn.Module.__init__(self)
        self.name, self.in_channels = name, in_channels
        self._size = {} if image_size is None else {"img_size": tuple(image_size)}
        body = self._create(None, features_only=False, num_classes=0)
        self.body = body.to(memory_format=torch.channels_last)  # in which convolutions are faster
        self.channels: int = self.body.num_features if embed_dim is None else embed_dim
        self.project = nn.Identity() if embed_dim is None else nn.Conv2d(self.body.num_features, embed_dim, 1)
        self.channels_last = _keeps_channels_last(self.body)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W), normalized as the weights require. Returns (N, channels, h, w)."""
        return self.project(self.body_features(pixel_values))

    def body_features(self, pixel_values: Tensor) -> Tensor:
        """The timm model's map, before the projection; pixel_values as in `forward`. Returns (N, C, h, w)."""
        features = self.body.forward_features(pixel_values)
        if features.dim() == 3:  # tokens (N, prefix + h w, channels)
            grid = self.body.patch_embed.dynamic_feat_size(pixel_values.shape[2:])
            return features[:, self.body.num_prefix_tokens :].mT.unflatten(2, grid)
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def load_weights(self, path: str | Path) -> None:
        """Loads the public weights of this model; see ``TimmFeatures.load_weights``. Its classifier is left out."""
        state, own = self._read(path), self.body.state_dict()
        classifier = tuple(f"{name}." for name in _names(self.body.pretrained_cfg.get("classifier")))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
        bad = [
            name
            for name in {**own, **state}
            if getattr(state.get(name), "shape", 0) != getattr(own.get(name), "shape", 0)
        ]
        if bad:
            raise ValueError(f"{path}: not the weights of timm model {self.name!r}: {bad[0]} is missing or different")
        self.body.load_state_dict(state)

    @torch.inference_mode()
    def read_classifier(self, path: str | Path) -> tuple[Tensor, Tensor] | None:
        """Reads the classifier from the public weights of this model.

        Args:
            path: See ``load_weights``.

        Returns:
            Weights (K, channels) and biases (K,); None if it is not one linear map of the mean over the map's cells.
        """
        names = _names(self.body.pretrained_cfg.get("classifier"))
        state = self._read(path)
        if len(names) != 1 or f"{names[0]}.bias" not in state:
            return None
        weight, bias = (state[f"{names[0]}.{part}"] for part in ("weight", "bias"))
        if weight.shape[1:] != (self.body.num_features,):
            return None
        side = int(self.body.pretrained_cfg.get("input_size", (3, 224, 224))[1])
        self.body.eval()
        features = self.body.forward_features(torch.zeros(1, self.in_channels, side, side))
        cells = torch.linspace(-1, 1, features.numel()).sin().view_as(features)  # any others
        if cells.dim() != 4 or self.channels_last:
            return None
        pooled = self.body.forward_head(cells, pre_logits=True)
        mean = cells.mean((2, 3))
        return (weight, bias) if pooled.shape == mean.shape and torch.allclose(pooled, mean, atol=1e-5) else None


@contextmanager
def _extra_weights_expected() -> Iterator[None]:
    """Silences timm's warning of unexpected keys: a model of features lacks the last layers of its weights."""

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Unexpected keys (")

    logger = logging.getLogger("timm.models._builder")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _names(value: str | Sequence[str] | None) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else value


def _keeps_channels_last(body: Any) -> bool:
    """Whether the maps of a model are (N, h, w, C), as those of Swin."""
    return str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
