"""Public captioning networks with the interface of `CaptioningModel`: BLIP, GIT, ViT or DeiT with BERT or GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmattn.backbones.git import GitDecoder
from mmattn.backbones.image_text import ImageToText
from mmattn.explain import relevance, shares
from mmattn.generate import Generated, GenerationConfig
from mmattn.tasks.captioning.model import CaptioningOutput
from mmattn.tasks.common.seq2seq.model import read_off


class PublicCaptioner(nn.Module):
    """A public network that describes images; it predicts no object labels.

    Args:
        net: The network, which reads no questions.
    """

    beside: ClassVar[tuple[str, ...]] = ()  # as of `TextModel`

    def __init__(self, net: ImageToText) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, target_ids: Tensor, image_index: Tensor | None = None) -> CaptioningOutput:
        """Teacher forcing; see `CaptioningModel`, whose `object_logits` are (N, P, 0) here."""
        memory = self.net.encode(pixel_values)  # (N, S, .)
        logits = self.net.text(target_ids, memory if image_index is None else memory[image_index])
        return CaptioningOutput(logits, memory[:, self._prefix :, :0])

    def generate(self, pixel_values: Tensor, config: GenerationConfig, **keywords: Any) -> Generated:
        """Generate a caption for each image; see `ImageToText.generate`."""
        return self.net.generate(pixel_values, config, **keywords)

    @property
    def _prefix(self) -> int:
        """Number of the encoder's tokens before the patches."""
        return self.net.image.num_prefix

    @property
    def _memory_len(self) -> int:
        """Number of the encoder's tokens, S."""
        return self._prefix + self.grid_size[0] * self.grid_size[1]

    @cached_property
    def attention_paths(self) -> list[str]:
        """Paths of the decoder's attentions to the image, one for each layer."""
        if isinstance(self.net.text, GitDecoder):  # whose self-attention also reads the image
            return [f"net.text.decoder.layers.{n}.attention" for n in range(len(self.net.text.decoder.layers))]
        return [name for name, _ in self.named_modules() if name.endswith(".cross_attention")]

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Attention of each target token to the patches: (B, L, P), rows summing to one; see `CaptioningModel`."""
        if isinstance(self.net.text, GitDecoder):
            joint = torch.stack([maps[path][0].mean(1) for path in self.attention_paths]).mean(0)  # (B, S + L, S + L)
            read = joint[:, self._memory_len :, : self._memory_len]
        else:
            read = read_off({path: maps[path] for path in self.attention_paths})  # (B, L, S)
        return shares(read[:, :, self._prefix :])

    def relevance(self, pixel_values: Tensor, target_ids: Tensor, labels: Tensor) -> Tensor:
        """Relevance of the patches for each token of given captions: (B, L, P), rows summing to one.

        The score is the logit of the token; it is propagated through all layers (`mmattn.explain.relevance`).

        Args:
            pixel_values: (B, 3, H, W).
            target_ids: (B, L) long, the start token first.
            labels: (B, L) long, the token after each of them.
        """
        rows = []
        for n in range(labels.shape[1]):

            def score(n: int = n) -> Tensor:
                logits = self.net(pixel_values, target_ids[:, : n + 1])[:, n]  # (B, V)
                return logits.gather(1, labels[:, n : n + 1])[:, 0]

            found = relevance(self.net, score)
            rows.append(self._read(found, n)[:, self._prefix :])
        return shares(torch.stack(rows, dim=1))

    def _read(self, found: Mapping[tuple[str, str], Tensor], n: int) -> Tensor:
        """The relevance of the encoder's tokens for token n of the text, (B, S).

        Sequences have the name of the first attention that reads them.
        """
        by_parts = {(query.split(".")[0], key.split(".")[0]): R for (query, key), R in found.items()}
        if isinstance(self.net.text, GitDecoder):  # its sequence begins with the image, as the encoder ends
            seen = by_parts["text", "text"][:, self._memory_len + n, : self._memory_len]
            return (seen[:, None] @ by_parts["image", "image"])[:, 0]
        return by_parts["text", "image"][:, n]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the patches (gh, gw)."""
        return self.net.image.grid_size
