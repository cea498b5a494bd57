"""The summarization model: what every task's model must do, and what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.explain import capture
from mmattn.generate import GenerationConfig
from mmattn.tasks.summarization.copying import CopyHead, worth_copying
from mmattn.tasks.summarization.hierarchy import HierarchicalEncoder, sentence_of
from mmattn.tasks.summarization.model import SummarizationModel
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "embed_dim": 16,
    "num_heads": 2,
    "ffn_dim": 24,
    "dropout": 0.0,
    "hierarchical": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "made up alone": {"copy": False},
    "hierarchical": {"hierarchical": True},
    "window": {"attention": {"kind": "sliding_window", "window": 2}},
    "window, first": {"attention": {"kind": "sliding_window", "window": 2}, "global_tokens": "first"},
    "window, sentences": {"attention": {"kind": "sliding_window", "window": 2}, "global_tokens": "sentences"},
    "mean": {"copy": False, "memory": "mean"},
}


def batch_of(batch: int, length: int) -> dict[str, Tensor]:
    """Random documents of falling lengths, a sentence every three tokens, summaries of four."""
    generator = torch.Generator().manual_seed(batch)
    mask = torch.arange(length) < torch.tensor([[max(1, length - n)] for n in range(batch)])
    starts = torch.arange(0, length, 3).expand(batch, -1)
    starts = torch.where(starts < mask.sum(1, keepdim=True), starts, -1)
    return {
        "source_ids": torch.randint(4, 30, (batch, length), generator=generator).masked_fill(~mask, 0),
        "source_mask": mask,
        "target_ids": torch.randint(4, 30, (batch, 4), generator=generator),
        "sentence_starts": starts,
    }


class TestSummarizationModel(TaskModelTests):
    task = "summarization"
    variants = VARIANTS
    batch, length, sentences = Dim("batch", max=64), Dim("length", max=512), Dim("sentences", max=512)
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {
        "source_ids": {0: batch, 1: length},
        "source_mask": {0: batch, 1: length},
        "target_ids": {0: batch},
        "sentence_starts": {0: batch, 1: sentences},
    }

    def build(self, **keywords: Any) -> nn.Module:
        return SummarizationModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        return batch_of(batch, length)

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        padded = {name: nn.functional.pad(inputs[name], (0, extra)) for name in ("source_ids", "source_mask")}
        starts = nn.functional.pad(inputs["sentence_starts"], (0, extra), value=-1)
        return {**inputs, **padded, "sentence_starts": starts}

    @pytest.mark.slow
    def test_one_batch_can_be_overfitted(self, variant: str, model: nn.Module) -> None:
        if variant == "mean":
            pytest.skip("a baseline that is made to fail")
        inputs = batch_of(4, 9)
        target = inputs["target_ids"]
        given = inputs | {"target_ids": torch.cat([torch.full_like(target[:, :1], 2), target[:, :-1]], dim=1)}
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(80):
            loss = nn.functional.cross_entropy(model(**given).logits.flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.1


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_step_by_step_equals_one_pass(variant: str) -> None:
    model = SummarizationModel(**{**SMALL, **VARIANTS[variant]}).double().eval()
    given = batch_of(3, 11)
    whole = model(**given).logits
    state = model.start(given["source_ids"], given["source_mask"], given["sentence_starts"])
    steps = [model.step(given["target_ids"][:, n : n + 1], state) for n in range(4)]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, atol=1e-8, rtol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_score_is_that_of_a_full_pass(beams: int) -> None:
    """Reordered beams keep their document: what is copied is copied from the right one."""
    model = SummarizationModel(**SMALL).double().eval()
    given = batch_of(4, 11)
    config = GenerationConfig(
        decoder_start_token_id=2, eos_token_id=3, num_beams=beams, max_new_tokens=7, length_penalty=0.0
    )
    starts = given.pop("sentence_starts")
    found = model.generate(given["source_ids"], given["source_mask"], config, sentence_starts=starts)
    for n in range(4):
        ids = found.ids[n, 0, : found.lengths[n, 0]].clone()  # made in inference mode
        target = torch.cat([torch.tensor([2]), ids[:-1]])
        one = {name: value[n : n + 1] for name, value in given.items()} | {"target_ids": target[None]}
        logits = model(**one, sentence_starts=starts[n : n + 1]).logits.log_softmax(-1)
        total = logits[0].gather(1, ids[:, None]).sum()
        torch.testing.assert_close(total.item(), found.scores[n, 0].item(), atol=1e-6, rtol=0)


def test_copying_by_hand() -> None:
    """Against a loop over batch, place and token."""
    head, E, V = CopyHead(8).double(), 8, 12
    states, logits, memory = torch.randn(2, 3, E).double(), torch.randn(2, 3, V).double(), torch.randn(2, 5, E).double()
    ids, mask = (
        torch.tensor([[4, 5, 4, 6, 0], [7, 7, 7, 0, 0]]),
        torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool(),
    )
    salience = head.salience(memory)
    found = head(states, logits, memory, head.keys(memory), salience, mask, ids)
    for b in range(2):
        real = mask[b].sum()
        for t in range(3):
            scores = torch.stack([head.q_proj(states[b, t]) @ head.k_proj(memory[b, s]) for s in range(real)]) / E**0.5
            weights = (scores + salience[b, :real].sigmoid().log()).softmax(0)
            context = sum(weights[s] * memory[b, s] for s in range(real))
            gate = head.gate_proj(torch.cat([states[b, t], context])).sigmoid()
            p = gate * logits[b, t].softmax(0)
            for s in range(real):
                p[ids[b, s]] = p[ids[b, s]] + (1 - gate[0]) * weights[s]
            torch.testing.assert_close(found[b, t], p.log(), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3).double())


def test_a_hidden_token_is_copied_as_what_it_is() -> None:
    model = SummarizationModel(**SMALL).eval()
    given = batch_of(2, 9)
    hidden = given | {"source_ids": torch.ones_like(given["source_ids"])}
    as_unknown = model(**hidden).logits.exp()
    as_itself = model(**hidden, copy_ids=given["source_ids"]).logits.exp()
    assert (as_unknown[..., 1] > as_itself[..., 1]).all()
    torch.testing.assert_close(as_unknown.sum(-1), as_itself.sum(-1))


def test_worth_copying() -> None:
    source, mask = torch.tensor([[5, 6, 7, 3, 6]]), torch.tensor([[True, True, True, True, False]])
    labels, label_mask = torch.tensor([[6, 9, 7, 5]]), torch.tensor([[True, True, True, False]])
    assert worth_copying(source, mask, labels, label_mask).tolist() == [[False, True, True, False, False]]


def test_sentences() -> None:
    assert sentence_of(torch.tensor([[0, 2, 5], [0, 4, -1]]), 6).tolist() == [[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1]]
    encoder = HierarchicalEncoder(16, 1, 2, ffn_dim=24, sentence_layers=1).double().eval()
    x, mask, starts = torch.randn(1, 6, 16).double(), torch.ones(1, 6).bool(), torch.tensor([[0, 3]])
    with capture(encoder) as maps:
        encoder(x, mask, starts)
    weights = maps["pool.weights"][0]  # (1, 2, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2).double())
    assert (weights[0, 0, 3:] == 0).all()
    assert (weights[0, 1, :3] == 0).all()
    words = maps["words.layers.0.attention"][0]  # (1, h, 6, 6)
    assert (words[:, :, :3, 3:] == 0).all()
    assert (words[:, :, 3:, :3] == 0).all()
    changed = x.clone()
    changed[0, 5] += 1.0  # another sentence: reaches the first word through the sentences' level
    assert not torch.equal(encoder(x, mask, starts)[0, 0], encoder(changed, mask, starts)[0, 0])


def test_global_tokens_reach_far() -> None:
    given = batch_of(1, 12)
    changed = given | {"source_ids": given["source_ids"].clone()}
    changed["source_ids"][0, 11] = (given["source_ids"][0, 11] - 3) % 26 + 4

    def moved(**keywords: Any) -> bool:
        torch.manual_seed(0)
        options = SMALL | {"encoder_layers": 2, "attention": {"kind": "sliding_window", "window": 1}}
        model = SummarizationModel(**options, **keywords).eval()
        names = ("source_ids", "source_mask", "sentence_starts")
        a, b = (model.encode(*(one[name] for name in names)) for one in (given, changed))
        return not torch.equal(a[0, 1], b[0, 1])

    assert not moved()
    assert moved(global_tokens="first")
    assert moved(global_tokens="sentences")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"global_tokens": "last"}, "global_tokens: expected none, first or sentences, found 'last'"),
        ({"global_tokens": "first"}, "'dense' does not support global tokens"),
        ({"memory": "mean"}, "leaves no tokens to copy"),
        ({"hierarchical": True, "global_tokens": "first"}, "words attend within sentences"),
    ],
)
def test_options_that_do_not_go_together(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SummarizationModel(**{**SMALL, **keywords})


@pytest.mark.parametrize("copy", [True, False])
def test_sources_are_rows_that_sum_to_one(copy: bool) -> None:
    model = SummarizationModel(**SMALL, copy=copy).eval()
    with capture(model) as maps:
        model(**batch_of(2, 9))
    sources = model.alignment(maps)
    assert sources.shape == (2, 4, 9)
    torch.testing.assert_close(sources.sum(-1), torch.ones(2, 4))
