"""Random models of DINOv2: ours equal transformers' and timm's in every layer, images of any shape."""

import pytest
import torch
from public import (
    SHAPES,
    TOLERANCE,
    assert_timm_parity,
    difference,
    disturbed,
    load,
    save,
    save_timm,
    shape,
    timm_sizes,
)
from safetensors.torch import load_file

from mmattn.backbones.vit import resize_positions
from tests.conftest import slow_but_first

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity


def tower(family, draw, sizes, seed):
    """A model of transformers, with a classifier around it or not; positions are numbers that float32 holds."""
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
    """transformers interpolates DINOv2's positions in float32 whatever the model's type; here in float64.

    And channels first: channels last, torch's bicubic with antialias goes wrong where the result is one cell wide.
    """
    whole = torch.nn.functional.interpolate

    def interpolate(x, *args, **keywords):
        return whole(x.double().contiguous(), *args, **keywords)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_transformers_parity(family, seed, tmp_path, in_double):
    draw, sizes = shape(seed)
    sizes |= {"num_channels": draw.choice([1, 3]), "patch_size": draw.choice([2, 3, 4])}
    whole = tower(family, draw, sizes, seed)
    save(whole, tmp_path, in_memory_names=seed % 2 == 1)
    assert any("key.weight" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 2 == 0)
    ours = load(tmp_path)
    config = whole.config
    own = [config.image_size] * 2
    other = [config.patch_size * draw.choice([1, 2, 3, 5]) + draw.choice([0, 1]) for _ in range(2)]
    for size in (own, other):
        pixels = torch.randn(2, config.num_channels, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = whole.base_model(pixels, output_hidden_states=True)
            found, layers = ours(pixels), ours.hidden_states(pixels)
        assert difference(layers, expected.hidden_states) <= TOLERANCE
        assert difference(found, [expected.last_hidden_state, expected.pooler_output]) <= TOLERANCE


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 4), (12, 9)])
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_resized_positions_are_transformers(family, size, in_double):
    draw, sizes = shape(5)
    embeddings = tower(family, draw, sizes | {"num_channels": 3, "patch_size": 2}, 5).base_model.embeddings
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


def test_resized_positions_keep_their_type():
    table = torch.randn(1, 8, 4, 4)
    half = resize_positions(table.bfloat16(), (6, 5))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, resize_positions(table.bfloat16().float(), (6, 5)).bfloat16())


NAMES = [
    name
    for name in timm.list_models("vit_*dinov2*")
    if "small" in name or "giant" in name  # of the others only the size differs
]


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_timm_parity(seed, tmp_path):
    draw, sizes = shape(seed)
    name = NAMES[seed % len(NAMES)]
    arguments = timm_sizes(draw, sizes) | {
        "mlp_ratio": draw.choice([2, 4]),
        "qkv_bias": draw.random() < 0.7,
        "num_classes": draw.choice([0, 7]),
        "global_pool": draw.choice(["token", "avg"]),
        "init_values": draw.choice([1e-5, 1.0]),
    }
    model = disturbed(timm.create_model(name, **arguments), seed)
    save_timm(model, tmp_path, arguments)
    ours = load(tmp_path)
    assert (ours.encoder.layers[0].ffn.gate is not None) == ("giant" in name)
    assert ours.num_prefix == (5 if "reg4" in name else 1)
    assert_timm_parity(model, ours, arguments)


def test_scale_that_is_off_is_missed(tmp_path):
    """The check above can fail: gamma left at one is seen."""
    draw, sizes = shape(1)
    whole = tower("Dinov2", draw, sizes | {"num_channels": 3, "patch_size": 2}, 1)
    save(whole, tmp_path)
    ours = load(tmp_path)
    ours.encoder.layers[0].ffn_residual.scale.gamma.data.fill_(1.0)
    pixels = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert difference([ours(pixels).pooled], [whole.base_model(pixels).pooler_output]) > 1e-3
