"""The speech recognition model: the tests of every task's model, and its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from mmattn.explain import capture
from mmattn.generate.ctc import ctc_greedy, ctc_prefix_beam
from mmattn.tasks.asr.export import export_asr
from mmattn.tasks.asr.model import ASRHead, ASRModel, PublicCTC, consistency_loss, ctc_loss
from mmattn.tasks.asr.whisper import PublicWhisper
from mmattn.tasks.common.export import ExportError
from mmattn.tasks.common.seq2seq.model import token_loss
from tests.conftest import learn, refused, slow_but_first
from tests.tasks.base import TaskModelTests, written_step_by_step

SMALL: dict[str, Any] = {"vocab_size": 12, "num_mels": 10, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24}
SMALL |= {"encoder_layers": 1, "kernel_size": 5, "subsampling": 2, "dropout": 0.0}
MONOTONIC: dict[str, Any] = {"cross_attention": {"kind": "monotonic", "noise": 0.0}, "chunk_frames": 3}
BATCH = Dim("batch", max=64)
SPECIAL: dict[str, Any] = {"start_id": 2, "eos_id": 3, "suppress": (1,)}


class TestASRModel(TaskModelTests):
    task = "asr"
    exported_elsewhere = True  # test_encoder_and_step_are_exported
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "transformer, every frame": {"encoder": "transformer", "subsampling": 1},
        "a quarter of the frames": {"subsampling": 4, "decoder_layers": 2},
        "lstm": {"decoder": "lstm"},
        "lstm, local": {"decoder": "lstm", "decoder_layers": 2, "cross_attention": {"kind": "local", "window": 4}},
        "ctc only": {"decoder": "none"},
        "chunked": {"chunk_frames": 3, "left_chunks": 1},
        "monotonic": MONOTONIC,
        "monotonic chunks": {"cross_attention": {"kind": "monotonic", "noise": 0.0, "chunk": 3}},
        "window": {"attention": {"kind": "sliding_window", "window": 3}},
        "mean": {"pooling": "mean"},
    }
    wrong: ClassVar = [
        ({"decoder": "gru"}, "unknown decoder 'gru'"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"encoder": "lstm"}, "unknown audio encoder 'lstm'"),
        ({"subsampling": 3}, "subsampling=3"),
        ({"decoder": "lstm", "decoder_attention": {"kind": "linear"}}, "a cross_attention alone"),
        ({"decoder": "none", "cross_attention": {"kind": "linear"}}, "attends to nothing"),
        ({"cross_attention": {"kind": "sliding_window"}}, "'sliding_window' does not support"),
        ({"left_chunks": 2}, "needs chunk_frames"),
    ]
    frames = Dim("frames", min=8, max=1 << 16)
    dynamic: ClassVar = {"features": {0: BATCH, 1: frames}, "feature_mask": {0: BATCH, 1: frames}}
    dynamic |= {"target_ids": {0: BATCH, 1: Dim("target", max=128)}}

    def build(self, **keywords: Any) -> nn.Module:
        return ASRModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        frames = 4 * length
        mask = torch.arange(frames) < torch.tensor([[max(3, frames - 5 * n)] for n in range(batch)])
        features = torch.randn(batch, frames, SMALL["num_mels"], generator=generator)
        target = torch.randint(4, 12, (batch, length + 2), generator=generator)
        return {"features": features * mask[:, :, None], "feature_mask": mask, "target_ids": target}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        features = F.pad(inputs["features"], (0, 0, 0, 4 * extra), value=7.0)  # masked values are ignored
        return {**inputs, "features": features, "feature_mask": F.pad(inputs["feature_mask"], (0, 4 * extra))}

    def heads(self) -> Any:
        given = (torch.randn(3, 9, 12), None, torch.randint(20, (3, 4)))
        for decoder in ("transformer", "lstm", "none"):
            head = ASRHead(20, 16, memory_dim=12, num_heads=2, decoder=decoder)
            yield head, given, [(3, 9, 20), *([] if decoder == "none" else [(3, 4, 20)])]

    @staticmethod
    def real(output: Any) -> list[Tensor]:
        """The scores of real frames, and of the decoder."""
        return [output.ctc_logits[output.frame_mask], *([] if output.logits is None else [output.logits])]

    def test_padding_invariance(self, model: nn.Module) -> None:
        model = model.double().eval()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs(3, 5).items()}
        for mine, theirs in zip(*(self.real(model(**x)) for x in (inputs, self.pad(inputs, 4))), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=0)

    def test_single_sample_equals_batched(self, model: nn.Module) -> None:
        model = model.double().eval()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs(3, 5).items()}
        length = int(inputs["feature_mask"][1].sum())
        one = {name: value[1:2] for name, value in inputs.items()}
        one["features"], one["feature_mask"] = one["features"][:, :length], one["feature_mask"][:, :length]
        alone, together = model(**one), model(**inputs)
        mine, theirs = alone.ctc_logits[0], together.ctc_logits[1, together.frame_mask[1]]
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=0)
        if alone.logits is not None:
            torch.testing.assert_close(alone.logits[0], together.logits[1], atol=1e-8, rtol=0)

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        if variant == "mean":
            pytest.skip("a failing baseline")
        batch = self.inputs(2, 10)
        overfit(model, batch)
        for weight in (0.0, 0.5, 1.0):
            assert [ids for ids, _ in transcribe(model, batch, ctc_weight=weight)] == [[5, 6, 7], [8, 8, 4]]

    @pytest.mark.parametrize("beams", [1, 3])
    def test_scores_equal_teacher_forcing(self, model: nn.Module, beams: int) -> None:
        """(1 - w) log p of the decoder + w log p of CTC, independent of the rest of the batch."""
        model, batch, weight = model.double().eval(), self.inputs(3, 6), 0.3
        found = transcribe(model, batch, ctc_weight=weight, num_beams=beams, max_new_tokens=40)
        for row, (ids, score) in enumerate(found):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            alone, same = transcribe(model, one, ctc_weight=weight, num_beams=beams, max_new_tokens=40)[0]
            assert alone == ids
            assert same == pytest.approx(score, abs=1e-4)
            one["target_ids"] = torch.tensor([[2, *ids]])
            with torch.no_grad():
                output = model(**{**one, "features": one["features"].double()})
            frames = output.ctc_logits[0, output.frame_mask[0]].log_softmax(-1)
            sizes = (torch.tensor([len(frames)]), torch.tensor([len(ids)]))
            ctc = -F.ctc_loss(frames[:, None], torch.tensor([ids]), *sizes, reduction="none")
            if output.logits is None:
                if beams > 1:  # the score of the best path is not a sum over alignments
                    assert score <= float(ctc) + 1e-6
                continue
            attention = output.logits[0].log_softmax(-1).gather(1, torch.tensor([[*ids, 3]]).T).sum()
            assert score == pytest.approx(float((1 - weight) * attention + weight * ctc), abs=1e-4)

    def test_ctc_weight_one_equals_ctc_search(self, model: nn.Module) -> None:
        batch = self.inputs(3, 6)
        with torch.no_grad():
            memory, mask = model.double().eval().encode(batch["features"].double(), batch["feature_mask"])
            log_p = model.head.log_probs(memory)
        found = [ids for ids, _ in transcribe(model, batch, ctc_weight=1.0)]
        assert found == ctc_greedy(log_p, mask)
        assert transcribe(model, batch, ctc_weight=1.0, num_beams=3) == ctc_prefix_beam(log_p, mask, 3)

    def test_alignment(self, model: nn.Module, variant: str) -> None:
        if variant == "ctc only":
            return
        inputs = self.inputs(2, 6)
        with torch.no_grad(), capture(model.eval()) as maps:
            output = model(**inputs)
        weights = model.alignment(maps)
        assert weights.shape == (2, 8, output.ctc_logits.shape[1])
        if "monotonic" not in variant:  # whose heads may not attend to any frame
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8))
        assert not weights.masked_select(~output.frame_mask[:, None]).any()


def transcribe(model: Any, batch: dict[str, Tensor], special: Any = SPECIAL, **options: Any) -> Any:
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        memory, mask = model.encode(batch["features"].to(dtype), batch["feature_mask"])
        return model.head.transcribe(memory, model.head.log_probs(memory), mask, **special, **options)


def overfit(model: Any, batch: dict[str, Tensor]) -> None:
    """Overfits two texts."""
    labels = torch.tensor([[5, 6, 7, 3], [8, 8, 4, 3]])
    real = torch.ones_like(labels, dtype=torch.bool)
    start = F.pad(labels[:, :-1], (1, 0), value=2)

    def loss() -> Tensor:
        output = model(batch["features"], batch["feature_mask"], start)
        found = ctc_loss(output.ctc_logits, output.frame_mask, labels, real)
        return found if output.logits is None else found + token_loss(output.logits, labels, real)

    learn(torch.optim.Adam(model.parameters(), lr=0.02), 150, loss)
    model.eval()


@pytest.mark.parametrize("decoder", slow_but_first(["transformer", "lstm", "none"]))
def test_encoder_and_step_are_exported(decoder: Any, tmp_path: Path) -> None:
    model = ASRModel(**SMALL, decoder=decoder, chunk_frames=4).eval()
    lines = export_asr(model, tmp_path, ("torch",))
    assert len(lines) == (1 if decoder == "none" else 2)
    encoder = torch.export.load(tmp_path / "encoder.pt2").module()
    features, mask = torch.randn(2, 33, 10), torch.arange(33) < torch.tensor([[33], [20]])
    batch = {"features": features, "feature_mask": mask}
    with torch.no_grad():
        given = encoder(features=features, feature_mask=mask)._asdict()
        memory, frames = model.encode(features, mask)
        scores, source_mask = given.pop("ctc_log_probs"), given.pop("frame_mask")
        torch.testing.assert_close(scores, model.head.log_probs(memory), atol=1e-4, rtol=0)
        assert torch.equal(source_mask, frames)
        if decoder == "none":
            assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.pt2"]
            return
        written = written_step_by_step(tmp_path, source_mask, given, layers=1, never=range(4))  # without an end token
    head = {**SPECIAL, "suppress": (1, 3), "eos_id": 11}  # as above: no special tokens
    expected = [ids for ids, _ in transcribe(model, batch, ctc_weight=0.0, max_new_tokens=5, special=head)]
    for mine, theirs in zip(written.tolist(), expected, strict=True):
        assert mine[: len(theirs)] == theirs


def test_unsupported_step_export_raises(tmp_path: Path) -> None:
    linear = {"decoder_attention": {"kind": "linear"}}
    for options, message in ((MONOTONIC, "'monotonic' keeps a state of its own"), (linear, "attention kind 'linear'")):
        refused(message, export_asr, ASRModel(**SMALL, **options), tmp_path, ("torch",), error=ExportError)
    assert not list(tmp_path.iterdir())


def test_ctc_loss_is_averaged_over_labels() -> None:
    """Computed by hand: two frames, one label, emitted in either or both."""
    logits = torch.randn(1, 2, 5, dtype=torch.float64)
    p = logits.softmax(-1)[0]
    expected = p[0, 4] * p[1, 0] + p[0, 0] * p[1, 4] + p[0, 4] * p[1, 4]
    labels, real = torch.tensor([[4, 3]]), torch.tensor([[True, True]])
    loss = ctc_loss(logits, torch.ones(1, 2, dtype=torch.bool), labels, real)
    torch.testing.assert_close(loss, -expected.log().float(), check_dtype=False)
    # Also a clip that is too short for its text, and one without text: neither adds non-finite values.
    logits, frames = torch.randn(3, 2, 5), torch.tensor([[True, True], [True, False], [True, True]])
    labels = torch.tensor([[4, 3, 0, 0], [4, 4, 4, 3], [3, 0, 0, 0]])
    real = labels > 0
    logits.requires_grad_()
    ctc_loss(logits, frames, labels, real).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()


def test_consistency_loss_is_symmetric_kl_per_label() -> None:
    """Computed by hand, without a gradient through the view that is the target."""
    first, second = torch.randn(2, 2, 3, 5, dtype=torch.float64)  # (B, S, V) each
    real = torch.tensor([[True, True, True], [True, False, False]]).repeat(2, 1)
    labels = torch.tensor([[True, True, True], [True, True, False]]).repeat(2, 1)  # 3 per view, without the end token
    total, expected = 0.0, torch.zeros(2, 2, 3, 5, dtype=torch.float64)
    for b, s in ((0, 0), (0, 1), (0, 2), (1, 0)):
        p, q = first[b, s].softmax(-1), second[b, s].softmax(-1)
        total += float((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
        expected[0, b, s], expected[1, b, s] = (p - q) / 2, (q - p) / 2  # of cross-entropy: softmax minus target
    logits = torch.cat([first, second]).requires_grad_()
    loss = consistency_loss(logits, real, labels)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(logits.grad, expected.flatten(0, 1) / 3, rtol=1e-4, atol=1e-6)
    assert float(consistency_loss(torch.cat([first, first]), real, labels)) == pytest.approx(0.0, abs=1e-6)


HOP, LEAST = 10, 20  # samples between frames, and in one frame
SIZES = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 24}
CTC = {"vocab_size": 9, "blank": 3, **SIZES, "conv_dims": [8, 8], "conv_kernels": [10, 3]}
CTC |= {"conv_strides": [5, 2], "position_kernel": 4, "position_groups": 2}
LARGE = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}


class TestPublicCTC(TaskModelTests):
    task, build = "asr", PublicCTC
    variants: ClassVar = {"base": CTC, "large": CTC | LARGE}
    samples = Dim("samples", min=LEAST + HOP, max=4096)
    dynamic: ClassVar = {"features": {0: BATCH, 1: samples}, "feature_mask": {0: BATCH, 1: samples}}
    dynamic |= {"target_ids": {0: BATCH}}

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        count = LEAST + HOP * length
        features = torch.randn(batch, count, generator=generator)
        mask = torch.arange(count) < torch.tensor([[count - HOP * (n % 3)] for n in range(batch)])
        return {"features": features * mask, "feature_mask": mask, "target_ids": torch.zeros(batch, 1).long()}

    def pad(self, inputs: Mapping[str, Tensor], extra: int) -> dict[str, Tensor]:
        padded = {name: nn.functional.pad(inputs[name], (0, extra * HOP)) for name in ("features", "feature_mask")}
        return {**inputs, **padded}

    def test_exported_model_gives_equal_outputs(self, model: nn.Module, variant: str, tmp_path: Path) -> None:  # type: ignore[override]
        if variant == "base":
            pytest.skip("what normalizes over time is exported for recordings of one length: see export.py")
        super().test_exported_model_gives_equal_outputs(model, tmp_path)

    def test_blank_id_of_the_model_is_used(self) -> None:
        model: Any = self.build(**self.variants["large"])
        log_p = torch.eye(9)[torch.tensor([[3, 0, 0, 3, 0, 5, 3]])].mul(9).log_softmax(-1)
        mask = torch.ones(1, 7, dtype=torch.bool)
        for beams in (1, 4):
            (found,) = model.head.transcribe(log_p, log_p, mask, start_id=0, eos_id=0, num_beams=beams)
            assert found[0] == [0, 0, 5]


class TestPublicWhisper(TaskModelTests):
    task, build = "asr", PublicWhisper
    sizes: ClassVar = {"vocab_size": 20, "num_mels": 6, "max_frames": 24, "max_len": 16}
    variants: ClassVar = {"whisper": SIZES | sizes}
    dynamic: ClassVar = {name: {0: BATCH} for name in ("features", "feature_mask")}
    dynamic |= {"target_ids": {0: BATCH, 1: Dim("length", min=2, max=16)}}
    unused = ("net.positions",)  # fixed sinusoids, kept in checkpoints

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        features = torch.randn(batch, 24, 6, generator=generator)
        mask = torch.arange(24) < torch.tensor([[24 - n % 3] for n in range(batch)])
        ids = torch.randint(20, (batch, length), generator=generator)
        return {"features": features, "feature_mask": mask, "target_ids": ids}
