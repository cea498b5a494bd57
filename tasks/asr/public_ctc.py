"""wav2vec 2.0 and HuBERT in the place of the task's own model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.backbones.wav2vec2 import Wav2Vec2
from mmattn.masks import Mask
from mmattn.tasks.asr.model import ASRHead, ASROutput


class PublicModel(nn.Module):
    """Samples to scores of letters, called as `ASRModel` is; a batch gives what its recordings give alone.

    The base models normalise over time, padding included; so recordings of several lengths go through the convolutions
    one by one, and together through what is above.

    Args:
        vocab_size: V.
        blank: CTC's, an id.
        keywords: of `mmattn.backbones.wav2vec2.Wav2Vec2`, without a head.

    >>> sizes = {"conv_dims": (16, 16), "conv_kernels": (10, 3), "conv_strides": (5, 2), "position_groups": 4}
    >>> model = PublicModel(9, embed_dim=32, num_layers=1, num_heads=4, **sizes)
    >>> model(torch.randn(2, 400), None, None).ctc_logits.shape
    torch.Size([2, 39, 9])
    """

    def __init__(self, vocab_size: int, blank: int = 0, **keywords: Any) -> None:
        super().__init__()
        self.net = Wav2Vec2(**keywords)
        self.head = ASRHead(vocab_size, keywords["embed_dim"], decoder="none", blank=blank)
        self.subsampling = self.net.hop
        self.by_clip = keywords.get("conv_norm", "group") == "group"

    def encode(self, features: Tensor, feature_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Samples (B, n) and their mask (B, n) to the states (B, S, E) and their mask (B, S).

        Recordings that are too short for a single frame have none.
        """
        net, short = self.net, self.net.receptive_field - features.shape[1]
        mask = torch.ones_like(features, dtype=torch.bool) if feature_mask is None else feature_mask
        if short > 0:
            features, mask = (nn.functional.pad(x, (0, short)) for x in (features, mask))
        if self.by_clip and feature_mask is not None and not bool(mask.all()):
            x, real = self._one_by_one(features, mask.sum(1))
        else:
            x, real = net.embed(features, mask)
        assert real is not None
        return net.dropout(net.encoder(x, Mask(real))), real

    def _one_by_one(self, features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """As `Wav2Vec2.embed`, for so many samples (B,) of each row."""
        net, least = self.net, self.net.receptive_field
        rows = [
            net.convolutions(row[None, None, : max(count, least)])[0].mT
            for row, count in zip(features, counts.tolist(), strict=True)
        ]
        length = int(net.frames(torch.tensor(features.shape[1])))
        x = torch.stack([nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])  # (B, S, C)
        real = torch.arange(x.shape[1], device=x.device) < net.frames(counts)[:, None]  # (B, S)
        return net.place(x, real), real

    def forward(self, features: Tensor, feature_mask: Tensor | None, target_ids: Tensor | None) -> ASROutput:
        """Scores of the letters of each frame.

        Args:
            features: (B, n), samples, normalised as the weights want it.
            feature_mask: (B, n) bool, True = of the recording; None: all is.
            target_ids: not read: CTC looks at no text.
        """
        states, mask = self.encode(features, feature_mask)
        return ASROutput(self.head.ctc(states), mask, None)


def own_names(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The network's keywords, as `ASRModel` calls them."""
    fixed = {"encoder": "transformer", "decoder": "none", "memory": "frames"}
    return fixed | {{"num_layers": "encoder_layers"}.get(key, key): value for key, value in keywords.items()}
