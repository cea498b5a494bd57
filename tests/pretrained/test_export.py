"""The public families as ONNX, at sizes other than those of the export."""

import pytest
import torch
from torch.export import Dim

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.vit import VisionTransformer
from tests.conftest import assert_onnx_equals_eager, slow_but_first


@pytest.mark.parametrize(
    "options", slow_but_first([{}, {"pad_id": 1}, {"token_dim": 5}]), ids=["BERT", "RoBERTa", "ELECTRA"]
)
def test_text_encoders(options, tmp_path):
    def draw(batch, length):
        key_mask = torch.ones(batch, length, dtype=torch.bool)
        key_mask[0, 1:] = False
        return torch.randint(2, 20, (batch, length)).masked_fill(~key_mask, 1), key_mask

    model = BertEncoder(20, 8, 2, 2, max_len=16, **options)
    size = {0: Dim.AUTO, 1: Dim.AUTO}
    assert_onnx_equals_eager(model, draw(2, 5), [draw(3, 9), draw(1, 2)], (size, size), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("resize", [None, "bicubic", "bicubic_antialias"])
def test_vision_transformers(resize, tmp_path):
    model = VisionTransformer(8, 1, 2, image_size=(16, 24), patch_size=8, resize_positions=resize)
    dynamic = {0: Dim.DYNAMIC} | ({2: Dim.AUTO, 3: Dim.AUTO} if resize else {})
    others = [(torch.randn(3, 3, 16, 24),)] + ([(torch.randn(1, 3, 40, 32),)] if resize else [])
    example = (torch.randn(2, 3, 48, 32) if resize else torch.randn(2, 3, 16, 24),)
    assert_onnx_equals_eager(model, example, others, (dynamic,), tmp_path)
