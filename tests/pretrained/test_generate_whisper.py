"""Whisper generates the ids of transformers' `generate`: languages, tasks, timestamps, beams, long recordings."""

import json
import math

import pytest
import test_whisper
import torch
from public import load, rewrite
from public_seq2seq import sharpened

from mmattn import load_generation_config
from mmattn.generate import GenerationConfig
from mmattn.generate.languages import CODES
from mmattn.generate.speech import SpeechConfig, pair_timestamps, split_segments
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TEXT, END, START, NO_STAMPS = 12, 12, 13, 19  # ids 0 .. 11 are text
LANGUAGES = {"<|en|>": 14, "<|de|>": 15, "<|fr|>": 16}
TASKS = {"translate": 17, "transcribe": 18}
STATES = 12  # per window; one more timestamp than this follows NO_STAMPS
VOCAB = NO_STAMPS + 1 + STATES + 1
# As in OpenAI's folders.
PUBLIC = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": END, "bos_token_id": END}
PUBLIC |= {"lang_to_id": LANGUAGES, "task_to_id": TASKS, "is_multilingual": True, "no_timestamps_token_id": NO_STAMPS}
PUBLIC |= {"suppress_tokens": [1, 2, START, *LANGUAGES.values(), *TASKS.values()], "begin_suppress_tokens": [3, END]}
PUBLIC |= {"forced_decoder_ids": [[1, None], [2, TASKS["transcribe"]]], "max_initial_timestamp_index": 5}
PUBLIC |= {"return_timestamps": False, "max_length": 40, "alignment_heads": [[0, 0]], "prev_sot_token_id": 0}
SEEDS = (1, 2, 3)
WAYS = {
    "options of the folder": {},
    "a language": {"language": "de"},
    "a language, translation": {"language": "<|fr|>", "task": "translate"},
    "a language by name": {"language": "German"},
    "a task, the language detected": {"task": "translate"},
    "a language per recording": {"language": ["de", "en", "fr"]},
}
SEARCHES = {
    "greedy": {},
    "greedy, short": {"max_new_tokens": 7},
    "beams": {"num_beams": 4},
    "beams, length penalty": {"num_beams": 3, "length_penalty": 0.3, "max_new_tokens": 12},
    "beams, no repeats": {"num_beams": 3, "no_repeat_ngram_size": 2},
}


def write(seed, **options):
    """A random Whisper with varied outputs: timestamps, text and occasional end tokens."""
    sizes = {"d_model": 24, "num_mel_bins": 6, "vocab_size": VOCAB, "max_source_positions": STATES}
    sizes |= {"encoder_layers": 2, "decoder_layers": 2, "max_target_positions": 40, "tie_word_embeddings": False}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_attention_heads": 4, f"{side}_ffn_dim": 32}
    ids = {"pad_token_id": END, "bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": START}
    _, theirs = test_whisper.model(seed, **sizes, **ids, activation_function="gelu")
    sharpened(theirs, seed, gain=1.3, noise=0.3)
    bias = theirs.model.decoder.layer_norm.bias.detach()
    with torch.no_grad():  # the end token, more probable everywhere
        theirs.proj_out.weight[END] += 2.0 * bias / bias.square().sum()
    theirs.generation_config = transformers.GenerationConfig(**PUBLIC | options)
    return theirs


def folder_of(theirs, folder):
    """save_pretrained rejects some options of OpenAI's folders: the generation config is written directly."""
    theirs.save_pretrained(folder)
    values = theirs.generation_config.to_diff_dict() | {
        key: value for key, value in PUBLIC.items() if getattr(theirs.generation_config, key, None) == value
    }
    (folder / "generation_config.json").write_text(json.dumps(values))


def written(folder, seed, **options):
    """The random Whisper, and our model and generation config loaded from its folder."""
    theirs = write(seed, **options)
    folder_of(theirs, folder)
    return theirs, load(folder), load_generation_config(folder)


