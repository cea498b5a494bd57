"""What CTC learns by: its likelihood, and its agreement on two views of a clip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmattn.tasks.asr.model import BLANK


def ctc_loss(logits: Tensor, frame_mask: Tensor, labels: Tensor, label_mask: Tensor, blank: int = BLANK) -> Tensor:
    """CTC's negative log-likelihood (Graves et al. 2006), a label: comparable with cross-entropy.

    A clip with fewer frames than its labels need has no alignment, and no part in it.

    Args:
        logits: (B, S, V).
        frame_mask: (B, S) bool, True = a real frame.
        labels: (B, L) long, the end last.
        label_mask: (B, L) bool, True = counts.
        blank: its id.

    Returns:
        A scalar.
    """
    log_p = logits.float().log_softmax(-1).transpose(0, 1)  # (S, B, V)
    lengths = label_mask.sum(1) - 1  # without the end
    losses = F.ctc_loss(
        log_p, labels, frame_mask.sum(1), lengths, blank=blank, reduction="none", zero_infinity=True
    )  # (B,)
    return losses.sum() / lengths.sum().clamp_min(1)


def consistency_loss(logits: Tensor, frame_mask: Tensor, label_mask: Tensor) -> Tensor:
    """How far CTC's two views of each clip are apart, frame by frame (CR-CTC: Yao et al. 2024, section 3).

    Half the sum of both Kullback-Leibler divergences; each view learns from the other as it stands, without a gradient
    through it. As `ctc_loss`, a label.

    Args:
        logits: (2 B, S, V), all first views before all second ones.
        frame_mask: (2 B, S) bool, True = a real frame.
        label_mask: (2 B, L) bool, True = counts, the end among them.

    Returns:
        A scalar.
    """
    first, second = logits.float().log_softmax(-1).chunk(2)  # (B, S, V)
    apart = sum(
        F.kl_div(learning, taught.detach(), reduction="none", log_target=True).sum(-1)
        for learning, taught in ((first, second), (second, first))
    )  # (B, S)
    kept = frame_mask[: len(first)]
    return apart.masked_fill(~kept, 0.0).sum() / (label_mask.sum() - len(label_mask)).clamp_min(1)
