"""Random numbers that are pure functions of integers, identical on every machine and in every version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_of(seed: int, epoch: int, index: int) -> int:
    """Returns a 63-bit hash of the arguments, identical on every machine."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def pick(rng: Random, items: Sequence[Any]) -> Any:
    """Draws one of the items. (Python does not promise that `Random.choice` is stable between versions.)"""
    return items[int(rng.random() * len(items))]


class SeededRandom:
    """Uniform numbers, one stream per seed: splitmix64 of the seed and a counter (Steele et al. 2014, figure 17)."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.state = np.array([seed & (2**64 - 1) for seed in seeds], np.uint64)

    def __call__(self, number: int = 1) -> Tensor:
        """Draws (number, B) float32 in [0, 1)."""
        rows = []
        with np.errstate(over="ignore"):
            for _ in range(number):
                self.state = self.state + np.uint64(0x9E3779B97F4A7C15)
                z = self.state
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                rows.append(((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24))
        return torch.from_numpy(np.stack(rows))
