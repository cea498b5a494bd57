"""Tiny random Whisper, wav2vec 2.0 and HuBERT folders, saved by transformers, and its transcripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

RATE, WINDOW = 16_000, 2  # Hz; seconds of the tiny Whisper's window
LETTERS = {token: n for n, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINHSRDLU'CW"])}
TEXTS = ["the old dog carries a basket", "Nine, two; 3 words!", "she had it in the house", "where is he now"]
LANGUAGES, TASKS = ("en", "de", "ja"), ("translate", "transcribe")
CTC = {"base": {}, "large": {"large": True}, "hubert": {"family": "hubert"}}
CTC |= {"large hubert": {"family": "hubert", "large": True, "whole": True}}
SHORT = (1.0, 1.7, 0.6, 1.9)  # seconds


def wave(seconds: float, seed: int = 0) -> Tensor:
    """Tones of varying level, and noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)) / RATE
    pitch = 200 * 2 ** (4 * torch.rand(int(seconds * 8) + 1, generator=generator))
    tone = torch.sin(2 * torch.pi * pitch[(time * 8).long()] * time) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * time))
    return 0.4 * tone + 0.02 * torch.randn(len(time), generator=generator)


def write_ctc(
    folder: Path, family: str = "wav2vec2", large: bool = False, head: bool = True, whole: bool = False
) -> Any:
    """Saves a CTC model; returns transformers' model, feature extractor and tokenizer.

    Args:
        folder: Created if missing.
        family: wav2vec2 or hubert.
        large: Layer norms and masks, as in the large public models; else as in the base ones.
        head: With a CTC head and a tokenizer.
        whole: With one processor_config.json, as transformers 5 saves a processor.
    """
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert"}[family]
    config, with_head, without = (getattr(transformers, f"{kind}{name}") for name in ("Config", "ForCTC", "Model"))
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    sizes |= {"conv_dim": [12, 12, 12], "conv_kernel": [10, 8, 4], "conv_stride": [8, 8, 5]}
    sizes |= {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 2, "vocab_size": len(LETTERS)}
    if large:
        sizes |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    torch.manual_seed(3)
    model = (with_head if head else without)(config(pad_token_id=LETTERS["<pad>"], **sizes)).eval()
    with torch.no_grad():  # varied characters, no special tokens, and spaces between words
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if "conv_layers" in name and name.endswith("conv.weight"):
                parameter.mul_(2)
        if head:
            model.lm_head.weight.normal_(std=1.0)
            for token in ("<s>", "</s>", "<unk>"):
                model.lm_head.bias[LETTERS[token]] = -100.0
            model.lm_head.bias[LETTERS["|"]] += 2.0
    model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=large)
    texts = None
    if head:
        (folder / "vocab.json").write_text(json.dumps(LETTERS))
        texts = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
        texts.save_pretrained(folder)
    if whole and head:
        transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=texts).save_pretrained(folder)
    else:
        extractor.save_pretrained(folder)
    return model, extractor, texts


