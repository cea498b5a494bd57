"""The extractive summarizer: the tests of every task's model, sentences, training, public encoders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mmattn.data.errors import DataError
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.summarization.data import SummarySample
from mmattn.tasks.summarization.demo import make
from mmattn.tasks.summarization.extract import choose, extract, sentence_gains
from mmattn.tasks.summarization.extractive import ExtractiveModel, SentenceHead, sentence_loss
from mmattn.tasks.summarization.metrics import score
from mmattn.tasks.summarization.model import build
from mmattn.tasks.summarization.predict import SummarizationPredictor, load
from mmattn.tasks.summarization.processor import SummaryProcessor
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests
from tests.tasks.runs import ask, lines, run
from tests.tasks.text_models import SOURCE, STARTS, batch_of

SMALL: dict[str, Any] = {"vocab_size": 30, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "dropout": 0.0}
BERT = {"text_options": {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "max_len": 128}}
WORDS = "--data.demo_size 24 --data.vocab_size 300 --data.max_tokens 2000 --data.batch_size 8 "
WORDS += "--model.network extractive --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 16 "
WORDS += (
    "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1 "
)
WORDS += "--trainer.enable_progress_bar false"
TEXTS = ["Ada keeps the goat. She lives by the old mill. It is in a town.", "Where is it? In a mill."]
fit = partial(run, "fit", base=WORDS, task="summarization")


class TestExtractiveModel(TaskModelTests):
    task = "summarization"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "mean": {"pooling": "mean"},
        "without layers over sentences": {"sentence_layers": 0},
        "window": {"attention": {"kind": "sliding_window", "window": 2}},
        "bert": BERT,
    }
    wrong: ClassVar = [
        ({"pooling": "first"}, "pooling: expected attention or mean, found 'first'"),
        ({"decoder_layers": 3}, "decoder_layers: of the network pointer_generator alone, not of extractive; found 3"),
        ({"copy": False}, "copy: of the network pointer_generator alone"),
        ({"network": "abstract"}, "network: expected pointer_generator or extractive, found 'abstract'"),
        ({"network": "pointer_generator", **BERT}, "network: expected pointer_generator without text_options"),
    ]
    dynamic: ClassVar[dict[str, dict[int, Any]]] = SOURCE | STARTS

    def build(self, **keywords: Any) -> nn.Module:
        return build(**{"network": "extractive", **SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in batch_of(batch, length).items() if name != "target_ids"}

    def pad(self, inputs: Any, extra: int) -> dict[str, Tensor]:
        wrong = {"source_ids": 0, "source_mask": False, "sentence_starts": -1}
        return {name: nn.functional.pad(inputs[name], (0, extra), value=value) for name, value in wrong.items()}

    def heads(self) -> Any:
        starts = torch.tensor([[0, 4], [0, 3], [0, -1]])
        mask = torch.ones(3, 9, dtype=torch.bool)
        return [(SentenceHead(12, 1, 2), (torch.randn(3, 9, 12), mask, starts), [(3, 2)])]

    def test_overfits_one_batch(self, model: nn.Module, variant: str) -> None:
        inputs = self.inputs(6, 9)
        starts, best = inputs["sentence_starts"], torch.tensor([2, 0, 1, 1, 0, 0])
        gains = nn.functional.one_hot(best, 3).float()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        assert learn(optimizer, 80, lambda: sentence_loss(model(**inputs).logits, starts, gains))[-1] < 0.1
        assert torch.equal(model.eval()(**inputs).logits.masked_fill(starts < 0, -9).argmax(1), best)


# Sentences ------------------------------------------------------------------------------------------------------------


def processor() -> SummaryProcessor:
    from mmattn.tasks.summarization.data import SummaryDataset

    return SummaryProcessor.fit(SummaryDataset(make("train", size=20)), vocab_size=300, max_source_len=60)


def test_gains_equal_a_loop() -> None:
    """Each sentence by rouge-score, against the best of the references; zero in the padding."""
    from rouge_score.rouge_scorer import RougeScorer

    references = [["Ada keeps a goat.", "A mill is old."], ["It is in a town."]]
    samples = [SummarySample(str(n), text, "", r) for n, (text, r) in enumerate(zip(TEXTS, references, strict=True))]
    batch = processor().collate(samples)
    found, kinds = sentence_gains(batch), ["rouge1", "rouge2", "rougeL"]
    assert found.shape == (2, 3)
    assert found[1, 2] == 0
    scorer = RougeScorer(kinds, use_stemmer=True)
    for row, sample in enumerate(samples):
        for place, (start, end) in enumerate(batch.sentences[row]):
            values = [[scorer.score(r, sample.source[start:end])[k].fmeasure for r in references[row]] for k in kinds]
            expected = sum(max(some) for some in values) / 3
            assert found[row, place].item() == pytest.approx(expected, abs=1e-6)
    assert found[0].argmax() == 0


def test_loss_equals_a_loop() -> None:
    logits, starts = torch.randn(2, 3).double(), torch.tensor([[0, 4, 9], [0, 3, -1]])
    gains = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.3, 0.0]]).double()
    expected = 0.0
    for row, count in enumerate((3, 2)):
        q, log_p = (gains[row, :count] / 0.05).softmax(0), logits[row, :count].log_softmax(0)
        expected -= sum(0.9 * a * b + 0.1 / count * b for a, b in zip(q, log_p, strict=True)) / 2
    assert sentence_loss(logits.float(), starts, gains, 0.1).item() == pytest.approx(float(expected), rel=1e-5)


def test_trigrams_are_blocked() -> None:
    texts = ["The old pump broke.", "So the OLD pump stopped.", "An old pump", "It rained."]
    assert choose(texts, [4, 3, 2, 1], 2) == [0, 2]
    assert choose(texts, [1, 4, 2, 3], 9) == [1, 2, 3], "document order"
    assert choose(texts, [0, 1, 2, 3], 1) == [3]
    assert choose(["a b c", "a b c"], [1, 1], 2) == [0]


def test_sentences_are_spans_of_the_document() -> None:
    whole = processor()
    samples = [SummarySample(str(n), text) for n, text in enumerate(TEXTS)]
    batch = whole.collate(samples)
    found = extract(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 9.0]]), batch, 2)
    assert found[0].summary == "She lives by the old mill. It is in a town."
    assert [TEXTS[0][a:b] for a, b in found[0].spans] == ["She lives by the old mill.", "It is in a town."]
    assert found[1].summary == TEXTS[1]
    assert sum(found[1].probabilities) == pytest.approx(1)
    assert found[1].score == pytest.approx(torch.tensor([1.0, 0.0]).log_softmax(0).mean().item())


def test_truncated_sentences_are_no_candidates() -> None:
    whole = processor()
    long = SummarySample("a", " ".join(f"Ship {n} sailed." for n in range(40)))
    batch = whole.collate([long])
    spans, tokens = batch.sentences[0], whole.document_tokens(long.source)
    assert int(batch.cut[0]) > 0
    assert len(spans) == batch.sentence_starts.shape[1] < 40
    for start, (first, _) in zip(batch.sentence_starts[0].tolist(), spans, strict=True):
        assert tokens[start][0] <= first < tokens[start][1], "the sentence's first token"


# Training and serving -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("run") / "a", "--decode.num_sentences 2") / "model"


@pytest.fixture(scope="module")
def summarizer(trained: Path) -> SummarizationPredictor:
    return load(trained, device="cpu")


def test_predictions(summarizer: SummarizationPredictor, tmp_path: Path) -> None:
    samples = make("test", size=5)
    found = summarizer.predict(samples)
    for one, sample in zip(found, samples, strict=True):
        assert one.summary == " ".join(sample.source[a:b] for a, b in one.sentences)
        assert 1 <= len(one.sentences) <= 2
        assert one.score < 0
    assert [len(one.sentences) for one in summarizer.predict(samples, num_sentences=1)] == [1] * 5
    again = load(summarizer.save(tmp_path / "saved"), device="cpu")
    assert again.predict(samples) == found
    assert isinstance(again.model, ExtractiveModel)


def test_measured_as_it_predicts(trained: Path, summarizer: SummarizationPredictor, tmp_path: Path) -> None:
    options = f"--checkpoint {trained} --data.batch_size 64 --trainer.limit_test_batches 1.0"
    figures = json.loads((run("test", tmp_path / "t", options, WORDS, "summarization") / "metrics.json").read_text())
    samples = make("test")
    right = [sample.right_targets() for sample in samples]
    expected = score([one.summary for one in summarizer.predict(samples)], right)
    assert {name: figures["test"][name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_command_line(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    given = ("--checkpoint", trained, "--text", TEXTS[0])
    ask("predict", *given, "--output", tmp_path / "o", task="summarization")
    (row,) = lines(tmp_path / "o")
    assert [TEXTS[0][a:b] for a, b in row["sentences"]] == row["summary"].replace(". ", ".\n").split("\n")
    ask("explain", *given, "--num_sentences", "1", "--output", tmp_path / "a.png", task="summarization")
    assert Image.open(tmp_path / "a.png").size[0] > 300
    ask("export", "--checkpoint", trained, "--output", tmp_path / "e", task="summarization")
    assert {path.name for path in (tmp_path / "e").iterdir()} >= {"summarization.onnx", "summarization.pt2"}


def test_explanation(summarizer: SummarizationPredictor) -> None:
    (found,) = summarizer.explain_all([TEXTS[0]], num_sentences=1)
    assert found.words.marked == found.prediction.sentences
    (start, end), weights = found.prediction.sentences[0], found.words.weights
    inside = [start <= a < end for a, _ in found.words.spans]
    assert weights[inside].min() == weights.max(), "the chosen sentence is the most probable one"
    assert "goat" in found.html()


def test_options_of_other_networks_are_refused(
    trained: Path, summarizer: SummarizationPredictor, tmp_path: Path
) -> None:
    beams = "expected none with an extractive model, which chooses sentences"
    refused(f"--num_beams: {beams}", summarizer, TEXTS[0], num_beams=2, error=ConfigError)
    refused("--num_sentences: expected 1 or more, found 0", summarizer, TEXTS[0], num_sentences=0, error=ConfigError)
    refused("--num_sentences: expected none with", load(device="cpu"), "a", num_sentences=1, error=ConfigError)
    refused("a document", summarizer, " ", error=DataError)
    for options, message in (
        ("--decode.num_beams 2", f"decode.num_beams: {beams}"),
        ("--decode.val_beams 2", f"decode.val_beams: {beams}"),
        ("--decode.num_sentences 0", "decode.num_sentences: expected a value of at least 1"),
        ("--loss.salience 0.5", "loss.salience: expected 0 for an extractive model"),
        ("--model.copy false", "copy: of the network pointer_generator alone"),
        ("--model.network pointer_generator --decode.num_sentences 1", "decode.num_sentences: expected none"),
    ):
        refused(message, fit, tmp_path / "a", options, error=ConfigError)


# Public encoders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path: Path, pair_tokenizer: Any) -> str:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=32, max_position_embeddings=64, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    pair_tokenizer.save(str(tmp_path / "bert" / "tokenizer.json"))
    return str(tmp_path / "bert")


@pytest.mark.parity
def test_begins_with_a_public_encoder(bert: str, tmp_path: Path) -> None:
    """LoRA leaves the encoder's weights but for updates, and trains all of the new layers."""
    from mmattn.tasks.common.adapter import read_parts

    words = "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.enable_progress_bar false --data.batch_size 8 "
    words += "--data.demo_size 12 --trainer.limit_val_batches 1 --optim.warmup_steps 0"
    begin = partial(run, "fit", base=words, task="summarization")
    lora = "--model.lora.rank 1 --model.pooling mean --model.ffn_dim 8 --decode.num_sentences 1"
    found = load(begin(tmp_path / "run", f"--init_from {bert} {lora}") / "model", device="cpu")
    given = read_parts("summarization", bert)
    assert found.processor.max_source_len == 64
    state = found.model.state_dict()
    changed = {name for name, value in given.state.items() if not torch.equal(state[name], value)}
    assert changed == {name for name in given.state if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert found.model.head.sentences.layers[0].ffn.fc1.weight.shape == (8, 32)
    (one,) = found.predict([TEXTS[0]])
    assert one.sentences[0][1] <= len(TEXTS[0])
    batch = found.processor.collate([SummarySample("a", TEXTS[0])])
    assert batch.sentence_starts.tolist() == [[0, 6, 13]], "behind [CLS]"
    message = "data.max_source_len: expected at most 64, the number of positions"
    refused(message, begin, tmp_path / "b", f"--init_from {bert} --data.max_source_len 65", error=ConfigError)
    message = "copy: .*bert"
    refused(message, begin, tmp_path / "c", f"--init_from {bert} --model.copy false", error=Exception)
