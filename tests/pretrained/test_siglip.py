"""Random towers of SigLIP: ours equal transformers' and timm's in every layer, the attention pooling included."""

import pytest
import torch
from public import (
    SHAPES,
    TOLERANCE,
    assert_refused,
    assert_timm_parity,
    difference,
    disturbed,
    load,
    rewrite,
    save,
    save_timm,
    shape,
    timm_sizes,
)
from safetensors.torch import load_file

from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity


def tower(draw, sizes, seed):
    """The image tower of transformers: alone, with a classifier, or beside a text tower."""
    vision = sizes | {
        "num_channels": draw.choice([1, 3]),
        "patch_size": draw.choice([2, 3, 4]),
        "layer_norm_eps": draw.choice([1e-6, 1e-3]),
        "vision_use_head": draw.random() < 0.7,
    }
    vision["image_size"] = vision["patch_size"] * draw.choice([1, 2, 4]) + draw.choice([0, 1])
    name = ["SiglipVisionModel", "SiglipForImageClassification", "SiglipModel"][seed % 3]
    if name == "SiglipVisionModel":
        return disturbed(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)), seed)
    text = sizes | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    return disturbed(getattr(transformers, name)(config), seed)


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_transformers_parity(seed, tmp_path):
    draw, sizes = shape(seed)
    whole = tower(draw, sizes, seed)
    theirs = getattr(whole, "vision_model", whole)
    save(whole, tmp_path)
    ours, config = load(tmp_path, resize_positions="bicubic"), theirs.config
    other = [config.patch_size * draw.choice([1, 2, 3, 5]) + draw.choice([0, 1]) for _ in range(2)]
    for size in ([config.image_size] * 2, other):
        pixels = torch.randn(2, config.num_channels, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = theirs(pixels, interpolate_pos_encoding=size == other, output_hidden_states=True)
            found, layers = ours(pixels), ours.hidden_states(pixels)
        assert difference(layers, expected.hidden_states) <= TOLERANCE
        pooled = expected.pooler_output if config.vision_use_head else expected.last_hidden_state.mean(1)
        assert difference(found, [expected.last_hidden_state, pooled]) <= TOLERANCE
    if other != [config.image_size] * 2:
        with pytest.raises(ValueError, match="where the positions are for"):
            load(tmp_path)(torch.randn(1, config.num_channels, 99, 99, dtype=torch.float64))


@pytest.mark.slow
def test_names_and_defaults_of_the_published_folders(tmp_path):
    """transformers up to 4 wrote the tower's names with a prefix, position ids, and only what is not a default."""
    vision = {"num_hidden_layers": 1, "patch_size": 112}
    model = disturbed(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)), 0)
    save(model, tmp_path)
    state = {f"vision_model.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    state |= {"vision_model.embeddings.position_ids": torch.arange(4), "logit_scale": torch.ones(1)}
    (tmp_path / "config.json").write_text("{}")
    rewrite(tmp_path, state, model_type="siglip", vision_config=vision)
    pixels = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert difference([load(tmp_path)(pixels).pooled], [model(pixels).pooler_output]) <= TOLERANCE


NAMES = sorted(timm.list_models("vit_*_siglip_*"))


def made(name, folder, seed, **arguments):
    model = disturbed(timm.create_model(name, **arguments), seed)
    save_timm(model, folder, arguments)
    return model


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_timm_parity(seed, tmp_path):
    draw, sizes = shape(seed)
    arguments = timm_sizes(draw, sizes) | {
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
        "num_classes": draw.choice([0, 7]),
    }
    model = made(draw.choice(NAMES), tmp_path, seed, **arguments)
    assert_timm_parity(model, load(tmp_path), arguments)


@pytest.mark.parametrize("name", slow_but_first(NAMES))
def test_every_name_means_what_timm_builds(name, tmp_path):
    """Pooling and activation are not in a published folder but in the name."""
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 4}
    model = made(name, tmp_path, 0, **small)
    pixels = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
        assert difference([load(tmp_path)(pixels).pooled], [expected]) <= TOLERANCE


def test_another_name_is_refused_with_those_there_are(tmp_path):
    made("vit_base_patch16_siglip_224", tmp_path, 0, embed_dim=16, depth=1, num_heads=4, img_size=32)
    for name in ("vit_base_patch16_siglipx_224", "vit_giant_patch16_siglip_224", "vit_tiny_patch14_dinov2"):
        rewrite(tmp_path, architecture=name)
        refused(f"'{name}' is not converted; there are .*vit_SIZE_patchP_siglip_PIXELS", load, tmp_path)


def test_a_tower_without_its_head_pools_by_the_mean(tmp_path):
    config = transformers.SiglipVisionConfig(**shape(2)[1], image_size=8, patch_size=4)
    whole = disturbed(transformers.SiglipVisionModel(config), 2)
    save(whole, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    rewrite(tmp_path, bare)
    assert load(tmp_path).pooling == "mean"
    assert_refused(tmp_path, "nothing for keys: head", bare | {"head.probe": state["head.probe"]})
