"""How much later than it hears a sound a model with CTC writes it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from mmattn.tasks.asr.model import BLANK, ASRModel
from mmattn.tasks.asr.processor import ASRProcessor, ASRSample
from mmattn.tasks.asr.words import STEP, align, sounding, surest

CLIPS, TOKENS = 40, 6  # that are looked at, and of each clip
BETTER = 0.01  # by which what is said must lie better on the sound, so that a delay is believed


@torch.enable_grad()
def measure_delay(model: ASRModel, processor: ASRProcessor, samples: Sequence[ASRSample]) -> float:
    """Median seconds from what a token rests on to the frame that says it; below 0 where that is earlier.

    CTC's loss is the same whenever a token is said. Frames that see their neighbours learn to say it some frames late
    or early, much the same everywhere in a recording, and word times would be off by that. What a token rests on lies
    where its score changes with the input: the time of frame t, averaged with weights ``|d score / d x_t|^2``.

    That is an estimate, and is believed where the clips agree with it: where what is said, moved by it, covers more of
    the sound and less of the silence before and behind. In clips without silence nothing can be told, and it is 0.

    Args:
        model: with its final weights.
        processor: its own.
        samples: recordings with their texts, such as it was trained on.
    """
    model = copy.deepcopy(model).float().eval()  # whatever it was trained in, slopes need the digits
    device, seconds = next(model.parameters()).device, model.subsampling * processor.frame_seconds
    found: list[float] = []
    spoken: list[tuple[float, float, Tensor]] = []  # from and to, in seconds, and where there is sound
    for sample in samples[:: max(1, -(-len(samples) // CLIPS))]:
        ids = processor.encode(sample.text)
        wave = sample.read(processor.sample_rate)
        features = processor.features(wave)[None].to(device).requires_grad_()  # (1, T, M)
        memory, _ = model.encode(features, torch.ones_like(features[:, :, 0], dtype=torch.bool))
        scores = model.head.ctc(memory)[0]  # (S, V)
        spans = align(scores.detach().log_softmax(-1), ids)
        if spans:
            places = (spans[0][0] * seconds, (spans[-1][1] + 1) * seconds)
            spoken.append((*places, sounding(wave, processor.sample_rate)))
        times = torch.arange(features.shape[1], device=device) * processor.frame_seconds
        frames = surest(scores, ids, spans)
        for token, frame in list(zip(ids, frames, strict=False))[:: max(1, -(-len(frames) // TOKENS))]:
            (slope,) = torch.autograd.grad(scores[frame, token] - scores[frame, BLANK], features, retain_graph=True)
            weights = slope[0].double().square().sum(-1)  # (T,)
            if float(weights.sum()) > 0.0:  # a model that hears nothing has no delay
                rests_on = float((weights * times).sum() / weights.sum())
                found.append((frame + 0.5) * seconds - rests_on)
    delay = round(median(found), 3) if found else 0.0
    return delay if _covered(spoken, delay) > _covered(spoken, 0.0) + BETTER else 0.0


def _covered(spoken: Sequence[tuple[float, float, Tensor]], delay: float) -> float:
    """What is said and sounds, of what is said or sounds: the mean share over clips, all said so much earlier."""
    shares = []
    for first, last, loud in spoken:
        times = torch.arange(len(loud)) * STEP
        said = (times >= first - delay) & (times < last - delay)
        shares.append(float((said & loud).sum() / (said | loud).sum().clamp_min(1)))
    return sum(shares) / max(len(shares), 1)
