"""Random BLIPs: ours equal transformers' in every layer and in the texts that they generate."""

import json

import pytest
import torch
from public import SHAPES, TOLERANCE, assert_public_size, assert_refused, difference, load, rewrite, shape
from public_image_text import (
    END,
    PAD,
    START,
    UNUSED_END,
    WAYS,
    V,
    assert_cached_equals_full,
    assert_captured_equals_fused,
    assert_generated,
    assert_rows,
    assert_trains,
    lively,
    recorded,
)
from public_seq2seq import sharpened
from safetensors.torch import load_file

from mmattn import load_generation_config, load_pretrained
from mmattn.backbones.image_text import ImageToText
from mmattn.pretrained.blip import convert_blip
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

CAPTIONS, QUESTIONS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
OURS = {CAPTIONS: ["image.encoder.layers", "text.decoder.layers"]}
OURS[QUESTIONS] = [OURS[CAPTIONS][0], "question.decoder.layers", OURS[CAPTIONS][1]]
THEIRS = {CAPTIONS: ["vision_model.encoder.layers", "text_decoder.bert.encoder.layer"]}
THEIRS[QUESTIONS] = [THEIRS[CAPTIONS][0], "text_encoder.encoder.layer", THEIRS[CAPTIONS][1]]


def model(name, seed, **text):
    """A random BLIP of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    sizes |= {key: text.pop(key) for key in sizes if key in text}
    patch = draw.choice([2, 3, 4])
    vision = shape(seed + 100)[1] if name == CAPTIONS else sizes  # questions and images have states of one size
    vision = vision | {
        "image_size": patch * draw.choice([1, 2, 3]) + draw.choice([0, 1]),
        "patch_size": patch,
        "layer_norm_eps": draw.choice([1e-5, 1e-3]),
    }
    tied = text.pop("tie_word_embeddings", draw.random() < 0.7)
    text = sizes | {
        "vocab_size": V,
        "max_position_embeddings": draw.choice([12, 30]),
        "layer_norm_eps": draw.choice([1e-12, 1e-3]),
        "tie_word_embeddings": tied,
        "bos_token_id": START,
        "sep_token_id": END,
        "eos_token_id": UNUSED_END,
        "pad_token_id": PAD,
        **text,
    }
    config = transformers.BlipConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    return draw, sharpened(getattr(transformers, name)(config), seed)


def inputs(draw, theirs, seed, rows=3):
    """Images, questions with padding at the right, and their masks and lengths."""
    generator = torch.Generator().manual_seed(seed)
    side = theirs.config.vision_config.image_size
    pixels = torch.randn(rows, 3, side, side, generator=generator, dtype=torch.float64)
    lengths = [draw.randint(1, 9) for _ in range(rows)]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, V, mask.shape, generator=generator).masked_fill(~mask, PAD)
    return pixels, ids, mask, lengths


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("name", [CAPTIONS, QUESTIONS])
def test_parity(name, seed, tmp_path):
    draw, theirs = model(name, seed)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tied = theirs.config.text_config.tie_word_embeddings
    assert (ours.text.output.tokens.weight is ours.text.embedding.weight) == tied
    pixels, ids, mask, lengths = inputs(draw, theirs, seed)
    target = torch.randint(V, (3, draw.randint(1, 9)), generator=torch.Generator().manual_seed(seed))
    given = (ids, mask) if name == QUESTIONS else ()
    logits, states = recorded(ours, OURS[name], lambda: ours(pixels, target, *given))
    for row, length in enumerate(lengths):  # transformers attends to the padding of questions

        def run(row=row, length=length):
            image = pixels[row : row + 1]
            if name == CAPTIONS:
                return theirs(pixel_values=image, input_ids=target[row : row + 1]).logits
            memory = theirs.text_encoder(
                input_ids=ids[row : row + 1, :length], encoder_hidden_states=theirs.vision_model(image)[0]
            )[0]
            return theirs.text_decoder(input_ids=target[row : row + 1], encoder_hidden_states=memory).logits

        expected, layers = recorded(theirs, THEIRS[name], run)
        assert_rows([logits, *states], [expected, *layers], row)


def test_shapes_include_tied_and_untied():
    assert {model(CAPTIONS, n)[1].config.text_config.tie_word_embeddings for n in SHAPES} == {True, False}


@pytest.fixture(params=[CAPTIONS, QUESTIONS])
def blip(request, tmp_path):
    """A folder with a random tied BLIP, and the model."""
    theirs = model(request.param, 4, tie_word_embeddings=True)[1]
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs


def given_to(theirs, seed=0):
    pixels, ids, mask, _ = inputs(shape(seed)[0], theirs, seed)
    return (pixels, ids, mask) if type(theirs).__name__ == QUESTIONS else (pixels,)


def test_single_precision(blip):
    folder, theirs = blip
    pixels, *question = given_to(theirs)
    target = torch.randint(V, (3, 5))
    with torch.no_grad():
        expected = load(folder)(pixels, target, *question)
        found = load_pretrained(folder)(pixels.float(), target, *question)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_cached_equals_full(blip):
    assert_cached_equals_full(load(blip[0]), torch.randint(V, (3, 6)), *given_to(blip[1]))


def test_maps_equal_transformers(blip):
    folder, theirs = blip
    ours, (pixels, *question) = load(folder), given_to(theirs)
    target = torch.randint(V, (3, 6))
    maps = assert_captured_equals_fused(ours, pixels, target, *question)
    memory = ours.encode(pixels, *question)
    if not question:
        found = theirs.text_decoder(input_ids=target, encoder_hidden_states=memory, output_attentions=True)
        for kind in ("self", "cross"):
            expected = found["cross_attentions" if kind == "cross" else "attentions"]
            own = [maps[f"text.decoder.layers.{n}.{kind}_attention"][-1] for n in range(len(expected))]
            assert difference(own, [attended.detach() for attended in expected]) <= TOLERANCE
    else:
        asked = maps["question.decoder.layers.0.cross_attention"][-1]  # (B, h, L, S)
        patches = ours.image.grid_size[0] * ours.image.grid_size[1]
        assert asked.shape[2:] == (question[0].shape[1], 1 + patches)


def test_every_parameter_trains(blip):
    folder, theirs = blip
    pixels, *question = given_to(theirs)
    assert_trains(folder, pixels, torch.randint(V, (3, 5)), *question)


def test_kernel_by_name(blip):
    ours = load(blip[0], attention="linear", cross_attention="hard")
    kinds = {type(module.kernel).__name__ for module in ours.modules() if hasattr(module, "kernel")}
    assert kinds == {"Linear", "Hard", "Dense"}, kinds


def test_other_image_sizes_interpolate_positions(tmp_path):
    theirs = model(CAPTIONS, 4)[1]
    theirs.save_pretrained(tmp_path)
    patch = theirs.config.vision_config.patch_size
    pixels, target = torch.randn(2, 3, 5 * patch, 3 * patch, dtype=torch.float64), torch.randint(V, (2, 3))
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_ids=target, interpolate_pos_encoding=True).logits
        assert difference([load(tmp_path, resize_positions="bicubic")(pixels, target)], [expected]) <= TOLERANCE
    refused("where the positions are for", load(tmp_path), pixels, target)


def varied(name, seed):
    """A random model that generates texts of several lengths."""
    options = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
    theirs = model(name, seed, hidden_act="gelu", max_position_embeddings=40, tie_word_embeddings=False, **options)[1]
    return lively(theirs, seed, theirs.text_decoder)


SEEDS = {CAPTIONS: [2, 18, 19], QUESTIONS: [5, 8, 18]}


@pytest.mark.parametrize("way", slow_but_first(WAYS, lambda way: way.startswith("beams")))
@pytest.mark.parametrize("name", [CAPTIONS, QUESTIONS])
def test_ids_equal_transformers(name, way, tmp_path):
    lengths = set()
    for seed in SEEDS[name]:
        theirs = varied(name, seed)
        theirs.generation_config.update(**WAYS[way])  # transformers reads those of the decoder
        theirs.save_pretrained(tmp_path)
        ours, config = load(tmp_path), load_generation_config(tmp_path)
        pixels, ids, mask, sizes = inputs(shape(seed)[0], theirs, seed, rows=4)
        question = {"input_ids": ids, "key_mask": mask} if name == QUESTIONS else {}
        found = ours.generate(pixels, config, **question)
        for row, size in enumerate(sizes):
            given = {"input_ids": ids[row : row + 1, :size]} if question else {}
            expected = theirs.generate(pixel_values=pixels[row : row + 1], **given, **WAYS[way])
            lengths.add(assert_generated(found, row, expected))
    assert len(lengths) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_equal_transformers(beams, tmp_path):
    """Captions that begin with given words, also of several lengths; transformers replaces the first and last token."""
    theirs = varied(CAPTIONS, 18)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    config = load_generation_config(tmp_path)
    config = type(config)(**vars(config) | {"max_new_tokens": 8, "num_beams": beams})
    pixels = inputs(shape(18)[0], theirs, 18)[0]
    words = torch.tensor([[START, 5, 6, 7], [START, 9, 4, 8], [PAD, START, 8, 12]])
    expected = theirs.generate(pixels[:2], torch.cat([words[:2], torch.full((2, 1), END)], 1), **WAYS_OF[beams])
    found = ours.generate(pixels[:2], config, prompt=words[:2])
    assert found.ids[:, 0].tolist() == expected[:, 4:].tolist()
    mixed = ours.generate(pixels, config, prompt=words, prompt_mask=words != PAD)  # padded at the left
    assert mixed.tokens()[:2] == found.tokens()
    assert mixed.tokens()[2:] == ours.generate(pixels[2:], config, prompt=words[2:, 1:]).tokens()


WAYS_OF = {beams: {"max_new_tokens": 8, "num_beams": beams} for beams in (1, 3)}


def test_ids_of_the_generation_config(blip):
    """The separator ends texts whatever generation_config.json says, as in transformers' `generate`."""
    folder, _ = blip
    config = load_generation_config(folder)
    assert (config.start, config.eos, config.pad) == (START, (END,), PAD)
    (folder / "generation_config.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"num_beams": 3, "max_length": 30, "length_penalty": 0.5}  # older files have them there
    rewrite(folder, **values)
    config = load_generation_config(folder)
    assert (config.start, config.eos, config.num_beams, config.max_length) == (START, (END,), 3, 30)
    rewrite(folder, text_config={})
    config = load_generation_config(folder)
    assert (config.start, config.eos, config.pad) == (30522, (102,), 0)


def test_old_checkpoint_names(blip):
    """Position ids, and the tied output under each of its names."""
    folder, theirs = blip
    given, target = given_to(theirs), torch.randint(V, (3, 5))
    expected = load(folder)(given[0], target, *given[1:])
    state = load_file(folder / "model.safetensors")
    head = "text_decoder.cls.predictions"
    state[f"{head}.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"].clone()
    state[f"{head}.decoder.bias"] = state[f"{head}.bias"].clone()
    for part in ("text_decoder.bert", "text_encoder") if len(given) > 1 else ("text_decoder.bert",):
        state[f"{part}.embeddings.position_ids"] = torch.arange(5)[None]
    rewrite(folder, state)
    ours = load(folder)
    assert ours.text.output.tokens.weight is ours.text.embedding.weight
    assert difference([ours(given[0], target, *given[1:])], [expected]) == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("text_decoder.cls.predictions.bias", r"missing key: text\.output\.tokens\.bias"),
        ("text_decoder.bert.embeddings.word_embeddings.weight", "missing keys: text.embedding.weight, text.output"),
        ("text_decoder.bert.encoder.layer.0.crossattention.self.key.weight", "missing key.*cross_attention.k_proj"),
        ("vision_model.embeddings.position_embedding", "no position embeddings"),
    ],
)
def test_missing_keys_raise(blip, key, message):
    state = load_file(blip[0] / "model.safetensors")
    del state[key]
    assert_refused(blip[0], message, state)


def test_unknown_keys_and_options_raise(blip):
    folder, theirs = blip
    state = load_file(folder / "model.safetensors")
    assert_refused(folder, r"unknown key: itm_head\.weight", state | {"itm_head.weight": torch.zeros(2)})
    text = theirs.config.text_config.to_dict()
    assert_refused(folder, "is_decoder=False; only True", state, text_config=text | {"is_decoder": False})
    text["num_hidden_layers"] = 9
    assert_refused(folder, "a model of more layers than there are weights", state, text_config=text)


def test_question_for_a_model_without_raises(blip):
    folder, theirs = blip
    given = given_to(theirs)
    wrong = (given[0], None, None) if len(given) > 1 else (given[0], torch.ones(3, 2, dtype=torch.long), None)
    expected = "expected a question, found none" if len(given) > 1 else "expected no question, found one"
    refused(expected, load(folder).encode, *wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [(CAPTIONS, 224.0), (QUESTIONS, 361.2)])
def test_public_sizes(name, millions):
    copied = "text_decoder.cls.predictions.decoder.weight"
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12}, vision_config={"image_size": 384})
    assert_public_size(millions, config, getattr(transformers, name), convert_blip, ImageToText, without=copied)
