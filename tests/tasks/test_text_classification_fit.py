"""Training of text classification: every kind of label, several tasks, plain text, few examples, augmentation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn import load
from mmattn.data.errors import DataError, UserError
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.text_classification.demo import make, make_tagged
from mmattn.tasks.text_classification.localisation import localisation
from mmattn.tasks.text_classification.predict import TextClassificationPredictor
from tests.conftest import refused
from tests.tasks.runs import ask, lines, read, run, weights, write_lines

fit = partial(run, "fit", task="text_classification")
LINES = [sample.text for sample in make("train", 60)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind of label, train and val."""
    folder = tmp_path_factory.mktemp("texts")
    for split, size in (("train", 40), ("val", 12)):
        samples = make(split, size)
        rows = [{"text": s.text, "label": s.labels[0], "score": len(s.text) / 10 + 0.5} for s in samples]
        write_lines(folder / f"single_{split}.jsonl", [{"text": r["text"], "label": r["label"]} for r in rows])
        write_lines(folder / f"score_{split}.jsonl", [{"text": r["text"], "score": r["score"]} for r in rows])
        pairs = zip(rows, reversed(rows), strict=True)
        two = [{"text": a["text"], "text_pair": b["text"], "label": str(a["label"] == b["label"])} for a, b in pairs]
        write_lines(folder / f"pair_{split}.jsonl", two)
        several = [{"text": r["text"], "labels": [r["label"]] * ("soup" not in r["text"]) + ["any one"]} for r in rows]
        write_lines(folder / f"multi_{split}.jsonl", several)
        blocks = [
            "".join(f"{w}\t{t}\n" for w, t in zip(s.words or [], s.labels, strict=True))
            for s in make_tagged(split, size)
        ]
        (folder / f"tags_{split}.conll").write_text("\n".join(blocks))
        (folder / f"lines_{split}.txt").write_text("\n".join(LINES[:size]))
    return folder


def data(folder: Path, name: str, suffix: str = "jsonl") -> str:
    return f"--data.train {folder}/{name}_train.{suffix} --data.val {folder}/{name}_val.{suffix}"


@pytest.mark.parametrize(
    ("name", "suffix", "metric", "options"),
    [
        ("multi", "jsonl", "f1_macro", "--loss.class_weights true --loss.label_smoothing 0.1"),
        ("score", "jsonl", "pearson", ""),
        ("pair", "jsonl", "accuracy", "--loss.class_weights true --model.encoder recurrent"),
        ("tags", "conll", "f1", "--loss.class_weights true --model.characters 4"),
        ("single", "jsonl", "accuracy", "--model.encoder hierarchical --model.characters 4"),
    ],
)
def test_kinds_of_labels(name: str, suffix: str, metric: str, options: str, files: Path, tmp_path: Path) -> None:
    """Training, the metric of the kind, predictions of the training format, an explanation."""
    folder = fit(tmp_path / "run", f"{data(files, name, suffix)} {options}")
    assert metric in read(folder / "metrics.json")["validation"]
    path = files / f"{name}_val.{suffix}"
    if name == "single":
        write_lines(tmp_path / "other.jsonl", [{"text": "The soup", "label": "unheard of"}])
        other = ("--input", tmp_path / "other.jsonl", "--output", tmp_path / "other")
        ask("predict", "--checkpoint", folder, *other, task="text_classification")
        assert lines(tmp_path / "other")[0]["label"] in {"negative", "positive"}
    ask("predict", "--checkpoint", folder, "--input", path, "--output", tmp_path / "o", task="text_classification")
    rows = lines(tmp_path / "o")
    assert len(rows) == 12
    predictor = load(folder / "model", device="cpu")
    samples = predictor.open_input(str(path))
    explanation = predictor.explain(samples[0])
    assert explanation.truth == predictor.truth(samples[0])
    assert float(explanation.words.weights.abs().sum()) == pytest.approx(1.0, abs=1e-4)
    assert len(explanation.words.weights) == len(explanation.words.spans)
    if name == "multi":
        assert set(rows[0]["labels"]) <= {"any one", "negative", "positive"}
        assert all(0 < t < 1 for t in predictor.processor.tasks[""].thresholds)
        assert predictor.processor.tasks[""].thresholds != [0.5] * 3, "chosen on the validation data"
    if name == "tags":
        assert len(rows[0]["labels"]) == len(rows[0]["words"])
        assert predictor("The soup was good").words == ["The", "soup", "was", "good"]
    if name == "score":
        assert isinstance(rows[0]["score"], float)


