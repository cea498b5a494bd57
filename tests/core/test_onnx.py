"""The core exported to ONNX: its softmax does not define empty rows, and its loops differ from torch's."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from mmattn import Encoder, Mask, T5Bias
from mmattn.backbones.recurrent import RecurrentEncoder
from tests.conftest import assert_onnx_equals_eager, slow_but_first


class Masked(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, key_mask):
        return self.encoder(x, Mask(key_mask, is_causal=True))


def vectors(batch, length):
    return torch.randn(batch, length, 8)


def ids(batch, length):
    return torch.randint(20, (batch, length))


@pytest.mark.parametrize(
    "make",
    slow_but_first(
        [
            lambda: Masked(Encoder(8, 1, 2, rotary=True)),
            lambda: Masked(
                Encoder(8, 1, 2, attention={"kind": "sliding_window", "window": 3}, position_bias=T5Bias(2))
            ),
            lambda: RecurrentEncoder(20, 6, 8, kind="gru"),
            lambda: RecurrentEncoder(20, 6, 8, kind="lstm"),
        ]
    ),
    ids=["dense", "sliding_window with T5 bias", "GRU", "LSTM"],
)
def test_onnx_equals_eager_at_other_sizes(make, tmp_path):
    model = make().eval()
    draw = ids if isinstance(model, RecurrentEncoder) else vectors

    def arguments(batch, length):
        key_mask = torch.ones(batch, length, dtype=torch.bool)
        key_mask[0] = False  # no keys to attend to, an empty sequence
        return draw(batch, length), key_mask

    dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    others = [arguments(3, 9), arguments(1, 2)]
    assert_onnx_equals_eager(model, arguments(2, 5), others, (dynamic, dynamic), tmp_path)
