"""The rows of the public families: BERT, RoBERTa, ViT, DeiT, DINOv2, SigLIP."""

from functools import partial

import naive_pretrained
import torch
from cases import HEADS, E, Row
from naive import Allowed

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.vit import VisionTransformer

V, C, P = 7, 3, 2  # vocabulary, channels, side of a patch
GRID = (3, 4)


def ids_of(x):
    """Token ids (B, L) from random numbers (B, L, .)."""
    return (x[..., 0].abs() * 1000).long() % V


def image_of(x):
    """Patches (B, h, w, C P P) as the image (B, C, h P, w P) that they are cut from."""
    return x.unflatten(-1, (C, P, P)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def bert_row(name, reference, **keywords):
    return Row(
        name,
        lambda: BertEncoder(V, E, 2, HEADS, ffn_dim=12, max_len=20, **keywords),
        lambda module, x, y, x_mask, y_mask, is_causal: module(ids_of(x), x_mask),
        lambda module, x, y, x_mask, y_mask, is_causal: naive_pretrained.bert(module, ids_of(x), Allowed(x_mask)),
        attended="x",
        outputs=("x", ""),
        reference=reference,
    )


def vit_row(name, like, **keywords):
    """like: the name of a timm model."""
    sizes = {"image_size": (GRID[0] * P, GRID[1] * P), "patch_size": P, "in_channels": C, "ffn_dim": 12}
    return Row(
        name,
        lambda: VisionTransformer(E, 2, HEADS, **sizes, resize_positions="bicubic_antialias", **keywords),
        lambda module, x, y, x_mask, y_mask, is_causal: module(image_of(x)),
        lambda module, x, y, x_mask, y_mask, is_causal: naive_pretrained.vit(module, x),
        attended="",
        outputs=("", ""),
        lengths=(GRID, 7),
        widths=(C * P * P, E),
        reference=partial(timm_reference, like),
    )


def random(model):
    """The model in float64 with random parameters."""
    torch.manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def distance(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def loaded(converted, kind):
    from mmattn.pretrained.keymap import load_into

    model = kind(**converted.keywords).double().eval()
    load_into(model, converted)
    return model


@torch.no_grad()
def transformers_bert(family):
    """Last states and pooled output of a random transformers model, with padding in the batch."""
    import transformers

    from mmattn.pretrained import bert

    sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 20}
    config = getattr(transformers, family + "Config")(**sizes, vocab_size=30, max_position_embeddings=20)
    theirs = random(getattr(transformers, family + "Model")(config))
    convert = getattr(bert, f"convert_{family.lower()}")
    ours = loaded(convert(config.to_dict(), theirs.state_dict()), BertEncoder)
    ids, mask = torch.randint(3, 30, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    mask[1, 4:] = mask[2, :6] = False
    ids = ids.masked_fill(~mask, config.pad_token_id)
    expected = theirs(ids, attention_mask=mask.long())
    return distance(ours(ids, mask), [expected.last_hidden_state, expected.pooler_output])


@torch.no_grad()
def timm_reference(name):
    """Last states and pooled output of a random timm model."""
    import timm

    from mmattn.pretrained.timm import convert_timm

    arguments = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    theirs = random(timm.create_model(name, **arguments))
    config = {"architecture": name, "model_args": arguments}
    ours = loaded(convert_timm(config, theirs.state_dict()), VisionTransformer)
    pixels = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    states = theirs.forward_features(pixels)
    return distance(ours(pixels), [states, theirs.forward_head(states, pre_logits=True)])


ROWS = [
    bert_row("BERT", partial(transformers_bert, "Bert")),
    bert_row("RoBERTa", partial(transformers_bert, "Roberta"), pad_id=1),
    vit_row("ViT", "vit_tiny_patch16_224"),
    vit_row("DeiT", "deit_tiny_distilled_patch16_224", num_prefix=2, pooling="prefix", qkv_bias=False),
    vit_row("DINOv2", "vit_giant_patch14_reg4_dinov2", num_prefix=3, gated=True, activation="silu", layer_scale=0.5),
    vit_row("SigLIP", "vit_base_patch16_siglip_224", num_prefix=0, pooling="map"),
]
