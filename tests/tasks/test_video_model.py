"""The video model: the tests of every task's model, and its own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.tasks.video.data import VideoBatch
from mmattn.tasks.video.head import VideoHead
from mmattn.tasks.video.model import SPACE, TIME, Evidence, VideoModel, VideoOutput, classify
from mmattn.tasks.video.module import attention_losses
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"num_classes": 5, "image_size": 16, "num_frames": 4, "channels": (8, 8), "embed_dim": 16}
SMALL |= {"num_heads": 2, "num_layers": 2, "temporal_layers": 1, "patch_size": 8}


class TestVideoModel(TaskModelTests):
    task = "video"
    exported_elsewhere = True  # tests/test_readme.py
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "factorized": {},
        "factorized vit": {"image_encoder": "vit", "image_layers": 1},
        "factorized mean": {"pooling": "mean"},
        "differences": {"modality": "difference"},
        "divided": {"encoder": "divided"},
        "divided token": {"encoder": "divided", "pooling": "token"},
        "divided mean": {"encoder": "divided", "pooling": "mean"},
        "tubelet": {"encoder": "tubelet"},
        "tubelet mean": {"encoder": "tubelet", "pooling": "mean"},
        "temporal window": {"temporal_attention": {"kind": "sliding_window", "window": 2}},
        "temporal linear": {"temporal_attention": {"kind": "linear"}},
        "divided, linear in time": {"encoder": "divided", "pooling": "token", "temporal_attention": {"kind": "linear"}},
        "tubelet window": {"encoder": "tubelet", "attention": {"kind": "sliding_window", "window": 3}},
    }
    wrong: ClassVar = [
        ({"encoder": "slowfast"}, "unknown encoder 'slowfast'; expected one of: factorized, divided, tubelet"),
        ({"pooling": "max"}, "unknown pooling 'max'; expected one of: attention, token, mean"),
        ({"pooling": "token"}, "encoder 'factorized' has no class token"),
        ({"pooling": "mean", "temporal_attention": {"kind": "linear"}}, "with pooling 'mean' has none over time"),
        ({"modality": "flow"}, "unknown modality 'flow'; expected one of: color, difference"),
        ({"decoder_layers": 1, "modality": "difference"}, "expected modality 'color', whose pixels are predicted"),
        ({"decoder_layers": 1}, "expected encoder 'tubelet', whose patches are masked; found 'factorized'"),
        ({"temporal_attention": {"kind": "monotonic"}}, "'monotonic' does not support"),
        ({"encoder": "tubelet", "tubelet_size": 8}, "num_frames=4 is less than tubelet_size=8"),
        ({"image_encoder": "resnet"}, "unknown backbone 'resnet'"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {"pixel_values": {0: Dim("batch", max=64)}}

    def build(self, **keywords: Any) -> nn.Module:
        return VideoModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        return {"pixel_values": torch.randn(batch, 4, 3, 16, 16, generator=generator)}

    def heads(self) -> Any:
        options: dict[str, Any] = {"embed_dim": 16, "num_heads": 2}
        yield VideoHead(12, 5, **options), (torch.randn(3, 6, 9, 12),), [(3, 5)]
        yield VideoHead(12, 5, **options, features="vector"), (torch.randn(3, 6, 12),), [(3, 5)]
        yield VideoHead(12, 5, pooling="mean"), (torch.randn(3, 6, 9, 12),), [(3, 5)]
        yield (
            VideoHead(12, 5, temporal_attention={"kind": "linear"}, num_heads=2),
            (torch.randn(3, 6, 9, 12),),
            [(3, 5)],
        )

    def test_overfits_one_batch(self, model: nn.Module) -> None:
        inputs = {"pixel_values": self.inputs(6, 0)["pixel_values"] + 2 * torch.randn(6, 4, 3, 1, 1)}
        targets = torch.arange(6) % 5
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        assert learn(optimizer, 60, lambda: nn.functional.cross_entropy(model(**inputs).logits, targets))[-1] < 0.1

    def test_evidence_in_frames_and_cells(self, model: VideoModel, variant: str) -> None:
        model = model.eval()
        pixels, classes = self.inputs(3, 0)["pixel_values"], torch.tensor([1, 0, 4])
        found = model.evidence(pixels, classes)
        assert isinstance(found, Evidence)
        t, side = (2 if "tubelet" in variant else 4), (4 if model.kind == "factorized" and "vit" not in variant else 2)
        assert found.frames.shape == (3, t)
        assert found.cells.shape == (3, t, side, side)
        for maps in (found.frames, found.cells.flatten(2)):
            assert (maps >= 0).all()
            torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]), atol=1e-4, rtol=0)
        alone = model.evidence(pixels[1:2], classes[1:2])
        torch.testing.assert_close(alone.frames[0], found.frames[1], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.cells[0], found.cells[1], atol=1e-4, rtol=0)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_head_ignores_frames_that_are_no_frames() -> None:
    for options in ({"features": "vector"}, {"pooling": "mean"}, {}):
        head = VideoHead(8, 3, num_heads=2, **options).double().eval()  # type: ignore[arg-type]
        cells = () if options.get("features") else (5,)
        features = torch.randn(2, 6, *cells, 8, dtype=torch.float64)
        mask = torch.arange(6) < torch.tensor([[6], [4]])
        found = head(features, mask)
        torch.testing.assert_close(found[1:], head(features[1:, :4]), atol=1e-10, rtol=0)
        torch.testing.assert_close(found[:1], head(features[:1]), atol=1e-10, rtol=0)
    refused(
        "pooling 'mean' has no attention across frames", VideoHead, 8, 3, pooling="mean", temporal_attention="linear"
    )


@pytest.mark.parametrize("options", [{}, {"encoder": "divided"}, {"encoder": "tubelet", "pooling": "mean"}])
def test_other_sizes_and_numbers_of_frames(options: dict[str, Any]) -> None:
    model = VideoModel(**{**SMALL, **options}).eval()
    for frames, size in ((4, 16), (6, 16), (4, 32), (8, 24)):
        output = model(torch.randn(2, frames, 3, size, size))
        assert isinstance(output, VideoOutput)
        assert output.logits.shape == (2, 5)


def test_mean_pooling_knows_no_order_and_attention_does() -> None:
    pixels = torch.randn(2, 4, 3, 16, 16)
    mean, attention = (VideoModel(**SMALL, pooling=pooling).eval() for pooling in ("mean", "attention"))
    torch.testing.assert_close(mean(pixels).logits, mean(pixels.flip(1)).logits, atol=1e-5, rtol=0)
    assert (attention(pixels).logits - attention(pixels.flip(1)).logits).abs().max() > 1e-3


def test_differences_of_frames_show_what_moves_alone() -> None:
    model = VideoModel(**SMALL, modality="difference").eval()
    pixels = torch.randn(2, 4, 3, 16, 16)
    seen = model.seen(pixels)
    torch.testing.assert_close(seen[:, 2], 2 * (pixels[:, 2] - pixels[:, 1]))
    assert not seen[:, 0].any()
    same = model(pixels + torch.randn(2, 1, 3, 16, 16)).logits  # another background
    torch.testing.assert_close(same, model(pixels).logits, atol=1e-4, rtol=0)


def test_probabilities_of_views_are_averaged() -> None:
    model = VideoModel(**SMALL).eval()
    pixels = torch.randn(6, 4, 3, 16, 16)
    found = classify(model, pixels, 3).exp()
    single = model(pixels).logits.softmax(-1)
    torch.testing.assert_close(found[1], single[3:].mean(0))


def test_timm_frames() -> None:
    pytest.importorskip("timm")
    model = VideoModel(**{**SMALL, "image_size": 64}, image_encoder="timm/test_resnet").eval()
    pixels = torch.randn(2, 4, 3, 64, 64)
    assert model(pixels).logits.shape == (2, 5)
    assert model.evidence(pixels, torch.tensor([0, 1])).cells.shape == (2, 4, 4, 4)


def test_supervised_attention_moves_to_the_event() -> None:
    """The losses of attention fall, and the attention lies where and when the regions are."""
    model = VideoModel(**SMALL)
    pixels = torch.randn(3, 4, 3, 16, 16)
    boxes = torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.75, 0.75, 1.0, 1.0], [0.0, 0.75, 0.25, 1.0]])[:, None]
    batch = VideoBatch(
        pixels,
        torch.eye(5)[:3],
        boxes,
        torch.tensor([[1], [2], [0]]),
        torch.tensor([[True], [True], [False]]),
        ["a"] * 3,
    )
    maps: dict[str, Any] = {}

    def loss() -> Tensor:
        from mmattn.explain import capture

        with capture(model, only=(SPACE, TIME)) as found:
            model(pixels)
        maps.update(found)
        return sum(attention_losses(found[TIME][0], found[SPACE][0], batch, (4, 4)), torch.zeros(()))

    losses = learn(torch.optim.Adam(model.parameters(), lr=0.02), 60, loss)
    assert losses[-1] < 0.3 < losses[0]
    time, space = maps[TIME][0].mean((1, 2)), maps[SPACE][0].mean((1, 2)).unflatten(0, (3, 4))
    assert time.argmax(1)[:2].tolist() == [1, 2]
    assert [int(space[0, 1].argmax()), int(space[1, 2].argmax())] == [0, 15]
