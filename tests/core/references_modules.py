"""The modules that are not kernels against public libraries, float64: the largest difference of outputs and gradients.

Each builds the library's own module with random weights, copies them over, and runs both on the same random input.
"""

import torch
from checks import difference

from mmattn import (
    CBAM,
    DeformableAttention,
    DividedSpaceTimeLayer,
    EfficientChannelAttention,
    MapPooling,
    PositionAttention,
    SqueezeExcitation,
    flatten_maps,
)


def randomized(module):
    torch.manual_seed(3)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        for buffer in module.buffers():
            if buffer.is_floating_point():  # batch norm
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return module


def copied(module, **parameters):
    """The module in float64 with its parameters set by name, with __ for dots."""
    module = module.double().eval()
    given = {name.replace("__", "."): tensor.detach() for name, tensor in parameters.items()}
    missing, unexpected = module.load_state_dict(given, strict=False)
    assert not unexpected
    assert not missing, missing
    return module


def compare(ours, theirs, *inputs):
    """Compares outputs and gradients of the inputs."""
    found = []
    for function in (ours, theirs):
        given = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*given)
        weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        found.append((out, *torch.autograd.grad((out * weighting).sum(), given)))
    return difference(*found)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def square(layer):
    """The matrix of a linear map or a 1x1 convolution."""
    return layer.weight[:, :, 0, 0] if layer.weight.dim() == 4 else layer.weight


def taken(**layers):
    """Weight and bias of each layer, under our names."""
    weights = {f"{name}__weight": square(layer) for name, layer in layers.items()}
    return weights | {f"{name}__bias": layer.bias for name, layer in layers.items()}


def squeeze_excitation():
    from timm.layers import SEModule

    theirs = randomized(SEModule(16, rd_channels=4))
    ours = copied(SqueezeExcitation(16, reduction=4), **taken(fc1=theirs.fc1, fc2=theirs.fc2))
    return compare(ours, theirs, draw(2, 16, 5, 7))


def efficient_channel():
    from timm.layers import EcaModule

    worst = 0.0
    for channels in (2, 8, 16, 64, 128, 256, 512):  # kernels of 3, 3, 3, 3, 5, 5, 5
        theirs = randomized(EcaModule(channels))
        ours = copied(EfficientChannelAttention(channels), conv__weight=theirs.conv.weight)
        worst = max(worst, compare(ours, theirs, draw(2, channels, 2, 3)))
    return worst


def cbam():
    from timm.layers.cbam import CbamModule

    theirs = randomized(CbamModule(16, rd_ratio=1 / 4))
    conv, norm = theirs.spatial.conv.conv, theirs.spatial.conv.bn
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    ours = copied(
        CBAM(16, reduction=4),
        channel__fc1__weight=square(theirs.channel.fc1),
        channel__fc2__weight=square(theirs.channel.fc2),
        spatial__conv__weight=conv.weight * gain[:, None, None, None],
        spatial__conv__bias=norm.bias - norm.running_mean * gain,
    )
    return compare(ours, theirs, draw(2, 16, 9, 11))


def position_attention():
    """timm's non-local block, whose values have as many channels as its queries."""
    from timm.layers import NonLocalAttn

    theirs = randomized(NonLocalAttn(16, rd_channels=4))
    gain = theirs.norm.weight / torch.sqrt(theirs.norm.running_var + theirs.norm.eps)
    scale = theirs.scale * 4**0.5  # ours is 1 / sqrt(4)
    none = torch.zeros(12, 16, dtype=torch.float64)
    ours = copied(
        PositionAttention(16, reduction=4),
        attention__q_proj__weight=square(theirs.t) * scale,
        attention__q_proj__bias=theirs.t.bias * scale,
        attention__v_proj__weight=torch.cat([square(theirs.g), none]),
        attention__v_proj__bias=torch.cat([theirs.g.bias, none[:, 0]]),
        attention__out_proj__weight=torch.cat([square(theirs.z) * gain[:, None], none.T], dim=1),
        attention__out_proj__bias=(theirs.z.bias - theirs.norm.running_mean) * gain + theirs.norm.bias,
        gamma=torch.ones(()),
        **taken(attention__k_proj=theirs.p),
    )
    return compare(ours, theirs, draw(2, 16, 5, 3))


