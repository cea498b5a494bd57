"""Compare decoder-only language models with transformers and CTranslate2: the same weights, ids and prompts.

python scripts/bench/language.py [--threads N] [--rounds N] [--clock wall|cpu] [--shapes gpt2,llama] [--json FILE]

GPT-2's shape (124 million weights) and a Llama of 100 million, with random weights; one prompt and eight, of 32 tokens,
greedy search of exactly 64 new ones. "Prompt" is the time of reading one prompt of 512 tokens. The yardstick is
transformers in float32. Required: float32 1.15 times its speed (1.3 with AVX-512), int8 2.0 (2.8), bfloat16 2.0 where
the processor computes in it; in float32 the same ids. Peak memory is that of a search, besides the weights.
`generation.py` runs it, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import CLOCKS, Ratio, arguments, interleave, machine, peak_memory, ratio, write_rows
from torch import Tensor

from mmattn import GenerationConfig
from mmattn.backbones.causal import CausalLM
from mmattn.cpu import computes_bfloat16
from mmattn.linears import prepare
from mmattn.pretrained.gpt2 import convert_gpt2
from mmattn.pretrained.llama import convert_llama

NEW, PROMPT, LONG = 64, 32, 512
IS_WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
MUST = {"float32": 1.3 if IS_WIDE else 1.15, "int8": 2.8 if IS_WIDE else 2.0}
if computes_bfloat16():
    MUST["bfloat16"] = 2.0
Search = Callable[[Tensor, int], list[list[int]]]  # prompts (B, P) and number of new tokens -> the new ids
CONVERTERS = {"gpt2": convert_gpt2, "llama": convert_llama}


def random_model(shape: str) -> Any:
    """transformers' model with random weights that are large enough to avoid ties of arg-max."""
    import transformers

    torch.manual_seed(0)
    if shape == "gpt2":
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    else:
        sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4}
        more = {"intermediate_size": 2048, "vocab_size": 32_000, "tie_word_embeddings": True}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **more))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "wpe" not in name:
                fans_in = parameter.shape[0] if shape == "gpt2" and ".c_" in name else parameter.shape[-1]
                parameter.normal_(std=fans_in**-0.5)
    return model.eval()


def transformers_search(model: Any) -> Search:
    def run(prompts: Tensor, new: int) -> list[list[int]]:
        options = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        return ids[:, prompts.shape[1] :].tolist()

    return run


def our_search(theirs: Any, shape: str, precision: str) -> Search:
    converted = CONVERTERS[shape](theirs.config.to_dict(), theirs.state_dict())
    model = CausalLM(**converted.keywords).eval()
    model.load_state_dict(converted.state)
    prepare(model, precision)

    def run(prompts: Tensor, new: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=new)
        return [best[0] for best in model.generate(prompts, None, config, with_scores=False).tokens()]

    return run


def ctranslate2_search(model: Any, shape: str, compute: str) -> Search:
    import copy

    import ctranslate2
    from ctranslate2.converters import transformers as converters

    loader = {"gpt2": "GPT2Loader", "llama": "LlamaLoader"}[shape]
    model = copy.deepcopy(model)
    if shape == "llama":
        model.config.rope_theta, model.config.rope_scaling = 10000.0, None  # as before transformers 5
    spec = getattr(converters, loader)().get_model_spec(model)
    tokens = [str(i) for i in range(model.config.vocab_size)]
    spec.register_vocabulary(tokens)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = tokens[-1]
    spec.validate()
    spec.optimize(quantization=compute)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        options = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
        generator = ctranslate2.Generator(folder, device="cpu", compute_type=compute, **options)

    def run(prompts: Tensor, new: int) -> list[list[int]]:
        texts = [[str(i) for i in row] for row in prompts.tolist()]
        options = {
            "max_length": new,
            "min_length": new,
            "include_prompt_in_result": False,
            "max_batch_size": len(texts),
        }
        return [one.sequences_ids[0] for one in generator.generate_batch(texts, **options)]

    return run


def measure(given: argparse.Namespace, shapes: str = "gpt2,llama") -> tuple[list[dict[str, Any]], int]:
    """Prints the table; returns its rows, and how many bars fail."""
    rows, broken = [], 0
    print(f"speed over transformers', median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    for shape in shapes.split(","):
        theirs = random_model(shape)
        searches: dict[str, Search] = {"transformers": transformers_search(theirs)}
        searches["transformers again"] = searches["transformers"]
        for precision in ("float32", "bfloat16", "int8"):
            searches[precision] = our_search(theirs, shape, precision)
        for compute in ("float32", "int8"):
            try:
                searches[f"CTranslate2 {compute}"] = ctranslate2_search(theirs, shape, compute)
            except (ModuleNotFoundError, AttributeError, TypeError, RuntimeError) as error:
                print(f"no CTranslate2 {compute} of {shape}: {type(error).__name__}: {str(error).splitlines()[0]}")
        generator = torch.Generator().manual_seed(1)
        size = theirs.config.vocab_size
        for mode, count, length, new in (("1", 1, PROMPT, NEW), ("8", 8, PROMPT, NEW), ("prompt", 1, LONG, 1)):
            prompts = torch.randint(3, size - 1, (count, length), generator=generator)
            expected = searches["transformers"](prompts, new)
            runs = {name: partial(run, prompts, new) for name, run in searches.items()}
            seconds = interleave(runs, rounds=given.rounds, warmup=1, clock=CLOCKS[given.clock])
            for name, run in runs.items():
                speed: Ratio = ratio(seconds, "transformers", name)
                same = sum(a == b for a, b in zip(run(), expected, strict=True)) / count
                must = MUST.get(name, 0.0) if mode != "prompt" else 0.0
                holds = speed.median >= must and (name != "float32" or same == 1.0)
                broken += not holds
                memory = peak_memory(run) / 2**20
                row = {"shape": shape, "mode": mode, "name": name, "speed": speed, "same": same, "must": must}
                row |= {
                    "holds": holds,
                    "MB": memory,
                    "tokens/s": count * max(new, length * (new == 1)) / min(seconds[name]),
                }
                text = f"{shape} {mode:<6} {name:<20} {speed} {row['tokens/s']:7.0f} tokens/s, {memory:5.0f} MB, "
                text += f"{same:4.0%} the same ids"
                if must:
                    text += f"; must {must}: {'holds' if holds else 'FAILS'}"
                print(text, flush=True)
                rows.append(row)
    return rows, broken


def main() -> int:
    given = arguments(__doc__, rounds=5, clock="wall", shapes="gpt2,llama")
    rows, broken = measure(given, given.shapes)
    write_rows(given.json, rows)
    print(f"{broken} bars fail" if broken else "all bars hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
