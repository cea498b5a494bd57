"""Other engines of language models for `language.py`, with the weights of transformers: CTranslate2 and llama.cpp.

pip install ctranslate2
pip install gguf llama-cpp-python

Both read files that are written here: CTranslate2 by its own converter, llama.cpp by the package gguf, which has names
of tensors alone.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Search = Callable[[Tensor, int], list[list[int]]]  # prompts (B, P) and number of new tokens -> the new ids
NEEDS = {"CTranslate2": ("ctranslate2",), "llama.cpp": ("gguf", "llama_cpp")}
PACKAGES = {"ctranslate2": "ctranslate2", "gguf": "gguf", "llama_cpp": "llama-cpp-python"}
CHUNK = 512  # tokens that llama.cpp reads at a time, its default


def missing(engine: str) -> str | None:
    """How to install what an engine lacks, or None if it is there."""
    lacks = [PACKAGES[name] for name in NEEDS[engine] if importlib.util.find_spec(name) is None]
    return f"no {engine}: pip install {' '.join(lacks)}" if lacks else None


def write_peers(model: Any, shape: str, folder: Path) -> list[str]:
    """Writes a model of transformers for the engines that are installed; returns their names with precisions.

    Prints a line about each engine or precision that is left out, with the reason.
    """
    found = []
    if reason := missing("CTranslate2"):
        print(reason)
    else:
        import ctranslate2

        can = ctranslate2.get_supported_compute_types("cpu")
        for compute in ("float32", "bfloat16", "int8"):
            if compute in can:
                _write_ctranslate2(model, shape, compute, folder / f"CTranslate2 {compute}")
                found.append(f"CTranslate2 {compute}")
            else:
                print(f"no CTranslate2 {compute}: on this processor it computes in {', '.join(sorted(can))}")
    if reason := missing("llama.cpp"):
        print(reason)
    else:
        for kind in ("F32", "Q8_0"):
            _write_gguf(model, shape, kind, folder / f"llama.cpp {kind}")
            found.append(f"llama.cpp {kind}")
    return found


def open_peer(name: str, folder: Path) -> Search:
    """Opens what `write_peers` wrote for a name."""
    return (_open_llama_cpp if name.startswith("llama.cpp") else _open_ctranslate2)(folder / name, name.split()[1])


# CTranslate2 ----------------------------------------------------------------------------------------------------------


def _write_ctranslate2(model: Any, shape: str, compute: str, path: Path) -> None:
    from ctranslate2.converters import transformers as converters

    model = copy.deepcopy(model)  # conversion takes it apart
    if shape == "llama":
        for name, value in (("rope_theta", 10_000.0), ("rope_scaling", None)):  # as before transformers 5
            model.config.__dict__[name] = value
    spec = getattr(converters, {"gpt2": "GPT2Loader", "llama": "LlamaLoader"}[shape])().get_model_spec(model)
    tokens = [str(i) for i in range(model.config.vocab_size)]
    spec.register_vocabulary(tokens)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = tokens[-1]
    spec.config.layer_norm_epsilon = getattr(model.config, "rms_norm_eps", None) or model.config.layer_norm_epsilon
    spec.validate()
    spec.optimize(quantization=compute)
    path.mkdir()
    spec.save(str(path))


def _open_ctranslate2(path: Path, compute: str) -> Search:
    import ctranslate2

    options = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
    generator = ctranslate2.Generator(str(path), device="cpu", compute_type=compute, **options)

    def run(prompts: Tensor, new: int) -> list[list[int]]:
        texts = [[str(i) for i in row] for row in prompts.tolist()]
        options = {"max_length": new, "min_length": new, "max_batch_size": len(texts)}
        found = generator.generate_batch(texts, include_prompt_in_result=False, **options)
        return [one.sequences_ids[0] for one in found]

    return run


# llama.cpp ------------------------------------------------------------------------------------------------------------

GPT2 = {  # names of gguf and of transformers
    "token_embd.weight": "transformer.wte.weight",
    "position_embd.weight": "transformer.wpe.weight",
    "output_norm": "transformer.ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
LLAMA = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_tensors(model: Any, shape: str) -> dict[str, Tensor]:
    """The weights of transformers' GPT-2 or Llama by their names in gguf, maps as (out, in)."""
    names, layers = (GPT2, "transformer.h.{}") if shape == "gpt2" else (LLAMA, "model.layers.{}")
    config, state, found = model.config, model.state_dict(), {}
    for ours, theirs in names.items():
        whole = "." in theirs and theirs.startswith(("transformer.", "model."))
        places = [""] if whole else [f"{layers.format(n)}." for n in range(config.num_hidden_layers)]
        for number, place in enumerate(places):
            for part in (".weight", ".bias") if not theirs.endswith(".weight") else ("",):
                tensor = state.get(f"{place}{theirs}{part}")
                if tensor is None:
                    continue
                if shape == "gpt2" and ".c_" in theirs and part == ".weight":
                    tensor = tensor.T  # GPT-2's maps are (in, out)
                if ours in ("attn_q", "attn_k"):  # llama.cpp rotates neighboring numbers, transformers halves
                    heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                    tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
                found[f"{ours}{part}" if whole else f"blk.{number}.{ours}{part}"] = tensor.detach().contiguous()
    return found