def sound(frames, rows, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(rows, frames, 6, generator=generator, dtype=torch.float64)


def settled(config, way, search):
    """The loaded config with the options that transformers takes as arguments."""
    return SpeechConfig(**{**vars(config), **way, **search})


@pytest.mark.parametrize("stamps", slow_but_first([True, False]))
@pytest.mark.parametrize("search", slow_but_first(SEARCHES))
@pytest.mark.parametrize("way", slow_but_first(WAYS))
def test_ids_of_one_window_equal_transformers(way, search, stamps, tmp_path):
    """Prompt and ids equal those of one call of transformers."""
    hypotheses, lengths = set(), set()
    for seed in SEEDS:
        theirs, ours, config = written(tmp_path, seed)
        features = sound(2 * STATES, 3, seed)
        options = WAYS[way] | SEARCHES[search] | {"return_timestamps": stamps}
        with torch.no_grad():
            expected = theirs.generate(features.mT, force_unique_generate_call=True, **options)
        config = settled(config, WAYS[way], SEARCHES[search] | {"return_timestamps": stamps})
        prompt = ours.prompt(ours.encode(features), None, config)
        found = torch.cat([prompt, ours.generate(features, None, config).ids[:, 0]], dim=1)
        assert found.tolist() == expected.tolist()
        hypotheses |= {tuple(row) for row in found[:, prompt.shape[1] :].tolist()}
        lengths |= {row.index(END) if END in row else len(row) for row in found.tolist()}
        assert (NO_STAMPS in prompt[0].tolist()) != stamps
        assert not stamps or bool((found[:, prompt.shape[1]] > NO_STAMPS).all())
    assert len(hypotheses) > len(SEEDS)
    assert len(lengths) > 1 or search == "greedy, short"  # some end before others


@pytest.mark.parametrize("search", slow_but_first(["greedy", "beams"]))
@pytest.mark.parametrize("frames", slow_but_first([5 * STATES, 5, 2 * STATES, 2 * STATES + 1, 11 * STATES]))
def test_segments_of_any_length_equal_transformers(frames, search, tmp_path):
    """Window by window, as in transformers' transcription with timestamps."""
    kinds = set()
    for seed in (*SEEDS, 7, 8, 9):
        theirs, ours, config = written(tmp_path, seed)
        features = sound(frames, 1, seed)
        padded = torch.nn.functional.pad(features, (0, 0, 0, max(0, 2 * STATES - frames)))
        # Short recordings are padded to a window for transformers; then the whole window counts.
        with torch.no_grad():
            expected = theirs.generate(
                padded.mT, return_timestamps=True, language="de", return_segments=True, **SEARCHES[search]
            )["segments"][0]
        config = settled(config, {"language": "de"}, SEARCHES[search])
        found = list(ours.transcribe(padded[0], config))
        assert [segment.ids for segment in found] == [segment["tokens"].tolist() for segment in expected]
        for one, other in zip(found, expected, strict=True):
            assert math.isclose(one.start, float(other["start"]), abs_tol=1e-9)
            assert math.isclose(one.end, float(other["end"]), abs_tol=0.0101)  # an odd frame, truncated or not
        kinds |= {tuple(token > NO_STAMPS for token in segment.ids[-2:]) for segment in found}
    assert len(kinds) > 1  # windows that end with a complete segment, and those cut off


def test_detects_the_most_probable_language(tmp_path):
    for seed in SEEDS:
        theirs, ours, config = written(tmp_path, seed)
        features = sound(2 * STATES, 3, seed)
        expected = theirs.detect_language(features.mT).tolist()
        detected = ours.detect_language(features, None, config)
        assert [LANGUAGES[f"<|{next(iter(row))}|>"] for row in detected] == expected
        assert all(abs(sum(row.values()) - 1) < 1e-9 for row in detected)
        assert ours.prompt(ours.encode(features), None, config)[:, 1].tolist() == expected
    config = SpeechConfig(max_new_tokens=3, decoder_start_token_id=START)
    refused("has no languages", ours.detect_language, features, None, config)


def test_language_names_equal_transformers():
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    assert CODES == TO_LANGUAGE_CODE


@pytest.mark.parametrize("stamps", [False, True])
def test_english_only_model(stamps, tmp_path):
    """OpenAI's .en folders: no languages, <|notimestamps|> forced."""
    english = {"lang_to_id": None, "task_to_id": None, "is_multilingual": False, "forced_decoder_ids": [[1, NO_STAMPS]]}
    theirs = write(1, **english)
    for name in ("lang_to_id", "task_to_id"):
        delattr(theirs.generation_config, name)
    folder_of(theirs, tmp_path)
    ours, config = load(tmp_path), load_generation_config(tmp_path)
    features = sound(2 * STATES, 3, 1)
    with torch.no_grad():
        expected = theirs.generate(features.mT, force_unique_generate_call=True, return_timestamps=stamps)
    config = settled(config, {}, {"return_timestamps": stamps})
    prompts = config.prompts(3)
    assert prompts == [[START] if stamps else [START, NO_STAMPS]] * 3
    found = ours.generate(features, None, config).ids[:, 0]
    assert torch.cat([torch.tensor(prompts), found], dim=1).tolist() == expected.tolist()
    refused("an English model takes no language", settled, config, {"language": "en"}, {})


def test_old_checkpoint_folders(tmp_path):
    """Without generation_config.json: options in config.json; or only forced_decoder_ids in config.json."""
    theirs = write(1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    forced = [[1, 15], [2, TASKS["transcribe"]], [3, NO_STAMPS]]
    rewrite(tmp_path, forced_decoder_ids=forced, suppress_tokens=[1, 2], max_length=9)
    config = load_generation_config(tmp_path)
    assert isinstance(config, SpeechConfig)
    assert (config.suppress_tokens, config.max_length) == ([1, 2], 9)
    assert config.prompts(1) == [[START, 15, TASKS["transcribe"], NO_STAMPS]]
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": START, "max_length": 5}))
    config = load_generation_config(tmp_path)
    assert config.prompts(1) == [[START, 15, TASKS["transcribe"], NO_STAMPS]]
    default, found = transformers.WhisperConfig(), tmp_path / "new"
    found.mkdir()
    (found / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    config = load_generation_config(found)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"):
        assert getattr(config, name) == getattr(default, name)
    assert list(config.begin_suppress_tokens) == list(default.begin_suppress_tokens)


def test_unsupported_options_raise(tmp_path):
    folder_of(write(1), tmp_path)
    values = json.loads((tmp_path / "generation_config.json").read_text())
    for key, value in {"no_speech_threshold": 0.6, "condition_on_prev_tokens": True, "logprob_threshold": -1.0}.items():
        (tmp_path / "generation_config.json").write_text(json.dumps(values | {key: value}))
        refused(rf"generation_config\.json: not supported.*{key} = ", load_generation_config, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "xx"}, "unknown language 'xx'; expected one of: en, de, fr"),
        ({"task": "sing"}, "unknown task 'sing'; expected one of: translate, transcribe"),
        ({"language": ["en", "de"]}, "2 languages for 3 recordings"),
        ({"no_timestamps_token_id": None, "return_timestamps": True}, "needs no_timestamps_token_id"),
        ({"decoder_start_token_id": None}, "expected an id, found none in the generation config"),
        ({"forced_decoder_ids": [[2, 5]]}, r"one by one, found places \[2\]"),
        ({"lang_to_id": None, "language": "en"}, "unknown language 'en'; expected one of: none"),
    ],
)
def test_invalid_options_raise(options, message):
    refused(message, lambda: SpeechConfig(**PUBLIC_FIELDS | options).prompts(3))


