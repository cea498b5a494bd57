"""Causal language models: cached steps against full passes, padding, documents, recurrence over segments, the loss."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmattn.backbones.causal import CausalLM
from mmattn.backbones.recurrent_lm import RecurrentLM
from mmattn.chunked import chunked_cross_entropy
from mmattn.generate import GenerationConfig, stream
from mmattn.generate.speculative import draft, lookup, speculate
from mmattn.positions import Rotary
from tests.conftest import refused, slow_but_first

V = 30
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "head_dim": 6},
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "gated": False,
        "activation": "gelu_tanh",
        "bias": True,
        "ffn_bias": True,
    },
    "qwen3": {"qk_norm": "rms", "tied_output": False},
    "window": {"local_layers": [1], "window": 3},
    "relative": {"positions": "relative", "memory_len": 50},
    "post-norm": {"norm_first": False, "positions": "sinusoidal"},
    "linear": {"attention": "linear", "positions": "none"},
    "differential": {"attention": "differential", "positions": "sinusoidal"},
    "mean": {"pooling": "mean"},
}


def make(variant: str, **more: Any) -> Any:
    torch.manual_seed(0)
    kind = RecurrentLM if variant == "lstm" else CausalLM
    model = kind(V, 32, 2, 4, max_len=64, **VARIANTS.get(variant, {}), **more).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=[*VARIANTS, "lstm"])
def model(request: Any) -> Any:
    return make(request.param)


IDS = torch.randint(3, V, (3, 12), generator=torch.Generator().manual_seed(1))
PADDED, MASK = F.pad(IDS, (3, 0)), F.pad(torch.ones_like(IDS, dtype=torch.bool), (3, 0))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_steps_equal_a_full_pass_with_padding_at_the_left(model: Any) -> None:
    full = model(IDS)
    close(model(PADDED, MASK)[:, 3:], full)
    for ids, mask, start in ((IDS, None, 4), (PADDED, MASK[:, :7], 7)):
        with torch.inference_mode():
            state = model.start(3, mask)
            steps = [model.step(ids[:, :start], state)]
            steps += [model.step(ids[:, n : n + 1], state) for n in range(start, ids.shape[1])]
        close(torch.stack(steps, 1), full[:, 3:])


def test_every_parameter_gets_a_gradient(model: Any) -> None:
    model(IDS).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("variant", ["llama", "gpt2", "window", "relative"])
def test_documents_do_not_attend_to_each_other(variant: str) -> None:
    model = make(variant)
    documents = torch.tensor([[0] * 5 + [1] * 7]).expand(3, -1)
    found = model(IDS, None, documents)
    close(found[:, :5], model(IDS[:, :5]))
    close(found[:, 5:], model(IDS[:, 5:]))


def test_segments_with_a_whole_memory_equal_one_text() -> None:
    """With states of all earlier tokens in memory, and one layer with a memory that is cut, as a window."""
    for keywords, layers in (({"memory_len": 50}, 2), ({"memory_len": 4}, 1)):
        torch.manual_seed(0)
        model = CausalLM(V, 32, layers, 4, positions="relative", **keywords).double().eval()
        memory, found = None, []
        for start in range(0, 12, 4):
            states, memory = model.segment(IDS[:, start : start + 4], memory)
            found.append(states)
        assert memory is not None
        assert memory[0].shape[1] == min(keywords["memory_len"], 12)
        if keywords["memory_len"] >= 12:
            close(torch.cat(found, 1), model.states(IDS))
        else:  # the last segment has read its own tokens and the four before
            close(found[-1], model.states(IDS[:, 4:])[:, 4:])


def test_an_lstm_continues_segments() -> None:
    model = make("lstm")
    first, memory = model.segment(IDS[:, :6])
    second, _ = model.segment(IDS[:, 6:], memory)
    close(first, model.states(IDS[:, :6]))
    assert not torch.allclose(second, model.states(IDS[:, 6:])), "the state is carried over"
    refused("carries its state over documents", model.states, IDS, None, torch.zeros_like(IDS))


def test_rotary_scaling() -> None:
    plain = Rotary(8).rates()
    torch.testing.assert_close(Rotary(8, scaling={"kind": "linear", "factor": 4.0}).rates(), plain / 4)
    llama = {"kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_len": 32}
    found = Rotary(8, scaling=llama).rates() / plain
    assert found[0] == 1.0
    torch.testing.assert_close(found[-1], torch.tensor(1 / 8))
    refused("rotary scaling: expected a kind, linear with factor", Rotary, 8, scaling={"kind": "yarn", "factor": 2.0})
    yarn = {"kind": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_len": 2048.0}
    rotary = Rotary(64, scaling=yarn | {"attention_factor": 1.25})
    found = rotary.rates() / Rotary(64).rates()
    assert (found[:9] == 1).all(), "fast channels stay"
    torch.testing.assert_close(found[-8:], torch.full((8,), 0.25))
    q = torch.randn(1, 1, 3, 64)
    turned, _ = rotary(q, q, 5)
    torch.testing.assert_close(turned.norm(dim=-1), 1.25 * q.norm(dim=-1))


def test_invalid_options() -> None:
    refused("unknown positions 'alibi'; expected one of: rotary", CausalLM, V, 16, 1, 4, positions="alibi")
    refused("memory_len=4: expected 0, or .* positions 'relative'", CausalLM, V, 16, 1, 4, memory_len=4)
    refused("local_layers: expected indices below 1, found .2", CausalLM, V, 16, 1, 4, local_layers=[2])
    refused("expected dense attention", CausalLM, V, 16, 1, 4, positions="relative", attention="linear")
    refused("does not support causal attention", CausalLM, V, 16, 1, 4, attention={"kind": "low_rank"})
    rotary = CausalLM(V, 16, 1, 4, attention="linear")
    refused("expected texts without padding at the left", rotary, PADDED, MASK)
    refused("expected prompts of one length", rotary.start, 3, MASK)
    refused("expected a model with memory_len above 0", CausalLM(V, 16, 1, 4).segment, IDS)


# Generation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", slow_but_first([{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}]))
def test_speculation_gives_the_same_ids(options: dict[str, Any]) -> None:
    accepted = 0
    for seed in range(4):
        model, other = make("llama"), make("llama")
        torch.manual_seed(seed)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.data.add_(0.1 * torch.randn_like(mine))
            theirs.data.copy_(mine + 0.02 * torch.randn_like(mine))
        config = GenerationConfig(max_new_tokens=30, eos_token_id=2, **options)
        expected = model.generate(IDS[:1], None, config).tokens()[0][0]
        for guess in (lookup, draft(other)):
            found = speculate(model, IDS[:1], config, guess)
            assert found.ids == expected
            assert found.passes + found.accepted >= len(expected) - 1
            accepted += found.accepted
    assert accepted > 20
    config = GenerationConfig(max_new_tokens=3)
    refused("expected one prompt, found 3", speculate, model, IDS, config, lookup)
    refused("caches all keys and values", speculate, make("window"), IDS[:1], config, lookup)
    refused("expected greedy search", speculate, model, IDS[:1], GenerationConfig(do_sample=True), lookup)


def test_a_draft_guesses_up_to_the_end_of_its_positions() -> None:
    model = make("gpt2")
    config = GenerationConfig(max_new_tokens=53)  # after 12 tokens, of 64 that are read
    expected = model.generate(IDS[:1], None, config).tokens()[0][0]
    assert len(expected) == 53
    assert speculate(model, IDS[:1], config, draft(model)).ids == expected


def test_streamed_tokens_are_those_of_generate() -> None:
    model = make("llama")
    for options in ({}, {"do_sample": True, "top_p": 0.9}):
        config = GenerationConfig(max_new_tokens=8, eos_token_id=[4, 9], **options)
        expected = model.generate(IDS, None, config, generator=torch.Generator().manual_seed(3)).tokens()
        rows: list[list[int]] = [[], [], []]
        with torch.inference_mode():
            state = model.start(3)
        for step in stream(model.step, state, IDS, config, generator=torch.Generator().manual_seed(3)):
            assert not torch.is_inference_mode_enabled(), "not while the caller has the tokens"
            for row, token in step:
                rows[row].append(token)
        assert [[row] for row in rows] == expected
    refused("nothing to stream", lambda: next(stream(model.step, None, IDS, GenerationConfig(num_beams=2))))


def test_texts_end_where_they_should() -> None:
    model = make("llama")
    config = GenerationConfig(max_new_tokens=12)
    whole = model.generate(IDS, None, config).tokens()
    third = [row[0][3] for row in whole]

    def should_stop(ids: torch.Tensor) -> torch.Tensor:
        return (ids[:, -1:] == torch.tensor(third)).any(1) & torch.tensor(ids.shape[1] > 12)

    found = model.generate(IDS, None, config, should_stop=should_stop).tokens()
    for row, before in zip(found, whole, strict=True):
        end = next(n for n, token in enumerate(before[0]) if token in third) + 1
        assert row[0] == before[0][:end]


def test_a_token_that_was_generated_is_penalized_once() -> None:
    from mmattn.generate.constraints import build_constraints

    scores = torch.zeros(1, 6)
    for constraint in build_constraints(GenerationConfig(presence_penalty=0.5, max_new_tokens=9), 2):
        constraint(scores, torch.tensor([[1, 2, 3, 3, 4]]))
    assert scores.tolist() == [[0.0, 0.0, 0.0, -0.5, -0.5, 0.0]]


# The loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_parts_equals_cross_entropy(smoothing: float) -> None:
    states, weight = torch.randn(2, 7, 13).double(), torch.randn(50, 13).double()
    bias, targets = torch.randn(50).double(), torch.randint(50, (2, 7))
    targets[0, 2] = -100
    given = [tensor.requires_grad_() for tensor in (states, weight, bias)]
    for chunk in (3, 100, None):
        value = chunked_cross_entropy(*given[:2], targets, bias, chunk=chunk, label_smoothing=smoothing)
        logits = (states @ weight.T + bias).flatten(0, 1)
        expected = F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing)
        close(value, expected)
        for mine, theirs in zip(
            torch.autograd.grad(2 * value, given), torch.autograd.grad(2 * expected, given), strict=True
        ):
            close(mine, theirs)
    with torch.no_grad():
        close(chunked_cross_entropy(states, weight, targets, bias, label_smoothing=smoothing), expected)
    none = chunked_cross_entropy(states, weight, torch.full_like(targets, -100), chunk=3)
    assert none == 0
    assert not torch.autograd.grad(none, states)[0].any()


def test_the_loss_in_parts_can_be_differentiated_again() -> None:
    states, weight, targets = torch.randn(20, 8), torch.randn(50, 8, requires_grad=True), torch.randint(50, (20,))
    value = chunked_cross_entropy(states, weight, targets, chunk=7)
    (first,) = torch.autograd.grad(value, weight, retain_graph=True)
    (second,) = torch.autograd.grad(3 * value, weight)
    (expected,) = torch.autograd.grad(F.cross_entropy(states @ weight.T, targets), weight)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, 3 * expected)


def test_small_gradients_do_not_vanish_in_float16() -> None:
    """Those of tokens that do not occur, with the scaled loss of mixed precision."""
    weight, scale = (0.05 * torch.randn(4000, 16)).requires_grad_(), 2.0**16
    states, targets = torch.randn(8192, 16), torch.randint(50, (8192,))
    (expected,) = torch.autograd.grad(F.cross_entropy(states @ weight.T, targets), weight)
    with torch.autocast("cpu", torch.float16):
        value = chunked_cross_entropy(states, weight, targets, chunk=1024)
    (found,) = torch.autograd.grad(scale * value, weight)
    torch.testing.assert_close(found[50:] / scale, expected[50:], atol=1e-7, rtol=0.01)


def test_the_loss_in_parts_under_autocast() -> None:
    states, weight, targets = torch.randn(20, 32, requires_grad=True), torch.randn(90, 32), torch.randint(90, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        value = chunked_cross_entropy(states, weight, targets, chunk=8)
    value.backward()
    assert value.dtype == torch.float32
    expected = F.cross_entropy(states @ weight.T, targets)
    torch.testing.assert_close(value, expected, atol=0.05, rtol=0.02)
    assert states.grad is not None
    assert states.grad.dtype == torch.float32
