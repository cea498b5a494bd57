"""Continuations: streamed, limited, of public folders, from the command line; and training of each kind of data."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.errors import DataError, UserError
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.task import tasks
from mmattn.tasks.text_generation import TextGenerationPredictor, load
from mmattn.tasks.text_generation.explain import token_relevance
from mmattn.tasks.text_generation.model import TextGenerationModel
from mmattn.tasks.text_generation.options import Wanted
from mmattn.tasks.text_generation.processor import TextGenerationProcessor
from tests.conftest import refused, slow_but_first
from tests.pretrained_causal import write_public
from tests.tasks.runs import ask, damage, lines, read, run, weights

TEXT = "the cat sat on the mat. the dog ran to the cat.\n"


@pytest.fixture(scope="module")
def writer() -> TextGenerationPredictor:
    from mmattn.data.text.language import LanguageTokens

    torch.manual_seed(0)
    processor = TextGenerationProcessor(LanguageTokens.fit(lambda: [TEXT]), 16)
    sizes = processor.sizes()
    model = TextGenerationModel(**sizes, embed_dim=16, num_layers=1, num_heads=2, ffn_dim=16)
    for parameter in model.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return TextGenerationPredictor(model, processor)


def test_streams_equal_predictions(writer: TextGenerationPredictor) -> None:
    """Also beyond the length that the model reads at once, and for sampling with a seed."""
    every: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"stop": ["a"]},
        {"stop": ["at", " t"], "temperature": 2.0},
    ]
    for options in every:
        expected = writer("the cat", max_new_tokens=40, **options)
        parts = list(writer.stream_text("the cat", max_new_tokens=40, **options))
        assert "".join(parts) == expected.text
        assert "stop" in options or expected.tokens == 40 or expected.text == ""
        assert all(stop not in expected.text for stop in options.get("stop", ()))
    assert writer("the", temperature=1.0, seed=1).text == writer("the", temperature=1.0, seed=1).text
    refused("nothing to stream", lambda: list(writer.stream_text("a", num_beams=2)))


def test_batched_equals_alone(writer: TextGenerationPredictor) -> None:
    prompts = ["the cat", "a", "the mat. the dog", ""]
    for options in ({}, {"num_beams": 3}, {"repetition_penalty": 1.5}):
        together = writer.predict(prompts, max_new_tokens=6, **options)
        assert [one.text for one in together] == [writer(p, max_new_tokens=6, **options).text for p in prompts]
        assert all(one.score is not None and one.score < 0 for one in together)


def test_samples_are_independent_of_other_items(writer: TextGenerationPredictor) -> None:
    """They depend on the seed and the place of the item: not on the batch, nor on the other prompts."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_new_tokens": 10}
    same = writer.predict(["the cat"] * 4, **options)
    assert len({one.text for one in same}) == 4
    prompts = ["a", "the cat", "the mat. the", "the dog"]
    texts = [one.text for one in writer.predict(prompts, **options)]
    assert texts == [one.text for one in writer.predict(prompts, batch_size=1, **options)]
    assert texts[1] == same[1].text
    assert texts[0] == writer("a", **options).text == "".join(writer.stream_text("a", **options))
    items = [{"prompt": prompt, "place": place} for place, prompt in reversed(list(enumerate(prompts)))]
    assert texts[::-1] == [one.text for one in writer.predict(items, **options)]
    assert texts != [one.text for one in writer.predict(prompts, **{**options, "seed": 6})]


