"""Augmentation of clips in training, the same for all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmattn.data.image.augment import BatchAugment


class ClipAugment(BatchAugment):
    """`BatchAugment` of clips: all frames of a clip are shifted, flipped, zoomed, colored and erased alike, and mixed
    with the frames of one other clip. The arguments are those of `BatchAugment`.

    >>> import torch
    >>> clips = torch.zeros(4, 6, 3, 32, 32, dtype=torch.uint8)
    >>> mixed, targets = ClipAugment(flip=True, mixup=0.2)(clips, torch.eye(4), [1, 2, 3, 4])
    >>> mixed.shape
    torch.Size([4, 6, 3, 32, 32])
    """

    def __call__(self, clips: Tensor, targets: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augments a batch of clips.

        Args:
            clips: (B, T, 3, H, W) uint8.
            targets: (B, K) float.
            seeds: B integers, the seeds of all random draws.

        Returns:
            Clips (B, T, 3, H, W), uint8 or, if mixed or zoomed, float in 0..1; targets (B, K).
        """
        T = clips.shape[1]
        frames = self.change(clips.flatten(0, 1), [seed for seed in seeds for _ in range(T)])  # (B T, 3, H, W)
        clips = frames.unflatten(0, (-1, T))
        if self.mixup or self.cutmix:
            images, targets = self._mix(clips.flatten(1, 2), targets, seeds)  # (B, T 3, H, W)
            clips = images.unflatten(1, (T, 3))
        return clips, targets
