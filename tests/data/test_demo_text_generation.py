"""The built-in texts: frozen, with the right probabilities, agreements, brackets and sums."""

import json
import math
from collections import Counter

import pytest

from mmattn.tasks.text_generation import demo
from mmattn.tasks.text_generation.data import TextSample
from mmattn.tasks.text_generation.demo import ALONE, NOUNS, PLURALS, WITH_OBJECT, tokens_of
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts() -> dict[str, list[TextSample]]:
    return {split: demo.make(split, size=200) for split in ("train", "val", "test")}


class TestTexts(DemoTests):
    demo, first = demo, 50
    digests = (
        "1d8b25a74d3ef7265227864e5169a5596d6207ad6290f63ac7c572b281336a57",
        "19d63eaaa1c46a66d5b8437d322f3d9d96733785a325d0431b65f5103240f85f",
        "78365a72e35eca45b9adb02dbd588af404d02c3ec876d5aa87479e3cdb4d626e",
    )

    def content(self, sample: TextSample) -> bytes:
        origins = [(origin.token, origin.sources, origin.kind) for origin in sample.origins]
        return json.dumps([sample.id, sample.text, round(sample.log_p or 0.0, 6), origins]).encode()


def test_tokens_follow_from_their_origins(parts: dict[str, list[TextSample]]) -> None:
    plurals = {PLURALS.get(noun, f"{noun}s") for noun in NOUNS}
    forms = {form: bool(n) for pair in (*ALONE, *WITH_OBJECT) for n, form in enumerate(pair)}
    kinds: Counter[str] = Counter()
    for sample in parts["train"]:
        tokens = tokens_of(sample.whole)
        for origin in sample.origins:
            token, sources = tokens[origin.token], [tokens[place] for place in origin.sources]
            kinds[origin.kind] += 1
            assert all(place < origin.token for place in origin.sources)
            if origin.kind.startswith("verb"):
                assert forms[token] == (sources[0] in plurals)
            elif origin.kind == "bracket":
                assert sources[0] + token in demo.BRACKETS
    assert set(kinds) == {"verb", "verb across 1 clause", "verb across 2 clauses", "bracket", "digit"}


def test_sums_are_right(parts: dict[str, list[TextSample]]) -> None:
    lines = [line for sample in parts["train"] for line in sample.whole.splitlines() if "=" in line]
    assert len(lines) > 100
    for line in lines:
        left, _, right = line.removesuffix(" .").partition(" = ")
        numbers = [int("".join(part.split())[::-1]) for part in (*left.split(" + "), right)]
        assert numbers[0] + numbers[1] == numbers[2]


def test_the_probability_of_a_text() -> None:
    """Of a text whose draws are counted by hand: three lines of one kind each, digits, and a pair of brackets."""
    wanted = "{ } .\n4 0 + 5 6 = 9 6 0 .\n"
    sample = next(s for s in demo.make("val", 1) if s.whole.startswith(wanted))
    assert sample.log_p is not None
    # A kind a line; brackets: one of three, closed with 1/2, ended with 0.4; four digits.
    first = math.log(1 / 3) + math.log(1 / 3) + math.log(0.5) + math.log(0.4)
    second = math.log(1 / 3) + 4 * math.log(1 / 10)
    # No adjective, singular, a noun, no clause, an object, a verb; an adjective, plural, a noun.
    third = math.log(1 / 3) + math.log(0.7) + math.log(0.5) + math.log(1 / 8) + math.log(0.65) + math.log(0.5)
    third += math.log(1 / 4) + math.log(0.3) + math.log(1 / 4) + math.log(0.5) + math.log(1 / 8)
    assert sample.whole == wanted + "the king likes the small dogs .\n"
    assert sample.log_p == pytest.approx(first + second + third)


def test_beginnings_end_before_what_follows(parts: dict[str, list[TextSample]]) -> None:
    for sample in parts["test"][:20]:
        begun = demo.beginning(sample)
        assert begun.text
        assert begun.prompt
        assert tokens_of(f"{begun.prompt} {begun.text}") == tokens_of(sample.whole)