def test_columns_of_training_are_those_of_prediction(files: Path, tmp_path: Path) -> None:
    """A model keeps their names; either these or the expected ones will do."""
    rows = [{"ticket": row["text"], "team": row["label"]} for row in lines(files / "single_train.jsonl")]
    write_lines(tmp_path / "own.jsonl", rows)
    columns = "--data.columns.text ticket --data.columns.label team"
    folder = fit(tmp_path / "run", f"--data.train {tmp_path / 'own.jsonl'} {columns}")
    run(
        "test",
        tmp_path / "t",
        f"--checkpoint {folder}/model --data.test {tmp_path / 'own.jsonl'}",
        task="text_classification",
    )
    write_lines(tmp_path / "new.jsonl", [{"ticket": rows[0]["ticket"]}, {"text": rows[0]["ticket"]}])
    given = ("--input", tmp_path / "new.jsonl", "--output", tmp_path / "out.jsonl")
    ask("predict", "--checkpoint", folder / "model", *given, task="text_classification")
    one, other = lines(tmp_path / "out.jsonl")
    assert one["label"] == other["label"]
    predictor = load(folder / "model", device="cpu")
    assert predictor({"ticket": rows[0]["ticket"]}).label == one["label"]
    write_lines(tmp_path / "bad.jsonl", [{"txt": "a"}])
    with pytest.raises(DataError) as caught:
        predictor.open_input(str(tmp_path / "bad.jsonl"))
    assert "--data.columns" not in str(caught.value)


