"""Text from images: a vision transformer, and a decoder of BLIP, GIT, BERT or GPT-2 that attends to its patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig
from ..generate import CachedState, Generated, GenerationConfig, generate
from .bert import BertDecoder
from .git import GitDecoder
from .gpt2 import Gpt2Decoder
from .vit import VisionTransformer

DECODERS = ("bert", "gpt2", "git")


class ImageToText(nn.Module):
    """A text about an image, or the answer to a question about it (Li et al. 2022, sections 3.1 and 5.3).

    The decoder attends to the image; or to the states of the question, whose encoder attends to the image. ``capture``
    records the decoder's maps of the image, or question, (B, h, L, S) under "text.decoder.layers.#.cross_attention".
    GIT's decoder has no cross-attention: image and text are one sequence (`GitDecoder`).

    Args:
        vocab_size: V, of question and text.
        embed_dim: E of the texts.
        num_layers: Number of layers of the decoder and of the question's encoder.
        num_heads: h of both.
        image: Keywords of `VisionTransformer` without its pooling, ``attention`` and ``resize_positions``; None = a
            ViT-B/16.
        reads_question: Whether there is an encoder of questions.
        project_image: Whether a linear map with E results is between the image's encoder and the texts; before GIT's
            decoder there always is one, with a norm.
        max_len: Number of learned positions of the texts; longer ones raise.
        num_types: Number of token types, of which only the first is used; 0 for none.
        ffn_dim: Hidden size of the texts' feed-forward networks; None = 4 E.
        activation: Activation of the texts' networks.
        norm_eps: Epsilon added to the variance in the texts' layer norms.
        decoder: "bert", "gpt2" or "git": the network that writes texts.
        tied_output: Whether the last map to the tokens is the decoder's embedding table.
        dropout: Dropout in the texts' networks.
        resize_positions: See `VisionTransformer`.
        attention: {"kind": name, and the kernel's options} of the image's self-attention.
        question_attention: Of the question's self-attention.
        decoder_attention: Of the decoder's self-attention.
        cross_attention: Of the attentions to the image and to the question, which GIT's decoder does not have.

    Raises:
        ValueError: An unknown decoder, or options that it does not have.

    >>> net = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "image_size": (8, 8), "patch_size": 4}
    >>> model, pixels = ImageToText(100, 32, 1, 4, image=net).eval(), torch.randn(2, 3, 8, 8)
    >>> model(pixels, torch.randint(100, (2, 7))).shape
    torch.Size([2, 7, 100])
    >>> config = GenerationConfig(bos_token_id=0, eos_token_id=1, max_new_tokens=6)
    >>> model.generate(pixels, config).scores.shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        image: Mapping[str, Any] | None = None,
        reads_question: bool = False,
        project_image: bool = False,
        max_len: int = 512,
        num_types: int = 0,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        decoder: str = "bert",
        tied_output: bool = True,
        dropout: float = 0.0,
        resize_positions: str | None = None,
        attention: AttentionConfig = None,
        question_attention: AttentionConfig = None,
        decoder_attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS or (decoder != "bert" and (reads_question or num_types)):
            raise ValueError(
                f"decoder: expected bert, or gpt2 or git without questions and token types, found {decoder!r}"
            )
        if decoder == "git" and cross_attention is not None:
            raise ValueError("cross_attention: the decoder 'git' has none, since image and text are one sequence")
        net = dict(image or {"embed_dim": 768, "num_layers": 12, "num_heads": 12})
        self.image = VisionTransformer(**net, attention=attention, resize_positions=resize_positions)
        image_dim = net["embed_dim"]
        self.project: nn.Module = nn.Linear(image_dim, embed_dim) if project_image else nn.Identity()
        image_dim = embed_dim if project_image else image_dim
        text: dict[str, Any] = {"vocab_size": vocab_size, "embed_dim": embed_dim, "num_layers": num_layers}
        text |= {
            "num_heads": num_heads,
            "cross_attention": cross_attention,
            "max_len": max_len,
            "num_types": num_types,
            "ffn_dim": ffn_dim,
            "dropout": dropout,
        }
        text |= {"activation": activation, "norm_eps": norm_eps}
        self.question: BertDecoder | None = None
        if reads_question:
            reader: dict[str, Any] = {"causal": False, "head": False, "attention": question_attention}
            self.question = BertDecoder(kv_dim=image_dim, **reader, **text)
        memory_dim = embed_dim if reads_question else image_dim
        writer: dict[str, Any] = {"tied_output": tied_output, "attention": decoder_attention}
        self.text: BertDecoder | Gpt2Decoder | GitDecoder
        if decoder == "git":
            norm = nn.LayerNorm(embed_dim, eps=net.get("norm_eps", 1e-6))  # that of the image's networks
            self.project = nn.Sequential(nn.Linear(net["embed_dim"], embed_dim), norm)
            for name in ("num_types", "cross_attention"):
                del text[name]
            self.text = GitDecoder(**writer, **text)
        elif decoder == "gpt2":
            del text["num_types"]
            self.text = Gpt2Decoder(kv_dim=memory_dim, **writer, **text)
        else:
            self.text = BertDecoder(kv_dim=memory_dim, **writer, **text)

    def encode(self, pixel_values: Tensor, input_ids: Tensor | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Encodes images, and questions about them.

        Args:
            pixel_values: (B, C, H, W), normalized as the weights require.
            input_ids: (B, L) long, the questions, if the model reads them.
            key_mask: (B, L) bool, True = a real token of the question.

        Returns:
            The memory: the states of the question (B, L, E), undefined at padding; or those of the image (B, S, .), the
            class token before the patches.

        Raises:
            ValueError: A question is given to a model that reads none, or is missing.
        """
        if (self.question is None) != (input_ids is None):
            expected, found = ("no question", "one") if self.question is None else ("a question", "none")
            raise ValueError(f"input_ids: expected {expected}, found {found}")
        memory = self.project(self.image(pixel_values).states)  # (B, S, .)
        if self.question is None or input_ids is None:
            return memory
        return self.question(input_ids, memory, key_mask)

    def forward(
        self,
        pixel_values: Tensor,
        decoder_input_ids: Tensor,
        input_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits of each next token under teacher forcing.

        Args:
            pixel_values: (B, C, H, W).
            decoder_input_ids: (B, T) long, the start token first; padded at the right, where the loss is masked.
            input_ids: (B, L) long, the questions; see `encode`.
            key_mask: (B, L) bool, True = a real token of the question.

        Returns:
            (B, T, V).
        """
        memory = self.encode(pixel_values, input_ids, key_mask)
        return self.text(decoder_input_ids, memory, memory_mask=key_mask)

    def start(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> CachedState:
        """Encodes images and questions, and makes the state that `step` continues from; see `generate`."""
        memory = self.encode(pixel_values, input_ids, key_mask)
        return self.text.start_from(memory, key_mask, prompt_mask=prompt_mask)

    def step(self, ids: Tensor, state: CachedState) -> Tensor:
        """Maps new ids (N, L) to the logits (N, V) of the next one."""
        return self.text.step(ids, state)

    def generate(
        self,
        pixel_values: Tensor,
        config: GenerationConfig,
        *,
        input_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        prompt: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        **keywords: Any,
    ) -> Generated:
        """Generates a text for each image; other keywords are those of `mmattn.generate.generate`.

        Padding of a question is never attended to, so that its answer does not depend on the others of the batch.

        Args:
            pixel_values: (B, C, H, W).
            config: Generation options.
            input_ids: (B, L) long, the questions; see `encode`.
            key_mask: (B, L) bool, True = a real token of the question.
            prompt: (B, P) long, the beginning of each text; None = the start token alone.
            prompt_mask: (B, P) bool, True = a real token, of prompts padded at the left.

        Returns:
            The new tokens, without the prompt.

        Raises:
            ValueError: See `encode`, or there is neither a prompt nor a start token.
        """
        if prompt is None:
            prompt = config.start_prompt(len(pixel_values), pixel_values.device)
        with torch.inference_mode():
            state = self.start(pixel_values, input_ids, key_mask, prompt_mask)
            return generate(self.step, state, prompt, config, prompt_mask=prompt_mask, **keywords)