def map_pooling():
    """timm's attention pooling with a latent query, without its feed-forward network and our norm."""
    from timm.layers import AttentionPoolLatent

    theirs = randomized(AttentionPoolLatent(16, num_heads=4, latent_len=3, feat_size=15, pos_embed="abs", pool_type=""))
    theirs.mlp = None
    module = MapPooling(16, 4, num_queries=3, positions="learned", grid_size=(5, 3))
    module.pooling.norm = torch.nn.Identity()
    (k, v), (k_bias, v_bias) = theirs.kv.weight.chunk(2), theirs.kv.bias.chunk(2)
    ours = copied(
        module,
        positions__weight=theirs.pos_embed.T.reshape(1, 16, 5, 3),
        pooling__queries=theirs.latent[0],
        pooling__attention__k_proj__weight=k,
        pooling__attention__k_proj__bias=k_bias,
        pooling__attention__v_proj__weight=v,
        pooling__attention__v_proj__bias=v_bias,
        **taken(pooling__attention__q_proj=theirs.q, pooling__attention__out_proj=theirs.proj),
    )
    return compare(ours, lambda x: theirs(x.flatten(2).mT), draw(2, 16, 5, 3))


def deformable(size, shapes=((6, 9), (5, 4), (2, 3)), num_points=3):
    """transformers' Deformable DETR: points or boxes, some outside the maps, and masked cells."""
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as library

    config = DeformableDetrConfig(
        d_model=16, num_feature_levels=len(shapes), disable_custom_kernels=True, use_timm_backbone=False
    )
    theirs = randomized(library.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=num_points))
    module = DeformableAttention(16, 4, num_levels=len(shapes), num_points=num_points)
    heads = {"offset_proj": theirs.sampling_offsets, "weight_proj": theirs.attention_weights}
    ours = copied(module, **taken(v_proj=theirs.value_proj, out_proj=theirs.output_proj, **heads))
    maps = [draw(2, 16, *shape) for shape in shapes]
    value, sizes = flatten_maps(maps)
    mask = torch.rand(2, value.shape[1], generator=torch.Generator().manual_seed(6)) > 0.3
    reference = 0.5 + 0.4 * draw(2, 7, len(shapes), size)

    def reference_call(query, value, reference):
        return theirs(
            query,
            attention_mask=mask,
            encoder_hidden_states=value,
            reference_points=reference,
            spatial_shapes=torch.tensor(sizes),
            spatial_shapes_list=sizes,
        )[0]

    return compare(
        lambda query, value, reference: ours(query, value, sizes, reference, mask),
        reference_call,
        draw(2, 7, 16),
        value,
        reference,
    )


def space_time():
    """transformers' TimeSformer layer; its tokens are ordered by patch, then by frame."""
    from transformers import TimesformerConfig
    from transformers.models.timesformer.modeling_timesformer import TimesformerLayer

    T, height, width = 3, 2, 4
    config = TimesformerConfig(
        image_size=16 * width, num_frames=T, hidden_size=16, num_attention_heads=4, intermediate_size=24
    )
    theirs = randomized(TimesformerLayer(config, 0))
    given = {}
    for name, library in (("temporal_attention", theirs.temporal_attention), ("attention", theirs.attention)):
        parts = zip(library.attention.qkv.weight.chunk(3), library.attention.qkv.bias.chunk(3), strict=True)
        for part, (weight, bias) in zip("qkv", parts, strict=True):
            given[f"{name}__{part}_proj__weight"], given[f"{name}__{part}_proj__bias"] = weight, bias
        weight, bias = library.output.dense.weight, library.output.dense.bias
        if name == "temporal_attention":  # two consecutive linear maps are one
            after = theirs.temporal_dense
            weight, bias = after.weight @ weight, after.weight @ bias + after.bias
        given[f"{name}__out_proj__weight"], given[f"{name}__out_proj__bias"] = weight, bias
    given |= taken(
        temporal_residual__norm=theirs.temporal_layernorm,
        attention_residual__norm=theirs.layernorm_before,
        ffn_residual__norm=theirs.layernorm_after,
        ffn__fc1=theirs.intermediate.dense,
        ffn__fc2=theirs.output.dense,
    )
    ours = copied(DividedSpaceTimeLayer(16, 4, ffn_dim=24, norm_eps=config.layer_norm_eps), **given)

    def call(x, cls):
        x, cls = ours(x, cls)
        return torch.cat([cls, x.flatten(1, 2)], dim=1)

    def reference_call(x, cls):
        tokens = torch.cat([cls, x.transpose(1, 2).flatten(1, 2)], dim=1)
        out = theirs(tokens)[0]
        out = out if out.dim() == 3 else out[None]
        patches = out[:, 1:].unflatten(1, (height * width, T)).transpose(1, 2).flatten(1, 2)
        return torch.cat([out[:, :1], patches], dim=1)

    return compare(call, reference_call, draw(2, T, height * width, 16), draw(2, 1, 16))
