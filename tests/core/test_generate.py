import itertools
import json
import math

import pytest
import torch

from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.generate import GenerationConfig, generate
from mmattn.generate.beams import beam_search
from mmattn.generate.constraints import ban_repeated_ngrams, ban_sequence
from mmattn.generate.sampling import sample
from tests.conftest import refused, slow_but_first

START, EOS, PAD, V = 0, 1, 2, 40
SEARCHES = {
    "greedy": {},
    "beam 4, length penalty": {"num_beams": 4, "length_penalty": 0.6},
    "beam 3, long": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
    "beam 4, early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    "beam 3, no repeat": {"num_beams": 3, "no_repeat_ngram_size": 2},
    "greedy, no repeat": {"no_repeat_ngram_size": 2},
    "beam 3, penalized": {"num_beams": 3, "repetition_penalty": 1.5},
    "greedy, penalized": {"repetition_penalty": 1.5},
    "beam 3, forced": {"num_beams": 3, "forced_bos_token_id": 7, "forced_eos_token_id": EOS},
    "greedy, forced": {"forced_bos_token_id": 7, "forced_eos_token_id": EOS},
    "beam 3, forbidden": {
        "num_beams": 3,
        "suppress_tokens": [5, 6, 7],
        "begin_suppress_tokens": [8, 9],
        "min_length": 6,
    },
    "beam 3, bad words": {"num_beams": 3, "bad_words_ids": [[PAD], [11, 12], [13]], "min_new_tokens": 4},
    "beam 2, two end tokens": {"num_beams": 2, "eos_token_id": [EOS, 5, 6]},
}
OPTIONS = {"decoder_start_token_id": START, "eos_token_id": EOS, "pad_token_id": PAD, "max_length": 14}


def config(**keywords):
    return GenerationConfig(**(OPTIONS | keywords))


def vary(model):
    """Random weights whose texts do not repeat one token and end at different lengths."""
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)
        model.embedding.weight.normal_(std=0.2)
        model.output.weight.normal_()
        if model.output.bias is not None:
            model.output.bias.normal_()
    return model.double().eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return vary(Seq2Seq(V, 16, 2, 4, output_bias=True, tied_output=False))


