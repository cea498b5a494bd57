"""Audio encoders: convolutional subsampling of a spectrogram, then a transformer or a conformer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder
from ..masks import Mask
from ..positions import SinusoidalPositions
from .conformer import Conformer

STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}  # over time, of the two convolutions


class ConvSubsampling(nn.Module):
    """Two 3x3 convolutions over time and frequency that halve the frequencies and optionally time, then a linear map.

    Output frame j covers the frames ``s j .. s j + s - 1``; it is real if the first of them is.

    Args:
        num_mels: M, bands of the spectrogram.
        embed_dim: E of the result.
        subsampling: s, the reduction of the number of frames: 1, 2 or 4.
        channels: Channels of the convolutions.
        is_causal: Whether an output frame depends on no input after its own.

    Raises:
        ValueError: An unknown subsampling.

    >>> x, mask = ConvSubsampling(40, 32, subsampling=4)(torch.randn(2, 50, 40), None)
    >>> x.shape
    torch.Size([2, 13, 32])
    """

    def __init__(
        self, num_mels: int, embed_dim: int, *, subsampling: int = 2, channels: int = 32, is_causal: bool = False
    ) -> None:
        super().__init__()
        if subsampling not in STRIDES:
            raise ValueError(f"subsampling={subsampling!r}: there are {', '.join(map(str, STRIDES))}")
        self.strides, self.is_causal = STRIDES[subsampling], is_causal
        self.convs = nn.ModuleList(
            nn.Conv2d(size, channels, 3, stride=(stride, 2), padding=(0, 1))
            for size, stride in zip((1, channels), self.strides, strict=True)
        )
        bands = ((num_mels + 1) // 2 + 1) // 2
        self.proj = nn.Linear(channels * bands, embed_dim)
        # He et al. 2015, section 2.2. With torch's default initialization the output is a ninth as large as the input,
        # is dominated by the residuals of untrained layers, and CTC takes many epochs to converge.
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear" if name.startswith("proj") else "relu")

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Subsamples frames.

        Args:
            features: (B, T, M).
            mask: (B, T) bool, True = a real frame; other frames are ignored.

        Returns:
            (B, S, E) with S = ceil(T / s), and the mask (B, S) or None.
        """
        x = features[:, None]  # (B, 1, T, M)
        for conv, stride in zip(self.convs, self.strides, strict=True):
            if mask is not None:
                x = x.masked_fill(~mask[:, None, :, None], 0.0)
            # With a stride of 2 an output also depends on the frame before its two.
            before = 2 if stride == 1 and self.is_causal else 1
            x = F.relu(conv(F.pad(x, (0, 0, before, 2 - before))))  # (B, channels, T / stride, bands)
            if mask is not None:  # by index: for export, a slice's length would not equal the convolution's
                mask = mask[:, torch.arange(x.shape[2], device=x.device) * stride]
        return self.proj(x.transpose(1, 2).flatten(2)), mask  # (B, S, E)


class AudioEncoder(nn.Module):
    """Encodes log-mel frames by convolutional subsampling, then transformer or conformer layers.

    The states of a clip do not depend on the batch: no norm is over frames, and padding is zero in convolutions. With
    chunk_frames it supports streaming: the states of a chunk depend on the chunk and preceding frames only, so they are
    final when the chunk is complete (chunked attention: Chen et al. 2021, section 2.2).

    Args:
        num_mels: M, bands of the spectrogram.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        kind: "transformer" (Vaswani et al. 2017) or "conformer" (Gulati et al. 2020).
        subsampling: Reduction of the number of frames: 1, 2 or 4.
        channels: Channels of the subsampling's convolutions.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        kernel_size: Kernel size of a conformer's convolution, in frames after subsampling; odd.
        dropout: Dropout of the first states, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}; None = dense.
        rotary: Rotary positions in the attention; off = sinusoidal positions are added.
        chunk_frames: Frames of a chunk, after subsampling; a frame attends to its own and preceding chunks, and
            convolutions are causal. None = all attend to all.
        left_chunks: Number of preceding chunks that a frame attends to; None = all.

    Raises:
        ValueError: An unknown kind, or inconsistent options.

    >>> encoder = AudioEncoder(40, 32, 2, 4, kind="conformer", subsampling=2)
    >>> states, mask = encoder(torch.randn(2, 50, 40))
    >>> states.shape, mask.shape
    (torch.Size([2, 25, 32]), torch.Size([2, 25]))
    """

    KINDS = ("transformer", "conformer")

    def __init__(
        self,
        num_mels: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        kind: str = "transformer",
        subsampling: int = 2,
        channels: int = 32,
        ffn_dim: int | None = None,
        kernel_size: int = 15,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        rotary: bool = True,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"unknown audio encoder {kind!r}; expected one of: {', '.join(self.KINDS)}")
        if chunk_frames is not None and chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}: a chunk has at least 1 frame")
        if left_chunks is not None and (chunk_frames is None or left_chunks < 0):
            raise ValueError(f"left_chunks={left_chunks} counts chunks from 0, and needs chunk_frames")
        self.subsampling, self.chunk_frames, self.left_chunks = subsampling, chunk_frames, left_chunks
        is_causal = chunk_frames is not None
        self.stem = ConvSubsampling(
            num_mels, embed_dim, subsampling=subsampling, channels=channels, is_causal=is_causal
        )
        self.positions = nn.Identity() if rotary else SinusoidalPositions(embed_dim)
        self.dropout = nn.Dropout(dropout)
        layer: dict[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "rotary": rotary}
        self.encoder: nn.Module
        if kind == "conformer":
            layer |= {"kernel_size": kernel_size, "is_causal": is_causal}
            self.encoder = Conformer(embed_dim, num_layers, num_heads, **layer)
        else:
            self.encoder = Encoder(embed_dim, num_layers, num_heads, **layer)

    def forward(self, features: Tensor, feature_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes log-mel frames.

        Args:
            features: (B, T, M).
            feature_mask: (B, T) bool, True = a real frame.

        Returns:
            The states (B, S, E) with S = ceil(T / subsampling), undefined at padding, and their mask (B, S) bool,
            True = real.
        """
        x, key_mask = self.stem(features, feature_mask)  # (B, S, E)
        chunks = None
        if self.chunk_frames is not None:
            chunks = chunk_mask(x.shape[1], self.chunk_frames, self.left_chunks, x.device)  # (S, S)
        mask = None if key_mask is None and chunks is None else Mask(key_mask, chunks)
        states = self.encoder(self.dropout(self.positions(x)), mask)
        return states, x.new_ones(x.shape[:2], dtype=torch.bool) if key_mask is None else key_mask


def chunk_mask(S: int, chunk_frames: int, left_chunks: int | None = None, device: torch.device | None = None) -> Tensor:
    """Returns the mask by which each frame attends to its own chunk and to left_chunks before it (None = all).

    Returns:
        (S, S) bool.

    >>> chunk_mask(5, 2, 1).int().tolist()
    [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    """
    chunk = torch.arange(S, device=device) // chunk_frames  # (S,)
    behind = chunk[:, None] - chunk[None, :]  # (S, S): chunks from key to query
    return behind >= 0 if left_chunks is None else (behind >= 0) & (behind <= left_chunks)
