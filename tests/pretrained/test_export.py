"""The public families as ONNX, at other sizes than they were exported with."""

import pytest
import torch
from torch.export import Dim

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.vit import VisionTransformer
from tests.conftest import slow_but_first

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def compare(model, example, others, dynamic, folder):
    model.eval()
    program = torch.onnx.export(model, example, dynamo=True, verbose=False, dynamic_shapes=dynamic)
    program.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [entry.name for entry in session.get_inputs()]
    for given in others:
        found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in given), strict=True)))
        for a, b in zip(found, model(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pad_id", slow_but_first([None, 1]), ids=["BERT", "RoBERTa"])
def test_text(pad_id, tmp_path):
    def draw(batch, length):
        key_mask = torch.ones(batch, length, dtype=torch.bool)
        key_mask[0, 1:] = False
        return torch.randint(2, 20, (batch, length)).masked_fill(~key_mask, 1), key_mask

    model = BertEncoder(20, 8, 2, 2, max_len=16, pad_id=pad_id)
    size = {0: Dim.AUTO, 1: Dim.AUTO}
    compare(model, draw(2, 5), [draw(3, 9), draw(1, 2)], (size, size), tmp_path)


@pytest.mark.parametrize("resize", slow_but_first([None, "bicubic", "bicubic_antialias"]))
def test_images(resize, tmp_path):
    model = VisionTransformer(8, 1, 2, image_size=(16, 24), patch_size=8, resize_positions=resize)
    dynamic = {0: Dim.DYNAMIC} | ({2: Dim.AUTO, 3: Dim.AUTO} if resize else {})
    others = [(torch.randn(3, 3, 16, 24),)] + ([(torch.randn(1, 3, 40, 32),)] if resize else [])
    compare(model, (torch.randn(2, 3, 48, 32) if resize else torch.randn(2, 3, 16, 24),), others, (dynamic,), tmp_path)
