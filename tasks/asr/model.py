"""The speech recognizer: an encoder of log-mel frames with CTC and an attention decoder, and the losses of CTC.

Also wav2vec 2.0 and HuBERT with CTC alone, by the same interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.backbones.audio import AudioEncoder
from mmattn.backbones.recurrent import RecurrentDecoder
from mmattn.backbones.wav2vec2 import Wav2Vec2
from mmattn.generate import GenerationConfig, generate
from mmattn.generate.ctc import Fusion, ctc_greedy, ctc_prefix_beam
from mmattn.generate.ctc_joint import JointState, joint_step
from mmattn.masks import Mask
from mmattn.tasks.common.seq2seq.model import TextHead, read_off

BLANK = 0  # the id of the CTC blank and of padding


class ASROutput(NamedTuple):
    """Output of the recognizer under teacher forcing."""

    ctc_logits: Tensor | None  # (B, S, V), for each encoded frame, the blank included; None without CTC
    frame_mask: Tensor  # (B, S) bool, True = a real frame
    logits: Tensor | None  # (B, L, V), for each next token; None without a decoder


class ASRHead(nn.Module):
    """CTC (Graves et al. 2006) and an attention decoder on the features of any audio encoder.

    Both are trained and decoded jointly (Watanabe et al. 2017).

    Args:
        vocab_size: V; the blank is also the padding.
        embed_dim: E of the decoder.
        memory_dim: Size of the features; None: E.
        decoder: As of `ASRModel`, also the next seven.
        num_heads: Number of attention heads of the decoder, h.
        ffn_dim: Hidden size of a transformer's feed-forward networks.
        decoder_layers: Number of decoder layers.
        decoder_attention: {"kind": name, and the kernel's options}; None: dense.
        cross_attention: Likewise; None: dense, additive for an LSTM.
        dropout: Dropout rate everywhere but in attention weights.
        blank: Id of the CTC blank.

    Raises:
        ValueError: Options contradict each other.

    >>> head = ASRHead(30, 32, memory_dim=768)
    >>> ctc, logits = head(torch.randn(2, 50, 768), None, torch.randint(30, (2, 7)))
    >>> ctc.shape, logits.shape
    (torch.Size([2, 50, 30]), torch.Size([2, 7, 30]))
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        memory_dim: int | None = None,
        decoder: Literal["transformer", "lstm", "none"] = "transformer",
        num_heads: int = 4,
        ffn_dim: int | None = None,
        decoder_layers: int = 2,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        dropout: float = 0.1,
        blank: int = BLANK,
    ) -> None:
        super().__init__()
        self.blank = blank
        memory_dim = embed_dim if memory_dim is None else memory_dim
        self.ctc = nn.Linear(memory_dim, vocab_size)
        self.decoder: TextHead | RecurrentDecoder | None = None
        shared: dict[str, Any] = {"memory_dim": memory_dim, "num_heads": num_heads, "dropout": dropout}
        if decoder == "transformer":
            shared |= {"decoder_attention": decoder_attention, "cross_attention": cross_attention}
            self.decoder = TextHead(vocab_size, embed_dim, decoder_layers, ffn_dim=ffn_dim, **shared)
        elif decoder == "lstm":
            if decoder_attention is not None:
                raise ValueError("decoder 'lstm' has a cross_attention alone: no decoder_attention")
            shared |= {"num_layers": decoder_layers, "cross_attention": cross_attention or "additive"}
            self.decoder = RecurrentDecoder(vocab_size, embed_dim, embed_dim, **shared)
        elif decoder != "none":
            raise ValueError(f"unknown decoder {decoder!r}: transformer, lstm or none")
        elif decoder_attention or cross_attention:
            raise ValueError("decoder 'none' attends to nothing: no decoder_attention, no cross_attention")

    def forward(self, memory: Tensor, mask: Tensor | None, target_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing: logits of CTC (B, S, V) and of the decoder (B, L, V), or None without a decoder.

        Args:
            memory: (B, S, memory_dim).
            mask: (B, S) bool, True = a real frame.
            target_ids: (B, L) long, the start token first.
        """
        logits = None if self.decoder is None else self.decoder(memory, mask, target_ids)
        return self.ctc(memory), logits

    def log_probs(self, memory: Tensor) -> Tensor:
        """CTC's log-probabilities (B, S, V) of features (B, S, memory_dim), in float32."""
        return self.ctc(memory).float().log_softmax(-1)

    def transcribe(
        self,
        memory: Tensor,
        log_p: Tensor,
        mask: Tensor,
        *,
        start_id: int,
        eos_id: int,
        suppress: Sequence[int] = (),
        num_beams: int = 1,
        ctc_weight: float = 0.3,
        length_penalty: float = 0.0,
        max_new_tokens: int | None = None,
        fusion: Fusion | None = None,
    ) -> list[tuple[list[int], float]]:
        """Decode each row: the ids of the best hypothesis, without start and end tokens, and its score.

        Args:
            memory: (B, S, memory_dim).
            log_p: (B, S, V), of `log_probs`.
            mask: (B, S) bool, True = a real frame.
            start_id: Start token of the decoder.
            eos_id: End token of the decoder.
            suppress: Other ids that are never predicted.
            num_beams: Number of beams, 1 = greedy.
            ctc_weight: w in ``(1 - w) log p_attention + w log p_ctc``; 1, or no decoder: CTC alone, by prefix beam
                search.
            length_penalty: The score of a finished beam is log p / length^length_penalty.
            max_new_tokens: Maximum number of ids; None: the number of frames, plus the end token.
            fusion: A language model for shallow fusion in CTC's prefix beam search.

        Raises:
            ValueError: A language model is given together with a decoder, which is one itself.
        """
        if self.decoder is None or ctc_weight >= 1.0:
            if num_beams > 1:
                return ctc_prefix_beam(log_p, mask, num_beams, blank=self.blank, fusion=fusion)
            best = log_p.amax(-1).masked_fill(~mask, 0.0).sum(-1).tolist()
            return list(zip(ctc_greedy(log_p, mask, blank=self.blank), best, strict=True))
        if fusion is not None:
            raise ValueError("lm_weight: a language model needs CTC alone, since a decoder is one itself")
        room = memory.shape[1] + 1 if max_new_tokens is None else max_new_tokens
        config = GenerationConfig(
            num_beams=num_beams,
            max_new_tokens=room,
            decoder_start_token_id=start_id,
            eos_token_id=eos_id,
            pad_token_id=self.blank,
            suppress_tokens=sorted({self.blank, start_id, *suppress} - {eos_id}),
            length_penalty=length_penalty,
        )
        prompt = torch.full((len(memory), 1), start_id, device=memory.device)
        with torch.inference_mode():
            decoder: Any = self.decoder
            state, step = decoder.start(memory, mask), decoder.step
            if ctc_weight > 0.0:
                state = JointState(state, log_p, mask, self.blank)
                step = joint_step(step, eos_id, ctc_weight)
            found = generate(step, state, prompt, config)
        scores = found.scores[:, 0].tolist()
        rows = [[i for i in best[0] if i != eos_id] for best in found.tokens()]
        return list(zip(rows, scores, strict=True))


class ASRModel(nn.Module):
    """Log-mel frames to logits of characters or word pieces.

    Args:
        vocab_size: V; id 0 is the blank and the padding.
        num_mels: Bands of the front end, M.
        encoder: "conformer" (Gulati et al. 2020) or "transformer".
        embed_dim: E.
        num_heads: Number of attention heads, h.
        ffn_dim: Hidden size of all feed-forward networks.
        encoder_layers: Number of encoder layers.
        kernel_size: Kernel size of the conformer's convolutions in frames.
        subsampling: Reduction of the frame rate by 1, 2 or 4. Short clips need small values, as CTC emits at most one
            token a frame.
        chunk_frames: Chunk size in frames after subsampling, for an encoder that can stream; None: no chunks.
        left_chunks: Number of previous chunks that each chunk attends to; None: all.
        decoder: "transformer"; "lstm" with additive attention; or "none": CTC alone.
        decoder_layers: Number of decoder layers.
        attention: The encoder's self-attention, {"kind": name, and the kernel's options}; None: dense.
        decoder_attention: The decoder's self-attention.
        cross_attention: The decoder's attention to the frames.
        pooling: How the decoder reads the frames: by "attention", or their "mean", a baseline without attention.
        dropout: Dropout rate everywhere but in attention weights.
    """

    def __init__(
        self,
        vocab_size: int,
        num_mels: int = 40,
        *,
        encoder: Literal["conformer", "transformer"] = "conformer",
        embed_dim: int = 96,
        num_heads: int = 4,
        ffn_dim: int | None = 256,
        encoder_layers: int = 4,
        kernel_size: int = 15,
        subsampling: int = 4,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
        decoder: Literal["transformer", "lstm", "none"] = "transformer",
        decoder_layers: int = 1,
        attention: dict[str, Any] | None = None,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if pooling not in ("attention", "mean"):
            raise ValueError(f"unknown pooling {pooling!r}: attention or mean")
        self.pooling, self.subsampling, self.num_mels = pooling, subsampling, num_mels
        shared: dict[str, Any] = {"num_heads": num_heads, "ffn_dim": ffn_dim, "dropout": dropout}
        encoder_options: dict[str, Any] = {
            "kind": encoder,
            "subsampling": subsampling,
            "kernel_size": kernel_size,
            "attention": attention,
        }
        encoder_options |= {"chunk_frames": chunk_frames, "left_chunks": left_chunks, **shared}
        self.encoder = AudioEncoder(num_mels, embed_dim, encoder_layers, **encoder_options)
        decoder_options: dict[str, Any] = {
            "decoder": decoder,
            "decoder_layers": decoder_layers,
            "decoder_attention": decoder_attention,
        }
        self.head = ASRHead(vocab_size, embed_dim, **decoder_options, cross_attention=cross_attention, **shared)

    def encode(self, features: Tensor, feature_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode frames (B, T, M) with their mask (B, T) to the memory (B, S, E) and its mask (B, S)."""
        states, mask = self.encoder(features, feature_mask)
        if self.pooling == "mean":
            weights = (mask / mask.sum(1, keepdim=True).clamp_min(1)).to(states.dtype)[:, :, None]  # (B, S, 1)
            states = (states * weights).sum(1, keepdim=True).expand_as(states)
        return states, mask

    def forward(self, features: Tensor, feature_mask: Tensor | None, target_ids: Tensor) -> ASROutput:
        """Teacher forcing.

        Args:
            features: (B, T, M), log-mel frames.
            feature_mask: (B, T) bool, True = a real frame.
            target_ids: (B, L) long, the start token first.
        """
        memory, mask = self.encode(features, feature_mask)
        ctc_logits, logits = self.head(memory, mask, target_ids)
        return ASROutput(ctc_logits, mask, logits)

    def alignment(self, maps: Mapping[str, list[Tensor]]) -> Tensor:
        """Attention of each token to the encoded frames, (B, L, S), from the maps of `capture`; see `read_off`."""
        return read_off(maps)


class PublicCTC(nn.Module):
    """wav2vec 2.0 or HuBERT, samples to logits of letters, with the interface of `ASRModel`.

    A batch gives the same result as each of its recordings alone. Base models normalize over time, padding included, so
    their convolutions process recordings of different lengths one by one; all later layers are batched.

    Args:
        vocab_size: V.
        blank: Id of the CTC blank.
        keywords: Of `mmattn.backbones.wav2vec2.Wav2Vec2`, without a head.

    >>> sizes = {"conv_dims": (16, 16), "conv_kernels": (10, 3), "conv_strides": (5, 2), "position_groups": 4}
    >>> model = PublicCTC(9, embed_dim=32, num_layers=1, num_heads=4, **sizes)
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
        """Encode samples (B, n) with their mask (B, n) to states (B, S, E) and their mask (B, S).

        Recordings shorter than a frame have no states.
        """
        net, short = self.net, self.net.receptive_field - features.shape[1]
        mask = torch.ones_like(features, dtype=torch.bool) if feature_mask is None else feature_mask
        if short > 0:
            features, mask = (F.pad(x, (0, short)) for x in (features, mask))
        padded = self.by_clip and feature_mask is not None and not bool(mask.all())
        x, real = self._one_by_one(features, mask.sum(1)) if padded else net.embed(features, mask)
        assert real is not None
        return net.dropout(net.encoder(x, Mask(real))), real

    def _one_by_one(self, features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """`Wav2Vec2.embed` for each row alone, with sample counts (B,)."""
        net, least = self.net, self.net.receptive_field
        clips = [row[None, None, : max(count, least)] for row, count in zip(features, counts.tolist(), strict=True)]
        rows, length = (
            [net.convolutions(clip)[0].mT for clip in clips],
            int(net.frames(torch.tensor(features.shape[1]))),
        )
        x = torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows])  # (B, S, C)
        real = torch.arange(length, device=x.device) < net.frames(counts)[:, None]  # (B, S)
        return net.place(x, real), real

    def forward(self, features: Tensor, feature_mask: Tensor | None, target_ids: Tensor | None) -> ASROutput:
        """Logits of each frame for samples (B, n) with their mask (B, n); target_ids are ignored."""
        states, mask = self.encode(features, feature_mask)
        return ASROutput(self.head.ctc(states), mask, None)


def ctc_loss(logits: Tensor, frame_mask: Tensor, labels: Tensor, label_mask: Tensor, blank: int = BLANK) -> Tensor:
    """CTC's negative log-likelihood (Graves et al. 2006) per label, a scalar comparable with cross-entropy.

    A clip with too few frames for its labels has no alignment and contributes no loss.

    Args:
        logits: (B, S, V).
        frame_mask: (B, S) bool, True = a real frame.
        labels: (B, L) long, the end token last.
        label_mask: (B, L) bool, True = counts.
        blank: Id of the blank.
    """
    log_p = logits.float().log_softmax(-1).transpose(0, 1)  # (S, B, V)
    frames, lengths = frame_mask.sum(1), label_mask.sum(1) - 1  # without the end
    losses = F.ctc_loss(log_p, labels, frames, lengths, blank=blank, reduction="none", zero_infinity=True)  # (B,)
    return losses.sum() / lengths.sum().clamp_min(1)


def consistency_loss(logits: Tensor, frame_mask: Tensor, label_mask: Tensor) -> Tensor:
    """Divergence of CTC's outputs on two views of each clip (CR-CTC: Yao et al. 2024, section 3).

    Half the sum of both Kullback-Leibler divergences of each frame; the target view has no gradient. Arguments and
    result as of `ctc_loss`, for 2 B rows: all first views before all second ones.
    """
    first, second = logits.float().log_softmax(-1).chunk(2)  # (B, S, V)
    both = ((first, second), (second, first))
    kl = torch.stack([F.kl_div(a, b.detach(), reduction="none", log_target=True).sum(-1) for a, b in both]).sum(0)
    return kl.masked_fill(~frame_mask[: len(first)], 0.0).sum() / (label_mask.sum() - len(label_mask)).clamp_min(1)
