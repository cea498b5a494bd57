"""Compare generation with transformers and CTranslate2, with the same weights and the same ids, interleaved.

python scripts/bench/generation.py [--threads N] [--rounds N] [--clock wall|cpu] [--json FILE]

32 sources of 20 to 30 tokens, exactly 30 new tokens each; an encoder-decoder of d_model 512, 6 + 6 layers, 8 heads, ffn
2048 and a vocabulary of 32,000, with random weights. The yardstick is transformers in float32. Required with AVX-512:
float32 greedy 1.5 and beam 5 1.7 times its speed, bfloat16 beam 5 2.8, int8 greedy 3.2 and beam 5 3.5; with AVX2 alone:
int8 greedy 2.0 and beam 5 2.2; in float32 the same ids.
"Share" is the time of the search's matrix products alone over the time of the whole search.

`captions.py` follows, captioning of BLIP's shape, and `language.py`, decoder-only models.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import captions
import language
import torch
from common import CLOCKS, Ratio, arguments, interleave, machine, ratio, write_rows
from torch import Tensor, nn

from mmattn import GenerationConfig
from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.linears import Int8Linear, PackedLinear, prepare
from mmattn.pretrained.marian import convert_marian

VOCABULARY, SENTENCES, NEW = 32_000, 32, 30
START, EOS, PAD = 0, 1, 2
BEAMS = {"greedy": 1, "beam 5": 5}
MUST = {
    ("float32", "greedy"): 1.5,
    ("float32", "beam 5"): 1.7,
    ("bfloat16", "beam 5"): 2.8,
    ("int8", "greedy"): 3.2,
    ("int8", "beam 5"): 3.5,
}
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    MUST = {("int8", "greedy"): 2.0, ("int8", "beam 5"): 2.2}
OPTIONS: dict[str, Any] = {"decoder_start_token_id": START, "eos_token_id": EOS, "pad_token_id": PAD}
OPTIONS |= {"min_new_tokens": NEW, "max_new_tokens": NEW}
Search = Callable[[int], list[list[int]]]  # beams -> the ids of each sentence


def random_marian() -> Any:
    """transformers' Marian with random weights that are large enough to avoid ties of arg-max."""
    from transformers import MarianConfig, MarianMTModel

    shape = {"layers": 6, "attention_heads": 8, "ffn_dim": 2048}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in shape.items()}
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=512,
        scale_embedding=True,
        max_position_embeddings=128,
        decoder_start_token_id=START,
        eos_token_id=EOS,
        pad_token_id=PAD,
        forced_eos_token_id=None,
        **sizes,
    )
    torch.manual_seed(0)
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed_positions" not in name:
                scale = 1.0 if ".layers." in name else 0.5
                parameter.copy_(torch.randn_like(parameter) * scale * parameter.shape[-1] ** -0.5)
    return model


def transformers_search(model: Any, source: Tensor, key_mask: Tensor) -> Search:
    def run(beams: int) -> list[list[int]]:
        with torch.inference_mode():
            ids = model.generate(
                source,
                attention_mask=key_mask.long(),
                num_beams=beams,
                do_sample=False,
                early_stopping=False,
                **OPTIONS,
            )
        return ids[:, 1:].tolist()

    return run


def our_search(theirs: Any, precision: str, source: Tensor, key_mask: Tensor) -> tuple[Search, Seq2Seq]:
    converted = convert_marian(theirs.config.to_dict(), theirs.state_dict())
    model = Seq2Seq(**converted.keywords).eval()
    model.load_state_dict(converted.state)
    prepare(model, precision)

    def run(beams: int) -> list[list[int]]:
        found = model.generate(source, key_mask, GenerationConfig(num_beams=beams, **OPTIONS), with_scores=False)
        return [best[0] for best in found.tokens()]

    return run, model