def _whisper_tokenizer(folder: Path) -> Any:
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing

    transformers = pytest.importorskip("transformers")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([f" {text}" for text in TEXTS], 320)
    special = ["endoftext", "startoftranscript", *LANGUAGES, *TASKS, "startoflm", "startofprev", "nospeech"]
    special += ["notimestamps"]
    trained.add_special_tokens([f"<|{name}|>" for name in special])
    trained.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", normalized=False) for n in range(50 * WINDOW + 1)])
    ids = {name: trained.token_to_id(name) for name in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")}
    template = "<|startoftranscript|> <|notimestamps|> $A <|endoftext|>"
    trained._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=list(ids.items()))
    trained.save(str(folder / "tokenizer.json"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        additional_special_tokens=[f"<|{name}|>" for name in special],
        eos_token="<|endoftext|>",
    )


def write_whisper(folder: Path, seed: int = 1, english: bool = False, whole: bool = False, **generation: Any) -> Any:
    """Saves a Whisper with two-second windows; returns transformers' model, feature extractor and tokenizer.

    Args:
        folder: Created if missing.
        seed: Seed of the weights.
        english: Without languages and tasks.
        whole: With one processor_config.json.
        generation: Options of generation_config.json.
    """
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _whisper_tokenizer(folder)

    def ids_of(*names: str) -> list[int]:
        return [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]

    end, start, without = ids_of("endoftext", "startoftranscript", "notimestamps")
    special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    sizes = {"d_model": 24, "num_mel_bins": 10, "vocab_size": len(tokenizer), "max_source_positions": 50 * WINDOW}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "max_target_positions": 40, "activation_function": "gelu"}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_attention_heads": 2, f"{side}_ffn_dim": 32}
    config = transformers.WhisperConfig(**sizes, **special, suppress_tokens=[], begin_suppress_tokens=[])
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():  # logits far apart that depend on audio and position; occasional end tokens
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name:
                gain = 1.4 * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.3
                parameter.copy_(gain * torch.randn_like(parameter) + ("norm" in name and name.endswith("weight")))
        for name in ("conv1", "conv2"):
            getattr(model.model.encoder, name).weight.mul_(4)
        model.model.decoder.embed_positions.weight.mul_(3)
        for layer in model.model.decoder.layers:
            layer.encoder_attn.q_proj.weight.mul_(4)
            layer.encoder_attn.out_proj.weight.mul_(4)
        model.proj_out.weight.mul_(3)
        bias = model.model.decoder.layer_norm.bias
        model.proj_out.weight[end] += 3.0 * bias / bias.square().sum()
    values = special | {
        "no_timestamps_token_id": without,
        "max_initial_timestamp_index": 20,
        "suppress_tokens": [
            *(n for n in range(end) if not tokenizer.decode([n]).strip().isalnum()),  # readable tokens
            *range(start, without),
        ],
        "begin_suppress_tokens": [end],
        "max_length": 40,
        "return_timestamps": False,
        "alignment_heads": [[1, 0], [1, 1]],
        "is_multilingual": not english,
    }
    if not english:
        values["lang_to_id"] = dict(zip([f"<|{name}|>" for name in LANGUAGES], ids_of(*LANGUAGES), strict=True))
        values["task_to_id"] = dict(zip(TASKS, ids_of(*TASKS), strict=True))
    values |= generation
    model.save_pretrained(folder)
    model.generation_config = transformers.GenerationConfig(**values)
    (folder / "generation_config.json").write_text(json.dumps(values))
    extractor = transformers.WhisperFeatureExtractor(feature_size=10, chunk_length=WINDOW)
    if whole:
        config = {"feature_extractor": json.loads(extractor.to_json_string()), "processor_class": "WhisperProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(config))
    else:
        extractor.save_pretrained(folder)
    return model, extractor, tokenizer


def transcribed_by_transformers(theirs: Any, waves: list[Tensor], **options: Any) -> list[str]:
    """The transcripts of transformers, one recording at a time."""
    model, extractor, tokenizer = theirs
    found = []
    for one in waves:
        if hasattr(model, "lm_head"):
            inputs = extractor(one.numpy(), sampling_rate=RATE, return_tensors="pt")
            with torch.no_grad():
                found += tokenizer.batch_decode(model(**inputs).logits.argmax(-1))
            continue
        long = len(one) > WINDOW * RATE
        more = {"truncation": False, "padding": "longest"} if long else {}
        features = extractor(one.numpy(), sampling_rate=RATE, return_tensors="pt", **more).input_features
        given = {"return_timestamps": True} if long else {"force_unique_generate_call": True}
        with torch.no_grad():
            ids = model.generate(features, **given, **options)
        text_ids = [[i for i in row if i < model.config.eos_token_id] for row in ids.tolist()]  # as Whisper's tokenizer
        found += tokenizer.batch_decode(text_ids)
    return [text.strip() for text in found]


def recording(samples: Tensor, rate: int = RATE) -> dict[str, Any]:
    """An item for `predict`."""
    return {"audio": (np.asarray(samples), rate)}


def clips(seconds: tuple[float, ...] = SHORT) -> list[Tensor]:
    """Recordings with these durations in seconds."""
    return [wave(one, seed) for seed, one in enumerate(seconds)]


def texts(recognizer: Any, waves: list[Tensor], **options: Any) -> list[str]:
    """The transcripts of our recognizer."""
    return [answer.text for answer in recognizer.predict([recording(one) for one in waves], **options)]