def _write_gguf(model: Any, shape: str, kind: str, path: Path) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, shape)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if shape == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    quantized = gguf.GGMLQuantizationType.Q8_0
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "Q8_0" else gguf.LlamaFileType.ALL_F32)
    for name, tensor in gguf_tensors(model, shape).items():
        values = tensor.float().numpy()
        if kind == "Q8_0" and values.ndim == 2 and name != "position_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _open_llama_cpp(path: Path, kind: str) -> Search:
    """Opens a file with the functions of llama.h, which the class `Llama` has for one text at a time alone."""
    import llama_cpp as cpp

    silent = cpp.llama_log_callback(lambda level, text, data: None)
    cpp.llama_log_set(silent, None)
    cpp.llama_backend_init()
    model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot read {path.name}")
    size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    made: dict[tuple[int, int], Any] = {}  # the context of the last number of texts, and tokens of each

    def context_of(rows: int, tokens: int) -> Any:
        if (rows, tokens) not in made:
            for context, batch in made.values():
                cpp.llama_batch_free(batch)
                cpp.llama_free(context)
            made.clear()
            options = cpp.llama_context_default_params()
            options.n_ctx, options.n_seq_max, options.n_ubatch = rows * tokens, rows, CHUNK
            options.n_batch = max(rows * tokens, CHUNK)
            options.n_threads = options.n_threads_batch = torch.get_num_threads()
            if kind == "F32":
                options.type_k = options.type_v = cpp.GGML_TYPE_F32  # as the others; else float16
            context = cpp.llama_init_from_model(model, options)
            if not context:
                raise RuntimeError(f"llama.cpp cannot compute {path.name}")
            made[rows, tokens] = context, cpp.llama_batch_init(rows * tokens, 0, 1)
        return made[rows, tokens]

    def decode(context: Any, batch: Any, rows: list[list[int]], first: int) -> list[int]:
        """Reads the next tokens of each row, from position first on; returns the most probable that follows."""
        count, last = 0, []
        for number, row in enumerate(rows):
            for place, token in enumerate(row):
                batch.token[count], batch.pos[count] = token, first + place
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, number
                batch.logits[count] = place + 1 == len(row)
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        if cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp: llama_decode failed")
        logits = [np.ctypeslib.as_array(cpp.llama_get_logits_ith(context, place), (size,)) for place in last]
        return [int(row.argmax()) for row in logits]

    def run(prompts: Tensor, new: int) -> list[list[int]]:
        context, batch = context_of(len(prompts), prompts.shape[1] + new)
        cpp.llama_memory_clear(cpp.llama_get_memory(context), False)
        tokens = decode(context, batch, prompts.tolist(), 0)
        found = [[token] for token in tokens]
        for place in range(prompts.shape[1], prompts.shape[1] + new - 1):
            tokens = decode(context, batch, [[token] for token in tokens], place)
            for row, token in zip(found, tokens, strict=True):
                row.append(token)
        return found

    run.kept = silent  # type: ignore[attr-defined]  # llama.cpp calls it
    return run