def test_penalties_count_the_whole_text(writer: TextGenerationPredictor) -> None:
    """Also the tokens that are no longer read; and the other prompts do not move the window of what is."""
    prompts = ["the cat sat on", "the", "the mat. the d"]
    for options in ({"presence_penalty": 1e4}, {"repetition_penalty": 1e4, "presence_penalty": 1e-3}):
        given: dict[str, Any] = {"max_new_tokens": 12, **options}
        found = writer.predict(prompts, **given)
        assert len(found[0].text) > 3, "more than the model reads with the prompt"
        if options["presence_penalty"] > 1:
            assert all(len(set(one.text)) == len(one.text) for one in found)
        for prompt, one in zip(prompts, found, strict=True):
            assert writer(prompt, **given).text == writer(prompt, lookup=True, **given).text == one.text
            assert "".join(writer.stream_text(prompt, **given)) == one.text
    for options in ({}, {"temperature": 1.0}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}):
        together = [one.text for one in writer.predict(prompts, max_new_tokens=40, **options)]
        assert together == [one.text for one in writer.predict(prompts, 1, max_new_tokens=40, **options)]


def test_speculation_gives_the_same_text(writer: TextGenerationPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond the length that the model reads at once, and after a prompt of this length."""
    expected = {}
    for prompt in ("the cat", "the cat sat on"):
        expected[prompt] = writer(prompt, max_new_tokens=40)
        found = writer(prompt, max_new_tokens=40, lookup=True)
        assert (found.text, found.tokens) == (expected[prompt].text, 40)
    monkeypatch.setattr(writer, "draft_model", writer.model)
    for prompt, right in expected.items():
        assert writer(prompt, max_new_tokens=40).text == right.text
    lstm = TextGenerationModel(**writer.processor.sizes(), decoder="lstm", embed_dim=16, num_layers=1, num_heads=2)
    monkeypatch.setattr(writer, "draft_model", lstm)
    refused("need transformers whose attention caches", writer.predict, ["the"], error=ConfigError)


def test_a_prompt_of_the_models_length_is_read_whole(writer: TextGenerationPredictor) -> None:
    row = writer._begun(writer.to_sample("the cat sat on ", 0), Wanted(max_new_tokens=3))
    assert (len(row.prompt), row.cut) == (16, 0)
    _, given, _ = next(writer._rounds([row], Wanted(max_new_tokens=3)))
    assert given == [row.prompt]


def test_scores_are_means_over_tokens_and_the_end(writer: TextGenerationPredictor) -> None:
    tokenizer = writer.processor.tokenizer
    for seed in range(20):  # until one ends before its 12 tokens
        found = writer("the", max_new_tokens=12, temperature=3.0, seed=seed)
        if found.tokens < 12:
            break
    ids = [*writer.processor.prompt_ids("the"), *tokenizer.encode(found.text), tokenizer.eos_id]
    with torch.no_grad():
        logits = writer.model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    expected = logits[3:].gather(1, torch.tensor(ids[4:])[:, None]).mean()
    assert found.score == pytest.approx(float(expected), abs=1e-4)


def test_long_prompts(writer: TextGenerationPredictor) -> None:
    found = writer("the cat sat on the mat", max_new_tokens=4)
    assert found.tokens_cut == 23 - 12
    assert "16 tokens that the model reads" in writer.remark()
    before = writer.cut
    assert "".join(writer.stream_text("the cat sat on the mat", max_new_tokens=4)) == found.text
    assert writer.cut == before + 1, "a prompt counts once"
    message = "item 0: expected a prompt of at most 16 tokens, found one of 23"
    refused(message, writer.predict, ["the cat sat on the mat"], on_long="refuse", error=DataError)


def test_patterns_and_choices(writer: TextGenerationPredictor) -> None:
    pytest.importorskip("outlines_core")
    assert writer("the", choices=["cat", "dog"]).text in ("cat", "dog")
    assert writer("the", choices="sat|mat", num_beams=2).text in ("sat", "mat")
    found = writer("the", regex="(t|h){3}", temperature=1.0).text
    assert len(found) == 3
    assert set(found) <= {"t", "h"}
    for found in writer.predict(["the", "a cat"], regex="[a-z]{29}t", max_new_tokens=40):  # longer than what is read
        assert re.fullmatch("[a-z]{29}t", found.text)
    refused("--regex or --choices: expected texts", writer.predict, ["a"], regex="(", error=ConfigError)


def test_explanations(writer: TextGenerationPredictor, tmp_path: Path) -> None:
    explanation = writer.explain("the cat sat", max_new_tokens=12, temperature=1.0, words=2)
    for words in explanation.words:
        assert words.text.startswith("the cat")
        assert float(words.weights.sum()) <= 1 + 1e-5
        assert (words.weights >= 0).all()
    explanation.save(tmp_path / "a.png")
    from PIL import Image

    assert Image.open(tmp_path / "a.png").width < 1.5 * 390, "readable on a phone"
    assert "<section>" in explanation.html()


def test_relevance_of_long_texts(writer: TextGenerationPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Erasure and, for longer texts, attention: both distributions over the tokens before."""
    ids = writer.processor.prompt_ids("the cat sat")
    for longest in (256, 4):
        monkeypatch.setattr("mmattn.tasks.text_generation.explain.LONG", longest)
        weights = token_relevance(writer.model.net, ids, [len(ids) - 1], len(ids) + 3)
        assert weights.shape == (len(ids) + 3,)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-4)
        assert not writer.model.net.embedding._forward_hooks


