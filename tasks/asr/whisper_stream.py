"""A long recording as Whisper hears it, read as it is heard."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmattn.data.audio.pretrained import WhisperFeatures


class WhisperStream:
    """Windows of a recording's log-mel frames, those of the whole; a window and a block are in memory.

    What counts as silence depends on the loudest frame of all: a recording is read once for that (``loudest``), and
    once to be heard.

    Args:
        front: What frames are.
        blocks: The recording, in pieces (n,); longer than half a frame together.
        loudest: log10 of the greatest energy of a band; none: not known yet.
        silence: From the lowest to the highest sample: windows without more are passed over.

    >>> front, wave = WhisperFeatures(), torch.randn(40 * 16_000)
    >>> top = WhisperStream(front, wave.split(50_000)).loudest()
    >>> first, frames = WhisperStream(front, wave.split(50_000), top).read(2_000)
    >>> first, frames.shape, torch.allclose(frames, front(wave, whole=True)[2_000:], atol=1e-4)
    (2000, torch.Size([2000, 80]), True)
    """

    def __init__(
        self, front: WhisperFeatures, blocks: Iterable[Tensor], loudest: float | None = None, silence: float = 0.0
    ) -> None:
        self.front, self.top, self.silence = front, loudest, silence
        self.blocks = iter(blocks)
        self.half, self.window = front.n_fft // 2, front.seconds * front.sample_rate // front.hop
        self.wave = torch.empty(0)  # what may still be needed, from the sample `begin` of the recording on
        self.begin, self.total = 0, 0  # how many samples were read
        self.mirrored, self.ended = False, False  # whether what lies before the first sample stands in `wave`; all read

    def read(self, frame: int) -> tuple[int, Tensor]:
        """The window that begins at a frame, or at the next that something can be heard in; see ``Whisper.hear``.

        Returns:
            Where it begins, and its frames (T, M); none at the end.
        """
        if self.top is None:
            raise ValueError("the loudest frame is not known: see loudest()")
        while count := self._fill(frame):
            wave = self.wave[max(0, frame * self.front.hop - self.begin) :][: count * self.front.hop]
            if float(wave.amax() - wave.amin()) > self.silence:
                return frame, self.front.scaled(self._log(frame, count), self.top)
            frame += count
        return frame, torch.empty(0, self.front.n_mels)

    def loudest(self) -> float:
        """log10 of the greatest energy of a band; reads all of it."""
        frame, top = 0, -torch.inf
        while count := self._fill(frame):
            top = max(top, float(self._log(frame, count).amax()))
            frame += count
        return top

    def _log(self, frame: int, count: int) -> Tensor:
        first = frame * self.front.hop - self.half - self.begin
        return self.front.log_mel(self.wave[first : first + (count - 1) * self.front.hop + self.front.n_fft])

    def _fill(self, frame: int) -> int:
        """Reads what the window at a frame needs, forgets what is before; how many frames there are."""
        hop = self.front.hop
        low, high = frame * hop - self.half, (frame + self.window) * hop + self.half
        while not self.ended and self.begin + len(self.wave) < high:
            block = next(self.blocks, None)
            if block is None:
                self.ended = True
                self.wave = torch.cat([self.wave, self.wave[-self.half - 1 : -1].flip(0)])  # mirrored, as at the start
            else:
                self.wave = torch.cat([self.wave, block])
                self.total += len(block)
                if not self.mirrored and self.begin == 0 and len(self.wave) > self.half:
                    self.wave = torch.cat([self.wave[1 : self.half + 1].flip(0), self.wave])
                    self.begin, self.mirrored = -self.half, True
            if low > self.begin:
                self.wave, self.begin = self.wave[low - self.begin :], min(low, self.begin + len(self.wave))
        if low > self.begin:
            self.wave, self.begin = self.wave[low - self.begin :].clone(), low
        frames = self.total // hop if self.ended else frame + self.window
        return max(0, min(self.window, frames - frame))
