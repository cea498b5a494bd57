"""The compact convolutional transformer: a convolutional tokenizer, a transformer and sequence pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder
from ..positions import GridPositions
from ..probe import Probe
from .pooling import Encoded


class ConvTokenizer(nn.Module):
    """``maxpool(relu(conv(x)))``, one or more times: overlapping patches (Hassani et al. 2021, section 3.2, eq. 1).

    Args:
        embed_dim: E, channels of the last layer.
        num_layers: Number of layers of convolution and pooling; each halves the map.
        kernel_size: Kernel size of the convolutions, odd.
        hidden_dim: Channels of the layers before the last.
        in_channels: Channels of the image.

    >>> import torch
    >>> ConvTokenizer(32, num_layers=2)(torch.randn(2, 3, 32, 24)).shape
    torch.Size([2, 32, 8, 6])
    """

    def __init__(
        self, embed_dim: int, *, num_layers: int = 1, kernel_size: int = 3, hidden_dim: int = 64, in_channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n in range(num_layers):
            out = embed_dim if n == num_layers - 1 else hidden_dim
            # Without a bias, as in the authors' code.
            layers += [nn.Conv2d(in_channels, out, kernel_size, padding=kernel_size // 2, bias=False), nn.ReLU()]
            layers += [nn.MaxPool2d(3, stride=2, padding=1)]
            in_channels = out
        self.layers = nn.Sequential(*layers)
        self.stride = 2**num_layers
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W). Returns (N, E, ceil(H / stride), ceil(W / stride))."""
        return self.layers(pixel_values)


class SequencePooling(nn.Module):
    """``softmax(x w)^T x``, pooling by a learned score of each token (Hassani et al. 2021, section 3.3).

    ``capture`` records the weights, (B, 1, 1, L), under the path of `read`.

    Args:
        embed_dim: E.

    >>> import torch
    >>> SequencePooling(32)(torch.randn(2, 64, 32)).shape
    torch.Size([2, 32])
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(embed_dim, 1)
        self.read = Probe()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, E). Returns (B, E)."""
        weights = self.read(self.score(x).softmax(1).mT[:, None])  # (B, 1, 1, L)
        return (weights[:, 0] @ x).squeeze(1)


class CompactTransformer(nn.Module):
    """A transformer over a tokenizer's map, with sequence pooling (Hassani et al. 2021, section 3, "CCT").

    CCT-7/3x1 is ``CompactTransformer(256, 7, 4, ffn_dim=512, image_size=(32, 32))``.

    Args:
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        image_size: (H, W) in pixels of the positions, which are resized for other images.
        tokenizer_layers: Convolutions of the tokenizer, each of which halves the map.
        kernel_size: Kernel size of these convolutions.
        in_channels: Channels of the image.
        positions: See `mmattn.positions.GridPositions`.
        pooling: "sequence", or "mean" of the tokens.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E. The paper has 2 E.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}; the tokens are flattened row by row.

    Raises:
        ValueError: An unknown pooling.

    >>> import torch
    >>> encoded = CompactTransformer(32, 2, 4, image_size=(32, 24))(torch.randn(2, 3, 32, 24))
    >>> encoded.states.shape, encoded.pooled.shape
    (torch.Size([2, 192, 32]), torch.Size([2, 32]))
    """

    POOLINGS = ("sequence", "mean")

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        image_size: Sequence[int] = (32, 32),
        tokenizer_layers: int = 1,
        kernel_size: int = 3,
        in_channels: int = 3,
        positions: str = "learned",
        pooling: str = "sequence",
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if pooling not in self.POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; expected one of: {', '.join(self.POOLINGS)}")
        self.tokenizer = ConvTokenizer(
            embed_dim, num_layers=tokenizer_layers, kernel_size=kernel_size, in_channels=in_channels
        )
        stride = self.tokenizer.stride
        self.grid_size = (-(-image_size[0] // stride), -(-image_size[1] // stride))
        self.positions = GridPositions(embed_dim, positions, grid_size=self.grid_size)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, ffn_dim=ffn_dim, dropout=dropout, attention=attention)
        self.pool = SequencePooling(embed_dim) if pooling == "sequence" else None

    def forward(self, pixel_values: Tensor) -> Encoded:
        """pixel_values: (N, in_channels, H, W). Returns states (N, h w, E), row by row, and pooled (N, E)."""
        grid = self.positions(self.tokenizer(pixel_values))  # (N, E, h, w)
        states = self.encoder(self.dropout(grid.flatten(2).mT))  # (N, h w, E)
        return Encoded(states, states.mean(1) if self.pool is None else self.pool(states))
