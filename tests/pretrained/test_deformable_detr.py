"""Random Deformable DETRs: ours equal transformers' in logits, boxes, proposals and inner states, with padding."""

import types

import pytest
import torch
from public import (
    ACTIVATIONS,
    SHAPES,
    TOLERANCE,
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
from mmattn.backbones.deformable_detr import DeformableDetr
from mmattn.backbones.detection import above, detect_by_sigmoid
from mmattn.pretrained.deformable_detr import convert_deformable_detr
from mmattn.pretrained.keymap import check_into
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytestmark = pytest.mark.parity

KINDS = {"plain": {}, "refined": {"with_box_refine": True}, "two stages": {"with_box_refine": True, "two_stage": True}}
NET = {"channels": (8, 16), "depths": (1, 1), "bottleneck": False, "frozen": True}


def kind_of(seed):
    return list(KINDS)[seed % 3]


def configuration(seed, **more):
    """Kinds in turn; even seeds have timm's backbone, odd ones transformers' own."""
    draw, _ = shape(seed)
    levels = draw.choice([1, 3, 4, 5])
    stages = [2, 3, 4] if levels > 1 else [draw.choice([3, 4])]
    if levels == 4 and seed % 2:
        stages = [3, 4]
    options = {
        "d_model": 32,
        "encoder_attention_heads": draw.choice([1, 2, 4]),
        "decoder_attention_heads": draw.choice([1, 2, 4]),
        "encoder_layers": draw.choice([0, 1, 2]),
        "decoder_layers": draw.choice([2, 3]),  # transformers refuses one layer
        "encoder_ffn_dim": draw.choice([5, 16]),
        "decoder_ffn_dim": draw.choice([7, 16]),
        "encoder_n_points": draw.choice([1, 2, 4]),
        "decoder_n_points": draw.choice([1, 3]),
        "num_feature_levels": levels,
        "activation_function": draw.choice(ACTIVATIONS),
        "num_queries": draw.choice([1, 4, 9]),
        "two_stage_num_proposals": draw.choice([1, 3, 4]),
        "position_embedding_type": draw.choice(["sine", "learned"]),
        "num_labels": draw.choice([1, 2, 5]),
        **KINDS[kind_of(seed)],
    }
    backbone = resnet_backbone(draw, stages) if seed % 2 else timm_backbone(draw, stages)
    return draw, transformers.DeformableDetrConfig(**options | more, backbone_config=backbone)


def random_model(config, seed, kind="DeformableDetrForObjectDetection"):
    return measured(disturbed(getattr(transformers, kind)(config), seed), seed)


def untied(whole):
    """The state with other heads for each layer, as public files have; transformers ties those of new models."""
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for name in state:
        if name.startswith(("class_embed", "bbox_embed")):
            state[name] += torch.randn(state[name].shape, dtype=torch.float64) * 0.2
            if f"model.decoder.{name}" in state:
                state[f"model.decoder.{name}"] = state[name].clone()
    return state


@pytest.fixture
def in_double(monkeypatch):
    """transformers always encodes proposals in float32; here in float64."""
    from transformers.models.deformable_detr import modeling_deformable_detr

    class Double:
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(modeling_deformable_detr, "torch", Double())


@pytest.mark.parametrize("seed", slow_but_first(SHAPES, kind_of))
def test_transformers_parity(seed, tmp_path, in_double):
    draw, config = configuration(seed)
    whole = random_model(config, seed)
    whole.save_pretrained(tmp_path)
    if seed % 4 == 1:  # the names in memory, and heads of each layer
        state = untied(whole)
        rewrite(tmp_path, state)
        for name, _ in whole.named_parameters(remove_duplicate=False):
            if "_embed" in name:  # not those that share its tensor
                owner, _, last = name.rpartition(".")
                setattr(whole.get_submodule(owner), last, torch.nn.Parameter(state[name]))
    assert any("conv_encoder" in key for key in load_file(tmp_path / "model.safetensors")) == (seed % 4 != 1)
    ours = load(tmp_path)
    assert isinstance(ours, DeformableDetr)
    pixels, mask = padded_images(draw, seed)
    with torch.no_grad():
        expected = whole(pixels, mask, output_hidden_states=True)
        found, memory = ours(pixels, mask), ours.encode(pixels, mask)
    assert difference([found.logits, found.boxes_cxcywh], [expected.logits, expected.pred_boxes]) <= TOLERANCE
    assert difference([memory.states], [expected.encoder_last_hidden_state]) <= TOLERANCE
    assert (
        difference(ours.hidden_states(pixels, mask).mT, expected.intermediate_hidden_states.transpose(0, 1).mT)
        <= TOLERANCE
    )
    assert found.layer_logits.shape == (config.decoder_layers, *found.logits.shape)
    if config.with_box_refine:
        references = expected.intermediate_reference_points.transpose(0, 1)
        assert difference([found.layer_boxes_cxcywh], [references]) <= TOLERANCE
    if config.two_stage:
        proposals = [expected.enc_outputs_class, expected.enc_outputs_coord_logits.sigmoid()]
        assert difference([found.proposal_logits, found.proposal_boxes_cxcywh], proposals) <= TOLERANCE
    else:
        assert found.proposal_logits is None
    assert_parity_in_float32(whole, ours, pixels, mask)


def test_every_layer_is_read():
    """Those of transformers are returned by losses alone."""
    draw, config = configuration(0, decoder_layers=3)
    whole = random_model(config, 0)
    ours = converted(config, whole)
    pixels, mask = padded_images(draw, 0)
    seen = []
    whole.loss_function = lambda *given: seen.extend(given) or (None, None, None)
    with torch.no_grad():
        whole(pixels, mask, labels=[{}])
        found = ours(pixels, mask)
    assert difference([found.layer_logits, found.layer_boxes_cxcywh], seen[-2:]) <= TOLERANCE


def converted(config, whole):
    found = convert_deformable_detr(config.to_dict(), whole.state_dict())
    ours = DeformableDetr(**found.keywords).double().eval()
    ours.load_state_dict(found.state)
    return ours


def test_heads_are_shared_unless_they_differ():
    for seed, kind in enumerate(KINDS):
        _, config = configuration(seed, decoder_layers=2)
        whole = random_model(config, seed)
        assert kind_of(seed) == kind
        assert len(converted(config, whole).class_heads) == (1 if kind == "plain" else 2 + config.two_stage)
        keywords = convert_deformable_detr(config.to_dict(), untied(whole)).keywords
        assert keywords["share_heads"] is False


def test_model_without_heads(tmp_path):
    draw, config = configuration(0)
    whole = random_model(config, 0, "DeformableDetrModel")
    save(whole, tmp_path)
    ours = load(tmp_path)
    pixels, mask = padded_images(draw, 0)
    with torch.no_grad():
        expected = whole(pixels, mask).intermediate_hidden_states.transpose(0, 1)
        assert difference([ours.hidden_states(pixels, mask)], [expected]) <= TOLERANCE
    refused("no heads", ours, pixels, mask)


def test_capture_of_sampled_points():
    _, config = configuration(3, encoder_layers=1, decoder_layers=2)
    whole = random_model(config, 3)
    ours = converted(config, whole)
    pixels, mask = padded_images(shape(3)[0], 3)
    with torch.no_grad(), capture(ours) as maps:
        ours(pixels, mask)
    with torch.no_grad():
        expected = whole(pixels, mask, output_attentions=True)
    weights = [maps["encoder.0.attention.weights"][0]]
    weights += [maps[f"decoder.{n}.cross_attention.weights"][0] for n in range(2)]
    wanted = [*expected.encoder_attentions, *expected.cross_attentions]  # (B, L, h, levels, points)
    assert difference(weights, [map_.transpose(1, 2) for map_ in wanted]) <= TOLERANCE
    queries = maps["decoder.1.self_attention"][0].shape[2]
    locations = maps["decoder.1.cross_attention.locations"][0]
    assert locations.shape == (*weights[-1].shape, 2)
    assert locations.shape[2] == queries


def test_detections_equal_the_processors():
    processor = transformers.DeformableDetrImageProcessor()
    logits, boxes = torch.randn(3, 9, 5, dtype=torch.float64), torch.rand(3, 9, 4, dtype=torch.float64)
    outputs = types.SimpleNamespace(logits=logits, pred_boxes=boxes)
    sizes = torch.tensor([[480, 640], [333, 100], [20, 30]])
    for threshold, top_k in ((0.5, 100), (0.2, 7)):
        expected = processor.post_process_object_detection(outputs, threshold, target_sizes=sizes, top_k=top_k)
        same_detections(above(detect_by_sigmoid(logits, boxes, sizes, top_k=top_k), threshold), expected)
    same_detections(above(detect_by_sigmoid(logits, boxes)), processor.post_process_object_detection(outputs))


@pytest.mark.parametrize(("kind", "millions"), [("plain", 40.1), ("refined", 40.8), ("two stages", 41.1)])
def test_public_sizes(kind, millions):
    """SenseTime/deformable-detr, -with-box-refine and -with-box-refine-two-stage; frozen norms are not counted."""
    config = transformers.DeformableDetrConfig(num_labels=91, **KINDS[kind])
    with torch.device("meta"):
        state = transformers.DeformableDetrForObjectDetection(config).state_dict()
    found = convert_deformable_detr(config.to_dict(), {name: torch.zeros(x.shape) for name, x in state.items()})
    with torch.device("meta"):
        ours = DeformableDetr(**found.keywords | {"share_heads": kind == "plain"})
    if kind == "plain":
        check_into(ours, found)
    assert abs(sum(parameter.numel() for parameter in ours.parameters()) / 1e6 - millions) < 0.1


def test_unexpected_and_missing_keys_raise(tmp_path):
    _, config = configuration(1, decoder_layers=2)
    whole = random_model(config, 1).float()
    save(whole, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.layers.0.encoder_attn.q_proj.weight"
    assert_refused(tmp_path, f"unknown key: {name}", state | {name: torch.zeros(2)})
    less = {k: v for k, v in state.items() if k != "model.level_embed"}
    assert_refused(tmp_path, "missing key: level_embed", less)
    twin = "bbox_embed.1.layers.0.bias"
    assert_refused(tmp_path, f"'model.decoder.{twin}' is not equal to '{twin}'", state | {twin: torch.zeros(32)})
    assert_refused(tmp_path, "shapes do not fit", state, decoder_n_points=5)
    assert_refused(tmp_path, "two_stage needs refine_boxes", state, two_stage=True, with_box_refine=False)


def test_invalid_arguments():
    refused(
        "num_levels: expected at least 2, the backbone's maps, found 1", DeformableDetr, 3, num_levels=1, backbone=NET
    )
    refused("refine_boxes needs heads", DeformableDetr, None, refine_boxes=True, backbone=NET)
    kind = {"embed_dim": 32, "num_levels": 2, "num_queries": 99, "num_encoder_layers": 0, "num_decoder_layers": 1}
    model = DeformableDetr(3, **kind, refine_boxes=True, two_stage=True, backbone=NET)
    refused("at least num_queries=99 cells of all maps, found 80", model, torch.randn(1, 3, 32, 32))
