"""Random DETRs: ours equal transformers' in logits, boxes and inner states, for padded batches of unequal images."""

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
from public_detection import (
    assert_parity_in_float32,
    measured,
    padded_images,
    resnet_backbone,
    same_detections,
    timm_backbone,
)
from safetensors.torch import load_file

from mmattn import capture
from mmattn.backbones.detection import above, detect_by_softmax
from mmattn.backbones.detr import Detr
from mmattn.pretrained.detr import convert_detr
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytestmark = pytest.mark.parity


def configuration(seed, **more):
    """Even seeds have timm's backbone, odd ones transformers' own."""
    draw, _ = shape(seed)
    heads = draw.choice([1, 2, 3])
    options = {
        "d_model": 12 * draw.choice([1, 2]),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": draw.choice([1, 2, 3]),
        "encoder_layers": draw.choice([0, 1, 2]),
        "decoder_layers": draw.choice([1, 2, 3]),
        "encoder_ffn_dim": draw.choice([5, 16]),
        "decoder_ffn_dim": draw.choice([7, 16]),
        "activation_function": draw.choice(ACTIVATIONS),
        "num_queries": draw.choice([1, 4, 9]),
        "position_embedding_type": draw.choice(["sine", "learned"]),
        "auxiliary_loss": draw.random() < 0.3,
        "num_labels": draw.choice([1, 2, 5]),
    }
    if seed % 2:
        backbone = resnet_backbone(draw, [draw.choice([2, 3, 4])])
    else:
        backbone = timm_backbone(draw, [1, 2, 3, 4], output_stride=draw.choice([None, 16, 8]))
    return draw, transformers.DetrConfig(**options | more, backbone_config=backbone)


def random_model(config, seed, kind="DetrForObjectDetection"):
    return measured(disturbed(getattr(transformers, kind)(config), seed), seed)


@pytest.mark.parametrize("seed", slow_but_first(SHAPES, lambda seed: seed % 2))
def test_transformers_parity(seed, tmp_path):
    draw, config = configuration(seed)
    whole = random_model(config, seed)
    whole.save_pretrained(tmp_path)
    if seed % 3 == 0:  # the names in memory
        rewrite(tmp_path, {name: tensor.clone() for name, tensor in whole.state_dict().items()})
    assert any("conv_encoder" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 3 > 0)
    ours = load(tmp_path)
    assert isinstance(ours, Detr)
    pixels, mask = padded_images(draw, seed)
    with torch.no_grad():
        expected = whole(pixels, mask, output_hidden_states=True)
        found, memory = ours(pixels, mask), ours.encode(pixels, mask)[0]
        features = whole.model.backbone(pixels, mask)[-1][0]
    assert difference([found.logits, found.boxes_cxcywh], [expected.logits, expected.pred_boxes]) <= TOLERANCE
    assert difference([memory], [expected.encoder_last_hidden_state]) <= TOLERANCE
    assert difference([ours.backbone(pixels)[-1]], [features]) <= TOLERANCE
    assert found.layer_logits.shape == (config.decoder_layers, *found.logits.shape)
    assert_parity_in_float32(whole, ours, pixels, mask)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_every_layer_is_read(auxiliary):
    """Those of transformers are returned by losses alone: here by its heads, from its states."""
    draw, config = configuration(1, auxiliary_loss=auxiliary, decoder_layers=3)
    whole = random_model(config, 1)
    converted = convert_detr(config.to_dict(), whole.state_dict())
    ours = Detr(**converted.keywords).double().eval()
    ours.load_state_dict(converted.state)
    pixels, mask = padded_images(draw, 1)
    with torch.no_grad():
        outputs = whole.model(pixels, mask, output_hidden_states=True)
        states = outputs.intermediate_hidden_states
        if not auxiliary:  # the last one is normed already
            states = whole.model.decoder.layernorm(torch.stack(outputs.decoder_hidden_states[1:]))
            assert difference([ours.hidden_states(pixels, mask)[:-1]], [states[:-1]]) <= TOLERANCE
        found = ours(pixels, mask)
        boxes = whole.bbox_predictor(states[:-1]).sigmoid()
    assert difference([found.layer_logits[:-1]], [whole.class_labels_classifier(states[:-1])]) <= TOLERANCE
    assert difference([found.layer_boxes_cxcywh[:-1]], [boxes]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["DetrModel", "DetrForSegmentation"])
def test_other_heads(kind, tmp_path):
    draw, config = configuration(
        0, d_model=64, encoder_attention_heads=8, decoder_attention_heads=2, auxiliary_loss=False
    )
    whole = random_model(config, 0, kind)
    save(whole, tmp_path)
    ours = load(tmp_path)
    pixels, mask = padded_images(draw, 0)
    with torch.no_grad():
        expected = whole(pixels, mask)
        states = ours.hidden_states(pixels, mask)[-1]
    assert difference([states], [expected.last_hidden_state]) <= TOLERANCE
    if kind == "DetrModel":
        refused("no heads", ours, pixels, mask)
    else:
        assert difference([ours(pixels, mask).logits], [expected.logits]) <= TOLERANCE


