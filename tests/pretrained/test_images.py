"""Random ViTs, DINOv2s and SigLIPs: ours equal transformers' and timm's in every layer, images of any shape."""

import pytest
import torch
from public import (
    SHAPES,
    TOLERANCE,
    assert_parity,
    assert_refused,
    assert_timm_parity,
    difference,
    disturbed,
    image_size,
    load,
    rewrite,
    save,
    save_timm,
    shape,
    timm_sizes,
)
from safetensors.torch import load_file

from mmattn.backbones.vit import VisionTransformer, resize_positions
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity

SIGLIPS = sorted(timm.list_models("vit_*_siglip_*"))
DINOS = timm.list_models("vit_small*dinov2*") + timm.list_models("vit_giant*dinov2*")  # the others differ only in size


def pixels_of(channels, size, rows=2):
    return torch.randn(rows, channels, *size, dtype=torch.float64)


# ViT and DeiT, of transformers


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", ["ViT", "DeiT"])
def test_transformers_parity(family, seed, tmp_path):
    draw, sizes = shape(seed)
    patch = draw.choice([2, 3, 4])
    config = getattr(transformers, family + "Config")(
        **sizes,
        num_channels=draw.choice([1, 3]),
        patch_size=patch,
        image_size=image_size(draw, patch),
        qkv_bias=draw.random() < 0.7,
        layer_norm_eps=draw.choice([1e-12, 1e-6, 1e-3]),
        pooler_output_size=draw.choice([None, 5]),
        pooler_act=draw.choice(["tanh", "relu"]),
        encoder_stride=patch,
    )
    names = ["Model", "Model", "ForImageClassification", "ForMaskedImageModeling"]
    whole = disturbed(getattr(transformers, family + draw.choice(names))(config), seed)
    save(whole, tmp_path, in_memory_names=seed % 2 == 1)
    assert any("encoder.layer.0" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 2 == 0)
    pixels = pixels_of(config.num_channels, config.image_size)
    assert_parity(whole.base_model, load(tmp_path), pixels, pixel_values=pixels)


@pytest.mark.parametrize("size", [(12, 12), (20, 12), (8, 28)])
def test_other_image_sizes_interpolate_positions(size, tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
    model = disturbed(transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4)), 0)
    save(model, tmp_path)
    pixels = pixels_of(3, size)
    ours = load(tmp_path, resize_positions="bicubic")
    assert_parity(model, ours, pixels, pixel_values=pixels, interpolate_pos_encoding=True)
    refused(f"{size[0] // 4} x {size[1] // 4} patches, where the positions are for 4 x 4", load(tmp_path), pixels)


# DINOv2, of transformers


def dino(family, draw, sizes, seed):
    """A transformers model, with or without a classifier; positions are exact in float32."""
    del sizes["intermediate_size"]
    config = getattr(transformers, family + "Config")(
        **sizes,
        mlp_ratio=draw.choice([1, 2, 4]),
        image_size=sizes["patch_size"] * draw.choice([1, 2, 4]) + draw.choice([0, 1]),
        qkv_bias=draw.random() < 0.7,
        use_swiglu_ffn=draw.random() < 0.5,
        layer_norm_eps=draw.choice([1e-6, 1e-3]),
        layerscale_value=draw.choice([1.0, 0.1]),
        **({} if family == "Dinov2" else {"num_register_tokens": draw.choice([1, 4])}),
    )
    whole = disturbed(getattr(transformers, family + draw.choice(["Model", "ForImageClassification"]))(config), seed)
    positions = whole.base_model.embeddings.position_embeddings
    positions.data = positions.data.float().double()
    return whole


