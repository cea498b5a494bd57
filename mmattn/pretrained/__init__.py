"""Loading of public pretrained weights into models of this package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones.bert import BertEncoder
from ..backbones.causal import CausalLM
from ..backbones.deberta import DebertaEncoder
from ..backbones.deformable_detr import DeformableDetr
from ..backbones.detr import Detr
from ..backbones.image_text import ImageToText
from ..backbones.modernbert import ModernBertEncoder
from ..backbones.rt_detr import RTDetr
from ..backbones.segformer import SegFormer
from ..backbones.seq2seq import Seq2Seq
from ..backbones.timesformer import TimeSformer
from ..backbones.videomae import TubeletTransformer
from ..backbones.vilt import Vilt
from ..backbones.vit import VisionTransformer
from ..backbones.wav2vec2 import Wav2Vec2
from ..backbones.whisper import Whisper
from ..building import assign_weights, build_on_meta, check_finite
from .bart import convert_bart
from .bert import convert_albert, convert_bert, convert_distilbert, convert_electra, convert_roberta
from .blip import convert_blip
from .deberta import convert_deberta
from .deformable_detr import convert_deformable_detr
from .detr import convert_detr
from .dinov2 import convert_dinov2
from .files import open_source, read_config, read_state
from .generation import load_generation_config
from .git import convert_git
from .gpt2 import convert_gpt2
from .keymap import Converted, Table, check_into, load_into
from .llama import convert_llama, convert_mistral, convert_qwen2, convert_qwen3
from .marian import convert_marian
from .modernbert import convert_modernbert
from .rt_detr import convert_rt_detr
from .segformer import convert_segformer
from .siglip import convert_siglip
from .t5 import convert_t5
from .timesformer import convert_timesformer
from .timm import convert_timm
from .videomae import convert_videomae
from .vilt import convert_vilt
from .vision_encoder_decoder import convert_vision_encoder_decoder
from .vit import convert_vit
from .wav2vec2 import convert_wav2vec2
from .whisper import convert_whisper

Converter = Callable[..., Converted]  # of config.json and state dict; a text encoder's also of the names of a head

# model_type of transformers' config.json: class and converter.
FAMILIES: dict[str, tuple[type[nn.Module], Converter]] = {
    "bert": (BertEncoder, convert_bert),
    "roberta": (BertEncoder, convert_roberta),
    "xlm-roberta": (BertEncoder, convert_roberta),
    "distilbert": (BertEncoder, convert_distilbert),
    "electra": (BertEncoder, convert_electra),
    "albert": (BertEncoder, convert_albert),
    "modernbert": (ModernBertEncoder, convert_modernbert),
    "deberta-v2": (DebertaEncoder, convert_deberta),
    "vit": (VisionTransformer, convert_vit),
    "deit": (VisionTransformer, convert_vit),
    "dinov2": (VisionTransformer, convert_dinov2),
    "dinov2_with_registers": (VisionTransformer, convert_dinov2),
    "siglip": (VisionTransformer, convert_siglip),
    "siglip_vision_model": (VisionTransformer, convert_siglip),
    "segformer": (SegFormer, convert_segformer),
    "detr": (Detr, convert_detr),
    "deformable_detr": (DeformableDetr, convert_deformable_detr),
    "rt_detr": (RTDetr, convert_rt_detr),
    "marian": (Seq2Seq, convert_marian),
    "bart": (Seq2Seq, convert_bart),
    "t5": (Seq2Seq, convert_t5),
    "gpt2": (CausalLM, convert_gpt2),
    "llama": (CausalLM, convert_llama),
    "mistral": (CausalLM, convert_mistral),
    "qwen2": (CausalLM, convert_qwen2),
    "qwen3": (CausalLM, convert_qwen3),
    "blip": (ImageToText, convert_blip),
    "git": (ImageToText, convert_git),
    "vilt": (Vilt, convert_vilt),
    "vision-encoder-decoder": (ImageToText, convert_vision_encoder_decoder),
    "whisper": (Whisper, convert_whisper),
    "timesformer": (TimeSformer, convert_timesformer),
    "videomae": (TubeletTransformer, convert_videomae),
    "wav2vec2": (Wav2Vec2, convert_wav2vec2),
    "hubert": (Wav2Vec2, convert_wav2vec2),
}
TEXT_ENCODERS = (BertEncoder, ModernBertEncoder, DebertaEncoder)  # whose heads can be read
__all__ = ["FAMILIES", "family", "load_generation_config", "load_pretrained", "read_pretrained"]


def load_pretrained(
    source: str | Path,
    *,
    download: bool = False,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    **keywords: Any,
) -> nn.Module:
    """Loads a public model of transformers or timm, in evaluation mode.

    Classification heads and SigLIP's text tower are ignored. For generation with `Seq2Seq`, `ImageToText` and `Whisper`
    see `load_generation_config`.

    Args:
        source: A folder with config.json and weights (safetensors or a .bin of tensors, in shards or whole), a file in
            it, or a name on the Hugging Face hub.
        download: source may be a name on the hub; without it the network is not used.
        revision: Revision of the hub's repository: a branch, tag or commit.
        dtype: Type of the parameters.
        keywords: Keywords of the model's constructor that override the checkpoint: ``attention="sliding_window"``,
            ``resize_positions="bicubic"``, ``dropout=0.0``.

    Returns:
        A `BertEncoder`, `CausalLM`, `VisionTransformer`, `SegFormer`, `Detr`, `DeformableDetr`, `RTDetr`, `Seq2Seq`,
        `ImageToText`, `Vilt`, `TimeSformer`, `TubeletTransformer`, `Whisper` or `Wav2Vec2`.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: An unknown family, a truncated file, or keys or shapes that do not fit.

    >>> load_pretrained("owner/name")
    Traceback (most recent call last):
    FileNotFoundError: no folder owner/name; if it is a name on the Hugging Face hub, pass download=True
    """
    kind, converted = read_pretrained(source, download=download, revision=revision, dtype=dtype)
    try:
        every = converted.keywords | keywords
        inspect.signature(kind).bind(**every)  # a keyword that the model does not have is the caller's TypeError
        model = build_on_meta(converted.state, lambda given: kind(**given), every)
        check_into(model, converted)
        if kind is CausalLM:  # large, and without buffers: its weights stay where they were read, or mapped
            assign_weights(model, converted.state)
        else:
            model = kind(**every).to(dtype)
            load_into(model, converted)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return model.eval()


def read_pretrained(
    source: str | Path,
    *,
    download: bool = False,
    revision: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    head: Table | None = None,
) -> tuple[type[nn.Module], Converted]:
    """Reads a public model as a class with its keywords and weights, without constructing it.

    Args:
        source: As in `load_pretrained`, like the other arguments.
        download: source may be a name on the hub.
        revision: Revision of the hub's repository.
        dtype: Type of the weights; None = as they are stored.
        head: Names of the head of a text encoder, such as ``{"qa_outputs.*": "span.*"}``, under which its tensors are
            beside the encoder's in the state. It must be present, and no other may be. None: such heads are ignored.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: An unknown family, or one without heads, a truncated file, or keys that do not fit.
    """
    find = open_source(source, download=download, revision=revision)
    config = read_config(find, source)
    try:
        kind, converter = family(config)
        if head is not None and kind not in TEXT_ENCODERS:
            raise ValueError(f"expected a BertEncoder, whose head {', '.join(head)} is read; found a {kind.__name__}")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    state = read_state(find, source)
    # Cast before conversion, so that sums of tensors are not rounded to half precision.
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        check_finite(state)
        return kind, converter(config, state) if head is None else converter(config, state, head)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    except Exception as error:  # whatever converters raise for values of wrong types
        raise ValueError(f"{source}: config.json does not fit the weights: {type(error).__name__}: {error}") from error


def family(config: Mapping[str, Any]) -> tuple[type[nn.Module], Converter]:
    """Returns the class and the converter for a config.json.

    Raises:
        ValueError: An unknown family.
    """
    if "architecture" in config:  # timm's; transformers lists "architectures"
        return VisionTransformer, convert_timm
    name = config.get("model_type")
    if name not in FAMILIES:
        found = "no model_type" if name is None else f"model_type {name!r}"
        raise ValueError(
            f"config.json has {found}; known are {', '.join(FAMILIES)}, and timm's vit, deit, dinov2 and siglip"
        )
    return FAMILIES[name]