def test_padding_changes_nothing():
    """A map's cells that the mask leaves out are not seen; convolutions see zeros, as at the border."""
    net = {"channels": (8, 16), "depths": (1, 1), "bottleneck": False}
    model = Detr(2, embed_dim=16, num_queries=3, num_heads=2, ffn_dim=8, backbone=net).double().eval()
    model.backbone = torch.nn.ModuleDict()  # the transformer alone
    model.backbone.forward = lambda x: [x]
    model.project = torch.nn.Identity()
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    mask = torch.zeros(2, 7, 9, dtype=torch.bool)
    mask[:, :4, :5] = True
    wide = torch.nn.functional.pad(x, (0, 4, 0, 3), value=9.0)
    with torch.no_grad():
        assert difference(model(wide, mask)[:4], model(x)[:4]) <= TOLERANCE


def test_capture_of_cross_attention():
    _, config = configuration(1, decoder_layers=2, auxiliary_loss=False)
    whole = random_model(config, 1)
    whole.set_attn_implementation("eager")
    converted = convert_detr(config.to_dict(), whole.state_dict())
    ours = Detr(**converted.keywords).double().eval()
    ours.load_state_dict(converted.state)
    pixels, mask = padded_images(shape(1)[0], 1)
    with torch.no_grad(), capture(ours) as maps:
        ours(pixels, mask)
    with torch.no_grad():
        expected = whole(pixels, mask, output_attentions=True).cross_attentions
    assert difference([maps[f"decoder.{n}.cross_attention"][0] for n in range(2)], expected) <= TOLERANCE


def test_detections_equal_the_processors():
    processor = transformers.DetrImageProcessor()
    logits, boxes = torch.randn(3, 9, 5, dtype=torch.float64) * 3, torch.rand(3, 9, 4, dtype=torch.float64)
    outputs = types.SimpleNamespace(logits=logits, pred_boxes=boxes)
    sizes = torch.tensor([[480, 640], [333, 100], [20, 30]])
    for threshold in (0.5, 0.2):
        expected = processor.post_process_object_detection(outputs, threshold, target_sizes=sizes)
        same_detections(above(detect_by_softmax(logits, boxes, sizes), threshold), expected)
    expected = processor.post_process_object_detection(outputs, 0.3)
    same_detections(above(detect_by_softmax(logits, boxes), 0.3), expected)


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 41.3), ("resnet101", 60.2)])
def test_public_sizes(name, millions):
    """facebook/detr-resnet-50 and -101, whose norms are counted as constants."""
    config = transformers.DetrConfig(num_labels=91, backbone=name, dilation=name == "resnet101")
    assert_public_size(millions, config, transformers.DetrForObjectDetection, convert_detr, Detr)


@torch.no_grad()
def test_old_configs_name_the_backbone(tmp_path):
    """Those of transformers 4, on the hub: no backbone_config, with and without backbone_kwargs."""
    draw, config = configuration(2)
    whole = random_model(config, 2)
    whole.save_pretrained(tmp_path)
    name, stride = config.backbone_config.backbone, config.backbone_config.output_stride
    pixels, mask = padded_images(draw, 2)
    expected = load(tmp_path)(pixels, mask)
    older = {"backbone_config": None, "backbone": name, "use_timm_backbone": True, "dilation": stride == 16}
    for more in ({"output_stride": stride}, {"output_stride": stride, "out_indices": [1, 2, 3, 4], "in_chans": 3}):
        rewrite(tmp_path, **older, backbone_kwargs=more)
        assert difference(load(tmp_path)(pixels, mask)[:4], expected[:4]) == 0
    rewrite(tmp_path, **older, backbone_kwargs=None)
    if stride != 8:
        assert difference(load(tmp_path)(pixels, mask)[:4], expected[:4]) == 0
    counts = {f"model.backbone.conv_encoder.model.{name}.num_batches_tracked": torch.tensor(7) for name in ("bn1",)}
    rewrite(tmp_path, load_file(tmp_path / "model.safetensors") | counts)  # some files have those of frozen norms
    load(tmp_path)
    assert_refused(tmp_path, "backbone 'resnet50d' of timm is not converted", backbone="resnet50d")


def test_unexpected_and_missing_keys_raise(tmp_path):
    _, config = configuration(1)
    save(transformers.DetrForObjectDetection(config), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.layers.0.encoder_attn.sampling_offsets.weight"
    assert_refused(tmp_path, f"unknown key: {name}", state | {name: torch.zeros(2)})
    assert_refused(
        tmp_path,
        r"missing key: norm\.weight",
        {k: v for k, v in state.items() if k != "model.decoder.layernorm.weight"},
    )
    assert_refused(tmp_path, "shapes do not fit", state, num_queries=11)
    assert_refused(
        tmp_path, "unknown positions 'rotary'", state, num_queries=config.num_queries, position_embedding_type="rotary"
    )
    backbone = config.backbone_config.to_dict() | {"model_type": "swin"}
    assert_refused(
        tmp_path, "backbone of model_type 'swin'", state, position_embedding_type="sine", backbone_config=backbone
    )
