"""Random encoder-decoders of transformers with sharp weights, compared with ours by layer and by text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from public import TOLERANCE, difference, load, text

from mmattn.pretrained.generation import load_generation_config


def sharpened(model: torch.nn.Module, seed: int, gain: float = 2.0, noise: float = 0.3) -> Any:
    """In float64 and evaluation mode, every parameter and buffer random, logits far apart: no arg-max is a tie."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue  # ids of positions
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.dim() == 2 and "final_logits_bias" not in name:
                fans_in = 1.0 if "relative_attention_bias" in name else tensor.shape[-1] ** -0.5
                tensor.copy_(gain * fans_in * drawn)
            else:  # unit norms and zero biases would mask missing terms
                tensor.copy_(noise * drawn + ("norm" in name.lower() and name.endswith("weight")))
    return model


class Parity(NamedTuple):
    """The difference between ours and theirs, and the smallest margin between their two most probable tokens."""

    encoder: float  # the input of each layer and the output of the stack
    decoder: float
    logits: float
    margin: float  # an arg-max that rounding could change would prove nothing

    @property
    def holds(self) -> bool:
        return max(self[:3]) <= TOLERANCE < self.margin


def parity(theirs: Any, ours: Any, draw: Any, seed: int, vocabularies: tuple[int, int], longest: int) -> Parity:
    """Compares both stacks by layer, and the logits; with padding in the source."""
    ids, mask = text(draw, seed, vocabularies[0], longest, theirs.config.pad_token_id)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(vocabularies[1], (len(ids), draw.randint(1, longest)), generator=generator)
    return compared(theirs, ours, (ids, mask, target), input_ids=ids, attention_mask=mask.long())


def saved(theirs: Any, folder: Any, draw: Any, seed: int, longest: int) -> tuple[Any, Any, Callable[[], None]]:
    """The folder of a model with one vocabulary, the model, and a function that compares the loaded model with it."""
    theirs.save_pretrained(folder)

    def check() -> None:
        assert parity(theirs, load(folder), draw, seed, (theirs.config.vocab_size,) * 2, longest).holds

    return folder, theirs, check


def compared(theirs: Any, ours: Any, given: tuple[Any, Any, torch.Tensor], **source: torch.Tensor) -> Parity:
    """Compares both stacks by layer, and the logits: ours with given, theirs with source and its target."""
    found: dict[str, list[torch.Tensor]] = {"encoder": [], "decoder": []}
    handles = []
    for side, states in found.items():
        stack = getattr(ours, side)
        for layer in stack.layers:
            handles.append(layer.register_forward_pre_hook(lambda _, given, states=states: states.append(given[0])))
        handles.append(stack.register_forward_hook(lambda _, __, out, states=states: states.append(out)))
    with torch.no_grad():
        logits = ours(*given)
        expected = theirs(**source, decoder_input_ids=given[2], output_hidden_states=True)
    for handle in handles:
        handle.remove()
    best = expected.logits.topk(2).values
    return Parity(
        difference(found["encoder"], expected.encoder_hidden_states),
        difference(found["decoder"], expected.decoder_hidden_states),
        difference([logits], [expected.logits]),
        float((best[..., 0] - best[..., 1]).min()),
    )


def assert_same_text(theirs: Any, folder: Any, vocab: int, write: Any, **options: Any) -> list[list[int]]:
    """Writes the folder with generation options, loads it, compares the generated ids and returns them."""
    theirs.generation_config.update(**options)
    write(theirs, folder)
    ours, config = load(folder), load_generation_config(folder)
    pad = theirs.config.pad_token_id
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, vocab, (5, 9), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 6:] = mask[2, 1:] = mask[3, :4] = False
    ids = ids.masked_fill(~mask, pad)
    with torch.no_grad():
        expected = theirs.generate(input_ids=ids, attention_mask=mask.long())
    found = ours.generate(ids, mask, config).ids  # (B, n, L)
    found = torch.cat([ids.new_full((*found.shape[:2], 1), config.decoder_start_token_id), found], dim=2)
    assert found.flatten(0, 1).tolist() == expected.tolist()
    for row in range(len(ids)):  # batched equals single, without padding
        alone = ours.generate(ids[row : row + 1, mask[row]], None, replace(config, num_return_sequences=1)).tokens()
        if not mask[row, 0]:
            continue  # padded left: positions differ without the padding
        assert alone[0][0] == expected[row * found.shape[1]].tolist()[1 : 1 + len(alone[0][0])]
    return expected.tolist()