def test_several_tasks(files: Path, tmp_path: Path) -> None:
    """One encoder, a head for each; each is measured, and answers when it is asked."""
    names = {"one": "single_{}.jsonl", "two": "tags_{}.conll", "near": "score_{}.jsonl"}
    paths = {}
    for split in ("train", "val"):
        places = ", ".join(f"{name}: {files}/{path.format(split)}" for name, path in names.items())
        paths[split] = f"{{{places}}}"
    words = ["--data.train", paths["train"], "--data.val", paths["val"], "--data.temperature", "2"]
    from mmattn.tasks.common import cli
    from mmattn.tasks.common.task import tasks

    tiny = "--model.embed_dim 16 --model.num_heads 2 --model.num_layers 1 --data.batch_size 8 --trainer.max_epochs 1"
    quiet = "--trainer.accelerator cpu --trainer.report false --trainer.enable_progress_bar false"
    place = ["--trainer.default_root_dir", str(tmp_path / "run")]
    cli.run(tasks()["text_classification"], "fit", [*words, *tiny.split(), *quiet.split(), *place])
    found = read(tmp_path / "run" / "metrics.json")["validation"]
    mains = [found["one/accuracy"], found["two/f1"], found["near/pearson"]]
    assert found["mean"] == pytest.approx(sum(mains) / 3, abs=1e-6)
    predictor = load(tmp_path / "run" / "model", device="cpu")
    assert list(predictor.processor.tasks) == ["one", "two", "near"]
    assert predictor("The soup was good.").label in {"negative", "positive"}
    assert isinstance(predictor("The soup was good.", task="near").score, float)
    assert len(predictor({"words": ["The", "soup"], "task": "two"}).labels) == 2
    assert predictor("The soup was fine.", task="two").words == ["The", "soup", "was", "fine", "."]
    assert len(predictor.explain("The soup was fine.", task="two").words.weights) == 5
    for name, file in (("two", "tags_val.conll"), ("near", "tags_val.conll"), ("two", "score_val.jsonl")):
        given = ("--checkpoint", tmp_path / "run", "--input", files / file, "--task", name)
        ask("predict", *given, "--output", tmp_path / f"{name}-{file}", task="text_classification")
        first = lines(tmp_path / f"{name}-{file}")[0]
        assert len(first["labels"] or []) == len(first["words"] or []) > 0 if name == "two" else first["score"]
    refused("task: expected one of one, two, near, found 'three'", predictor, "x", task="three", error=ConfigError)
    measured = ["--checkpoint", str(tmp_path / "run" / "model"), *quiet.split()]
    for command, more, message in (
        ("validate", [], "was trained on your own data"),
        ("test", ["--data.test", str(files / "single_val.jsonl")], "expected a file for each of the tasks one, two"),
    ):
        there = ["--trainer.default_root_dir", str(tmp_path / command)]
        refused(message, cli.run, tasks()["text_classification"], command, [*measured, *more, *there], error=UserError)
    paths["val"] = f"{{other: {files}/single_val.jsonl}}"
    wrong = ["--data.train", paths["train"], "--data.val", paths["val"], *quiet.split()]
    place = ["--trainer.default_root_dir", str(tmp_path / "other")]
    refused(
        "expected files of the tasks one",
        cli.run,
        tasks()["text_classification"],
        "fit",
        [*wrong, *place],
        error=ConfigError,
    )


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_pretraining_on_plain_text(objective: str, files: Path, tmp_path: Path) -> None:
    """A masked language model fills gaps and embeds texts; its encoder is the start of a classifier."""
    folder = fit(tmp_path / "lm", f"{data(files, 'lines', 'txt')} --loss.objective {objective}")
    found = read(folder / "metrics.json")["validation"]
    assert found.keys() >= {"token_accuracy", "token_perplexity"} | ({"accuracy"} if "nsp" in objective else set())
    predictor = load(folder / "model", device="cpu")
    ((gap,),) = predictor.fill_mask(["The soup was [MASK]."], top_k=3)
    assert len(gap) == 3
    ((every,),) = predictor.fill_mask(["The [MASK]"], top_k=100_000)
    assert len(every) == predictor.processor.tokenizer.vocab_size
    assert all(0 <= score <= 1 for _, score in gap)
    assert predictor.embed(["a soup", "a bed"]).shape == (2, 16)
    begun = fit(
        tmp_path / "run", f"{data(files, 'single')} --init_from {folder} --optim.lr 1e-12 --optim.warmup_steps 1"
    )
    before, after = weights(folder), weights(begun)
    shared = [name for name in after if name.startswith("encoder.")]
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in shared)
    assert not any(name.startswith("language.") for name in after)
    assert load(begun / "model", device="cpu").labels == ["negative", "positive"]
    if objective == "mlm":
        again = fit(tmp_path / "again", f"{data(files, 'lines', 'txt')} --loss.objective mlm --init_from {begun}")
        assert not any(name.startswith("pooling.") for name in weights(again))
        tagged = fit(tmp_path / "tagged", f"{data(files, 'tags', 'conll')} --init_from {begun}")
        assert not any(name.startswith("pooling.") for name in weights(tagged))
    refused("expected labels, found plain text", fit, tmp_path / "no", data(files, "lines", "txt"), error=ConfigError)