@pytest.fixture(scope="module")
def source():
    lengths = torch.tensor([9, 7, 5, 9, 3, 8])
    ids = torch.randint(3, V, (6, 9), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(9) < lengths[:, None]


def assert_scores_equal_teacher_forcing(model, source, found, length_penalty, *prompt):
    """Each text's log p in one teacher-forced pass, after the start token and a prompt."""
    ids, key_mask = source
    for b, texts in enumerate(found.tokens()):
        for n, tokens in enumerate(texts):
            logits = model(ids[b : b + 1], key_mask[b : b + 1], torch.tensor([[START, *prompt, *tokens[:-1]]]))
            log_p = logits.log_softmax(-1)[0, len(prompt) :].gather(1, torch.tensor(tokens)[:, None]).sum()
            assert abs(log_p / len(tokens) ** length_penalty - found.scores[b, n]) < 1e-8


@pytest.mark.parametrize("name", slow_but_first(SEARCHES, lambda name: "beam" in name))
def test_batched_equals_single(model, source, name):
    ids, key_mask = source
    together = model.generate(ids, key_mask, config(**SEARCHES[name]))
    for b in range(len(ids)):
        alone = model.generate(ids[b : b + 1, : key_mask[b].sum()], None, config(**SEARCHES[name]))
        assert alone.tokens()[0] == together.tokens()[b]
        assert torch.allclose(alone.scores[0], together.scores[b], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["greedy", "beam 4, length penalty", "beam 4, early", "beam 3, no repeat"])
def test_scores_equal_teacher_forcing(model, source, name):
    found = model.generate(*source, config(**SEARCHES[name]))
    assert_scores_equal_teacher_forcing(model, source, found, SEARCHES[name].get("length_penalty", 1.0))
    if name in ("greedy", "beam 4, early"):
        assert len(set(found.lengths.flatten().tolist())) > 1  # sentences ended at different steps and were dropped


def test_sample_scores_equal_teacher_forcing(model, source):
    options = config(do_sample=True, temperature=0.7, top_k=5, num_return_sequences=3, length_penalty=0.0)
    found = model.generate(*source, options, generator=torch.Generator().manual_seed(0))
    assert_scores_equal_teacher_forcing(model, source, found, 0.0)
    assert len({tuple(tokens) for several in found.tokens() for tokens in several}) > len(source[0])


def test_own_generators_make_samples_independent(model, source):
    """A sentence's samples are those that it has alone, also where others end earlier."""
    ids, key_mask = source
    options = config(do_sample=True, temperature=3.0, top_p=0.95, eos_token_id=[35, 27, 31], num_return_sequences=2)
    seeded = lambda b: torch.Generator().manual_seed(b)  # noqa: E731
    together = model.generate(ids, key_mask, options, generator=[seeded(b) for b in range(6)])
    assert len(set(together.lengths.flatten().tolist())) > 1
    for b in range(6):
        alone = model.generate(ids[b : b + 1, : key_mask[b].sum()], None, options, generator=[seeded(b)])
        assert alone.tokens()[0] == together.tokens()[b]
    refused("one of each of 6 sentences, found 1", model.generate, ids, key_mask, options, generator=[seeded(0)])


def test_beam_of_one_is_greedy(model, source):
    greedy = model.generate(*source, config())
    with torch.inference_mode():
        ids, lengths, scores = beam_search(model.step, model.start(*source), torch.full((6, 1), START), config())[:3]
    assert torch.equal(greedy.ids, ids)
    assert torch.equal(greedy.lengths, lengths)
    assert torch.allclose(greedy.scores, scores)


@pytest.mark.parametrize("name", ["greedy", "greedy, penalized", "greedy, forced", "beam 3, long"])
def test_without_scores(model, source, name):
    expected = model.generate(*source, config(**SEARCHES[name]))
    found = model.generate(*source, config(**SEARCHES[name]), with_scores=False)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.scores, expected.scores) if "beam" in name else found.scores.isnan().all()


@pytest.mark.parametrize("beams", [1, 2])
def test_outputs_are_not_inference_tensors(model, source, beams):
    found = model.generate(*source, config(num_beams=beams))
    with torch.inference_mode():
        inside = model.generate(*source, config(num_beams=beams))
    for tensor in (*found, *inside):
        assert not tensor.is_inference()
    weight = torch.ones_like(found.scores, requires_grad=True)
    (weight * found.scores).sum().backward()
    assert torch.equal(weight.grad, found.scores)


@pytest.mark.parametrize("kind", ["additive", "linear", "monotonic"])
def test_beam_search_with_other_kernels(source, kind):
    """A prompt of two tokens; decoding states other than keys and values; cross-attention with its own state."""
    torch.manual_seed(5)
    attention = {"cross_attention" if kind == "monotonic" else "decoder_attention": kind}
    model = vary(Seq2Seq(V, 16, 2, 4, tied_output=False, **attention))
    prompt = torch.tensor([[START, 4]]).expand(6, 2)
    with torch.inference_mode():
        state = model.start(*source)
        assert state.shared is (kind != "monotonic")
        found = generate(model.step, state, prompt, config(num_beams=3, length_penalty=0.0, num_return_sequences=2))
        assert_scores_equal_teacher_forcing(model, source, found, 0.0, 4)


# Toy models: a table of log-probabilities per last token --------------------------------------------------------------


class NoState:
    def __init__(self):
        self.moves = []

    def select(self, rows):
        self.moves.append(rows)


def toy(size, seed=0):
    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def written(table, prompt, on_token=None, generator=None, **options):
    given = (NoState(), torch.tensor(prompt), GenerationConfig(**options))
    return generate(lambda ids, state: table[ids[:, -1]].clone(), *given, generator=generator, on_token=on_token)


