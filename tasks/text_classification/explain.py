"""Signed relevance of a text's words for a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.tasks.common.integrated import integrated_gradients
from mmattn.tasks.text_classification.data import TextBatch
from mmattn.tasks.text_classification.encoders import WordEmbeddings

STEPS = 16  # on the way from no input to the text


def word_relevance(model: Any, batch: TextBatch, targets: Sequence[Any], mask_id: int) -> list[Tensor]:
    """The relevance of each word of each text for a score: positive for it, negative against it.

    Integrated gradients, from a text whose words are all hidden, of the label's score less the mean of the others'; for
    several labels at once and for regression, of the score itself.

    Args:
        model: The `TextClassificationModel`.
        batch: The batch.
        targets: For each sample the name of the task, the index of the label, and the index of the word whose label it
            is; -1 for labels of whole texts.
        mask_id: The token of a hidden word.

    Returns:
        For each sample the relevance of its words (W,), those of a second text behind the first's; the magnitudes sum
        to one.
    """
    # Where there are characters, too, both are hidden: the sum of all embeddings of a word is replaced.
    embedding = next(m for m in model.modules() if isinstance(m, (nn.Embedding, WordEmbeddings)))
    rows, places = [], []
    for number, (_, _, word) in enumerate(targets):
        own = [row for row, span in enumerate(batch.spans) if span.sample == number]
        row = next((r for r in own if 0 <= word - batch.spans[r].first < len(batch.spans[r].words)), own[0])
        rows.append(row)
        places.append(max(word - batch.spans[row].first, 0))
    index = torch.tensor(rows, device=batch.input_ids.device)
    starts = batch.word_starts[index] if batch.word_starts.shape[1] else None
    characters = None if batch.characters is None else batch.characters[index]
    given = (batch.input_ids[index], batch.key_mask[index], batch.token_types[index], starts, characters)

    def score() -> Tensor:
        output = model(*given)
        found = []
        for row, ((name, label, word), place) in enumerate(zip(targets, places, strict=True)):
            scores = output.logits[row] if word < 0 else output.tag_logits[row, place]
            own = scores[model.slices[name]]
            others = torch.arange(len(own), device=own.device) != label
            relative = model.heads_of[name][0] not in ("multi_label", "regression")
            found.append(own[label] - (own[others].mean() if relative else 0.0))
        return torch.stack(found)

    hidden = batch.input_ids[index].clone()
    for number, row in enumerate(rows):
        own = [place for places in batch.spans[row].every_place for place in places]
        hidden[number].view(-1)[own] = mask_id
    start = _output_of(embedding, lambda: model(hidden, *given[1:4], None if characters is None else 0 * characters))
    weights = integrated_gradients(embedding, score, STEPS, start).flatten(1).cpu()  # (N, L)
    relevant = []
    for number, row in enumerate(rows):
        sums = [weights[number, own].sum() for own in batch.spans[row].every_place]
        values = torch.stack(sums) if sums else weights.new_zeros(0)
        relevant.append(values / values.abs().sum().clamp_min(1e-12))
    return relevant


def _output_of(module: nn.Module, call: Callable[[], Any]) -> Tensor:
    """What a module returns when the model is called."""
    found: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, given, output: found.append(output.detach()))
    try:
        with torch.no_grad():
            call()
    finally:
        hook.remove()
    return found[0]
