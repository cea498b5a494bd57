"""Compare decoder-only language models with transformers, CTranslate2 and llama.cpp: the same weights, ids and prompts.

python scripts/bench/language.py [--threads N] [--rounds N] [--clock wall|cpu] [--shapes gpt2,llama] [--layers N]
                                 [--json FILE]

GPT-2's shape (124 million weights) and a Llama of 100 million, with random weights; one prompt and eight, of 32 tokens,
greedy search of exactly 64 new ones. "Prompt" is the time of reading one prompt of 512 tokens. The yardstick is
transformers in float32. Required: float32 1.15 times its speed (1.3 with AVX-512), int8 2.0 (2.8), bfloat16 2.0 where
the processor computes in it; in float32 the same ids. CTranslate2 and llama.cpp (`language_peers.py`) are measured if
they are installed.

Memory is measured in a process for each engine, which opens the weights from files and searches: its peak resident
memory less that after its imports, with the weights, also those of files that are mapped. `generation.py` runs it, too.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import CLOCKS, Ratio, arguments, interleave, machine, ratio, resident_memory, write_rows
from language_peers import Search, open_peer, write_peers
from torch import Tensor

from mmattn import GenerationConfig
from mmattn.cpu import computes_bfloat16
from mmattn.linears import prepare
from mmattn.pretrained import load_pretrained

NEW, PROMPT, LONG = 64, 32, 512
IS_WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
MUST = {"float32": 1.3 if IS_WIDE else 1.15, "int8": 2.8 if IS_WIDE else 2.0}
if computes_bfloat16():
    MUST["bfloat16"] = 2.0
MODES = (
    ("1", 1, PROMPT, NEW),
    ("8", 8, PROMPT, NEW),
    ("prompt", 1, LONG, 1),
)  # name, prompts, their length, new tokens
OURS = ("float32", "bfloat16", "int8")
YARDSTICK = "transformers"
PUBLIC = "public"  # folder of the weights in the format of transformers


def random_model(shape: str, layers: int) -> Any:
    """transformers' model with random weights that are large enough to avoid ties of arg-max."""
    import transformers

    torch.manual_seed(0)
    if shape == "gpt2":
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=layers))
    else:
        sizes = {"hidden_size": 768, "num_hidden_layers": layers, "num_attention_heads": 12, "num_key_value_heads": 4}
        more = {"intermediate_size": 2048, "vocab_size": 32_000, "tie_word_embeddings": True}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **more))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "wpe" not in name:
                fans_in = parameter.shape[0] if shape == "gpt2" and ".c_" in name else parameter.shape[-1]
                parameter.normal_(std=fans_in**-0.5)
    return model.eval()


def open_transformers(folder: Path) -> Search:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / PUBLIC, dtype=torch.float32).eval()

    def run(prompts: Tensor, new: int) -> list[list[int]]:
        options = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        return ids[:, prompts.shape[1] :].tolist()

    return run


def open_ours(precision: str, folder: Path) -> Search:
    model = prepare(load_pretrained(folder / PUBLIC), precision)

    def run(prompts: Tensor, new: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=new)
        return [best[0] for best in model.generate(prompts, None, config, with_scores=False).tokens()]  # type: ignore[operator]

    return run


def open_engine(name: str, folder: Path) -> Search:
    if name == YARDSTICK:
        return open_transformers(folder)
    return open_ours(name, folder) if name in OURS else open_peer(name, folder)


def prompts_of(size: int) -> dict[str, Tensor]:
    """The prompts (B, P) of each mode, for a vocabulary of `size`."""
    generator = torch.Generator().manual_seed(1)
    return {mode: torch.randint(3, size - 1, (count, length), generator=generator) for mode, count, length, _ in MODES}


def alone(name: str, folder: Path, size: int) -> None:
    """Prints the peak memory of one engine in each mode; run in a process of its own."""
    prompts = prompts_of(size)
    if name == YARDSTICK:
        import transformers
        import transformers.models.gpt2.modeling_gpt2
        import transformers.models.llama.modeling_llama  # noqa: F401
    gc.collect()
    before, run = resident_memory()[0], open_engine(name, folder)
    for mode, *_, new in MODES:
        run(prompts[mode], new)
        print("peak", mode, resident_memory(reset=True)[1] - before, flush=True)


def memory_of(name: str, folder: Path, size: int) -> dict[str, float]:
    """MB of each mode by `alone`; the first includes opening the weights."""
    words = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--alone", name, "--folder", folder]
    done = subprocess.run([*map(str, words), "--size", str(size)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("peak ")]
    return {mode: int(value) / 2**20 for _, mode, value in found}


def measure(
    given: argparse.Namespace, shapes: str = "gpt2,llama", layers: int = 12
) -> tuple[list[dict[str, Any]], int]:
    """Prints the table; returns its rows, and how many bars fail."""
    rows, broken = [], 0
    print(f"speed over transformers', median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    for shape in shapes.split(","):
        with tempfile.TemporaryDirectory() as name:
            found, failed = measure_shape(given, shape, layers, Path(name))
        rows, broken = rows + found, broken + failed
    return rows, broken


def measure_shape(given: argparse.Namespace, shape: str, layers: int, folder: Path) -> tuple[list[dict[str, Any]], int]:
    rows, broken = [], 0
    model = random_model(shape, layers)
    model.save_pretrained(folder / PUBLIC)
    names, size = [YARDSTICK, *OURS, *write_peers(model, shape, folder)], model.config.vocab_size
    del model
    memory = {name: memory_of(name, folder, size) for name in names}
    searches = {name: open_engine(name, folder) for name in names}
    searches = {YARDSTICK: searches[YARDSTICK], "transformers again": searches[YARDSTICK]} | searches
    for (mode, count, length, new), prompts in zip(MODES, prompts_of(size).values(), strict=True):
        expected = searches[YARDSTICK](prompts, new)
        runs = {name: partial(run, prompts, new) for name, run in searches.items()}
        seconds = interleave(runs, rounds=given.rounds, warmup=1, clock=CLOCKS[given.clock])
        for name, run in runs.items():
            speed: Ratio = ratio(seconds, YARDSTICK, name)
            same = sum(a == b for a, b in zip(run(), expected, strict=True)) / count
            must = MUST.get(name, 0.0) if mode != "prompt" else 0.0
            holds = speed.median >= must and (name != "float32" or same == 1.0)
            broken += not holds
            row = {"shape": shape, "mode": mode, "name": name, "speed": speed, "same": same, "must": must}
            row |= {"holds": holds, "MB": memory.get(name, memory[YARDSTICK])[mode]}
            row["tokens/s"] = count * (length if mode == "prompt" else new) / min(seconds[name])
            text = f"{shape} {mode:<6} {name:<20} {speed} {row['tokens/s']:7.0f} tokens/s, {row['MB']:5.0f} MB, "
            text += f"{same:4.0%} the same ids"
            if must:
                text += f"; must {must}: {'holds' if holds else 'FAILS'}"
            print(text, flush=True)
            rows.append(row)
    return rows, broken


def main() -> int:
    given = arguments(__doc__, rounds=5, clock="wall", shapes="gpt2,llama", layers=12, alone="", folder="", size=0)
    if given.alone:
        alone(given.alone, Path(given.folder), given.size)
        return 0
    rows, broken = measure(given, given.shapes, given.layers)
    write_rows(given.json, rows)
    print(f"{broken} bars fail" if broken else "all bars hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