@pytest.mark.parity
def test_few_examples(tmp_path: Path, pair_tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A linear head on frozen embeddings, chosen by the number of samples, and said."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=25, max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path / "bert")
    pair_tokenizer.save(str(tmp_path / "bert" / "tokenizer.json"))
    start = f"--data.demo_size 20 --data.batch_size 8 --data.max_len 40 --init_from {tmp_path}/bert"
    start += " --trainer.accelerator cpu --trainer.enable_progress_bar false"
    start += " --trainer.max_epochs 2 --trainer.limit_val_batches 2"
    folder = fit(tmp_path / "run", start, "")
    assert "auto: 20 training texts are fewer than --optim.probe_below 64" in capsys.readouterr().err
    found, state = weights(folder), model.state_dict()
    assert torch.equal(found["encoder.embedding.weight"], state["embeddings.word_embeddings.weight"])
    assert load(folder / "model", device="cpu").embed(["who keeps the goat ?"]).shape == (1, 16)
    fit(tmp_path / "whole", f"{start} --optim.probe_below 0", "")
    assert "probe_below" not in capsys.readouterr().err
    changed = weights(tmp_path / "whole")
    assert not torch.equal(changed["encoder.embedding.weight"], state["embeddings.word_embeddings.weight"])


def test_augmented_training(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Synonyms by a masked language model of ours, and translation there and back."""
    folder = fit(tmp_path / "lm", f"{data(files, 'lines', 'txt')} --loss.objective mlm")
    words = f"--data.augment.synonym 0.2 --data.augment.model {folder}/model --data.augment.deletion 0.1"
    there = "--data.augment.translation 0.5 --data.augment.there translation/demo --data.augment.back translation/demo"
    fit(tmp_path / "run", f"{data(files, 'single')} {words} {there} --trainer.max_epochs 2")
    said = capsys.readouterr().err
    assert "augment: replacements of" in said
    assert "texts were translated there and back" in said
    start = load(folder / "model", device="cpu")
    (found,) = start.replacements([("The soup was good", 1)], 5)
    assert all(word and " " not in word for word in found)


def test_bad_data_end_in_one_error(files: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl", [{"text": f"text {n}", "label": "only"} for n in range(6)])
    write_lines(tmp_path / "odd.jsonl", [{"text": "x", "label": "negativ"}])
    for options, message in (
        (
            f"--data.train {tmp_path}/one.jsonl",
            r"expected at least 2 different ones in the training data, found \['only'\]",
        ),
        (
            f"--data.train {files}/single_train.jsonl --data.val {tmp_path}/odd.jsonl",
            "odd.jsonl, line 1: expected one of the 2",
        ),
        (f"--data.train {files}/single_train.jsonl --data.max_len 3", "max_len: expected at least 5 tokens"),
    ):
        refused(message, fit, tmp_path / "run", options, error=(ConfigError, DataError))
    for options, message in (
        (f"{data(files, 'score')} --loss.class_weights true", "class_weights: expected training data with labels"),
        (f"{data(files, 'score')} --loss.label_smoothing 0.1", "label_smoothing: expected .* labels, found scores"),
        (f"{data(files, 'tags', 'conll')} --data.augment.swap 0.1", "expected texts to augment, found words with tags"),
        (f"{data(files, 'single')} --data.augment.swap often", "data.augment.swap: expected a number from 0 to 1"),
        (f"{data(files, 'single')} --data.columns.lable x", "data.columns: expected .*'lable' .did you mean 'label'"),
    ):
        refused(message, fit, tmp_path / "run", options, error=(ConfigError, DataError))
    assert not (tmp_path / "run" / "model").exists()


def test_shipped_model(tmp_path: Path) -> None:
    """Its label, and positive and negative relevance; the words of the largest relevance determine the label."""
    predictor = load("text_classification/demo", device="cpu")
    samples = make("test", 100)
    found = predictor.predict(samples)
    assert sum(one.label == s.labels[0] for one, s in zip(found, samples, strict=True)) >= 97
    pair = ("The soup was good, but the room was not fine.", "The soup was not good, but the room was fine.")
    assert [one.label for one in predictor.predict(pair)] == ["negative", "positive"]
    game = localisation(predictor, 100)
    items, hits, _ = (sum(column) for column in zip(*game.rows.values(), strict=True))
    assert hits >= 0.85 * items
    explanation = predictor.explain(pair[0])
    assert (explanation.words.weights < 0).any()
    assert "rgba(204, 51, 26" in explanation.html()
    other = predictor.explain(pair[0], label="positive")
    assert torch.allclose(other.words.weights, -explanation.words.weights, atol=1e-4)
    refused("--label: expected one of negative, positive, found 'postive'", predictor.explain, pair[0], label="postive")
    assert isinstance(predictor, TextClassificationPredictor)
    refused("embed: expected a list of texts, found a text alone", predictor.embed, "a text")
    refused("item 1: expected a text that is not empty, found ' '", predictor.embed, ["a text", " "])
    assert predictor.embed(list(pair)).norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    refused("expected a masked language model", predictor.fill_mask, ["a [MASK]"])
    packed = load("text_classification/demo", device="cpu", precision="int8")
    assert packed(pair[0]).label == "negative"
    refused("precision: expected weights that are not packed", packed.explain, pair[0], error=ConfigError)


@pytest.mark.parametrize("kind", ["single_label", "tagging"])
def test_export_of_a_model_of_short_texts(kind: str, tmp_path: Path) -> None:
    """The examples are no longer than the model's texts."""
    folder = fit(tmp_path / "run", f"--data.kind {kind} --data.max_len 5")
    assert load(folder / "model", device="cpu").export(tmp_path / "graphs", formats=("torch",))
    assert list((tmp_path / "graphs").glob("*.pt2"))
