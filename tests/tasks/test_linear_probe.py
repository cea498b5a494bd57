"""The linear probe from which the fine-tuning of few samples begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmattn.tasks.classification.data import ClassificationDataset
from mmattn.tasks.classification.demo import make
from mmattn.tasks.common import linear_probe
from tests.tasks.runs import BRIEF, STILL, run, weights


@pytest.mark.parametrize("multi_label", [False, True])
def test_probe_is_the_optimum(multi_label: bool) -> None:
    """Its gradient is zero, and features of another scale give the same predictions."""
    torch.manual_seed(0)
    features = torch.randn(30, 50).double() + torch.eye(3, 50).repeat(10, 1) * 3
    targets = torch.eye(3).repeat(10, 1).double()
    weight, bias = (value.requires_grad_() for value in linear_probe.probe(features, targets, multi_label))
    logits = features @ weight.mT + bias
    loss = (F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy)(logits, targets)
    loss = loss + linear_probe.DECAY * features.square().sum(1).mean() * weight.square().sum()
    loss.backward()
    assert all(value.grad.abs().max() < 1e-5 for value in (weight, bias))
    assert (logits.argmax(1) == targets.argmax(1)).all()
    other, shift = linear_probe.probe(10 * features, targets, multi_label)
    torch.testing.assert_close(10 * features @ other.mT + shift, logits.detach(), atol=1e-4, rtol=1e-4)


def test_new_last_layers_begin_as_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the training images as the model sees them; with many samples they do not."""
    start = run("fit", tmp_path / "start", "--data.demo_size 12", base=BRIEF, task="classification")
    samples = make("train", 12)
    for number, sample in enumerate(samples):
        sample.labels = ["odd" if number % 2 else "even"]
        folder = tmp_path / "images" / sample.labels[0]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(folder / f"{number}.png")
    words = f"--init_from {start}/model --data.train {tmp_path}/images --data.val {tmp_path}/images {STILL}"
    calls, fit = [], linear_probe.probe

    def probe(*given: Any) -> Any:
        calls.append((given, fit(*given)))
        return calls[-1][1]

    monkeypatch.setattr(linear_probe, "probe", probe)
    found = weights(run("fit", tmp_path / "tuned", words, base=BRIEF, task="classification"))
    (((features, targets, _), (weight, bias)),) = calls
    assert features.shape[0] == 12
    labels = ["even", "odd"]
    data = ClassificationDataset(str(tmp_path / "images"), "train").samples
    assert [labels[n] for n in targets.argmax(1).tolist()] == [sample.labels[0] for sample in data]
    torch.testing.assert_close(found["head.out.weight"], weight.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["head.out.bias"], bias.float(), atol=1e-6, rtol=0)
    monkeypatch.setattr(linear_probe, "FEW", 11)
    many = weights(run("fit", tmp_path / "many", words, base=BRIEF, task="classification"))
    assert len(calls) == 1
    assert (many["head.out.weight"] - weight).abs().max() > 0.01
