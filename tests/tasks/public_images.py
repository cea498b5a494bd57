"""Tiny random BLIP, ViLT and pairs of ViT and BERT in the layout of the Hugging Face hub, saved by transformers."""

from __future__ import annotations

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


VISION_ONLY = {key: VISION[key] for key in ("image_size", "patch_size")}