@pytest.fixture
def in_double(monkeypatch):
    """transformers always interpolates DINOv2's positions in float32; here in float64.

    And channels first: with channels last, torch's antialiased bicubic is wrong if the result is one cell wide.
    """
    whole = torch.nn.functional.interpolate

    def interpolate(x, *args, **keywords):
        return whole(x.double().contiguous(), *args, **keywords)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_dino_parity(family, seed, tmp_path, in_double):
    draw, sizes = shape(seed)
    sizes |= {"num_channels": draw.choice([1, 3]), "patch_size": draw.choice([2, 3, 4])}
    whole = dino(family, draw, sizes, seed)
    save(whole, tmp_path, in_memory_names=seed % 2 == 1)
    assert any("key.weight" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 2 == 0)
    ours, config = load(tmp_path), whole.config
    for size in ([config.image_size] * 2, image_size(draw, config.patch_size)):
        pixels = pixels_of(config.num_channels, size)
        assert_parity(whole.base_model, ours, pixels, pixel_values=pixels)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 4), (12, 9)])
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_resized_positions_equal_transformers(family, size, in_double):
    draw, sizes = shape(5)
    embeddings = dino(family, draw, sizes | {"num_channels": 3, "patch_size": 2}, 5).base_model.embeddings
    side = int((embeddings.position_embeddings.shape[1] - 1) ** 0.5)
    table = embeddings.position_embeddings.detach()[:, 1:].mT.unflatten(2, (side, side))
    tokens = torch.zeros(1, 1 + size[0] * size[1], table.shape[1], dtype=torch.float64)
    expected = embeddings.interpolate_pos_encoding(tokens, 2 * size[0], 2 * size[1] + 1)
    mode = "bicubic" if family == "Dinov2" else "bicubic_antialias"
    assert difference([resize_positions(table, size, mode).flatten(2).mT], [expected.detach()[:, 1:]]) <= TOLERANCE


def test_resized_positions_do_not_depend_on_the_layout():
    table = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    last = table.contiguous(memory_format=torch.channels_last)
    alone = [resize_positions(channel, (3, 1), "bicubic_antialias") for channel in table.split(1, dim=1)]
    assert difference([resize_positions(last, (3, 1), "bicubic_antialias")], [torch.cat(alone, dim=1)]) <= TOLERANCE


def test_resized_positions_keep_their_dtype():
    table = torch.randn(1, 8, 4, 4)
    half = resize_positions(table.bfloat16(), (6, 5))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, resize_positions(table.bfloat16().float(), (6, 5)).bfloat16())


def test_wrong_layer_scale_is_detected(tmp_path):
    """The parity check detects a layer scale left at one."""
    draw, sizes = shape(1)
    whole = dino("Dinov2", draw, sizes | {"num_channels": 3, "patch_size": 2}, 1)
    save(whole, tmp_path)
    ours = load(tmp_path)
    ours.encoder.layers[0].ffn_residual.scale.gamma.data.fill_(1.0)
    pixels = pixels_of(3, (8, 8))
    with torch.no_grad():
        assert difference([ours(pixels).pooled], [whole.base_model(pixels).pooler_output]) > 1e-3


# SigLIP, of transformers


def tower(draw, sizes, seed):
    """The image tower of transformers: alone, with a classifier, or with a text tower."""
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
def test_siglip_parity(seed, tmp_path):
    draw, sizes = shape(seed)
    whole = tower(draw, sizes, seed)
    theirs = getattr(whole, "vision_model", whole)
    save(whole, tmp_path)
    ours, config = load(tmp_path, resize_positions="bicubic"), theirs.config
    own, other = (config.image_size,) * 2, image_size(draw, config.patch_size)
    for size in (own, other):
        pixels = pixels_of(config.num_channels, size)
        source = {"pixel_values": pixels, "interpolate_pos_encoding": size == other}
        assert_parity(theirs, ours, pixels, mean=not config.vision_use_head, **source)
    if other != own:
        refused("where the positions are for", load(tmp_path), pixels_of(config.num_channels, (99, 99)))


