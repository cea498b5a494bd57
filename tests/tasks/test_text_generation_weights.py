"""Weights of language models: in other precisions, mapped from their files, exported; and a corpus of one long line."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn import GenerationConfig
from mmattn.data.text.language import LanguageTokens
from mmattn.linears import Int8Linear, PackedLinear, why_not
from mmattn.tasks.text_generation import TextGenerationPredictor, load
from mmattn.tasks.text_generation.data import TextDataset
from mmattn.tasks.text_generation.model import TextGenerationModel
from mmattn.tasks.text_generation.processor import TextGenerationProcessor
from tests.pretrained_causal import write_public


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precisions(precision: str) -> None:
    """All maps are packed, and continuations of the built-in prompts are nearly always those of float32."""
    if why_not(precision) is not None:
        pytest.skip(f"this processor has no {precision}")
    plain, packed = load("text_generation/demo", device="cpu"), load("text_generation/demo", "cpu", precision)
    maps = [module for module in packed.model.modules() if isinstance(module, (PackedLinear, Int8Linear))]
    assert len(maps) == 4 * len(packed.model.net.decoder.layers) + 1
    assert {type(module) for module in maps} == {Int8Linear if precision == "int8" else PackedLinear}
    prompts = [sample.prompt for sample in plain.demo_samples()]
    found = [[one.text for one in model.predict(prompts, max_new_tokens=3)] for model in (plain, packed)]
    assert sum(a == b for a, b in zip(*found, strict=True)) >= len(prompts) - 1


def mapped(name: str) -> list[tuple[int, int]]:
    """The addresses at which this process has mapped files of a name."""
    found = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    return [(int(start, 16), int(end, 16)) for start, end in (words[0].split("-") for words in found)]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="addresses are those of Linux")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_public_weights_are_not_copied(dtype: torch.dtype, tmp_path: Path) -> None:
    write_public(tmp_path / "mapped_model", "llama", dtype)
    predictor = load(tmp_path / "mapped_model", device="cpu")
    places = mapped("mapped_model/model.safetensors")
    for name, parameter in predictor.model.named_parameters():
        assert parameter.dtype == dtype
        assert any(start <= parameter.data_ptr() < end for start, end in places), f"{name} is a copy"


def test_an_lstm_is_exported(tmp_path: Path) -> None:
    """Its program continues a text step by step, as greedy search does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    processor = TextGenerationProcessor(LanguageTokens.fit(lambda: ["the cat sat"]), 16)
    model = TextGenerationModel(**processor.sizes(), decoder="lstm", embed_dim=16, num_layers=2, num_heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    predictor = TextGenerationPredictor(model.eval(), processor)
    predictor.export_graphs(tmp_path, ["onnx"])
    (path,) = tmp_path.glob("*.onnx")
    program = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in program.get_outputs()]
    state: dict[str, Any] = dict.fromkeys(("keys", "values"), np.zeros((1, 2, 0, 8), np.float32))
    state |= dict.fromkeys(("hidden", "cell"), np.zeros((2, 1, 16), np.float32))
    prompt, written = [3, 5, 7], list[int]()
    for token in [*prompt, *([None] * 5)]:
        ids = np.array([[written[-1] if token is None else token]])
        found = dict(zip(names, program.run(names, {"ids": ids, **state}), strict=True))
        state = {name: found[f"next_{name}"] for name in state}
        if token in (None, prompt[-1]):
            written.append(int(found["logits"][0].argmax()))
    expected = model.generate(torch.tensor([prompt]), None, GenerationConfig(max_new_tokens=6))
    assert written == expected.tokens()[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "megabytes"), [("character", 100), ("byte", 100), ("bpe", 20)])
def test_a_line_of_100_mb(kind: str, megabytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in parts: neither the text nor its ids are whole in memory as Python objects."""
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path))
    with open(tmp_path / "a.txt", "w") as file:
        for _ in range(megabytes * 1000):
            file.write("to be or not " * 76 + "to be, that ")
    size = (tmp_path / "a.txt").stat().st_size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train, val = TextDataset(tmp_path / "a.txt").divided(0)
    processor = TextGenerationProcessor.fit(train, kind, vocab_size=500)
    found = [processor.encode_corpus(part) for part in (train, val)]
    assert sum(corpus.bytes for corpus in found) == size
    if kind != "bpe":
        assert sum(map(len, found)) == size + 4
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 600_000_000, "some parts of the text with their ids, and what of the ids is not written to a file"
