"""Random image-to-text models of transformers with sharp weights, compared with ours by layer and by text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from public import TOLERANCE, difference, load
from public_seq2seq import sharpened

from mmattn import capture

V = 17  # vocabulary
START, END, UNUSED_END, PAD = 1, 2, 3, 0
BEAMS = {"num_beams": 3, "max_new_tokens": 9}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 9},
    "greedy, default length": {},
    "greedy, no repeated pair": {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "min_length": 5},
    "beams": BEAMS,
    "beams, short": BEAMS | {"length_penalty": 0.3, "early_stopping": True},
    "beams, long": BEAMS | {"length_penalty": 2.5, "min_new_tokens": 3, "num_return_sequences": 2},
    "beams, penalized": BEAMS | {"repetition_penalty": 1.5, "max_new_tokens": 20},
}


def lively(model: torch.nn.Module, seed: int, decoder: Any) -> Any:
    """The model with weights for which texts depend on the image and the place, and end at several lengths."""
    sharpened(model, seed, gain=1.5)
    with torch.no_grad():
        decoder.bert.embeddings.position_embeddings.weight.mul_(3)
        for layer in decoder.bert.encoder.layer:
            for attention in (layer.attention, layer.crossattention):
                attention.self.query.weight.mul_(4)
        decoder.cls.predictions.decoder.weight.mul_(2)
        decoder.cls.predictions.decoder.bias[END] += 1.5
    return model


def recorded(model: torch.nn.Module, stacks: Sequence[str], run: Callable[[], Any]) -> tuple[Any, list[torch.Tensor]]:
    """The result of a run, and the output of each layer of the stacks of that name."""
    states: list[torch.Tensor] = []
    layers = [layer for name in stacks for layer in model.get_submodule(name).children()]
    handles = [
        layer.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    with torch.no_grad():
        result = run()
    for handle in handles:
        handle.remove()
    assert len(states) == len(layers)
    return result, states


def assert_rows(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], row: int) -> None:
    """Compares a row of our padded batch with theirs, alone and without padding."""
    cut = [a[row : row + 1, : b.shape[1]] for a, b in zip(ours, theirs, strict=True)]
    assert difference(cut, theirs) <= TOLERANCE


def assert_generated(found: Any, row: int, expected: torch.Tensor) -> int:
    """Compares the texts of a row of ours with theirs, which begin with START; returns the longest one's length."""
    assert expected[:, 0].eq(START).all()
    width = expected.shape[1] - 1
    assert found.ids[row, :, :width].tolist() == expected[:, 1:].tolist()
    assert found.lengths[row].max() == width
    return width


def assert_cached_equals_full(ours: Any, target: torch.Tensor, *given: torch.Tensor) -> None:
    """Compares the logits of a text that is decoded in several parts with those of all of it."""
    pixels, question = given[0], given[1:]
    with torch.no_grad():
        full, state = ours(pixels, target, *question), ours.start(pixels, *question)
        for first, last in ((0, 2), (2, 3), (3, target.shape[1])):
            assert difference([ours.step(target[:, first:last], state)], [full[:, last - 1]]) <= TOLERANCE


def assert_captured_equals_fused(ours: Any, *given: torch.Tensor) -> Any:
    """Compares the output with that of captured attention; returns the maps."""
    with torch.no_grad():
        fused = ours(*given)
        with capture(ours) as maps:
            assert difference([ours(*given)], [fused]) <= TOLERANCE
    return maps


def assert_trains(folder: Any, *given: torch.Tensor) -> None:
    """Asserts that every parameter of the loaded model receives a gradient."""
    model = load(folder).train()
    model(*given).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