# Public folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("family", slow_but_first(["llama", "gpt2", "qwen3"], lambda family: None))
def test_public_folders(family: str, tmp_path: Path) -> None:
    """In shards; with a chat template; as transformers continues them. bfloat16 is kept."""
    write_public(tmp_path / "half", family, torch.bfloat16)
    half = load(tmp_path / "half", device="cpu")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half("the cat", max_new_tokens=3).tokens <= 3
    theirs, tokenizer = write_public(tmp_path / "m", family, torch.float32, shard="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    ours = load(tmp_path / "m", device="cpu")
    assert ours.model.net.output.weight is ours.model.net.embedding.weight or family != "gpt2"
    assert ours.processor.prompt_ids("the cat") == tokenizer("the cat").input_ids
    for prompt in ("the cat", "the dog ran"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = theirs.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        assert ours(prompt, max_new_tokens=6, temperature=0).text == ours._restore(expected, ids[0].tolist())
    assert ours.chat("hi") == tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    messages = [{"role": "user", "content": "hi"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for item in ("hi", {"messages": messages}):
        row = ours._begun(ours.to_sample(item, 0), Wanted(chat=item == "hi"))
        assert row.prompt == expected, "without a second prefix"
    assert ours("hi", chat=True, max_new_tokens=3).text == ours({"messages": messages}, max_new_tokens=3).text
    told = [ours.explain("hi", chat=True, max_new_tokens=6), ours.explain({"messages": messages}, max_new_tokens=6)]
    assert all(words.text.startswith(ours.chat("hi")) for one in told for words in one.words), "of what is read"
    for mine, same in zip(*(one.words for one in told), strict=True):
        assert torch.equal(mine.weights, same.weights)
    other = load(ours.save(tmp_path / "saved"), device="cpu")
    assert other("the cat", max_new_tokens=6).text == ours("the cat", max_new_tokens=6).text


def test_damaged_public_folders(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_public(tmp_path, "llama", torch.float32, shard="20KB")
    shard = next(tmp_path.glob("*-00001-of-*.safetensors"))
    content = shard.read_bytes()
    shard.unlink()
    refused(f"shard {shard.name} is missing", load, tmp_path, error=CheckpointError)
    shard.write_bytes(content[:-50])
    refused("not a whole safetensors file", load, tmp_path, error=CheckpointError)
    shard.write_bytes(content)
    config = read(tmp_path / "config.json")
    damage(tmp_path / "config.json", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}})
    refused("rope_type='longrope'; supported are default, linear, llama3", load, tmp_path, error=CheckpointError)
    damage(tmp_path / "config.json", {**config, "eos_token_id": None})
    damage(tmp_path / "generation_config.json", {"eos_token_id": None})
    refused("expected an eos_token_id in generation_config.json", load, tmp_path, error=CheckpointError)


# Training and the command line ----------------------------------------------------------------------------------------


def test_interactive(
    writer: TextGenerationPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TextGenerationPredictor, "load", classmethod(lambda cls, *given, **more: writer))
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\na\n"))
    ask("predict", "--interactive", "--max_new_tokens", "5", "--checkpoint", "x", task="text_generation")
    expected = [writer(prompt, max_new_tokens=5).text for prompt in ("the cat", "a")]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    ask("predict", "--prompt", "the cat", "--max_new_tokens", "5", "--checkpoint", "x", task="text_generation")
    assert capsys.readouterr().out == f"{expected[0]}\n"
    words = ("--interactive", "--prompt", "the cat", "--checkpoint", "x")
    refused("--interactive: expected no items", ask, "predict", *words, task="text_generation", error=UserError)


def corpus(folder: Path) -> Path:
    (folder / "a.txt").write_text(TEXT * 40)
    return folder / "a.txt"


def test_a_text_file_is_learned(tmp_path: Path) -> None:
    """The perplexity of each token, word and byte; the word level's is that of the same loss."""
    data = f"--data.train {corpus(tmp_path)} --data.tokenizer bpe --data.vocab_size 300 --trainer.limit_val_batches 1.0"
    options = f"{data} --trainer.max_epochs 8 --optim.lr 0.01 --data.eval_context 8"
    folder = run("fit", tmp_path / "run", options, task="text_generation")
    found = read(folder / "metrics.json")["validation"]
    assert found["loss"] < 3
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-4)
    assert found["bits_per_byte"] < found["loss"] / math.log(2)
    losses = []
    for number, words in enumerate(["", "--data.eval_context 8", "--data.eval_context 0"]):
        given = f"--checkpoint {folder / 'model'} --data.val {tmp_path / 'a.txt'} --trainer.limit_val_batches 4 {words}"
        measured = run("validate", tmp_path / f"v{number}", given, task="text_generation")
        losses.append(read(measured / "metrics.json")["validation"]["loss"])
    assert losses[0] == losses[1] != losses[2], "a model is measured as in its training"
    ask("predict", "--checkpoint", folder / "model", "--input", corpus(tmp_path), "--limit", "2", "--output",
        tmp_path / "o.jsonl", task="text_generation")  # fmt: skip
    assert len(lines(tmp_path / "o.jsonl")) == 2


def test_unknown_tokens_of_validation_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.txt").write_text("the cat sees one zebra\n" * 20)
    options = f"--data.train {corpus(tmp_path)} --data.val {tmp_path / 'v.txt'} --data.tokenizer word"
    run("fit", tmp_path / "run", options, task="text_generation")
    assert "val: 60 of 122 tokens are unknown and read as [UNK]" in capfd.readouterr().err


def test_kernels_without_pairs_need_texts_that_attention_may_cross(tmp_path: Path) -> None:
    options = f"{tasks()['text_generation'].tiny} --model.attention.kind linear --trainer.max_steps 1"
    message = "never forms query-key pairs.* --data.cross_documents true"
    refused(message, run, "fit", tmp_path / "a", options, task="text_generation", error=ConfigError)
    run("fit", tmp_path / "b", f"{options} --data.cross_documents true", task="text_generation")


@pytest.mark.parametrize(
    "words", slow_but_first(["--model.positions relative --model.memory_len 16", "--model.decoder lstm"])
)
def test_training_in_order_resumes_exactly(words: str, tmp_path: Path) -> None:
    """The states that are carried over are saved, too: a run stopped within an epoch ends as one that was not."""
    options = f"{words} --data.train {corpus(tmp_path)} --optim.schedule constant --optim.warmup_steps 1 "
    options += "--data.tokenizer character --data.batch_size 2 --trainer.max_epochs 2"
    whole = run("fit", tmp_path / "whole", options, task="text_generation")
    part = run("fit", tmp_path / "part", f"{options} --trainer.max_steps 5", task="text_generation")
    run("fit", part, f"{options} --trainer.max_steps -1 --ckpt_path last", task="text_generation")
    mine, theirs = weights(part), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_short_text_has_no_rows_of_its_own_for_a_large_batch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc abd abe")
    options = f"--model.decoder lstm --data.train {tmp_path / 'a.txt'} --data.tokenizer character --data.batch_size 64"
    refused("data.batch_size: expected at most 9", run, "fit", tmp_path / "r", options, task="text_generation")
    context = f"{options} --data.eval_context 8"
    refused("data.eval_context: expected none", run, "fit", tmp_path / "r", context, task="text_generation")


def test_blocks_are_no_longer_than_learned_positions(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_public(tmp_path / "m", "gpt2", torch.float32)
    options = f"--data.train {corpus(tmp_path)} --init_from {tmp_path / 'm'} --data.block_size 65"
    message = "data.block_size: expected at most 64, for which the model has positions, found 65"
    base = "--trainer.enable_progress_bar false"
    refused(message, run, "fit", tmp_path / "run", options, base, task="text_generation", error=ConfigError)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", slow_but_first(["--model.positions relative --model.memory_len 400", "--model.decoder lstm"])
)
def test_evaluation_carries_its_state(words: str, tmp_path: Path) -> None:
    """Blocks that are read one after another are measured as one text, where the model can remember it."""
    (tmp_path / "v.txt").write_text(TEXT * 6)
    options = f"{words} --data.train {corpus(tmp_path)} --data.val {tmp_path / 'v.txt'} --data.tokenizer character "
    options += "--trainer.max_epochs 1 --trainer.limit_val_batches 1.0 --data.block_size 32"
    folder = run("fit", tmp_path / "run", options, task="text_generation")
    found = read(folder / "metrics.json")["validation"]["loss"]
    predictor = load(folder / "model", device="cpu")
    tokenizer, net = predictor.processor.tokenizer, predictor.model.double().net
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(TEXT * 6), tokenizer.eos_id]])
    memory, parts = None, []
    with torch.no_grad():
        whole, end = net.segment(ids[:, :-1])
        for part in ids[:, :-1].split(32, dim=1):
            states, memory = net.segment(part, memory)
            parts.append(states)
        assert memory is not None
        logits = net.output(torch.cat(parts, dim=1))[0]
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])), abs=1e-5)
    if "lstm" in words:  # its attention sees a block
        torch.testing.assert_close(memory, end, rtol=0, atol=1e-12)
    else:
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-10)