def test_wide_beam_search_is_exact():
    """Against every text of up to four tokens."""
    table, options = toy(4), {"num_beams": 64, "num_return_sequences": 5, "early_stopping": "never"}
    found = written(table, [[2], [3]], eos_token_id=0, max_new_tokens=4, length_penalty=0.7, **options)
    for b, start in enumerate((2, 3)):
        texts = [t for n in range(1, 5) for t in itertools.product(range(4), repeat=n) if 0 not in t[:-1]]
        texts = [t for t in texts if len(t) == 4 or t[-1] == 0]
        scores = {t: sum(table[a, b] for a, b in itertools.pairwise((start, *t))).item() / len(t) ** 0.7 for t in texts}
        best = sorted(scores, key=scores.get, reverse=True)[:5]
        assert [tuple(t) for t in found.tokens()[b]] == best
        assert torch.allclose(found.scores[b], torch.tensor([scores[t] for t in best], dtype=torch.float64))


def test_diverse_beam_groups():
    table, options = toy(9, 3), {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 5}
    found = written(table, [[2]], num_beam_groups=4, diversity_penalty=5.0, **options)
    assert len({tokens[0] for tokens in found.tokens()[0]}) == 4  # each greedy, all with different first tokens
    for tokens, score in zip(found.tokens()[0], found.scores[0], strict=True):
        log_p = sum(table[a, b] for a, b in itertools.pairwise((2, *tokens)))
        assert abs(log_p / 5 - score) < 1e-9  # the penalty affects the choice, not the score
    together, apart = written(table, [[2]], **options), written(table, [[2]], num_beam_groups=2, **options)
    assert apart.scores.max() <= together.scores.max() + 1e-12
    greedy = written(table, [[2]], max_new_tokens=5)
    assert greedy.tokens()[0][0] in found.tokens()[0]  # the first group is not penalized


def test_finished_sentences_are_dropped():
    """Sentence 0 ends at once: later steps have one row fewer."""
    rows = []

    def step(ids, state):
        rows.append(len(ids))
        return torch.nn.functional.one_hot((ids[:, -1] - 1).clamp_min(0), 10).float()

    state = NoState()
    found = generate(step, state, torch.tensor([[1], [5], [3]]), GenerationConfig(eos_token_id=0, max_new_tokens=9))
    assert rows == [3, 2, 2, 1, 1]
    assert [move.flatten().tolist() for move in state.moves] == [[1, 2], [0]]
    assert found.tokens() == [[[0]], [[4, 3, 2, 1, 0]], [[2, 1, 0]]]
    assert found.lengths.tolist() == [[1], [5], [3]]


