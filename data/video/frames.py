"""The frames that readers of videos yield, and what may be missing in a file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MISSING = 0.25  # seconds that may be missing at the end of a file, and
FRAMES = 3.5  # frames, of which containers count some that are never shown


class Frame(NamedTuple):
    """One frame of a video."""

    time: float  # at which it is first shown, in seconds from the beginning of the video
    pixels: np.ndarray  # (H, W, 3) uint8
