"""Hard monotonic decoding: depends only on past frames, and takes linear time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmattn.kernels.monotonic import SCAN, Monotonic
from mmattn.tasks.asr.model import ASRModel

CHUNK = 4  # encoded frames per chunk


def make(chunk: int = 1, **keywords: Any) -> ASRModel:
    """Weights large enough that the heads stop at various frames, as in a trained model."""
    attention = {"kind": "monotonic", "chunk": chunk, "initial_offset": 0.0}
    options: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "encoder_layers": 2, "kernel_size": 5}
    options |= {"subsampling": 2, "chunk_frames": CHUNK, "cross_attention": attention} | keywords
    model = ASRModel(12, 10, **options).double().eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def sound(frames: int, seed: int = 5) -> Tensor:
    return torch.randn(1, frames, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def read_on(model: Any, features: Tensor, tokens: list[int]) -> tuple[Tensor, list[int]]:
    """Stepwise decoding: the scores after each token, and the number of encoded frames passed by the heads."""
    passed: list[int] = []
    scores = []
    with torch.inference_mode():
        memory, mask = model.encode(features, None)
        state = model.head.decoder.start(memory, mask)
        for token in tokens:
            scores.append(model.head.decoder.step(torch.tensor([[token]]), state)[0])
            heads = torch.stack([cache.cross_attention.state.position for cache in state.caches])
            passed.append(min(memory.shape[1], 1 + int(heads.max())))
    return torch.stack(scores), passed


@pytest.mark.parametrize("chunk", [1, 3])
def test_output_does_not_depend_on_later_frames(chunk: int) -> None:
    model, features = make(chunk), sound(160)
    tokens = torch.randint(4, 12, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    scores, passed = read_on(model, features, tokens)
    assert passed == sorted(passed)
    places = set()
    for n, frames in enumerate(passed):
        end = 2 * CHUNK * -(-frames // CHUNK)  # spectrogram frames up to the end of the encoder's chunk
        if end < features.shape[1]:
            changed = torch.cat([features[:, :end], sound(160 - end, seed=6)], 1)
            torch.testing.assert_close(read_on(model, changed, tokens[: n + 1])[0], scores[: n + 1])
            ended = read_on(model, features[:, :end], tokens[: n + 1])[0]  # later frames are not needed
            torch.testing.assert_close(ended, scores[: n + 1])
            places.add(end)
    assert len(places) >= 3, "the heads stopped at several positions before the end"
    # Later tokens depend on the changed frames.
    changed = torch.cat([features[:, : min(places)], sound(160 - min(places), seed=6)], 1)
    assert not torch.allclose(read_on(model, changed, tokens)[0], scores)


def test_soft_attention_depends_on_later_frames() -> None:
    """The counterpart of the test above."""
    model, prompt = make(cross_attention=None), torch.tensor([[2, 5]])
    with torch.inference_mode():
        one, other = (
            model(torch.cat([sound(80), end], 1), None, prompt).logits for end in (sound(40, 1), sound(40, 2))
        )
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("chunk", [1, 3])
def test_decoding_cost_is_linear(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of computed energies, which for soft attention is frames times tokens."""
    model, counted, heads = make(chunk), [0], 2
    energy = Monotonic._energy

    def counting(self: Any, q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
        found = energy(self, q, k, allowed)
        counted[0] += found.numel()
        return found

    monkeypatch.setattr(Monotonic, "_energy", counting)
    for frames in (400, 2000):
        tokens = torch.randint(4, 12, (frames // 10,)).tolist()
        counted[0] = 0
        read_on(model, sound(frames), tokens)
        assert counted[0] <= heads * (frames // 2 + 2 * SCAN * len(tokens))
    assert counted[0] < 0.2 * heads * (frames // 2) * len(tokens)


def test_transcribe_equals_stepwise_greedy_decoding() -> None:
    """Without CTC: the most probable token at each step."""
    model, features = make(), sound(60)
    special: dict[str, Any] = {"start_id": 2, "eos_id": 3, "suppress": (1,), "num_beams": 1, "ctc_weight": 0.0}
    with torch.inference_mode():
        memory, mask = model.encode(features, None)
        ((ids, _),) = model.head.transcribe(memory, model.head.log_probs(memory), mask, **special, max_new_tokens=6)
    scores, _ = read_on(model, features, [2, *ids])
    scores[:, :3] = -torch.inf
    best = scores.argmax(-1).tolist()
    assert best[: len(ids)] == ids
    assert len(ids) == 6 or best[len(ids)] == 3
