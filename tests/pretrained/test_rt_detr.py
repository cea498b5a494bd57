"""Random RT-DETRs: ours equal transformers' in logits, boxes, proposals and the encoder's maps."""

import types

import pytest
import torch
from public import (
    ACTIVATIONS,
    SHAPES,
    TOLERANCE,
    assert_public_size,
    assert_refused,
    difference,
    disturbed,
    load,
    rewrite,
    save,
    shape,
)
from public_detection import assert_parity_in_float32, measured, padded_images, resnet_sizes, same_detections
from safetensors.torch import load_file

from mmattn import capture
from mmattn.backbones.detection import above, detect_by_sigmoid
from mmattn.backbones.rt_detr import HybridEncoder, RTDetr
from mmattn.pretrained.rt_detr import convert_rt_detr
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NET = {"channels": (8, 8, 16), "depths": (1, 1, 1), "bottleneck": False, "variant": "d", "stem_dim": 8, "frozen": True}


def backbone_of(draw, stages):
    """transformers cannot add the branches of the first stage of basic blocks with other channels than the stem's."""
    sizes = resnet_sizes(draw, stages)
    halve = draw.random() < 0.3
    if sizes["layer_type"] == "basic" and not halve:
        sizes["hidden_sizes"][0] = sizes["embedding_size"]
    more = {"downsample_in_first_stage": halve, "downsample_in_bottleneck": draw.random() < 0.3}
    return transformers.RTDetrResNetConfig(**sizes, **more)


def configuration(seed, **more):
    """Two or three maps of the backbone, and up to two more in the decoder."""
    draw, _ = shape(seed)
    stages = draw.choice([[2, 3, 4], [3, 4]])
    heads, size = draw.choice([1, 2]), 4 * draw.choice([2, 4])
    levels = draw.choice([0, 0, 1, 2])
    options = {
        "encoder_hidden_dim": size,
        "d_model": size
        if levels > 1
        else 2 * draw.choice([2, 4, 5]),  # transformers fails with more than one of others
        "encoder_in_channels": [0] * len(stages),  # their number alone matters
        "decoder_in_channels": [size] * len(stages),
        "feat_strides": [8, 16, 32][-len(stages) :],
        "num_feature_levels": len(stages) + levels,
        "encode_proj_layers": draw.choice([[len(stages) - 1], [0, len(stages) - 1], []]),
        "encoder_layers": draw.choice([0, 1, 2]),
        "encoder_attention_heads": draw.choice([1, 2, 4]),
        "decoder_attention_heads": heads,
        "decoder_layers": draw.choice([1, 2, 3]),
        "encoder_ffn_dim": draw.choice([5, 16]),
        "decoder_ffn_dim": draw.choice([7, 16]),
        "decoder_n_points": draw.choice([1, 2, 4]),
        "encoder_activation_function": draw.choice(["gelu", "relu", "silu"]),
        "decoder_activation_function": draw.choice(ACTIVATIONS),
        "activation_function": draw.choice(["silu", "relu", "gelu"]),
        "hidden_expansion": draw.choice([0.5, 1.0]),
        "layer_norm_eps": draw.choice([1e-5, 1e-3]),
        "batch_norm_eps": draw.choice([1e-5, 1e-3]),
        "positional_encoding_temperature": draw.choice([10000, 20]),
        "freeze_backbone_batch_norms": draw.random() < 0.6,
        "num_queries": draw.choice([1, 4, 9]),
        "num_denoising": draw.choice([0, 100]),
        "num_labels": draw.choice([1, 2, 5]),
    }
    return draw, transformers.RTDetrConfig(**options | more, backbone_config=backbone_of(draw, stages))


def random_model(config, seed):
    return measured(disturbed(transformers.RTDetrForObjectDetection(config), seed), seed)


def converted(config, whole):
    found = convert_rt_detr(config.to_dict(), whole.state_dict())
    ours = RTDetr(**found.keywords).double().eval()
    ours.load_state_dict(found.state)
    return ours


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_transformers_parity(seed, tmp_path):
    draw, config = configuration(seed)
    whole = random_model(config, seed)
    whole.save_pretrained(tmp_path)
    if seed % 2:  # the names in memory
        rewrite(tmp_path, {name: tensor.clone() for name, tensor in whole.state_dict().items()})
    assert any("mlp" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 2 == 1)
    ours = load(tmp_path)
    assert isinstance(ours, RTDetr)
    pixels, mask = padded_images(draw, seed, step=64 if config.backbone_config.downsample_in_first_stage else 32)
    with torch.no_grad():
        expected = whole(pixels, mask)
        found, maps = ours(pixels, mask), ours.encode(pixels)
    assert difference([found.logits, found.boxes_cxcywh], [expected.logits, expected.pred_boxes]) <= TOLERANCE
    assert difference(maps, expected.encoder_last_hidden_state) <= TOLERANCE
    assert difference([found.layer_logits], [expected.intermediate_logits.transpose(0, 1)]) <= TOLERANCE
    assert difference([found.layer_boxes_cxcywh], [expected.intermediate_reference_points.transpose(0, 1)]) <= TOLERANCE
    proposals = [expected.enc_topk_logits, expected.enc_topk_bboxes]
    assert difference([found.proposal_logits, found.proposal_boxes_cxcywh], proposals) <= TOLERANCE
    assert_parity_in_float32(whole, ours, pixels, mask)


