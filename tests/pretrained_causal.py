"""Tiny public language models with a tokenizer and a chat template, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLASSES = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}


def write_public(folder: Path, family: str, dtype: torch.dtype, shard: str | None = None) -> tuple[Any, Any]:
    """Writes a random model of a family; returns transformers' model and tokenizer. Llama's texts have a prefix."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<|end|>", "<|begin|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran"] * 3, trainer)
    if family == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|begin|>", chat_template=CHAT
    )
    fast.save_pretrained(folder)
    sizes: dict[str, Any] = {"vocab_size": len(fast), "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "head_dim": 8}
    torch.manual_seed(0)
    config = getattr(transformers, f"{CLASSES[family]}Config")(**sizes)
    kind = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    model = getattr(transformers, f"{CLASSES[family]}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = model.to(dtype)
    model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
    return model, fast
