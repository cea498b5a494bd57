"""Public speech networks in the place of the task's own: what every task's model must do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.tasks.asr.model import PublicCTC
from mmattn.tasks.asr.whisper import PublicWhisper
from tests.tasks.base import TaskModelTests

HOP, LEAST = 10, 20  # samples from frame to frame, and of one
SMALL = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 24}
CTC = {"vocab_size": 9, "blank": 3, **SMALL, "conv_dims": [8, 8], "conv_kernels": [10, 3]}
CTC |= {"conv_strides": [5, 2], "position_kernel": 4, "position_groups": 2}
LARGE = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}
BATCH = Dim("batch", max=64)


class TestPublicCTC(TaskModelTests):
    task, build = "asr", PublicCTC
    variants: ClassVar = {"base": CTC, "large": CTC | LARGE}
    dynamic: ClassVar = {
        "features": {0: BATCH, 1: (samples := Dim("samples", min=LEAST + HOP, max=4096))},
        "feature_mask": {0: BATCH, 1: samples},
        "target_ids": {0: BATCH},
    }

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        count = LEAST + HOP * length
        features = torch.randn(batch, count, generator=generator)
        mask = torch.arange(count) < torch.tensor([[count - HOP * (n % 3)] for n in range(batch)])
        return {"features": features * mask, "feature_mask": mask, "target_ids": torch.zeros(batch, 1).long()}

    def pad(self, inputs: Mapping[str, Tensor], extra: int) -> dict[str, Tensor]:
        padded = {name: nn.functional.pad(inputs[name], (0, extra * HOP)) for name in ("features", "feature_mask")}
        return {**inputs, **padded}

    def test_exported_it_says_the_same(self, model: nn.Module, variant: str, tmp_path: Path) -> None:  # type: ignore[override]
        if variant == "base":
            pytest.skip("what normalises over time is exported for recordings of one length: see export_public")
        super().test_exported_it_says_the_same(model, tmp_path)

    def test_the_blank_is_the_models_own(self) -> None:
        model: Any = self.build(**self.variants["large"])
        log_p = torch.eye(9)[torch.tensor([[3, 0, 0, 3, 0, 5, 3]])].mul(9).log_softmax(-1)
        mask = torch.ones(1, 7, dtype=torch.bool)
        for beams in (1, 4):
            (found,) = model.head.transcribe(log_p, log_p, mask, start_id=0, eos_id=0, num_beams=beams)
            assert found[0] == [0, 0, 5]


class TestPublicWhisper(TaskModelTests):
    task, build = "asr", PublicWhisper
    sizes: ClassVar = {"vocab_size": 20, "num_mels": 6, "max_frames": 24, "max_len": 16}
    variants: ClassVar = {"whisper": SMALL | sizes}
    dynamic: ClassVar = {
        "features": {0: BATCH},
        "feature_mask": {0: BATCH},
        "target_ids": {0: BATCH, 1: Dim("length", min=2, max=16)},
    }
    unused = ("net.positions",)  # fixed sinusoids, kept in checkpoints

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        features = torch.randn(batch, 24, 6, generator=generator)
        mask = torch.arange(24) < torch.tensor([[24 - n % 3] for n in range(batch)])
        ids = torch.randint(20, (batch, length), generator=generator)
        return {"features": features, "feature_mask": mask, "target_ids": ids}
