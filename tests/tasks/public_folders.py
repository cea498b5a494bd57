"""Tiny random Marian, BART and T5 in the layout of the Hugging Face hub, saved by transformers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = [
    "the old dog carries a basket",
    "A man in a blue shirt is standing on a ladder, cleaning a window.",
    "two young men are outside near many bushes!",
    "the dog",
    "a young man near a window",
]
TARGETS = ["ein alter Hund trägt einen Korb", "zwei Männer stehen am Herd und kochen.", "ein Mann über die Straße"]
PREFIX = "summarize: "
FAMILIES = ("marian", "bart", "t5")


def _spm(texts: list[str], size: int, **options: int) -> Any:
    """A sentencepiece model, as a file and as loaded by the library."""
    sentencepiece = pytest.importorskip("sentencepiece")
    stream = io.BytesIO()
    options |= {"vocab_size": size, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts * 4), model_writer=stream, **options)
    return stream.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


def write_tokenizer(family: str, folder: Path) -> int:
    """Writes the files of a family's tokenizer; returns the model's vocabulary size."""
    if family == "t5":
        content, loaded = _spm([*TEXTS, PREFIX], 90, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        (folder / "spiece.model").write_bytes(content)
        return int(loaded.get_piece_size()) + 100
    if family == "bart":
        from tokenizers import ByteLevelBPETokenizer
        from tokenizers.processors import RobertaProcessing

        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator([*TEXTS, *TARGETS], 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        trained.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
        trained.save(str(folder / "tokenizer.json"))
        return int(trained.get_vocab_size())
    found = []
    for name, texts in (("source", TEXTS), ("target", TARGETS)):
        content, loaded = _spm(texts, 60)
        (folder / f"{name}.spm").write_bytes(content)
        found.append({loaded.id_to_piece(i) for i in range(loaded.get_piece_size())})
    separate = family == "marian separate"
    kept = {"vocab": found[0], "target_vocab": found[1]} if separate else {"vocab": found[0] | found[1]}
    for name, pieces in reversed(kept.items()):
        names = ["</s>", "<unk>", *sorted(pieces - {"</s>", "<unk>", "<s>"}), ">>deu<<", "<pad>"]
        (folder / f"{name}.json").write_text(json.dumps({piece: index for index, piece in enumerate(names)}))
    about = {"source_lang": "en", "target_lang": "de", "model_max_length": 100, "separate_vocabs": separate}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return len(names)


def into_hub_cache(folder: Path, cache: Path, name: str) -> None:
    """Copies a folder into the hub's cache, as the files of the repository of that name."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)


def write(family: str, folder: Path, **generation: Any) -> Any:
    """Saves a model and its tokenizer in a folder; returns transformers' model and tokenizer.

    Args:
        family: One of FAMILIES, or "marian separate" with a vocabulary for each language.
        folder: Created if missing.
        generation: Options of generation_config.json.
    """
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(family, folder)
    sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    stacks = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    torch.manual_seed(1)
    if family.startswith("marian"):
        pad = vocab - 1
        special = {"eos_token_id": 0, "forced_eos_token_id": 0, "max_position_embeddings": 128, "scale_embedding": True}
        if family == "marian separate":
            size = len(json.loads((folder / "target_vocab.json").read_text()))
            special |= {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": size}
            pad = size - 1
        special |= {"pad_token_id": pad, "decoder_start_token_id": pad}
        config = transformers.MarianConfig(vocab_size=vocab, d_model=32, **special, **stacks)
        model, tokenizer = transformers.MarianMTModel(config), transformers.MarianTokenizer.from_pretrained(folder)
    elif family == "bart":
        special = {"forced_bos_token_id": 0, "max_position_embeddings": 128}
        config = transformers.BartConfig(vocab_size=vocab, d_model=32, **special, **stacks)
        names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        model = transformers.BartForConditionalGeneration(config)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    else:
        config = transformers.T5Config(vocab_size=vocab, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        config.decoder_start_token_id = 0
        config.task_specific_params = {"summarization": {"prefix": PREFIX}}
        model = transformers.T5ForConditionalGeneration(config)
        tokenizer = transformers.T5Tokenizer.from_pretrained(folder)
    with torch.no_grad():  # logits far apart, so that no arg-max is a tie; the sinusoidal table is kept
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed_positions" not in name:
                parameter.normal_(std=1.0 if "relative" in name else 1.6 * parameter.shape[-1] ** -0.5)
    model.generation_config.update(**({"max_length": 16} | generation))
    model.save_pretrained(folder)
    return model.eval(), tokenizer


def written_by_transformers(theirs: Any, texts: list[str], **generation: Any) -> list[str]:
    """The output texts of the model and tokenizer returned by `write`."""
    model, tokenizer = theirs
    ids = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.generate(input_ids=ids.input_ids, attention_mask=ids.attention_mask, **generation)
    written = tokenizer.batch_decode(found, skip_special_tokens=True)  # it knows the source's padding alone
    return [" ".join(text.replace("<pad>", "").split()) for text in written]