def test_what_the_tokenizer_does_not_know_is_said(
    writer: TextGenerationPredictor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert writer("the cat", max_new_tokens=1).unknown == []
    assert writer("the \u00e9\u00e9t Z", max_new_tokens=1).unknown == ["\u00e9", "Z"]
    message = "1 of the prompts has characters that the model does not know and reads as [UNK]: '\u00e9', 'Z'"
    assert message in writer.remark()
    play = ("--checkpoint", "text_generation/tinyshakespeare", "--max_new_tokens", "2")
    ask("predict", *play, "J\u00fcrgen", task="text_generation")  # one word, which is no path
    assert "reads as [UNK]: '\u00fc'" in capsys.readouterr().err


def test_instructions_by_low_rank_updates(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_public(tmp_path / "m", "llama", torch.float32)
    rows = [{"prompt": f"the {word}: ", "response": "cat"} for word in ("dog", "mat", "cat", "man") for _ in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = f"--data.train {tmp_path / 'a.jsonl'} --init_from {tmp_path / 'm'} --model.lora.rank 2 "
    options += "--trainer.max_epochs 3 --data.batch_size 4 --optim.warmup_steps 1 --optim.lr 0.02"
    folder = run("fit", tmp_path / "run", options, "--trainer.enable_progress_bar false", task="text_generation")
    found = load(folder / "model", device="cpu")
    assert isinstance(found("the dog: ", max_new_tokens=2, temperature=0).text, str)
    assert read(folder / "metrics.json")["validation"]["loss"] > 0
