"""Public models of text classification: heads equal transformers', labels of their config, fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmattn
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.text_classification.demo import make
from mmattn.tasks.text_classification.predict import TextClassificationPredictor
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import BRIEF, run

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

FAMILIES = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "Albert", "ModernBert", "DebertaV2")
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")
TYPED = ("Bert", "Electra", "Albert")  # families with token types
NAMES = ["happy", "not happy", "no word"]
TOLERANCE = 1e-8
PAIRS = slow_but_first(
    [(family, HEADS[(n + k) % 3]) for n, family in enumerate(FAMILIES) for k in range(3)], lambda pair: pair[0]
)


def config_of(family: str, seed: int, **more: Any) -> Any:
    """A configuration of one of twenty shapes."""
    heads = 1 + seed % 3
    width, layers = 8 * heads, 1 + seed % 4
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": 17 + seed % 5, "max_position_embeddings": 64, "vocab_size": 30}
    if family == "DistilBert":
        sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 17 + seed % 5, "vocab_size": 30}
        sizes |= {"max_position_embeddings": 64, "activation": "relu" if seed % 2 else "gelu"}
    if family in ("Roberta", "XLMRoberta"):
        sizes |= {"pad_token_id": 0, "type_vocab_size": 1}
    if family == "Electra":
        sizes |= {"embedding_size": 8 if seed % 2 else width}
    if family == "Albert":
        sizes |= {"embedding_size": 5 + seed % 2, "num_hidden_groups": 2 if layers % 2 == 0 and seed % 3 else 1}
    if family == "ModernBert":
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        sizes |= {**special, "local_attention": 4 + 2 * (seed % 3), "classifier_pooling": "mean" if seed % 2 else "cls"}
        sizes |= {"classifier_bias": seed % 4 == 0}
    if family == "DebertaV2":
        sizes |= {"relative_attention": True, "position_biased_input": seed % 3 == 0, "share_att_key": seed % 2 == 0}
        sizes |= {"pos_att_type": ["p2c", "c2p"] if seed % 4 else ["c2p"], "pooler_hidden_size": width}
        sizes |= {"position_buckets": 4 if seed % 5 else -1, "norm_rel_ebd": "layer_norm" if seed % 2 else "none"}
        sizes |= {"type_vocab_size": 2 if seed % 6 == 5 else 0}
    return getattr(transformers, f"{family}Config")(**sizes, **more)


def write(family: str, head: str, seed: int, folder: Path, tokenizer: Any, **more: Any) -> Any:
    """Saves a random model, every weight disturbed; returns it in float64."""
    torch.manual_seed(seed)
    theirs = getattr(transformers, family + head)(config_of(family, seed, **more))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return theirs.double().eval()


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModernBERT's rotation and DeBERTa's scale in double precision: transformers rounds them to single in any."""
    from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta
    from transformers.models.modernbert import modeling_modernbert as theirs

    def scale(query: Any, factor: int) -> Any:
        return torch.tensor(query.shape[-1] * factor, dtype=torch.float64).sqrt()

    def angles(self: Any, x: Any, position_ids: Any, layer_type: str) -> tuple[Any, Any]:
        size = self.config.hidden_size // self.config.num_attention_heads
        base = self.config.rope_parameters[layer_type]["rope_theta"]
        rates = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        found = (position_ids[..., None].double() * rates).repeat(1, 1, 2)
        return found.cos(), found.sin()

    def rotate(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> tuple[Any, Any]:
        cos, sin = cos[:, None], sin[:, None]
        return q * cos + theirs.rotate_half(q) * sin, k * cos + theirs.rotate_half(k) * sin

    monkeypatch.setattr(theirs.ModernBertRotaryEmbedding, "forward", angles)
    monkeypatch.setattr(theirs, "apply_rotary_pos_emb", rotate)
    monkeypatch.setattr(deberta, "scaled_size_sqrt", scale)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_heads_equal_transformers(pair: tuple[str, str], tmp_path: Path, pair_tokenizer: Any, in_double: None) -> None:
    """Twenty random shapes, pairs with padding, in float64."""
    family, head = pair
    for seed in range(20):
        folder = tmp_path / str(seed)
        theirs = write(family, head, seed, folder, pair_tokenizer, num_labels=2 + seed % 3)
        parts = read_parts("text_classification", folder)
        assert not parts.headless
        ours = parts.build(parts.keywords).double().eval()
        rows = parts.keywords["vocab_size"]
        length = 9 + seed
        ids = torch.randint(5, rows, (3, length))
        mask = torch.arange(length) < torch.tensor([[length], [length - 2], [length - 5]])
        ids = ids.masked_fill(~mask, 0)
        types = (torch.arange(length) >= 4).long().expand(3, length) * mask
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
        typed = family in TYPED or getattr(theirs.config, "type_vocab_size", 0) == 2
        if typed:
            given["token_type_ids"] = types
        with torch.no_grad():
            expected = theirs(**given).logits
            states = ours.states(ids, mask, types if typed else 0 * types)
            words = torch.arange(length).expand(3, length)
            if head == "ForMaskedLM":
                found, expected = ours.token_logits(states)[mask], expected[mask][:, :rows]
            elif head == "ForTokenClassification":
                found, expected = ours.scores(states, mask, words).tag_logits[mask], expected[mask]
            else:
                found = ours.scores(states, mask).logits
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "DebertaV2"])
def test_labels_are_those_of_the_config(family: str, tmp_path: Path, pair_tokenizer: Any) -> None:
    named = {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    theirs = write(family, HEADS[0], 1, tmp_path / "a", pair_tokenizer, **named)
    predictor = mmattn.load(tmp_path / "a", device="cpu")
    assert isinstance(predictor, TextClassificationPredictor)
    assert predictor.labels == NAMES
    texts = ["who keeps the goat ?", "ada lives by the mill ."]
    ids = [predictor.processor.collate([predictor.to_sample(text, 0)]).input_ids for text in texts]
    for text, row in zip(texts, ids, strict=True):
        with torch.no_grad():
            scores = theirs(row).logits.softmax(-1)[0]
        found = predictor(text, top_k=3)
        assert found.label == NAMES[int(scores.argmax())]
        assert found.score == pytest.approx(float(scores.max()), abs=1e-3)
    tagger = write(family, HEADS[1], 1, tmp_path / "b", pair_tokenizer, **named)
    assert tagger is not None
    model = mmattn.load(tmp_path / "b", device="cpu")
    batch = model.processor.collate([model.to_sample({"words": ["who", "\u200b", "1843", "it"]}, 0)])
    assert batch.word_starts.tolist() == [[1, 2, 3, 5]], "a word of which no token is left is unknown"
    assert batch.input_ids[0].tolist() == [2, 4, 1, 22, 23, 18, 3]
    tags = mmattn.load(tmp_path / "b", device="cpu")({"words": ["who", "keeps", "18 43"]})
    assert tags.labels is not None
    assert len(tags.labels) == 3
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"id2label": {"0": "x"}}))
    refused("expected names of 3 labels", read_parts, "text_classification", tmp_path / "a", error=CheckpointError)