def test_anchors_of_a_fixed_size_are_the_same(tmp_path):
    """Those of transformers are made in float32."""
    config = next(
        config for _, config in map(configuration, SHAPES) if not config.backbone_config.downsample_in_first_stage
    )
    config.num_feature_levels, config.anchor_image_size = len(config.decoder_in_channels), [64, 96]
    whole = random_model(config, 0)
    save(whole, tmp_path)
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, found = whole(pixels), load(tmp_path)(pixels)
    assert difference([found.logits, found.boxes_cxcywh], [expected.logits, expected.pred_boxes]) <= 1e-5


def test_capture():
    _, config = configuration(1, decoder_layers=2, encoder_layers=1, encode_proj_layers=[1])
    whole = random_model(config, 1)
    whole.set_attn_implementation("eager")
    ours = converted(config, whole)
    pixels, _ = padded_images(shape(1)[0], 1, step=64)
    with torch.no_grad(), capture(ours) as maps:
        ours(pixels)
    with torch.no_grad():
        expected = whole(pixels, output_attentions=True)
    weights = [maps[f"decoder.{n}.cross_attention.weights"][0] for n in range(2)]
    assert difference(weights, [map_.transpose(1, 2) for map_ in expected.cross_attentions]) <= TOLERANCE
    assert maps["decoder.1.cross_attention.locations"][0].shape == (*weights[1].shape, 2)
    assert difference(maps["encoder.attentions.0.layers.0.attention"], expected.encoder_attentions) <= TOLERANCE


def test_detections_equal_the_processors():
    processor = transformers.RTDetrImageProcessor()
    logits, boxes = torch.randn(3, 9, 5, dtype=torch.float64), torch.rand(3, 9, 4, dtype=torch.float64)
    outputs = types.SimpleNamespace(logits=logits, pred_boxes=boxes)
    sizes = torch.tensor([[480, 640], [333, 100], [20, 30]])
    for threshold in (0.5, 0.2):
        expected = processor.post_process_object_detection(outputs, threshold, target_sizes=sizes)
        same_detections(above(detect_by_sigmoid(logits, boxes, sizes, top_k=None), threshold), expected)
    expected = processor.post_process_object_detection(outputs)
    same_detections(above(detect_by_sigmoid(logits, boxes, top_k=None)), expected)


def test_public_size():
    """PekingU/rtdetr_r50vd, without the embeddings of labels, which are for training."""
    config = transformers.RTDetrConfig(num_labels=80)
    assert_public_size(42.7, config, transformers.RTDetrForObjectDetection, convert_rt_detr, RTDetr)


def test_unexpected_and_missing_keys_raise(tmp_path):
    _, config = configuration(1, decoder_layers=2)
    save(transformers.RTDetrForObjectDetection(config), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.encoder.fpn_blocks.0.conv4.conv.weight"
    assert_refused(tmp_path, f"unknown key: {name}", state | {name: torch.zeros(2)})
    less = {key: tensor for key, tensor in state.items() if "class_embed.1" not in key}
    assert_refused(tmp_path, r"missing keys: class_heads\.1\.bias", less)
    assert_refused(tmp_path, "shapes do not fit", state, decoder_n_points=7)
    sides = {"decoder_n_points": config.decoder_n_points}
    assert_refused(tmp_path, r"eval_size=\[64, 64\]; only None is supported", state, eval_size=[64, 64], **sides)
    assert_refused(tmp_path, "normalize_before=True; only False", state, eval_size=None, normalize_before=True)


def test_invalid_arguments():
    refused("num_levels: expected at least 3, the backbone's maps, found 2", RTDetr, 3, num_levels=2, backbone=NET)
    refused(r"attended: expected some of the maps 0 to 1, found \[2\]", HybridEncoder, 8, 2, attended=(2,))
    model = RTDetr(3, embed_dim=16, encoder_dim=16, num_queries=99, num_layers=1, backbone=NET)
    refused("at least num_queries=99 cells of all maps, found 84", model, torch.randn(1, 3, 32, 32))
    refused("must be divisible by the greatest stride", model, torch.randn(1, 3, 40, 32))


SMALL = {"embed_dim": 16, "encoder_dim": 16, "num_layers": 2, "num_heads": 2, "encoder_heads": 2, "ffn_dim": 16}
