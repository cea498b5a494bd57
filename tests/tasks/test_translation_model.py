"""The translation model: the tests of every task's model, and its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmattn.building import tied_names
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.checkpoint import load_weights
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.export import ExportError
from mmattn.tasks.common.seq2seq.export import export_net
from mmattn.tasks.common.seq2seq.model import CorpusMetric, drop_words, token_loss
from mmattn.tasks.translation.model import TranslationHead, TranslationModel
from tests.conftest import refused, slow_but_first
from tests.tasks.base import written_step_by_step
from tests.tasks.text_models import SEARCH, TextModelTests

SMALL: dict[str, Any] = {"vocab_size": 30, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "dropout": 0.0}
SMALL |= {"encoder_layers": 1, "decoder_layers": 2}


class TestTranslationModel(TextModelTests):
    task, model_class, small = "translation", TranslationModel, SMALL
    exported_elsewhere = True  # test_encoder_and_step_are_exported
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "two vocabularies": {"source_vocab_size": 40},
        "untied, learned, post-norm": {"tied_output": False, "positions": "learned", "norm_first": False},
        "mean": {"pooling": "mean"},
        "lstm": {"decoder": "lstm"},
        "lstm, local": {"decoder": "lstm", "cross_attention": {"kind": "local", "window": 4}, "source_vocab_size": 40},
        "window": {"attention": {"kind": "sliding_window", "window": 3}},
    }
    wrong: ClassVar = [
        ({"decoder": "gru"}, "unknown decoder 'gru'"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"decoder": "lstm", "pooling": "mean"}, "supports only cross_attention"),
        ({"decoder": "lstm", "attention": {"kind": "linear"}}, "supports only cross_attention"),
        ({"cross_attention": {"kind": "sliding_window"}}, "'sliding_window' does not support"),
    ]

    def heads(self) -> Any:
        given = (torch.randn(3, 9, 12), None, torch.randint(20, (3, 4)))
        return [(TranslationHead(20, 16, 1, 2, memory_dim=12), given, [(3, 4, 20)])]


STEPS: list[dict[str, Any]] = [{}, {"positions": "learned", "max_len": 40}, {"decoder": "lstm"}]


@pytest.mark.parametrize("keywords", slow_but_first(STEPS), ids=str)
def test_encoder_and_step_are_exported(keywords: dict[str, Any], tmp_path: Path) -> None:
    model = TranslationModel(**SMALL, **keywords)
    lines = export_net(model.net, tmp_path, ("torch",))
    assert [line.split()[0].rsplit("/", 1)[1] for line in lines] == ["encoder.pt2", "step.pt2"]
    encoder = torch.export.load(tmp_path / "encoder.pt2").module()
    source, mask = torch.randint(4, 30, (2, 6)), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with torch.no_grad():
        given = encoder(source_ids=source, source_mask=mask)._asdict()
        written = written_step_by_step(tmp_path, mask, given, layers=2)
    config = GenerationConfig(**{**SEARCH, "eos_token_id": None, "max_new_tokens": 5})
    assert torch.equal(written, model.eval().generate(source, mask, config).ids[:, 0])


def test_unsupported_step_export_raises(tmp_path: Path) -> None:
    model = TranslationModel(**SMALL, decoder_attention={"kind": "linear"})
    refused("attention kind 'linear'", export_net, model.net, tmp_path, ("torch",), error=ExportError)


def test_tied_weights_are_saved_and_loaded_once() -> None:
    model, other = TranslationModel(**SMALL), TranslationModel(**SMALL)
    tied = tied_names(model)
    assert tied == {"net.target_embedding.weight", "net.output.weight"}
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    load_weights(other, state, "here")
    assert other.net.output.weight is other.net.embedding.weight
    assert torch.equal(other.net.output.weight, model.net.output.weight)
    stale = model.state_dict() | {"net.embedding.weight": torch.ones_like(model.net.embedding.weight)}
    load_weights(other, stale, "here")  # averaged weights have only the first name
    assert (other.net.output.weight == 1).all()
    with pytest.raises(CheckpointError, match=r"missing net\.embedding\.weight"):
        load_weights(other, {n: v for n, v in state.items() if n != "net.embedding.weight"}, "here")


def test_head_generates_standalone() -> None:
    head = TranslationHead(20, 16, 1, 2, memory_dim=12).eval()
    found = head.generate(torch.randn(3, 9, 12), None, GenerationConfig(num_beams=2, **SEARCH))
    assert found.ids.shape[:2] == (3, 1)


def test_loss_ignores_padding() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, 0], [4, 0, 0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = -logits.log_softmax(-1)[mask].gather(1, labels[mask][:, None]).mean()
    torch.testing.assert_close(token_loss(logits, labels, mask), expected)
    logits[1, 2] = 100.0
    torch.testing.assert_close(token_loss(logits, labels, mask), expected)


def test_word_dropout_spares_padding_and_special_tokens() -> None:
    ids, mask = torch.tensor([[5, 6, 7, 3, 0]] * 500), torch.tensor([[True] * 4 + [False]] * 500)
    hidden = drop_words(ids, mask, 0.3, unk_id=1, special=(3,))
    assert (hidden[:, 3:] == ids[:, 3:]).all()
    assert (hidden[:, :3] == 1).float().mean() == pytest.approx(0.3, abs=0.04)


def test_metric_counts_each_sample_once() -> None:
    metric = CorpusMetric(lambda found, right: {"hits": sum(f in r for f, r in zip(found, right, strict=True))})
    metric.update(["1", "2"], ["a", "b"], [["a"], ["c", "b"]])
    metric.update(["2"], ["b"], [["c", "b"]])
    metric.add("loss", 6.0, 2.0)
    metric.add("loss", 0.0, 1.0)
    assert metric.compute() == {"hits": 2, "loss": 2.0}
    metric.reset()
    assert metric.compute() == {"hits": 0}
