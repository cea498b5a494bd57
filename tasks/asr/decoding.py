"""From features to texts, for training and for predicting; and how far texts are from what was said."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmattn.generate.ctc import Fusion
from mmattn.tasks.asr.data import normalize
from mmattn.tasks.asr.processor import SpeechProcessor
from mmattn.tasks.common.errors import ConfigError

# Of options: the least, the greatest, and both in words.
RANGES = dict.fromkeys(("num_beams", "val_beams"), (1.0, sys.float_info.max, "1 or more"))
RANGES |= dict.fromkeys(("lm_weight", "consistency"), (0.0, sys.float_info.max, "0 or more"))
RANGES |= dict.fromkeys(("ctc_weight", "search_ctc_weight"), (0.0, 1.0, "a value from 0 to 1"))
RANGES |= {"window": (0.5, 600.0, "seconds from 0.5 to 600")}


@dataclass
class Heard:
    """What one clip of a batch says."""

    text: str  # as the processor's `said` has it
    score: float
    log_p: Tensor | None  # (S, V), CTC's log-probabilities of its encoded frames; none without CTC


@torch.inference_mode()
def write(model: Any, features: Tensor, mask: Tensor, processor: SpeechProcessor, **search: Any) -> list[Heard]:
    """What each clip of a batch says.

    Args:
        model: in evaluation mode; one with a `write` of its own is asked by that.
        features: (B, T, ...), as of the processor.
        mask: (B, T) bool, True = of the recording.
        processor: names the special tokens, and in `search` how the model was measured.
        search: `ASRHead.transcribe`'s keywords, where they are not None in place of how the model was measured:
            num_beams (1 = greedy), ctc_weight (0 = attention alone, 1 = CTC alone), ...; and lm_weight and lm_bonus of
            the processor's language model, which beams ask, see `mmattn.generate.ctc.Fusion`.
    """
    chosen = {**processor.search, **{name: value for name, value in search.items() if value is not None}}
    if hasattr(model, "write"):
        found: list[Heard] = model.write(features, processor, **chosen)
        return found
    weight, bonus = (chosen.pop(name, 0.0) for name in ("lm_weight", "lm_bonus"))
    if weight and chosen.get("num_beams", 1) > 1 and processor.lm is not None:
        chosen["fusion"] = Fusion(processor.lm, weight, bonus)
    memory, mask = model.encode(features, mask)
    log_p, ids = model.head.log_probs(memory), processor.tokenizer
    special = {"start_id": ids.start_id, "eos_id": ids.eos_id, "suppress": (ids.unk_id,)}
    written = model.head.transcribe(memory, log_p, mask, **special, **chosen)
    rows = zip(written, log_p.cpu(), mask.sum(1).tolist(), strict=True)
    return [Heard(processor.detokenize(ids), score, row[:length]) for (ids, score), row, length in rows]


def check_ranges(prefix: str, **options: Any) -> None:
    """Raises a ConfigError where an option is given and out of its range; names it, behind the prefix."""
    for name, (least, most, words) in RANGES.items():
        if options.get(name) is not None and not least <= options[name] <= most:
            raise ConfigError(f"{prefix}{name}: expected {words}, found {options[name]}.")


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


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Word and character error rates, by jiwer: edits among all reference words, and characters, blanks included.

    Both texts go through `normalize` first. 0 is perfect. The sums are over the corpus: a reference without words adds
    no words, and whatever was heard in it counts as insertions. Where all references are empty, the rate is 0 if
    nothing was heard, and 1 if something was.

    Args:
        hypotheses: one text a clip.
        references: the right text of each, in a list of one.

    >>> score(["seven too"], [["Seven, two!"]])
    {'wer': 0.5, 'cer': 0.1111111111111111}
    """
    import jiwer

    heard = [normalize(text) for text in hypotheses]
    said = [normalize(given[0]) for given in references]
    return {"wer": float(jiwer.process_words(said, heard).wer), "cer": float(jiwer.process_characters(said, heard).cer)}
