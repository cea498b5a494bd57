"""Models that are built for weights."""

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from mmattn import MultiHeadAttention
from mmattn.building import build_for
from tests.conftest import refused


@pytest.mark.parametrize("key", ["stride", "dilation"])
def test_layers_that_cannot_move_are_refused(key: str) -> None:
    """Torch would raise in the forward pass, without a name."""

    def build(keywords: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 2, 1, **keywords))

    state = build({key: 1}).state_dict()
    assert isinstance(build_for(state, build, {key: 2}), nn.Sequential)
    refused(f"0: expected a {key} of at least 1, found", build_for, state, build, {key: 0})


@pytest.mark.parametrize("kind", ["linear", "lsh"])  # an empty buffer; directions that are drawn by a generator
def test_kernels_with_buffers_are_built(kind: str) -> None:
    def build(keywords: Mapping[str, Any]) -> nn.Module:
        return MultiHeadAttention(8, 2, **keywords)

    state = build({"kind": kind}).state_dict()
    assert isinstance(build_for(state, build, {"kind": kind}), MultiHeadAttention)
