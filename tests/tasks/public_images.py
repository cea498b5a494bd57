"""Tiny random BLIP, GIT, ViLT and pairs of ViT and BERT in the layout of the hub, saved by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

QUESTION = ["what", "how", "many", "is", "there", "left", "right", "of", "?"]
WORDS = [*QUESTION, "a", "the", "red", "blue", "large", "small", "star", "ring", "square", "one", "two", ",", "."]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
PAD, CLS, SEP, START = 0, 2, 3, len(VOCABULARY)  # BLIP's start token has a row, and is no word of the tokenizer
SIDE, PATCH = 32, 8
SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = SIZES | {"image_size": SIDE, "patch_size": PATCH}


def images(count: int = 3) -> list[Any]:
    """Images of several sizes."""
    draw = np.random.default_rng(0)
    sides = [(40, 52), (61, 35), (32, 32), (90, 33)]
    return [Image.fromarray(draw.integers(0, 256, (*sides[n % 4], 3), dtype=np.uint8)) for n in range(count)]


def write(kind: str, folder: Path, **generation: Any) -> tuple[Any, Any]:
    """Saves a model and its processor in a folder; returns transformers' model, in evaluation mode, and processor.

    Args:
        kind: A class of transformers.
        folder: Created if missing.
        generation: Options of generation_config.json.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    text = SIZES | {"vocab_size": START + 1, "max_position_embeddings": 40, "pad_token_id": PAD}
    tokenizer = transformers.BertTokenizer(vocab={word: n for n, word in enumerate(VOCABULARY)})
    if kind == "VisionEncoderDecoderModel":
        decoder = transformers.BertConfig(**text, is_decoder=True, add_cross_attention=True)
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.ViTConfig(**VISION), decoder
        )
        config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = CLS, SEP, PAD
        prepare = transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    elif kind == "ViltForQuestionAnswering":
        labels = dict(enumerate(("yes", "no", "red", "two")))
        config = transformers.ViltConfig(
            **text, **VISION_ONLY, id2label=labels, label2id={}, modality_type_vocab_size=2
        )
        prepare = transformers.ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=PATCH)
    elif kind == "GitForCausalLM":
        config = transformers.GitConfig(**text, vision_config=VISION, bos_token_id=CLS, eos_token_id=SEP)
        sizes = {"size": {"shortest_edge": SIDE + 3}, "crop_size": {"height": SIDE, "width": SIDE}}
        prepare = transformers.CLIPImageProcessorPil(**sizes)
    else:
        ids = {"bos_token_id": START, "sep_token_id": SEP, "eos_token_id": SEP}
        config = transformers.BlipConfig(text_config=text | ids, vision_config=VISION)
        prepare = transformers.BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    model = getattr(transformers, kind)(config)
    with torch.no_grad():  # logits far apart, which depend on the image
        for parameter in model.parameters():
            if parameter.dim() > 1:  # BLIP initializes those of images to nearly zero
                parameter.normal_(std=1.8 * parameter[0].numel() ** -0.5)
    if generation and model.can_generate():
        model.generation_config.update(**generation)
    model.save_pretrained(folder)
    prepare.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), (prepare, tokenizer)


def run_onnx(path: Path, feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Runs a program by onnxruntime on those of the arrays or tensors that it names; returns its outputs by name."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    given = {value.name: np.asarray(feed[value.name]) for value in session.get_inputs()}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, given), strict=True))


def greedy_onnx(folder: Path, source: Mapping[str, Any], start: int, steps: int) -> list[list[int]]:
    """The most probable tokens that `encoder.onnx` and `step.onnx` of a folder find for each row, end tokens included.

    Args:
        folder: Of the programs.
        source: Inputs of the encoder by name.
        start: The start token.
        steps: Number of tokens.
    """
    feed = {**source, **run_onnx(folder / "encoder.onnx", source)}
    n, rows, h, _, d = feed["memory_keys"].shape
    feed["keys"] = feed["values"] = np.zeros((n, rows, h, 0, d), dtype=np.float32)
    ids = [np.full(rows, start)]
    for _ in range(steps):
        found = run_onnx(folder / "step.onnx", feed | {"ids": ids[-1][:, None]})
        feed |= {"keys": found["next_keys"], "values": found["next_values"]}
        ids.append(found["logits"].argmax(-1))
    return np.stack(ids[1:], axis=1).tolist()


VISION_ONLY = {key: VISION[key] for key in ("image_size", "patch_size")}
