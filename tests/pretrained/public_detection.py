"""Tiny random residual networks of transformers and timm, padded batches of images, and comparison of detectors."""

import functools

import torch
from public import TOLERANCE, difference

STEM, CHANNELS = 8, (4, 6, 8, 10)  # of the timm networks below; those of bottlenecks are expanded


@functools.cache
def register_timm() -> None:
    """Registers tiny networks with timm, by names of residual networks that it does not have."""
    import timm
    from timm.models import resnet

    def make(name, block, depths):
        def build(pretrained=False, **keywords):
            keywords = {"block": block, "layers": depths, "channels": CHANNELS, "stem_width": STEM} | keywords
            return resnet._create_resnet(name, pretrained, **keywords)

        build.__name__, build.__module__ = name, resnet.__name__
        resnet.default_cfgs[name] = resnet.default_cfgs["resnet18"]
        timm.models.register_model(build)

    make("resnet11", resnet.BasicBlock, (2, 1, 1, 1))
    make("resnet15", resnet.Bottleneck, (1, 1, 2, 1))


def timm_backbone(draw, out_indices, **more):
    """The config of a tiny timm network."""
    import transformers

    register_timm()
    return transformers.TimmBackboneConfig(
        backbone=draw.choice(["resnet11", "resnet15"]), out_indices=list(out_indices), features_only=True, **more
    )


def resnet_sizes(draw, out_indices):
    """Sizes of a tiny network of transformers, with every option."""
    return {
        "embedding_size": draw.choice([4, 6]),
        "hidden_sizes": [draw.choice([4, 8, 12]) for _ in range(4)],
        "depths": [draw.choice([1, 2]) for _ in range(4)],
        "layer_type": draw.choice(["basic", "bottleneck"]),
        "hidden_act": draw.choice(["relu", "gelu"]),
        "out_indices": list(out_indices),
    }


def resnet_backbone(draw, out_indices):
    import transformers

    more = {"downsample_in_first_stage": draw.random() < 0.3, "downsample_in_bottleneck": draw.random() < 0.3}
    return transformers.ResNetConfig(**resnet_sizes(draw, out_indices), **more)


@torch.no_grad()
def measured(model, seed):
    """Random statistics of all batch norms: zeros and ones would mask missing terms."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var", "weight", "bias")):
            low = 0.5 if name.endswith(("var", "weight")) else -0.3
            buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype) + low)
    return model


def padded_images(draw, seed, step=None):
    """Three images of unequal sizes, multiples of a step, padded at the right and the bottom, and their mask."""
    side = (lambda: draw.randint(48, 96)) if step is None else lambda: step * draw.randint(2, 3)
    sizes = [(side(), side()) for _ in range(3)]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    pixels = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.zeros(3, height, width, dtype=torch.bool)
    for row, (h, w) in enumerate(sizes):
        mask[row, :h, :w] = True
    return pixels.masked_fill(~mask[:, None], 0.0), mask


def same_detections(found, expected):
    """Asserts that the detections of each image equal those of a processor of transformers."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.labels, theirs["labels"])
        assert difference(ours[::2], [theirs["scores"], theirs["boxes"]]) <= TOLERANCE


@torch.no_grad()
def assert_parity_in_float32(theirs, ours, pixels, mask):
    """Asserts that logits and boxes differ by at most 1e-4; both models stay in float32."""
    pixels = pixels.float()
    expected, found = theirs.float()(pixels, mask), ours.float()(pixels, mask)
    assert difference([found.logits, found.boxes_cxcywh], [expected.logits, expected.pred_boxes]) <= 1e-4
