import json
import math

import pytest
import torch

from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.generate import GenerationConfig, generate
from mmattn.generate.beams import beam_search
from mmattn.generate.constraints import ban_repeated_ngrams, ban_sequence
from mmattn.generate.sampling import sample
from mmattn.generate.topk import top_k

from marian import marian, ours

START, EOS, PAD, V = 0, 1, 2, 40
SEARCHES = {
    "greedy": {},
    "beam 4, length penalty": {"num_beams": 4, "length_penalty": 0.6},
    "beam 3, long": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
    "beam 4, early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    "beam 3, no repeat": {"num_beams": 3, "no_repeat_ngram_size": 2},
    "greedy, no repeat": {"no_repeat_ngram_size": 2},
    "beam 3, penalised": {"num_beams": 3, "repetition_penalty": 1.5},
    "greedy, penalised": {"repetition_penalty": 1.5},
    "beam 3, forced": {"num_beams": 3, "forced_bos_token_id": 7, "forced_eos_token_id": EOS},
    "greedy, forced": {"forced_bos_token_id": 7, "forced_eos_token_id": EOS},
    "beam 3, forbidden": {
        "num_beams": 3,
        "suppress_tokens": [5, 6, 7],
        "begin_suppress_tokens": [8, 9],
        "min_length": 6,
    },
    "beam 3, bad words": {"num_beams": 3, "bad_words_ids": [[PAD], [11, 12], [13]], "min_new_tokens": 4},
    "beam 2, two ends": {"num_beams": 2, "eos_token_id": [EOS, 5, 6]},
}
OPTIONS = {"decoder_start_token_id": START, "eos_token_id": EOS, "pad_token_id": PAD, "max_length": 14}


def config(**keywords):
    return GenerationConfig(**(OPTIONS | keywords))


def vary(model):
    """Random weights of which texts come that do not repeat one token, and that end at different lengths."""
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


def full_log_p(model, source, key_mask, tokens):
    """log p of tokens in one teacher-forced pass."""
    logits = model(source, key_mask, torch.tensor([[START, *tokens[:-1]]]))
    return logits.log_softmax(-1)[0, torch.arange(len(tokens)), torch.tensor(tokens)].sum()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_batch_is_one_by_one(model, source, name):
    ids, key_mask = source
    together = model.generate(ids, key_mask, config(**SEARCHES[name]))
    for b in range(len(ids)):
        alone = model.generate(ids[b : b + 1, : key_mask[b].sum()], None, config(**SEARCHES[name]))
        assert alone.tokens()[0] == together.tokens()[b]
        assert torch.allclose(alone.scores[0], together.scores[b], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["greedy", "beam 4, length penalty", "beam 4, early", "beam 3, no repeat"])
def test_scores_are_those_of_a_full_pass(model, source, name):
    ids, key_mask = source
    found = model.generate(ids, key_mask, config(**SEARCHES[name]))
    penalty = SEARCHES[name].get("length_penalty", 1.0)
    for b, best in enumerate(found.tokens()):
        for n, tokens in enumerate(best):
            expected = full_log_p(model, ids[b : b + 1], key_mask[b : b + 1], tokens) / len(tokens) ** penalty
            assert abs(expected - found.scores[b, n]) < 1e-8
    if name in ("greedy", "beam 4, early"):
        assert len(set(found.lengths.flatten().tolist())) > 1  # sentences ended at different steps, and left


def test_beam_of_one_is_greedy(model, source):
    ids, key_mask = source
    greedy = model.generate(ids, key_mask, config())
    with torch.inference_mode():
        prompt = torch.full((len(ids), 1), START)
        one = beam_search(model.step, model.start(ids, key_mask), prompt, config())
    assert torch.equal(greedy.ids, one[0])
    assert torch.equal(greedy.lengths, one[1])
    assert torch.allclose(greedy.scores, one[2])


def test_beams_find_what_greedy_misses(model, source):
    ids, key_mask = source
    greedy = model.generate(ids, key_mask, config(length_penalty=0.0))
    beams = model.generate(ids, key_mask, config(num_beams=8, length_penalty=0.0))
    assert (beams.scores[:, 0] - greedy.scores[:, 0]).sum() > 0.1


@pytest.mark.parametrize("name", ["beam 4, early", "greedy"])
@pytest.mark.parametrize("kind", ["dense", "additive", "linear"])
def test_beams_as_rows_and_merged(source, kind, name):
    """Beams that share their sentence's rows find what beams with rows of their own find."""
    torch.manual_seed(0)
    model = vary(Seq2Seq(V, 16, 2, 4, decoder_attention=kind, tied_output=False))
    ids, key_mask = source
    prompt = torch.full((len(ids), 2), START)
    found = []
    with torch.inference_mode():
        for merged in (True, False):
            state = model.start(ids, key_mask)
            assert state.merged is (kind == "dense")
            state.merged &= merged
            found.append(generate(model.step, state, prompt, config(**SEARCHES[name])))
    assert found[0].tokens() == found[1].tokens()
    assert torch.allclose(found[0].scores, found[1].scores)


@pytest.mark.parity
@pytest.mark.parametrize("name", SEARCHES)
def test_same_ids_as_transformers(source, name):
    pytest.importorskip("transformers")
    from transformers import GenerationConfig as Theirs

    keywords = {
        "vocab_size": V,
        "d_model": 16,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": START,
    }
    keywords |= {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 32))
    }
    theirs = marian(3, max_position_embeddings=32, **keywords).double()
    with torch.no_grad():
        theirs.final_logits_bias[0, EOS] += 1.0
    model = ours(theirs)
    ids, key_mask = source
    options = OPTIONS | {"num_beams": 1, "do_sample": False} | SEARCHES[name]
    expected = theirs.generate(ids, attention_mask=key_mask.long(), generation_config=Theirs(**options))
    found = model.generate(ids, key_mask, GenerationConfig(**options))
    n = options.get("num_return_sequences", 1)
    for row, tokens in enumerate(expected[:, 1:].tolist()):
        assert [*found.tokens()[row // n][row % n], *[PAD] * 20][: len(tokens)] == tokens
    assert len(set(expected.flatten().tolist())) > 5  # not the same token again and again