def ctranslate2_search(model: Any, compute: str, source: Tensor, key_mask: Tensor) -> Search:
    import ctranslate2
    from ctranslate2.converters.transformers import BartLoader

    model = copy.deepcopy(model)  # its quantization works in place
    model.config.normalize_before = model.config.normalize_embedding = False
    spec = BartLoader().get_model_spec(model)
    tokens = [str(i) for i in range(VOCABULARY)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.decoder_start_token, spec.config.eos_token = tokens[START], tokens[EOS]
    spec.config.bos_token = spec.config.unk_token = tokens[PAD]
    spec.validate()
    spec.optimize(quantization=compute)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        translator = ctranslate2.Translator(
            folder, device="cpu", compute_type=compute, inter_threads=1, intra_threads=torch.get_num_threads()
        )
    texts = [[str(i) for i in ids[mask].tolist()] for ids, mask in zip(source, key_mask, strict=True)]

    def run(beams: int) -> list[list[int]]:
        found = translator.translate_batch(
            texts, beam_size=beams, max_batch_size=SENTENCES, max_decoding_length=NEW, min_decoding_length=NEW
        )
        return [[int(token) for token in result.hypotheses[0]] for result in found]

    return run


def products_alone(model: Seq2Seq, tokens: int, padded: int) -> Callable[[int], None]:
    """The matrix products of a search, with equal numbers of rows: the encoder's, then each step's."""

    def maps(part: nn.Module) -> list[Any]:
        return [module for module in part.modules() if isinstance(module, (PackedLinear, Int8Linear, nn.Linear))]

    attentions = [layer.cross_attention for layer in model.decoder.layers]  # type: ignore[union-attr]
    once = [linear for a in attentions for linear in (a.k_proj, a.v_proj)]
    rows = {size: torch.randn(max(padded, 5 * SENTENCES), size) for size in (512, 2048)}

    def run(beams: int) -> None:
        with torch.inference_mode():
            for linear in maps(model.encoder):
                linear(rows[linear.in_features][:tokens])
            for linear in once:
                linear(rows[512][:padded])
            for step in range(NEW):
                for linear in [*(m for m in maps(model.decoder) if m not in once), model.output]:
                    linear(rows[linear.in_features][: SENTENCES * (beams if step else 1)])

    return run


def main() -> int:
    given = arguments(__doc__, rounds=5, clock="wall")
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(20, 31, (SENTENCES,), generator=generator)
    source = torch.randint(3, VOCABULARY, (SENTENCES, 30), generator=generator)
    key_mask = torch.arange(30) < lengths[:, None]
    theirs = random_marian()
    searches: dict[str, Search] = {"transformers": transformers_search(theirs, source, key_mask)}
    searches["transformers again"] = searches["transformers"]
    alone: dict[str, Callable[[int], None]] = {}
    for precision in ("float32", "bfloat16", "int8"):
        searches[precision], model = our_search(theirs, precision, source, key_mask)
        alone[f"{precision} products"] = products_alone(model, int(lengths.sum()), source.numel())
    try:
        for compute in ("float32", "int8"):
            searches[f"CTranslate2 {compute}"] = ctranslate2_search(theirs, compute, source, key_mask)
    except ModuleNotFoundError:
        print("no CTranslate2: pip install ctranslate2")
    print(f"speed over transformers', median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    rows, broken = [], 0
    for mode, beams in BEAMS.items():
        expected = searches["transformers"](beams)
        seconds = interleave(
            {name: partial(run, beams) for name, run in (searches | alone).items()},
            rounds=given.rounds,
            warmup=1,
            clock=CLOCKS[given.clock],
        )
        for name, run in searches.items():
            speed: Ratio = ratio(seconds, "transformers", name)
            ids = run(beams)
            same = sum(a == b for a, b in zip(ids, expected, strict=True)) / SENTENCES
            must = MUST.get((name, mode), 0.0)
            holds = speed.median >= must and (name != "float32" or same == 1.0)
            broken += not holds
            row = {"mode": mode, "name": name, "speed": speed, "same sentences": same, "must": must, "holds": holds}
            row["tokens/s"] = SENTENCES * NEW / min(seconds[name])
            text = f"{mode:<7} {name:<20} {speed}  {row['tokens/s']:7.0f} tokens/s, {same:4.0%} the same ids"
            if name in MUST or f"{name} products" in alone:
                share = ratio(seconds, f"{name} products", name)
                row["share"] = share
                text += f", share {share.median:.2f}"
            if must:
                text += f"; must {must}: {'holds' if holds else 'FAILS'}"
            print(text, flush=True)
            rows.append(row)
    more, failed = captions.measure(given)
    last, failures = language.measure(given)
    rows, broken = rows + more + last, broken + failed + failures
    write_rows(given.json, rows)
    print(f"{broken} bars fail" if broken else "all bars hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
