"""Public networks of VQA with the interface of `VQAModel`: ViLT, which classifies, and BLIP, which writes answers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.detection import mask_of, resize_mask
from mmattn.backbones.image_text import ImageToText
from mmattn.backbones.vilt import Vilt
from mmattn.explain import relevance, shares
from mmattn.generate import Generated, GenerationConfig, generate
from mmattn.tasks.vqa.model import VQAOutput


class Relevance(NamedTuple):
    """Relevance of words and patches for an answer; each map sums to one."""

    words: Tensor  # (B, L), zeros at padding
    patches: list[Tensor]  # (gh, gw) for each question, of its own image


class PublicNetwork(nn.Module):
    """A public network that reads questions.

    Args:
        net: The network.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    @property
    def max_text_len(self) -> int:
        """Maximum number of tokens of a question."""
        return self.net.text.positions.max_len


class PublicVilt(PublicNetwork):
    """ViLT for a vocabulary of answers; it predicts no object labels."""

    net: Vilt

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor,
        image_index: Tensor | None = None,
        pixel_mask: Tensor | None = None,
    ) -> VQAOutput:
        """Compute the logits of the answers.

        Args:
            pixel_values: (N, 3, H, W), images padded at the right and the bottom.
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            image_index: (B,) long, the image of each question; None: B = N, and question i is about image i.
            pixel_mask: (N, H, W) bool, True = a pixel of the image; None: all.

        Returns:
            `logits` (B, V), and `object_logits` (N, 0, 0).
        """
        if image_index is not None:
            pixel_mask = None if pixel_mask is None else pixel_mask[image_index]
        asked = pixel_values if image_index is None else pixel_values[image_index]
        logits = self.net(asked, input_ids, key_mask, pixel_mask)
        return VQAOutput(logits, pixel_values.new_zeros(pixel_values.shape[0], 0, 0))

    def relevance(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor,
        image_index: Tensor | None = None,
        pixel_mask: Tensor | None = None,
    ) -> Relevance:
        """Relevance for the logit of the most probable answer (`mmattn.explain.relevance`); see `forward`."""

        def score() -> Tensor:
            return self(pixel_values, input_ids, key_mask, image_index, pixel_mask).logits.amax(-1)

        (found,) = relevance(self.net, score).values()  # words, class token and patches are one sequence
        row, length = found[:, 0], input_ids.shape[1]  # the first word is what the classifier reads
        patch = self.net.patches.stride
        grid = (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)
        cells = resize_mask(mask_of(pixel_values, pixel_mask), grid)  # (N, gh, gw)
        cells = cells if image_index is None else cells[image_index]
        maps = row[:, length + 1 :].unflatten(1, grid)
        own = [one[: real[:, 0].sum(), : real[0].sum()] for one, real in zip(maps, cells, strict=True)]
        patches = [shares(one.flatten()).view(one.shape) for one in own]
        return Relevance(shares(row[:, :length] * key_mask), patches)


class PublicAnswerer(PublicNetwork):
    """BLIP, which writes the answer to a question."""

    net: ImageToText

    def encode(
        self, pixel_values: Tensor, input_ids: Tensor, key_mask: Tensor, image_index: Tensor | None = None
    ) -> Tensor:
        """The states of the questions (B, L, E); each image is encoded once. See `PublicVilt.forward`."""
        assert self.net.question is not None
        images = self.net.project(self.net.image(pixel_values).states)  # (N, S, .)
        return self.net.question(input_ids, images if image_index is None else images[image_index], key_mask)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor,
        image_index: Tensor | None,
        target_ids: Tensor,
        answer_index: Tensor,
    ) -> Tensor:
        """Teacher forcing.

        Args:
            pixel_values: (N, 3, H, W).
            input_ids: (B, L) long, the questions.
            key_mask: (B, L) bool, True = a real token.
            image_index: (B,) long, the image of each question; None: B = N.
            target_ids: (A, T) long, answers with the start token first.
            answer_index: (A,) long, the question of each answer.

        Returns:
            Logits (A, T, V) of each next token.
        """
        memory = self.encode(pixel_values, input_ids, key_mask, image_index)
        return self.net.text(target_ids, memory[answer_index], memory_mask=key_mask[answer_index])

    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor,
        image_index: Tensor | None,
        config: GenerationConfig,
    ) -> Generated:
        """Generate the answer to each question; see `ImageToText.generate`."""
        with torch.inference_mode():
            state = self.net.text.start_from(self.encode(pixel_values, input_ids, key_mask, image_index), key_mask)
            prompt = config.start_prompt(len(input_ids), input_ids.device)
            return generate(self.net.step, state, prompt, config)

    def relevance(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor,
        image_index: Tensor,
        target_ids: Tensor,
        labels: Tensor,
        label_mask: Tensor,
    ) -> Relevance:
        """Relevance for the log-probability of given answers, one for each question (`mmattn.explain.relevance`).

        The rows of an answer's tokens are added.

        Args:
            pixel_values: (N, 3, H, W).
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            image_index: (B,) long, the image of each question.
            target_ids: (B, T) long, the start token first.
            labels: (B, T) long, the token after each of them.
            label_mask: (B, T) bool, True = counts.
        """

        def score() -> Tensor:
            logits = self.net(pixel_values[image_index], target_ids, input_ids, key_mask)
            log_p = logits.log_softmax(-1).gather(2, labels[:, :, None])[:, :, 0]  # (B, T)
            return (log_p * label_mask).sum(1)

        found = relevance(self.net, score)

        def seen(part: str) -> Tensor:
            """Relevance of a part's sequence for the answer; sequences have the name of what reads them first."""
            ((_, rows),) = (
                one for one in found.items() if one[0][0].startswith("text.") and one[0][1].startswith(part)
            )
            return (rows * label_mask[:, :, None]).sum(1)

        patches = seen("image.")[:, self.net.image.num_prefix :].unflatten(1, self.net.image.grid_size)
        words = shares(seen("question.") * key_mask)
        return Relevance(words, list(shares(patches.flatten(1)).view_as(patches)))