def test_streaming():
    streamed, table, generator = [], toy(8), torch.Generator().manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 2, "eos_token_id": 0, "max_new_tokens": 6}
    found = written(table, [[1], [2]], lambda row, token: streamed.append((row, token)), generator, **options)
    for row in range(4):
        assert [token for at, token in streamed if at == row] == found.tokens()[row // 2][row % 2]
    refused("nothing to stream", written, table, [[1]], print, num_beams=2, max_new_tokens=2)


SAMPLERS = {
    "plain": ({}, lambda p: p),
    "temperature": ({"temperature": 0.5}, lambda p: p**2),
    "top_k": ({"top_k": 3}, lambda p: p * (p >= p.sort().values[-3])),
    "top_p": ({"top_p": 0.6}, lambda p: p * torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])),
    "cold": ({"temperature": 1e-40}, lambda p: p * (p == p.max())),
    "min_p": ({"min_p": 0.3}, lambda p: p * (p >= 0.3 * p.max())),
    "all": ({"temperature": 2.0, "top_k": 4, "top_p": 0.7}, lambda p: p.sqrt() * torch.tensor([1, 1, 1, 0, 0, 0])),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_distribution(name):
    options, keep = SAMPLERS[name]
    p = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    config = GenerationConfig(do_sample=True, max_new_tokens=1, **options)
    drawn = sample(p.log().expand(40_000, -1), config, torch.Generator().manual_seed(0))
    expected = keep(p) / keep(p).sum()
    found = drawn.bincount(minlength=6) / len(drawn)
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 0.01
    again = sample(p.log().expand(40_000, -1), config, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    uniform = torch.linspace(0, 1, 40_001, dtype=torch.float64)[:-1]
    inverse = sample(p.log().expand(40_000, -1), config, uniform=uniform)
    assert torch.allclose(inverse.bincount(minlength=6) / 40_000, expected, atol=1e-4)


def test_banned_tokens():
    ids = torch.tensor([[1, 2, 3, 1, 2], [4, 4, 4, 4, 4], [5, 6, 7, 8, 9]])
    scores = torch.zeros(3, 10)
    ban_repeated_ngrams(scores, ids, 3)
    assert (scores == -math.inf).nonzero().tolist() == [[0, 3], [1, 4]]
    scores = torch.zeros(3, 10)
    ban_sequence(scores, ids, (8, 9, 0))
    ban_sequence(scores, ids, (6,))
    assert (scores == -math.inf).nonzero().tolist() == [[0, 6], [1, 6], [2, 0], [2, 6]]


# The configuration --------------------------------------------------------------------------------------------------


def test_reads_public_generation_config(tmp_path):
    path = tmp_path / "generation_config.json"
    values = {"num_beams": 4, "eos_token_id": [1, 2], "max_length": 60, "transformers_version": "4.57.0", "top_k": None}
    path.write_text(json.dumps(values | {"typical_p": 1.0, "use_cache": True, "bad_words_ids": [[3]]}))
    found = GenerationConfig.read(path)
    assert (found.num_beams, found.eos, found.pad, found.max_length, found.top_k) == (4, (1, 2), 1, 60, 0)
    assert found.room(10) == 50
    path.write_text(json.dumps(values | {"penalty_alpha": 0.6}))
    refused(r"generation_config.json: not supported.*penalty_alpha = 0.6", GenerationConfig.read, path)
    path.write_text(json.dumps(values | {"typical_p": 0.9}))
    refused(r"typical_p = 0.9", GenerationConfig.read, path)
    path.write_text("{")
    refused(r"generation_config.json: not JSON", GenerationConfig.read, path)


def test_public_defaults():
    assert GenerationConfig.from_public({}).max_new_tokens == 20
    assert GenerationConfig.from_public({"do_sample": True}).top_k == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, found 0"),
        ({"num_beams": 0}, "num_beams must be at least 1, found 0"),
        ({"early_stopping": "always"}, "early_stopping must be true, false or"),
        ({"do_sample": True, "num_beams": 2}, "sampling within beams is not supported"),
        ({"num_beams": 4, "num_beam_groups": 3}, "not a multiple"),
        ({"diversity_penalty": 1.0}, "give num_beam_groups"),
        ({"num_return_sequences": 2}, "needs as many beams, or sampling"),
    ],
)
def test_invalid_configurations(options, message):
    refused(message, GenerationConfig, **options)


@pytest.mark.parametrize(
    "option",
    [
        {"num_beams": "4"},
        {"num_beams": 10**30},
        {"max_length": True},
        {"eos_token_id": 1.5},
        {"eos_token_id": [1, None]},
        {"bad_words_ids": [1]},
        {"length_penalty": "x"},
        {"do_sample": 1},
    ],
)
def test_types_of_public_options(option):
    (name,) = option
    refused(f"generation config: {name}: expected .*, found ", GenerationConfig.from_public, option)


def test_length_limits():
    refused("give max_new_tokens or max_length", GenerationConfig().room, 1)
    refused("max_length=3 leaves no room after a prompt of 3 tokens", GenerationConfig(max_length=3).room, 3)


def test_missing_prompt_or_start_token_raises(model, source):
    refused("at least one token each", written, toy(4), [[], []], max_new_tokens=1)
    refused("decoder_start_token_id", model.generate, *source, GenerationConfig(max_new_tokens=1))