def test_problem_types(tmp_path: Path, pair_tokenizer: Any) -> None:
    for problem, count, kind in (
        ("multi_label_classification", 3, "multi_label"), ("regression", 1, "regression"), (None, 1, "regression")
    ):  # fmt: skip
        write(
            "Bert", HEADS[0], 0, tmp_path / f"{problem}{count}", pair_tokenizer, problem_type=problem, num_labels=count
        )
        predictor = mmattn.load(tmp_path / f"{problem}{count}", device="cpu")
        assert predictor.processor.tasks[""].kind == kind
        assert isinstance(predictor("who is it ?").score, float)


def test_masked_language_model(tmp_path: Path, pair_tokenizer: Any) -> None:
    theirs = write("Roberta", "ForMaskedLM", 2, tmp_path, pair_tokenizer)
    predictor = mmattn.load(tmp_path, device="cpu")
    ((first, second),) = [[place[0] for place in one] for one in predictor.fill_mask(["who [MASK] the [MASK] goat"])]
    template, tokens = predictor.processor.template, pair_tokenizer
    mask = predictor.processor.mask_id
    ids = [*template.before, tokens.token_to_id("who"), mask, tokens.token_to_id("the"), mask]
    ids += [tokens.token_to_id("goat"), *template.after]
    with torch.no_grad():
        scores = theirs(torch.tensor([ids])).logits[0, [2, 4], : predictor.processor.tokenizer.vocab_size].softmax(-1)
    for (word, score), row in zip((first, second), scores, strict=True):
        assert word == predictor.processor.tokenizer.decode([int(row.argmax())])
        assert score == pytest.approx(float(row.max()), abs=1e-3)
    refused("masked language model", predictor.predict, ["who ?"])
    assert predictor.embed(["who ?", "the goat ."]).norm(dim=-1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("family", slow_but_first(["DebertaV2", "Bert", "Albert", "ModernBert"]))
def test_fit_from_public_weights(family: str, tmp_path: Path, pair_tokenizer: Any) -> None:
    """Encoders without a head, and models with one of other labels; the shipped model predicts."""
    for head in ("Model", HEADS[0]):
        folder = tmp_path / head
        theirs = write(family, head, 1, folder, pair_tokenizer)
        assert theirs is not None
        options = f"{BRIEF} --data.demo_size 12 --data.batch_size 4 --data.max_len 40 --optim.probe_below 0"
        lora = " --model.lora.rank 2" if head == "Model" else ""
        made = run(
            "fit", tmp_path / f"run{head}", f"{options} --init_from {folder}{lora}", "", task="text_classification"
        )
        predictor = mmattn.load(made / "model", device="cpu")
        assert predictor.labels == ["negative", "positive"]
        assert {one.label for one in predictor.predict(make("test", 4))} <= {"negative", "positive"}
        predictor.explain(make("test", 1)[0])
