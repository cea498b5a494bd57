"""The model of text generation: the tests of every task's model, its head, metrics, chat templates and constraints."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.data.errors import DataError
from mmattn.data.text.language import LanguageTokens, token_bytes
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.text_generation.chat import render
from mmattn.tasks.text_generation.constrain import Limits, Pattern, compiled, cut_at, of_choices, stopping
from mmattn.tasks.text_generation.metrics import LanguageMetric
from mmattn.tasks.text_generation.model import TextGenerationHead, TextGenerationModel
from mmattn.tasks.text_generation.options import Wanted
from tests.conftest import refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"vocab_size": 30, "max_len": 32, "embed_dim": 16, "num_layers": 2, "num_heads": 2}
SMALL |= {"ffn_dim": 24}


class TestTextGenerationModel(TaskModelTests):
    task = "text_generation"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "gpt2": {"positions": "learned", "norm": "layer", "tied_output": False},
        "llama": {"num_kv_heads": 1, "gated": True, "activation": "silu"},
        "relative": {"positions": "relative", "memory_len": 8},
        "window": {"attention": {"kind": "sliding_window", "window": 3}},
    }
    wrong: ClassVar = [
        ({"decoder": "gru"}, "unknown decoder 'gru'"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"decoder": "lstm", "pooling": "mean"}, "decoder 'lstm' supports only attention"),
        ({"decoder": "lstm", "positions": "learned"}, "decoder 'lstm' has no positions"),
        ({"memory_len": 4}, "positions 'relative'"),
        ({"attention": {"kind": "low_rank"}}, "'low_rank' does not support causal attention"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {
        name: {0: Dim("batch", max=64), 1: Dim("length", max=32)} for name in ("input_ids", "key_mask")
    }

    def build(self, **keywords: Any) -> nn.Module:
        return TextGenerationModel(**SMALL | keywords)

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(4, 30, (batch, length), generator=torch.Generator().manual_seed(batch))
        return {"input_ids": ids, "key_mask": torch.ones(batch, length, dtype=torch.bool)}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        return {name: nn.functional.pad(value, (0, extra)) for name, value in inputs.items()}

    def heads(self) -> Any:
        embedding = nn.Embedding(20, 12)
        return [
            (TextGenerationHead(12, 20, embedding=embedding, bias=True), (torch.randn(3, 5, 12),), [(3, 5, 20)]),
            (TextGenerationHead(12, 20), (torch.randn(4, 12),), [(4, 20)]),
        ]


def test_the_head_is_tied_and_its_loss_that_of_the_logits() -> None:
    embedding = nn.Embedding(50, 8)
    head = TextGenerationHead(8, 50, embedding=embedding, chunk=3)
    assert head.output.weight is embedding.weight
    states, labels = torch.randn(2, 7, 8, requires_grad=True), torch.randint(50, (2, 7))
    mask = torch.ones_like(labels, dtype=torch.bool)
    mask[0, 3] = False
    loss = head.loss(states, labels, mask)
    expected = nn.functional.cross_entropy(head(states)[mask], labels[mask])
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, (states, embedding.weight)) for value in (loss, expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)
    refused(r"expected a table of \(50, 9\)", TextGenerationHead, 9, 50, embedding=embedding)


def test_metrics() -> None:
    metric = LanguageMetric(tokens=4, words=2, size=8, optimal=-2.0)
    metric.update(3.0, 3.0)
    metric.update(3.0, 1.0)
    found = metric.compute()
    assert found["loss"] == 1.5
    assert found["perplexity"] == pytest.approx(torch.tensor(1.5).exp().item())
    assert found["word_perplexity"] == pytest.approx(torch.tensor(3.0).exp().item())
    assert found["bits_per_byte"] == pytest.approx(1.5 * 4 / 8 / 0.6931472)
    assert (found["optimal"], found["excess"]) == (0.5, 3.0)
    assert set(LanguageMetric().compute()) == {"loss", "perplexity"}


# Chat templates -------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[{{ m.content | trim }}]{% else %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if tools is not none or documents is not none %}tools{% endif %}"
)


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
    ],
)
def test_templates_do_not_fill_the_memory(bomb: str) -> None:
    refused("chat_template: expected a template that", render, bomb, MESSAGES, {}, error=DataError)


def test_templates_are_rendered_in_a_process_of_their_own() -> None:
    """Not only where another library has imported the extensions of jinja2."""
    code = "from mmattn.tasks.text_generation.chat import render; print(render('{{ messages | length }}', [], {}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


def test_templates_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    text = render(TEMPLATE, MESSAGES, {"bos_token": "<s>"})
    assert text == "<s>[s]<user>hi<assistant>"
    known = transformers.utils.chat_template_utils.render_jinja_template
    found, _ = known(conversations=[MESSAGES], chat_template=TEMPLATE, add_generation_prompt=True, bos_token="<s>")
    assert found == [text]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "a template that ends"),
        ("{{ 'x' * 9999999999 }}", "a template that ends"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "a template that ends"),
        ("{{ messages.__class__.__mro__ }}", "renders the messages"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "renders the messages"),
        ("{% if", "renders the messages"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[7].content }}", "renders the messages"),
    ],
)
def test_hostile_templates_end_in_one_error(template: str, message: str) -> None:
    refused(message, render, template, MESSAGES, {}, error=DataError)


def test_messages_of_another_form() -> None:
    refused("message 0: expected a mapping with role and content", render, "", ["hi"], {}, error=DataError)


# Stop strings, patterns, options --------------------------------------------------------------------------------------

TOKENS = LanguageTokens.fit(lambda: ["the cat sat. no yes 0123456789"], "bpe", 300)
BYTES = token_bytes(TOKENS.tokenizer)


def test_stop_strings_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENS.tokenizer)
    for stops in (["at."], ["c"], ["t s", "zz"], [" no "]):
        theirs = transformers.StopStringCriteria(tokenizer=fast, stop_strings=stops)
        ours = stopping(stops, BYTES)
        for text in ("the cat sat. no", "the cat", "no yes", "cat s"):
            ids = TOKENS.encode(text)
            for end in range(1, len(ids) + 1):
                given = torch.tensor([ids[:end]])
                assert bool(ours(given)[0]) == bool(theirs(given, None)[0]), (stops, text, end)


def test_texts_are_cut_at_stop_strings() -> None:
    assert cut_at("a\n\nb.", ["\n\n", "."]) == "a"
    assert cut_at("ab", ["."]) == "ab"


def test_patterns() -> None:
    pytest.importorskip("outlines_core")
    pattern = Pattern(compiled(of_choices(["yes", "no."]), BYTES, TOKENS.eos_id), TOKENS.eos_id, 2)
    for text, allowed in (("", {b"y", b"n"}), ("ye", {b"s"}), ("no.", {b""})):
        ids = torch.tensor([[4, 5, *TOKENS.encode(text)]])
        scores = torch.zeros(1, TOKENS.vocab_size)
        pattern(scores, ids)
        found = {BYTES.get(int(token), b"")[:1] for token in (scores[0] == 0).nonzero()}
        assert found == allowed
    refused("--regex or --choices: expected texts", compiled, "(", BYTES, TOKENS.eos_id, error=ConfigError)


@pytest.mark.parametrize(("pattern", "limit"), [("(y|e)*y(y|e){24}", "SECONDS"), ("((y{1,99}){1,99}){1,99}", "MEMORY")])
def test_patterns_of_too_many_states_are_refused(pattern: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("outlines_core")
    monkeypatch.setattr(f"mmattn.tasks.text_generation.constrain.{limit}", 0.5 if limit == "SECONDS" else 1 << 27)
    refused("use shorter repetitions or fewer alternatives", compiled, pattern, BYTES, 3, error=ConfigError)


def test_stop_strings_and_patterns_of_words() -> None:
    """Of texts as they are restored: with spaces between words, and without them at the ends of lines."""
    tokens = LanguageTokens.fit(lambda: ["the cat sat.\n\nthe dog ran.\na ab. "], "word")
    limits = Limits(tokens)
    for text in ("the cat sat.", "cat sat.\n\nthe dog", "the dog ran.\nthe cat"):
        for stop in ("the cat", "at s", "dog ran.\nthe", ".\n\n", "\n\nthe d", "the  cat", "\nthe cat"):
            ids = torch.tensor([tokens.encode(text)])
            found = [bool(limits.stopping([stop])(ids[:, :end])[0]) for end in range(1, ids.shape[1] + 1)]
            assert any(found) == (stop in text), (text, stop)
    pytest.importorskip("outlines_core")
    begun = of_choices(["the cat", "ab. cat"])  # whose word begins with another one, "a"
    for pattern, text in (
        (of_choices(["the cat", "a dog"]), "the cat"),
        ("( [a-z]+){2}", "dog cat"),
        (begun, "ab. cat"),
    ):
        state = limits.automaton(pattern, tokens.eos_id).get_initial_state()
        for token in tokens.encode(text):
            state = limits.automaton(pattern, tokens.eos_id).get_next_state(state, token)
        assert limits.automaton(pattern, tokens.eos_id).is_final_state(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "no such option .did you mean 'temperature'"),
        ({"temperature": -1}, "--temperature: expected 0 or more"),
        ({"temperature": float("nan")}, "--temperature: expected a finite number, found nan"),
        ({"max_new_tokens": 0}, "--max_new_tokens: expected a value of at least 1, found 0"),
        ({"seed": 2**64}, "--seed: expected a value of at least 0"),
        ({"regex": "a", "choices": "b"}, "--choices: expected no --regex"),
        ({"stop": ""}, "texts that are not empty"),
        ({"min_p": -1}, "--min_p must not be negative"),
        ({"min_p": 2}, "--min_p must be at most 1, found 2"),
        ({"top_p": 1.5}, "--top_p must be at most 1, found 1.5"),
        ({"temperature": 1.0, "num_beams": 2}, "sampling within beams is not supported"),
        ({"lookup": True, "temperature": 0.5}, "--lookup and --draft: expected greedy search"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    refused(message, Wanted.of, options, error=ConfigError)


def test_options_of_the_search() -> None:
    from mmattn.tasks.text_generation.processor import TextGenerationProcessor

    public = {"generation": {"do_sample": True, "temperature": 0.6, "top_k": 50, "eos_token_id": [3, 7]}}
    processor = TextGenerationProcessor(TOKENS, 32, public)
    config = Wanted.of({}).config(processor, 5)
    assert (config.do_sample, config.temperature, config.eos, config.max_new_tokens) == (True, 0.6, (3, 7), 5)
    assert not Wanted.of({"temperature": 0.0}).config(processor, 5).do_sample
    assert not Wanted.of({"num_beams": 3}).config(processor, 5).do_sample
    own = TextGenerationProcessor(TOKENS, 32)
    assert Wanted.of({"top_p": 0.9}).config(own, 5).do_sample
    assert not Wanted.of({}).config(own, 5).do_sample