@pytest.mark.slow
def test_names_and_defaults_of_the_published_folders(tmp_path):
    """transformers up to version 4 wrote prefixed names, position ids, and only non-default options."""
    vision = {"num_hidden_layers": 1, "patch_size": 112}
    model = disturbed(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)), 0)
    save(model, tmp_path)
    state = {f"vision_model.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    state |= {"vision_model.embeddings.position_ids": torch.arange(4), "logit_scale": torch.ones(1)}
    (tmp_path / "config.json").write_text("{}")
    rewrite(tmp_path, state, model_type="siglip", vision_config=vision)
    pixels = pixels_of(3, (224, 224), rows=1)
    with torch.no_grad():
        assert difference([load(tmp_path)(pixels).pooled], [model(pixels).pooler_output]) <= TOLERANCE


def test_tower_without_head_uses_mean_pooling(tmp_path):
    config = transformers.SiglipVisionConfig(**shape(2)[1], image_size=8, patch_size=4)
    whole = disturbed(transformers.SiglipVisionModel(config), 2)
    save(whole, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    rewrite(tmp_path, bare)
    assert load(tmp_path).pooling == "mean"
    assert_refused(tmp_path, "missing keys: head", bare | {"head.probe": state["head.probe"]})


# All, of timm


def made(name, folder, seed, **arguments):
    """A random timm model, saved in the folder."""
    model = disturbed(timm.create_model(name, **arguments), seed)
    save_timm(model, folder, arguments)
    return model


def vit(draw, sizes, seed):
    """Name and arguments of a random plain model."""
    arguments = timm_sizes(draw, sizes) | {
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
        "qkv_bias": draw.random() < 0.7,
        "no_embed_class": draw.random() < 0.4,
        "num_classes": draw.choice([0, 7]),
        "act_layer": draw.choice(["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]),
    }
    more = draw.choice([{}, {"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}])
    if more and draw.random() < 0.5:
        more["class_token"] = False
    name = draw.choice(["vit_tiny_patch16_224", "vit_base_patch32_384", "vit_base_patch16_224_miil"])
    return name, arguments | more


def deit(draw, sizes, seed):
    _, arguments = vit(draw, sizes, seed)
    arguments = {k: v for k, v in arguments.items() if k not in ("global_pool", "fc_norm", "class_token")}
    if draw.random() < 0.5:
        return "deit_small_patch16_224", arguments
    # timm's distilled model does not support no_embed_class, although it has the argument
    return "deit_tiny_distilled_patch16_224", arguments | {"no_embed_class": False}


def dinov2(draw, sizes, seed):
    arguments = timm_sizes(draw, sizes) | {
        "mlp_ratio": draw.choice([2, 4]),
        "qkv_bias": draw.random() < 0.7,
        "num_classes": draw.choice([0, 7]),
        "global_pool": draw.choice(["token", "avg"]),
        "init_values": draw.choice([1e-5, 1.0]),
    }
    return DINOS[seed % len(DINOS)], arguments


def siglip(draw, sizes, seed):
    ratio = sizes["intermediate_size"] / sizes["hidden_size"]
    arguments = timm_sizes(draw, sizes) | {"mlp_ratio": ratio, "num_classes": draw.choice([0, 7])}
    return draw.choice(SIGLIPS), arguments


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", [vit, deit, dinov2, siglip])
def test_timm_parity(family, seed, tmp_path):
    name, arguments = family(*shape(seed), seed)
    model = made(name, tmp_path, seed, **arguments)
    ours = load(tmp_path)
    assert_timm_parity(model, ours, arguments)
    if family is dinov2:
        assert (ours.encoder.layers[0].ffn.gate is not None) == ("giant" in name)
        assert ours.num_prefix == (5 if "reg4" in name else 1)


@pytest.mark.parametrize("size", [(16, 12), (20, 12), (8, 28)])
def test_timm_dynamic_image_size(size, tmp_path):
    sizes = {"img_size": (16, 12), "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    model = made("vit_tiny_patch16_224", tmp_path, 0, **sizes, dynamic_img_size=True)
    pixels = pixels_of(3, size)
    with torch.no_grad():
        found, expected = load(tmp_path)(pixels), model.forward_features(pixels)
    # timm always resizes in float32; at the original size nothing is resized
    assert difference([found.states], [expected]) <= (TOLERANCE if size == (16, 12) else 1e-5)


def test_full_size_timm_by_name(tmp_path):
    """A hub folder without model_args: heads from the architecture's name, sizes from the tensors."""
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_timm(disturbed(model, 0), tmp_path, None)
    rewrite(tmp_path, model_args={"qk_norm": False, "init_values": None})
    ours, pixels = load(tmp_path / "model.safetensors"), pixels_of(3, (224, 224), rows=1)
    assert (ours.encoder.layers[0].attention.num_heads, len(ours.encoder.layers)) == (3, 1)
    with torch.no_grad():
        assert difference([ours(pixels).states], [model.forward_features(pixels)]) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "vit_base_patch16_gap_224"}, "'vit_.*_gap_224' is not converted; there are vit_SIZE"),
        ({"architecture": "deit3_small_patch16_224"}, "is not converted"),
        ({"architecture": "vit_base_patch16_224"}, "has 768 channels, found 192"),
        ({"model_args": {"qk_norm": True, "init_values": 0.1}}, "has init_values, qk_norm, which is not converted"),
        ({"model_args": {"dynamic_img_pad": True}}, "dynamic_img_pad"),
        ({"model_args": {"global_pool": "map"}}, "global_pool='map' is not converted; expected one of: token, avg"),
        ({"model_args": {"img_size": 192}}, "197 positions for 12 x 12 patches and 1 tokens"),
    ],
)
def test_unsupported_timm_options_raise(config, message, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_timm(model, tmp_path, None)
    assert_refused(tmp_path, message, **{"model_args": {}} | config)


@pytest.mark.parametrize("extra", ["blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "norm_pre.weight", "reg_token"])
def test_extra_tensors_raise(extra, tmp_path):
    save_timm(timm.create_model("vit_tiny_patch16_224", depth=1), tmp_path, None)
    state = load_file(tmp_path / "model.safetensors") | {extra: torch.ones(1, 1, 192)}
    assert_refused(tmp_path, f"unknown key: {extra}", state, model_args={})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; expected one of: token, prefix, mean"),
        ({"num_prefix": 0}, "pooling='token' needs a class token"),
        ({"resize_positions": "nearest"}, "unknown resize_positions 'nearest'"),
        ({"activation": "glue"}, "unknown activation 'glue'; expected one of: gelu"),
        ({"pooler_dim": 4, "pooler_activation": "glue"}, "unknown activation 'glue'"),
    ],
)
def test_invalid_arguments(options, message):
    refused(message, VisionTransformer, 8, 1, 2, image_size=(16, 16), **options)


@pytest.mark.parametrize("name", slow_but_first(SIGLIPS))
def test_every_name_matches_timm(name, tmp_path):
    """Pooling and activation are determined by the name, not by the published folder."""
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 4}
    model = made(name, tmp_path, 0, **small)
    pixels = pixels_of(3, (8, 8))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
        assert difference([load(tmp_path)(pixels).pooled], [expected]) <= TOLERANCE


def test_unknown_name_raises_with_the_known_names(tmp_path):
    made("vit_base_patch16_siglip_224", tmp_path, 0, embed_dim=16, depth=1, num_heads=4, img_size=32)
    for name in ("vit_base_patch16_siglipx_224", "vit_giant_patch16_siglip_224", "vit_tiny_patch14_dinov2"):
        message = f"'{name}' is not converted; there are .*vit_SIZE_patchP_siglip_PIXELS"
        assert_refused(tmp_path, message, architecture=name)