PUBLIC_FIELDS = {key: value for key, value in PUBLIC.items() if key not in ("alignment_heads", "prev_sot_token_id")}


def test_plain_config_needs_only_a_start_token(tmp_path):
    _, ours, _ = written(tmp_path, 1)
    features = sound(2 * STATES, 2, 1)
    config = GenerationConfig(decoder_start_token_id=START, eos_token_id=END, max_new_tokens=5)
    found = ours.generate(features, None, config)
    with torch.no_grad():
        logits = ours(features, None, torch.full((2, 1), START))[:, -1]
    assert found.ids[:, 0, 0].tolist() == logits.argmax(1).tolist()
    refused("decoder_start_token_id", ours.generate, features, None, GenerationConfig(max_new_tokens=5))


@pytest.mark.parametrize("seed", slow_but_first(range(20)))
def test_timestamp_rule_equals_transformers(seed):
    """The timestamp rule on all kinds of prefixes that it allows."""
    generator = torch.Generator().manual_seed(seed)
    config = SpeechConfig(**PUBLIC_FIELDS | {"return_timestamps": True})
    config_theirs = transformers.GenerationConfig(**PUBLIC)
    rule = transformers.WhisperTimeStampLogitsProcessor(config_theirs, begin_index=3)
    ids = torch.tensor([[START, 14, 18]]).expand(8, -1)
    for _ in range(9):
        scores = torch.randn(8, VOCAB, generator=generator) * 3
        expected = rule(ids, scores)
        pair_timestamps(scores, ids, config, 3)
        assert torch.equal(scores, expected)
        new = scores.softmax(1).nan_to_num(1 / VOCAB).multinomial(1, generator=generator)
        ids = torch.cat([ids, new], dim=1)


@pytest.mark.parametrize(
    ("ids", "segments", "moved"),
    [
        ([20, 1, 2, 25], [(0, 5, [20, 1, 2, 25])], 24),  # one complete segment
        ([20, 1, 2], [(0, 12, [20, 1, 2])], 24),  # no end: the whole window
        ([21, 1, 23, 23, 2, 26], [(1, 3, [21, 1, 23]), (3, 6, [23, 2, 26])], 24),
        ([21, 1, 23, 24, 2], [(1, 3, [21, 1, 23, 24])], 6),  # the segment cut off is transcribed again
        ([], [(0, 12, [])], 24),
    ],
)
def test_segments(ids, segments, moved):
    assert split_segments(ids, 20, 24) == (segments, moved)
