"""Tiny random models of public libraries, saved as their folders, and the difference of our models from them."""

import json
import random
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file

from mmattn import load_pretrained
from mmattn.pretrained.keymap import load_into
from tests.conftest import refused

SHAPES = range(20)
TOLERANCE = 1e-8  # in float64
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh")


def shape(seed: int) -> tuple[random.Random, dict[str, Any]]:
    """Sizes common to all families, varied by seed; and the generator for more."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4])
    return draw, {
        "hidden_size": heads * draw.choice([2, 3, 4, 8]),
        "num_attention_heads": heads,
        "num_hidden_layers": draw.choice([1, 2, 3, 4]),
        "intermediate_size": draw.choice([3, 8, 17, 32]),
        "hidden_act": draw.choice(ACTIVATIONS),
    }


def disturbed(model: torch.nn.Module, seed: int) -> Any:
    """In float64 and evaluation mode, every parameter random: zero biases and unit norms would mask missing terms."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def save(model: Any, folder: Any, *, in_memory_names: bool = False) -> None:
    """As transformers does, with the names of earlier versions; or with the names in memory."""
    model.save_pretrained(folder)
    if in_memory_names:
        # Tied tensors are saved once.
        state = {name: tensor.clone() for name, tensor in model.state_dict().items() if "decoder" not in name}
        save_file(state, folder / "model.safetensors")


def rewrite(folder: Any, state: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    """Replaces the weights or entries of config.json."""
    if state is not None:
        save_file(state, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))


def assert_refused(folder: Any, message: str, state: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    """Asserts that loading the folder with these weights or config.json entries fails with the message and its name."""
    rewrite(folder, state, **config)
    assert refused(message, load, folder).startswith(str(folder))


def both_sides(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes with encoder-decoder names, equal on both sides except for the number of decoder layers."""
    names = {"attention_heads": "num_attention_heads", "ffn_dim": "intermediate_size"}
    sides = {f"{side}_{name}": sizes[ours] for side in ("encoder", "decoder") for name, ours in names.items()}
    return sides | {"encoder_layers": sizes["num_hidden_layers"]}


def image_size(draw: random.Random, patch: int) -> tuple[int, ...]:
    """Height and width of whole patches plus a remainder, rarely square."""
    return tuple(patch * draw.choice([1, 2, 3, 5]) + draw.choice([0, 1]) for _ in range(2))


def timm_sizes(draw: random.Random, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes with timm's names, and an image size."""
    patch = draw.choice([2, 3, 4])
    return {
        "img_size": image_size(draw, patch),
        "patch_size": patch,
        "in_chans": draw.choice([1, 3]),
        "embed_dim": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
    }


def save_timm(model: Any, folder: Any, arguments: Mapping[str, Any] | None) -> None:
    """As timm does; without arguments as in published folders, which contain only the name."""
    import timm

    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)


@torch.no_grad()
def assert_parity(theirs: Any, ours: Any, *given: torch.Tensor, mean: bool = False, **source: Any) -> None:
    """Compares states, pooled vector, the first layer's input and every layer's output: ours with given.

    Without a pooler the first token or the mean is pooled.
    """
    expected = theirs(**source, output_hidden_states=True)
    states, pooled = expected.last_hidden_state, expected.get("pooler_output")
    if mean or pooled is None:
        pooled = states.mean(1) if mean else states[:, 0]
    assert difference(ours.hidden_states(*given), expected.hidden_states) <= TOLERANCE
    assert difference(ours(*given), [states, pooled]) <= TOLERANCE


@torch.no_grad()
def assert_timm_parity(model: Any, ours: Any, arguments: Mapping[str, Any]) -> None:
    """Compares states, pooled vector, the first block's input and every block's output."""
    pixels = torch.randn(2, arguments["in_chans"], *arguments["img_size"], dtype=torch.float64)
    states, layers = model.forward_features(pixels), [model.norm_pre(model._pos_embed(model.patch_embed(pixels)))]
    for block in model.blocks:
        layers.append(block(layers[-1]))
    assert difference(ours(pixels), [states, model.forward_head(states, pre_logits=True)]) <= TOLERANCE
    assert difference(ours.hidden_states(pixels), layers) <= TOLERANCE


def assert_public_size(millions: float, config: Any, kind: Any, convert: Any, own: Any, *, without: str = "") -> None:
    """Checks names and shapes of a public model without its weights, and its number of parameters in millions."""
    with torch.device("meta"):
        state = {name: tensor for name, tensor in kind(config).state_dict().items() if name != without}
        converted = convert(config.to_dict(), state)
        ours = own(**converted.keywords)
        load_into(ours, converted)
    assert abs(sum(parameter.numel() for parameter in ours.parameters()) / 1e6 / millions - 1) < 0.05


def load(folder: Any, **keywords: Any) -> Any:
    return load_pretrained(folder, dtype=torch.float64, **keywords)


def text(draw: random.Random, seed: int, vocab: int, longest: int, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and key mask (B, L): one full, one padded right, one padded left, one with a single token."""
    generator = torch.Generator().manual_seed(seed)
    length = draw.randint(2, longest)
    mask = torch.ones(4, length, dtype=torch.bool)
    mask[1, draw.randint(1, length) :] = False
    mask[2, : draw.randint(0, length - 1)] = False
    mask[3, 1:] = False
    ids = torch.randint(pad_id + 1, vocab, (4, length), generator=generator)
    return ids.masked_fill(~mask, pad_id), mask


def difference(ours: Any, theirs: Any) -> float:
    """The largest absolute difference over lists of tensors; a different shape or number counts as infinite."""
    ours, theirs = list(ours), list(theirs)
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    worst = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return worst if worst == worst else float("inf")
