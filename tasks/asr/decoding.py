"""Decoding of features to texts, for training and prediction, and word and character error rates."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmattn.generate.ctc import Fusion
from mmattn.tasks.asr.data import normalize_text
from mmattn.tasks.asr.processor import SpeechProcessor
from mmattn.tasks.common.errors import ConfigError

# Minimum, maximum and a description of the range of options.
RANGES = dict.fromkeys(("num_beams", "val_beams"), (1.0, sys.float_info.max, "1 or more"))
RANGES |= dict.fromkeys(("lm_weight", "consistency"), (0.0, sys.float_info.max, "0 or more"))
RANGES |= dict.fromkeys(("ctc_weight", "search_ctc_weight"), (0.0, 1.0, "a value from 0 to 1"))
RANGES |= {"window": (0.5, 600.0, "seconds from 0.5 to 600")}


@dataclass
class Hypothesis:
    """The hypothesis for one clip of a batch."""

    text: str  # as of the processor's `detokenize`
    score: float
    log_p: Tensor | None  # (S, V), CTC log-probabilities of its encoded frames; None without CTC


@torch.inference_mode()
def write(model: Any, features: Tensor, mask: Tensor, processor: SpeechProcessor, **search: Any) -> list[Hypothesis]:
    """Decode each clip of a batch.

    Args:
        model: In evaluation mode; if it has a `write` method, that one decodes.
        features: (B, T, ...), as of the processor.
        mask: (B, T) bool, True = of the recording.
        processor: Provides the special tokens and, in `search`, the options that the model was measured with.
        search: Keywords of `ASRHead.transcribe`, which override the measured ones unless None: num_beams (1 = greedy),
            ctc_weight (0 = attention alone, 1 = CTC alone), ...; and lm_weight and lm_bonus for shallow fusion of CTC
            beams with the processor's language model, see `mmattn.generate.ctc.Fusion`.
    """
    chosen = {**processor.search, **{name: value for name, value in search.items() if value is not None}}
    if hasattr(model, "write"):
        found: list[Hypothesis] = model.write(features, processor, **chosen)
        return found
    weight, bonus = (chosen.pop(name, 0.0) for name in ("lm_weight", "lm_bonus"))
    if weight and chosen.get("num_beams", 1) > 1 and processor.lm is not None:
        chosen["fusion"] = Fusion(processor.lm, weight, bonus)
    memory, mask = model.encode(features, mask)
    log_p, ids = model.head.log_probs(memory), processor.tokenizer
    special = {"start_id": ids.start_id, "eos_id": ids.eos_id, "suppress": (ids.unk_id,)}
    hypotheses = model.head.transcribe(memory, log_p, mask, **special, **chosen)
    rows = zip(hypotheses, log_p.cpu(), mask.sum(1).tolist(), strict=True)
    return [Hypothesis(processor.detokenize(ids), score, row[:length]) for (ids, score), row, length in rows]


def check_ranges(prefix: str, **options: Any) -> None:
    """Check that the given options are in range; errors name the option after the prefix.

    Raises:
        ConfigError: An option is out of range.
    """
    for name, (least, most, words) in RANGES.items():
        if options.get(name) is not None and not least <= options[name] <= most:
            raise ConfigError(f"{prefix}{name}: expected {words}, found {options[name]}.")


def check_lm(search: Mapping[str, Any], asked: Mapping[str, Any], processor: SpeechProcessor, attends: bool) -> None:
    """Check that the requested search can use the language model.

    Args:
        search: All search options.
        asked: The explicitly requested ones, which must not be ignored.
        processor: Of the model.
        attends: Whether the model has a decoder.

    Raises:
        ConfigError: There is no language model, the model decodes with attention, or the search is greedy.
    """
    named = [name for name in asked if name.startswith("lm_")]
    if processor.lm is None:
        if named:
            raise ConfigError(f"{named[0]}: there is no language model; `fit` with data.lm_order makes one.")
        return
    if search.get("lm_weight") and attends and search.get("ctc_weight", 0.0) < 1.0:
        raise ConfigError(
            "lm_weight: a language model needs CTC alone, since a decoder is one itself: set model.decoder none or a "
            "ctc_weight of 1 for the search, or lm_weight 0 to ignore the language model."
        )
    if asked.get("lm_weight") and search.get("num_beams", 1) == 1:
        raise ConfigError("lm_weight: a language model needs beam search; expected num_beams above 1, found 1.")


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Word and character error rates by jiwer: edits divided by reference words, or characters, spaces included.

    Both are normalized first (`normalize_text`). 0 is perfect. Sums are over the corpus: a reference without words
    adds no words, and its hypothesis counts as insertions. If all references are empty, the rate is 0 for empty
    hypotheses and 1 otherwise.

    Args:
        hypotheses: One text for each clip.
        references: The reference text of each clip, in a list of one.

    >>> score(["seven too"], [["Seven, two!"]])
    {'wer': 0.5, 'cer': 0.1111111111111111}
    """
    import jiwer

    predicted = [normalize_text(text) for text in hypotheses]
    expected = [normalize_text(given[0]) for given in references]
    words, characters = jiwer.process_words(expected, predicted), jiwer.process_characters(expected, predicted)
    return {"wer": float(words.wer), "cer": float(characters.cer)}
