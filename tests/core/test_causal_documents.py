"""Documents that are packed into one block: each has the loss that it has alone, for all kernels and positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmattn.backbones.causal import POSITIONS, CausalLM
from mmattn.kernels import KERNELS
from tests.conftest import refused

REFUSED = {"linear": "takes a key_mask, not an attn_mask", "lsh": "supports key_mask, but not attn_mask"}
NOT_CAUSAL = ("low_rank", "monotonic")


def model(kind: str, positions: str) -> CausalLM:
    torch.manual_seed(0)
    attention = None if kind == "dense" else {"kind": kind}
    found = CausalLM(30, 16, 2, 2, positions=positions, attention=attention, max_len=32).double().eval()
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.5)
    return found


def losses(net: CausalLM, ids: torch.Tensor, documents: torch.Tensor | None = None) -> torch.Tensor:
    """The loss of each token but the first of a text (1, L - 1)."""
    logits = net(ids, None, documents)[0, :-1]
    return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").detach()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", sorted(KERNELS))
def test_packed_documents_have_their_own_loss(kind: str, positions: str) -> None:
    if kind in NOT_CAUSAL or (positions == "relative" and kind != "dense"):
        message = "expected dense attention" if positions == "relative" else f"'{kind}' does not support causal"
        refused(message, model, kind, positions)
        return
    net, texts = model(kind, positions), [torch.randint(30, (1, length)) for length in (11, 9, 1)]
    documents = torch.cat([torch.full_like(text, n) for n, text in enumerate(texts)], 1)
    if kind in REFUSED:
        refused(REFUSED[kind], losses, net, torch.cat(texts, 1), documents)
        return
    packed = losses(net, torch.cat(texts, 1), documents)
    torch.testing.assert_close(packed[:10], losses(net, texts[0]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(packed[11:19], losses(net, texts[1]), rtol=1e-8, atol=1e-8)
