"""From a batch to texts, for training and for predicting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmattn.generate.ctc import Fusion
from mmattn.tasks.asr.processor import ASRBatch
from mmattn.tasks.asr.speech import SpeechProcessor
from mmattn.tasks.common.errors import ConfigError


@dataclass
class Heard:
    """What one clip of a batch says."""

    text: str  # as the processor's `said` has it
    score: float
    log_p: Tensor | None  # (S, V), CTC's log-probabilities of its encoded frames; none without CTC


@torch.inference_mode()
def write(
    model: Any,
    batch: ASRBatch,
    processor: SpeechProcessor,
    num_beams: int | None = None,
    ctc_weight: float | None = None,
    **search: Any,
) -> list[Heard]:
    """What each clip of a batch says.

    Args:
        model: in evaluation mode; one with a `write` of its own is asked by that.
        batch: features and their mask.
        processor: names the special tokens, and in `search` how the model was measured.
        num_beams: 1 = greedy; None: as the model was measured.
        ctc_weight: 0 = attention alone, 1 = CTC alone; None: likewise.
        search: `ASRHead.transcribe`'s other keywords; lm_weight and lm_bonus of the processor's language model, which
            beams ask, see `mmattn.generate.ctc.Fusion`.
    """
    given = {"num_beams": num_beams, "ctc_weight": ctc_weight}
    chosen = {**processor.search, **{name: value for name, value in given.items() if value is not None}, **search}
    if hasattr(model, "write"):
        found: list[Heard] = model.write(batch, processor, **chosen)
        return found
    weight, bonus = (chosen.pop(name, 0.0) for name in ("lm_weight", "lm_bonus"))
    if weight and chosen.get("num_beams", 1) > 1 and processor.lm is not None:
        chosen["fusion"] = Fusion(processor.lm, weight, bonus)
    memory, mask = model.encode(batch.features, batch.feature_mask)
    log_p = model.head.log_probs(memory)
    special = {"start_id": processor.start_id, "eos_id": processor.eos_id, "suppress": (processor.unk_id,)}
    written = model.head.transcribe(memory, log_p, mask, **special, **chosen)
    rows = zip(written, log_p.cpu(), mask.sum(1).tolist(), strict=True)
    return [Heard(processor.said(ids), score, row[:length]) for (ids, score), row, length in rows]


def check_lm(search: Mapping[str, Any], asked: Mapping[str, Any], processor: SpeechProcessor, attends: bool) -> None:
    """Where a language model is to be asked, that one can be.

    Args:
        search: all that decides how texts are searched for.
        asked: what of it was asked for, and must not be ignored.
        processor: of the model.
        attends: whether the model has a decoder.

    Raises:
        ConfigError: there is none, a decoder decides, or a greedy search, which asks nobody.
    """
    named = [name for name in asked if name.startswith("lm_")]
    if processor.lm is None:
        if named:
            raise ConfigError(f"{named[0]}: there is no language model; `fit` with data.lm_order makes one.")
        return
    if search.get("lm_weight") and attends and search.get("ctc_weight", 0.0) < 1.0:
        raise ConfigError(
            "lm_weight: a language model goes with CTC alone, since a decoder is one itself: model.decoder none, or a "
            "ctc_weight of 1 in searching; lm_weight 0 leaves it unasked."
        )
    if asked.get("lm_weight") and search.get("num_beams", 1) == 1:
        raise ConfigError("lm_weight: beams ask a language model; expected num_beams above 1, found 1.")
