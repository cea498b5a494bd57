"""Random SegFormers: ours equal transformers' in every stage and in the scores, images of any size and shape."""

import pytest
import torch
from public import ACTIVATIONS, SHAPES, TOLERANCE, assert_refused, difference, disturbed, load, rewrite, save, shape
from safetensors.torch import load_file

from mmattn.backbones.segformer import SegFormer
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def configuration(seed):
    """Two to four stages, each with its own sizes; an image that is rarely square or a multiple of a stride."""
    draw, _ = shape(seed)
    stages = draw.choice([2, 3, 4])
    heads = [draw.choice([1, 2, 3]) for _ in range(stages)]
    config = transformers.SegformerConfig(
        num_channels=draw.choice([1, 3]),
        num_encoder_blocks=stages,
        depths=[draw.choice([1, 2]) for _ in range(stages)],
        sr_ratios=[draw.choice([1, 2, 3]) for _ in range(stages - 1)] + [1],
        hidden_sizes=[h * draw.choice([2, 4, 5]) for h in heads],
        patch_sizes=[draw.choice([3, 5, 7])] + [3] * (stages - 1),
        strides=[draw.choice([2, 4])] + [2] * (stages - 1),
        num_attention_heads=heads,
        mlp_ratios=[draw.choice([1, 2, 4]) for _ in range(stages)],
        hidden_act=draw.choice(ACTIVATIONS),
        decoder_hidden_size=draw.choice([4, 7, 16]),
        num_labels=draw.choice([1, 2, 5, 11]),
    )
    return config, (draw.randint(49, 80), draw.randint(49, 80))


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_transformers_parity(seed, tmp_path):
    config, size = configuration(seed)
    whole = disturbed(transformers.SegformerForSemanticSegmentation(config), seed)
    with torch.no_grad():  # running statistics other than zero and one
        whole.decode_head.batch_norm.running_mean.normal_()
        whole.decode_head.batch_norm.running_var.uniform_(0.5, 2)
    whole.save_pretrained(tmp_path)
    if seed % 2:
        rewrite(tmp_path, {name: tensor.clone() for name, tensor in whole.state_dict().items()})
    saved = load_file(tmp_path / "model.safetensors")
    assert any("encoder.block.0.0" in key for key in saved) == (seed % 2 == 0)
    ours = load(tmp_path)
    assert isinstance(ours, SegFormer)
    pixels = torch.randn(2, config.num_channels, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = whole(pixels, output_hidden_states=True)
        found, maps = ours(pixels), ours.maps(pixels)
    assert difference(maps, expected.hidden_states) <= TOLERANCE
    assert difference([found], [expected.logits]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["SegformerModel", "SegformerForImageClassification"])
def test_encoder_only(kind, tmp_path):
    config, size = configuration(3)
    whole = disturbed(getattr(transformers, kind)(config), 0)
    save(whole, tmp_path)
    ours = load(tmp_path)
    pixels = torch.randn(1, config.num_channels, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = whole.base_model(pixels, output_hidden_states=True)
        maps = ours.maps(pixels)
    assert difference(maps, expected.hidden_states) <= TOLERANCE
    refused("no decoder", ours, pixels)


def test_unexpected_and_missing_keys_raise(tmp_path):
    config, _ = configuration(1)
    save(transformers.SegformerForSemanticSegmentation(config), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "decode_head.aux.weight"
    assert_refused(tmp_path, f"unknown key: {name}", state | {name: torch.zeros(2)})
    assert_refused(
        tmp_path, r"missing key: decoder\.fuse\.weight", {k: v for k, v in state.items() if "linear_fuse" not in k}
    )


def test_too_small_image_raises():
    model = SegFormer(3, embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))
    refused("an image of 20 x 24 pixels is too small: a map of 5 x 6 cells", model, torch.randn(1, 3, 24, 20))
