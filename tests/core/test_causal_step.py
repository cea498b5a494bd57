"""A step of causal language models by functions equals that by modules."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmattn import GenerationConfig
from mmattn.backbones import causal, causal_step
from mmattn.backbones.causal import CausalLM
from mmattn.linears import prepare, why_not
from mmattn.lora import add_lora

GPT2: dict[str, Any] = {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "gated": False}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"bias": True, "ffn_bias": True},
    "llama": {"num_kv_heads": 2},
    "qwen3": {"num_kv_heads": 2, "qk_norm": "rms", "head_dim": 8},
    "no positions": {"positions": "none", "norm": "layer"},
}


def steps(model: CausalLM, prompt: Tensor, mask: Tensor | None, flat: bool) -> list[Tensor]:
    """The logits of a prompt and of four tokens after it; and whether all but the first were steps of `FlatStack`."""
    made = mock.patch.object(causal_step.FlatStack, "step", autospec=True, side_effect=causal_step.FlatStack.step)
    allowed = mock.patch.object(causal, "can_flatten", causal_step.can_flatten if flat else lambda ids: False)
    with torch.inference_mode(), allowed, made as counted:
        state = model.start(len(prompt), mask)
        found = [model.step(prompt, state)]
        for number in range(4):
            found.append(model.step(prompt[:, number : number + 1], state))
            if number == 1:
                state.select(torch.tensor([[1], [0], [1]]))  # as beams do
                prompt = prompt[[1, 0, 1]]
    assert counted.call_count == (4 if flat else 0)
    return found


@pytest.mark.parametrize("small", [0, 1 << 40], ids=["by token", "fused"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", SHAPES)
def test_steps_equal_those_of_the_modules(name: str, packed: bool, small: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(causal_step, "SMALL", small)
    torch.manual_seed(0)
    model = CausalLM(50, 32, 2, 4, max_len=32, **SHAPES[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = prepare(model) if packed else model.double()  # type: ignore[assignment]
    prompt = torch.randint(50, (2, 6))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :3] = False
    for padding in (None, mask):
        expected, found = (steps(model, prompt, padding, flat) for flat in (False, True))
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 if packed else 1e-10)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_steps_in_other_precisions(precision: str) -> None:
    if why_not(precision) is not None:
        pytest.skip(f"this processor has no {precision}")
    torch.manual_seed(0)
    model: Any = prepare(CausalLM(50, 32, 2, 4, max_len=32).eval(), precision)
    expected, found = (steps(model, torch.arange(12).view(2, 6), None, flat) for flat in (False, True))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_what_is_not_plain_stays_with_its_modules() -> None:
    """Hooks see each step, low-rank updates count, and other kernels and norms keep their own way."""
    ids, config = torch.arange(6).view(1, 6), GenerationConfig(max_new_tokens=3, eos_token_id=49)
    hooked, seen = CausalLM(50, 32, 2, 4).eval(), list[int]()
    hooked.decoder.layers[1].attention.out_proj.register_forward_hook(lambda *_: seen.append(1))
    hooked.generate(ids, None, config)
    assert len(seen) == 3
    for model in (CausalLM(50, 32, 2, 4, attention="sliding_window"), CausalLM(50, 32, 2, 4, norm_first=False)):
        with torch.inference_mode():
            state = model.eval().start(1)
            model.step(ids, state)
            model.step(ids[:, :1], state)
        assert state.plan == [None]
    torch.manual_seed(0)
    adapted = CausalLM(50, 32, 2, 4)
    add_lora(adapted, rank=2)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = adapted.eval().double()
    both = torch.randint(50, (2, 6))
    expected, found = (steps(adapted, both, None, flat) for flat in (False, True))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
