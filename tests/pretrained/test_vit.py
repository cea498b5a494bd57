"""Random models of the ViT family: ours equal transformers' and timm's in every layer, images of any shape."""

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
)
from safetensors.torch import load_file

from mmattn.backbones.vit import VisionTransformer
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity


def image_sizes(draw):
    """Channels, patch size, and an image of whole patches and a rest, seldom square."""
    patch = draw.choice([2, 3, 4])
    size = [patch * draw.choice([1, 2, 3, 5]) + draw.choice([0, 0, 1]) for _ in range(2)]
    return {"num_channels": draw.choice([1, 3]), "patch_size": patch, "image_size": size}


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", ["ViT", "DeiT"])
def test_transformers_parity(family, seed, tmp_path):
    draw, sizes = shape(seed)
    sizes |= image_sizes(draw)
    config = getattr(transformers, family + "Config")(
        **sizes,
        qkv_bias=draw.random() < 0.7,
        layer_norm_eps=draw.choice([1e-12, 1e-6, 1e-3]),
        pooler_output_size=draw.choice([None, 5]),
        pooler_act=draw.choice(["tanh", "relu"]),
        encoder_stride=sizes["patch_size"],
    )
    names = ["Model", "Model", "ForImageClassification", "ForMaskedImageModeling"]
    whole = disturbed(getattr(transformers, family + draw.choice(names))(config), seed)
    save(whole, tmp_path, in_memory_names=seed % 2 == 1)
    assert any("encoder.layer.0" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 2 == 0)
    ours = load(tmp_path)
    pixels = torch.randn(2, config.num_channels, *config.image_size, dtype=torch.float64)
    with torch.no_grad():
        expected = whole.base_model(pixels, output_hidden_states=True)
        found, layers = ours(pixels), ours.hidden_states(pixels)
    assert difference([found.states], [expected.last_hidden_state]) <= TOLERANCE
    assert difference(layers, expected.hidden_states) <= TOLERANCE
    pooled = expected.pooler_output
    pooled = expected.last_hidden_state[:, 0] if pooled is None else pooled
    assert difference([found.pooled], [pooled]) <= TOLERANCE


def timm_model(name, draw, sizes, **more):
    arguments = {
        "img_size": tuple(sizes["image_size"]),
        "patch_size": sizes["patch_size"],
        "in_chans": sizes["num_channels"],
        "embed_dim": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
        "qkv_bias": draw.random() < 0.7,
        "no_embed_class": draw.random() < 0.4,
        "num_classes": draw.choice([0, 7]),
        "act_layer": draw.choice(["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]),
    }
    return timm.create_model(name, **arguments | more), arguments | more


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", ["vit", "deit"])
def test_timm_parity(family, seed, tmp_path):
    draw, sizes = shape(seed)
    sizes |= image_sizes(draw)
    if family == "vit":
        more = draw.choice([{}, {"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}])
        if more and draw.random() < 0.5:
            more["class_token"] = False
        name = draw.choice(["vit_tiny_patch16_224", "vit_base_patch32_384", "vit_base_patch16_224_miil"])
    else:
        # timm's distilled model cannot do no_embed_class, though it has the argument
        more, name = draw.choice(
            [({"no_embed_class": False}, "deit_tiny_distilled_patch16_224"), ({}, "deit_small_patch16_224")]
        )
    model, arguments = timm_model(name, draw, sizes, **more)
    save_timm(disturbed(model, seed), tmp_path, arguments)
    assert_timm_parity(model, load(tmp_path), arguments)


@pytest.mark.parametrize("size", [(12, 12), (20, 12), (8, 28)])
def test_other_image_sizes_resize_the_positions(size, tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
    model = disturbed(transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4)), 0)
    save(model, tmp_path)
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True)
        found = load(tmp_path, resize_positions="bicubic")(pixels)
    assert difference(found, [expected.last_hidden_state, expected.pooler_output]) <= TOLERANCE
    refused(f"{size[0] // 4} x {size[1] // 4} patches, where the positions are for 4 x 4", load(tmp_path), pixels)


@pytest.mark.parametrize("size", [(16, 12), (20, 12), (8, 28)])
def test_timms_dynamic_image_size(size, tmp_path):
    draw, sizes = shape(3)
    sizes |= {"num_channels": 3, "patch_size": 4, "image_size": (16, 12)}
    model, arguments = timm_model("vit_tiny_patch16_224", draw, sizes, dynamic_img_size=True)
    save_timm(disturbed(model, 0), tmp_path, arguments)
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found, expected = load(tmp_path)(pixels), model.forward_features(pixels)
    # timm resizes in float32 whatever the model's type; at its own size nothing is resized
    assert difference([found.states], [expected]) <= (TOLERANCE if size == (16, 12) else 1e-5)


def test_full_size_timm_by_name_alone(tmp_path):
    """A hub folder without model_args: heads by the architecture's name, sizes by the tensors."""
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_timm(disturbed(model, 0), tmp_path, None)
    rewrite(tmp_path, model_args={"qk_norm": False, "init_values": None})
    ours, pixels = load(tmp_path / "model.safetensors"), torch.randn(1, 3, 224, 224, dtype=torch.float64)
    assert (ours.encoder.layers[0].attention.num_heads, len(ours.encoder.layers)) == (3, 1)
    with torch.no_grad():
        assert difference([ours(pixels).states], [model.forward_features(pixels)]) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "vit_base_patch16_gap_224"},
            "'vit_base_patch16_gap_224' is not converted; there are vit_SIZE",
        ),
        ({"architecture": "deit3_small_patch16_224"}, "is not converted"),
        ({"architecture": "vit_base_patch16_224"}, "has 768 channels, found 192"),
        ({"model_args": {"qk_norm": True, "init_values": 0.1}}, "has init_values, qk_norm, which is not converted"),
        ({"model_args": {"dynamic_img_pad": True}}, "dynamic_img_pad"),
        ({"model_args": {"global_pool": "map"}}, "global_pool='map' is not converted; there are: token, avg"),
        ({"model_args": {"img_size": 192}}, "197 positions for 12 x 12 patches and 1 tokens"),
    ],
)
def test_what_timm_has_beyond_is_refused_by_name(config, message, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_timm(model, tmp_path, None)
    assert_refused(tmp_path, message, **{"model_args": {}} | config)


@pytest.mark.parametrize("extra", ["blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "norm_pre.weight", "reg_token"])
def test_tensors_beyond_a_plain_vit_are_named(extra, tmp_path):
    save_timm(timm.create_model("vit_tiny_patch16_224", depth=1), tmp_path, None)
    rewrite(tmp_path, load_file(tmp_path / "model.safetensors") | {extra: torch.ones(1, 1, 192)}, model_args={})
    refused(f"unknown key: {extra}", load, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; there are: token, prefix, mean"),
        ({"num_prefix": 0}, "pooling='token' needs a class token"),
        ({"resize_positions": "nearest"}, "unknown resize_positions 'nearest'"),
        ({"activation": "glue"}, "unknown activation 'glue'; there are: gelu"),
        ({"pooler_dim": 4, "pooler_activation": "glue"}, "unknown activation 'glue'"),
    ],
)
def test_refusals(options, message):
    refused(message, VisionTransformer, 8, 1, 2, image_size=(16, 16), **options)
