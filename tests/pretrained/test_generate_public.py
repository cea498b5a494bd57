"""Folders saved by transformers generate the ids of its `generate`, with the options of generation_config.json."""

import json

import pytest
import test_bart
import test_marian
import test_t5
import test_whisper
import torch
from public import SHAPES, load, rewrite
from public_seq2seq import assert_same_text, sharpened
from test_t5 import exact  # noqa: F401, a fixture

from mmattn import load_generation_config, load_pretrained
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SEEDS = {"marian": [4, 31, 37], "bart": [5, 22, 23], "t5": [10, 27, 33]}
MODELS = {"marian": test_marian.model, "bart": test_bart.model, "t5": test_t5.model}
WAYS = {
    "greedy": {"max_length": 12},
    "greedy, default length": {},
    "greedy, no repeated pair": {"max_new_tokens": 14, "no_repeat_ngram_size": 2},
    "greedy, forced": {"max_length": 10, "forced_bos_token_id": 5, "forced_eos_token_id": 2},
    "greedy, repetition and length": {"max_length": 12, "repetition_penalty": 1.7, "min_length": 6},
    "greedy, two minima": {"max_length": 12, "min_length": 11, "min_new_tokens": 3},
    "greedy, no minimum": {"max_length": 12, "min_length": 11, "min_new_tokens": 0},
    "beams": {"max_length": 12, "num_beams": 4},
    "beams, short": {"max_length": 12, "num_beams": 4, "length_penalty": 0.3},
    "beams, long": {"max_length": 12, "num_beams": 4, "length_penalty": 2.5, "min_length": 4},
    "beams, early": {"max_new_tokens": 12, "num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    "beams, never early": {"max_new_tokens": 12, "num_beams": 3, "early_stopping": "never"},
    "beams, as CNN/DailyMail": {
        "max_length": 14,
        "min_length": 6,
        "num_beams": 4,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "forced_bos_token_id": 4,
        "forced_eos_token_id": 2,
    },
    "beams, as Opus-MT": {
        "max_length": 12,
        "num_beams": 6,
        "bad_words_ids": [[7], [3, 4]],
        "forced_eos_token_id": 2,
        "renormalize_logits": False,
    },
    "beams, forbidden": {
        "max_length": 12,
        "num_beams": 3,
        "suppress_tokens": [5, 6],
        "begin_suppress_tokens": [8, 9],
        "min_length": 6,
    },
    "beams, bad words": {"max_length": 12, "num_beams": 3, "bad_words_ids": [[1], [11, 12]], "min_new_tokens": 4},
    "beams, two end tokens": {"max_length": 12, "num_beams": 2, "eos_token_id": [2, 5, 6]},
    "beams, forced": {"max_length": 10, "num_beams": 3, "forced_bos_token_id": 7, "forced_eos_token_id": 2},
    "beams, penalized": {"max_length": 12, "num_beams": 3, "repetition_penalty": 1.5},
    "beams, no repeats": {"max_length": 14, "num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
}


def write(family, seed):
    """A random model with varied outputs: different texts, some of which end before the maximum length."""
    config = {"vocab_size": 13, "pad_token_id": 1, "eos_token_id": 2, "d_model": 24, "tie_word_embeddings": seed < 20}
    config |= {"decoder_start_token_id": 2 if family == "bart" else 1}
    # Equal numbers of layers on both sides: the caches of transformers 5 count the encoder's.
    if family == "t5":
        config |= {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 5, "d_ff": 32}
    else:
        for side in ("encoder", "decoder"):
            config |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 32}
        config |= {"max_position_embeddings": 40, "forced_eos_token_id": None, "scale_embedding": True}
    if family == "marian":
        config |= {"decoder_vocab_size": 13}
    _, theirs = MODELS[family](seed, **config)
    sharpened(theirs, seed, gain=1.0, noise=0.1)
    if family == "marian":
        test_marian.exact(theirs)
    if family != "t5":
        theirs.final_logits_bias[0, 2] += 0.7
    return theirs


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", [test_bart, test_marian, test_t5, test_whisper], ids=lambda family: family.__name__)
def test_parity(family, seed, tmp_path):
    """Parity of every layer and the logits, with padding in the batch."""
    found = family.compare(seed, tmp_path)
    assert found.holds, found


@pytest.mark.parametrize("way", slow_but_first(WAYS, lambda way: way.startswith("beams")))
@pytest.mark.parametrize("family", MODELS)
def test_ids_equal_transformers(family, way, tmp_path, exact):  # noqa: F811
    lengths = set()
    for seed in SEEDS[family]:
        rows = assert_same_text(write(family, seed), tmp_path, 13, test_t5.write, **WAYS[way])
        lengths |= {next((i for i, token in enumerate(row) if i and token == 2), len(row)) for row in rows}
        if "forced_bos_token_id" in WAYS[way]:
            assert {row[1] for row in rows} == {WAYS[way]["forced_bos_token_id"]}
    assert len(lengths) > 1  # some end before others


def test_options_from_the_model_config(tmp_path):
    """Older folders have these options in config.json, without the defaults of its class."""
    theirs = write("bart", 1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    older = {"num_beams": 4, "max_length": 11, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "min_length": 3}
    rewrite(tmp_path, **older)
    config = load_generation_config(tmp_path)
    assert {name: getattr(config, name) for name in older} == older
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        values.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = load_generation_config(tmp_path)
    default = transformers.BartConfig()
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        assert getattr(config, name) == getattr(default, name)


@pytest.mark.parametrize("family", MODELS)
def test_defaults_equal_transformers(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    found = load_generation_config(tmp_path)
    default = {"marian": transformers.MarianConfig, "bart": transformers.BartConfig, "t5": transformers.T5Config}[
        family
    ]()
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        assert getattr(found, name) == getattr(default, name, None), name


def test_unsupported_options_raise(tmp_path):
    theirs = write("marian", 1)
    theirs.generation_config.update(max_length=9, exponential_decay_length_penalty=[2, 1.5])
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"generation_config\.json: not supported.*exponential_decay_length_penalty"):
        load_generation_config(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    rewrite(tmp_path, typical_p=0.5)
    refused(r"config\.json: not supported, and it would .*: typical_p = 0\.5", load_generation_config, tmp_path)
    refused("no folder own/er", load_generation_config, "own/er", error=FileNotFoundError)


@pytest.mark.parametrize("family", MODELS)
def test_converted_model_trains(family, tmp_path):
    test_t5.write(write(family, SEEDS[family][0]), tmp_path)
    model = load(tmp_path).train()
    ids = torch.randint(13, (2, 6), generator=torch.Generator().manual_seed(0))
    loss = model(ids, ids != 12, ids[:, :4]).flatten(0, 1).log_softmax(-1).gather(1, ids[:, 1:5].reshape(-1, 1))
    loss.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_single_precision(tmp_path):
    theirs = write("marian", 2).float()
    theirs.generation_config.update(max_length=12, num_beams=4)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(3, 13, (3, 6), generator=torch.Generator().manual_seed(1))
    found = load_pretrained(tmp_path).generate(ids, None, load_generation_config(tmp_path))
    with torch.no_grad():
        assert found.ids[:, 0].tolist() == theirs.generate(input_ids=ids)[:, 1:].tolist()
    assert load(tmp_path).output.weight.dtype == torch.float64
