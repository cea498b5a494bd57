"""Public folders in the tasks: outputs equal those of transformers; errors; reduced precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mmattn
from mmattn import linears
from mmattn.tasks.common.errors import CheckpointError, UserError
from mmattn.tasks.common.sources import find_model, named_models
from mmattn.tasks.summarization.predict import SummarizationPredictor, load as load_summarizer
from mmattn.tasks.translation.predict import TranslationPredictor, load as load_translator
from tests.conftest import refused
from tests.tasks.public_folders import FAMILIES, PREFIX, TEXTS, into_hub_cache, write, written_by_transformers
from tests.tasks.runs import ask, damage, edited, lines, write_lines

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
LONG = " ".join(TEXTS) * 3
SPECIAL = {"</s>": 0, "<unk>": 1, "<pad>": 2}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4, "length_penalty": 0.4, "no_repeat_ngram_size": 2, "min_length": 4},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and transformers' model of each family."""
    root = tmp_path_factory.mktemp("public")
    return {family: (root / family, write(family, root / family)) for family in FAMILIES}


def written(predictor: Any, **search: Any) -> list[str]:
    name = "translation" if isinstance(predictor, TranslationPredictor) else "summary"
    return [" ".join(getattr(answer, name).split()) for answer in predictor.predict(TEXTS, **search)]


def by_transformers(theirs: Any, prefix: str = "", **search: Any) -> list[str]:
    return written_by_transformers(theirs, [prefix + text for text in TEXTS], **search)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*FAMILIES, "marian separate"])
def test_texts_equal_transformers(family: str, way: str, tmp_path: Path) -> None:
    theirs, prefix = write(family, tmp_path, **WAYS[way]), PREFIX * (family == "t5")
    predictor, other = mmattn.load(tmp_path, device="cpu"), {"num_beams": 3, "max_length": 9}
    assert written(predictor) == by_transformers(theirs, prefix)
    assert len(set(written(predictor))) > 2, "identical texts would prove nothing"
    assert written(predictor, **other) == by_transformers(theirs, prefix, **other), "before generation_config.json"


def test_older_bart_folder(folders: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bart"][0], tmp_path / "bart")
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    damage(folder / "vocab.json", json.dumps(content["vocab"]))
    damage(folder / "merges.txt", "\n".join(map(" ".join, content["merges"])))
    assert written(mmattn.load(folder, device="cpu")) == by_transformers(folders["bart"][1])


def test_task_is_inferred(folders: dict[str, Any]) -> None:
    kinds = {family: type(mmattn.load(str(folder))) for family, (folder, _) in folders.items()}
    assert kinds == {"marian": TranslationPredictor, "bart": SummarizationPredictor, "t5": SummarizationPredictor}
    assert mmattn.load(folders["marian"][0]).processor.options["source_lang"] == "en"
    with pytest.raises(CheckpointError, match=r"expected a model for summarization, found one of marian"):
        load_summarizer(folders["marian"][0])
    folder, theirs = folders["bart"]
    assert written(load_translator(folder, device="cpu")) == by_transformers(theirs)


def test_t5_prefix(folders: dict[str, Any], tmp_path: Path) -> None:
    folder, theirs = folders["t5"]
    assert written(load_translator(folder, device="cpu")) == by_transformers(theirs)
    asked = load_translator(folder, device="cpu", prefix="the old:")
    assert written(asked) == by_transformers(theirs, "the old: ")
    assert asked.predict([TEXTS[0]])[0].tokens_cut == 0
    shutil.copytree(folder, tmp_path / "t5")
    pairs = {f"translation_en_to_{code}": {"prefix": f"to {code}: ", "max_length": 7} for code in ("de", "fr")}
    with edited(tmp_path / "t5" / "config.json") as config:
        config["task_specific_params"] = pairs
    found = load_translator(tmp_path / "t5", device="cpu", prefix="to fr:")
    assert written(found) == by_transformers(theirs, "to fr: ", max_length=7), "before generation_config.json"
    for load, source, prefix, message in (
        (load_translator, tmp_path / "t5", None, r"expected a prefix to select a pair, of 'to de: ', 'to fr: '"),
        (load_summarizer, folders["bart"][0], "a: ", "bart models take no prefix"),
        (load_summarizer, "summarization/demo", "a: ", "has its own; found 'a: '"),
    ):
        refused(message, load, source, prefix=prefix, error=CheckpointError)


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_is_reported(family: str, folders: dict[str, Any]) -> None:
    predictor = mmattn.load(folders[family][0], device="cpu")
    limit = {"marian": 100, "bart": 128, "t5": 512}[family]
    assert predictor.processor.max_source_len == limit
    text = LONG if family != "t5" else LONG * 9
    whole = predictor.processor.whole_length(predictor.processor.source, text)
    assert [answer.tokens_cut for answer in predictor.predict([text, TEXTS[0]])] == [whole - limit, 0]
    assert f"longer than {limit} tokens" in predictor.remark()


@pytest.mark.parametrize("family", FAMILIES)
def test_explanation(family: str, folders: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    predictor = mmattn.load(folders[family][0], device="cpu")
    sample, text = predictor.to_sample(TEXTS[1], 0), TEXTS[0]  # a random model may output nothing
    found = predictor.explain_written([sample], [predictor.written(sample, text, 0.0, 0)])[0]
    assert found.weights.shape[0] == len(found.words) > 5
    torch.testing.assert_close(found.weights.sum(1), torch.ones(len(found.words)))
    if family == "marian":
        assert found.source_words == TEXTS[1].split()
    else:
        read = [TEXTS[1][start:end] for start, end in found.spans]
        assert "".join(read) == TEXTS[1].replace(" ", "")
        assert found.weights.shape[1] == len(read)
    found.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_command_line(folders: dict[str, Any], tmp_path: Path) -> None:
    folder, theirs = folders["t5"]
    write_lines(tmp_path / "in.jsonl", ({"document": text} for text in TEXTS))
    words = f"--checkpoint {folder} --input {tmp_path}/in.jsonl --output {tmp_path}/o --num_beams 2"
    ask("predict", *words.split(), "--precision", "float32", task="summarization")
    found = [" ".join(row["summary"].split()) for row in lines(tmp_path / "o")]
    assert found == by_transformers(theirs, PREFIX, num_beams=2)


# Reduced precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", linears.PRECISIONS)
def test_reduced_precision(precision: str, folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "MANY", 0)  # packs small maps, too
    if linears.why_not(precision) is not None:
        pytest.skip(f"{precision}: {linears.why_not(precision)}")
    plain, packed = (mmattn.load(folders["marian"][0], device="cpu", precision=p) for p in (None, precision))
    kinds = {type(module) for module in packed.model.modules()}
    assert kinds & {linears.PackedLinear, linears.Int8Linear}
    assert torch.nn.Linear not in kinds
    found = written(packed)
    assert sum(map(bool, found)) > 2, "a random model may output nothing for some texts"
    if precision == "float32":
        assert found == written(plain)
    assert packed.explain(TEXTS[0]).weights.isfinite().all()
    with pytest.raises(UserError, match="precision: expected one of float32, bfloat16, int8, found 'int4'"):
        mmattn.load(folders["marian"][0], precision="int4")


def test_unavailable_precision_falls_back(folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "why_not", lambda precision: "no such operator")
    with pytest.warns(UserWarning, match=r"'int8' is not available, float32 is used: no such operator"):
        found = mmattn.load(folders["marian"][0], device="cpu", precision="int8")
    assert written(found) == written(mmattn.load(folders["marian"][0], device="cpu"))


# Sources --------------------------------------------------------------------------------------------------------------


def test_loads_from_the_hub_cache(folders: dict[str, Any], offline: Path) -> None:
    folder, theirs = folders["marian"]
    into_hub_cache(folder, offline, "own/er")
    for load, name in ((mmattn.load, "hf:own/er"), (load_translator, "hf:own/er@main")):
        assert written(load(name, device="cpu")) == by_transformers(theirs)


def test_missing_sources_raise(offline: Path) -> None:
    missing = r"^hf:own/other: .*own/other.*no such folder, nor in the hub's cache"
    assert "\n" not in refused(missing, mmattn.load, "hf:own/other", error=CheckpointError)
    for name in ("hf:", "hf:.", "hf:a/b/c", "hf:/etc"):
        refused("expected hf:owner/name", mmattn.load, name, error=CheckpointError)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"model_type": "xlnet"}, r"a public one of .*bart, t5, .*marian.*; found one of 'xlnet'"),
        ("model.safetensors", None, "no weights"),
        ("vocab.json", None, r"expected tokenizer\.json; or source\.spm and target\.spm and vocab\.json"),
        ("vocab.json", SPECIAL | {f"w{n}": n for n in range(3, 900)}, "expected a tokenizer of at most"),
        ("generation_config.json", {"typical_p": 0.5, "max_length": 9}, r"typical_p = 0\.5"),
        (
            "generation_config.json",
            {"decoder_start_token_id": None, "bos_token_id": None},
            "decoder_start_token_id: .*none",
        ),
        ("generation_config.json", {"decoder_start_token_id": 1, "eos_token_id": -1}, "eos_token_id: .* found -1"),
        ("generation_config.json", {"decoder_start_token_id": 1, "bad_words_ids": [[900]]}, "bad_words_ids: .*900"),
    ],
)
def test_invalid_folders(name: str, content: Any, message: str, folders: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["marian"][0], tmp_path / "marian")
    damage(folder / name, content)
    refused(message, mmattn.load, folder, error=UserError)


def test_run_directory_resolves_to_its_model(tmp_path: Path) -> None:
    shutil.copytree(named_models("translation")["demo"], tmp_path / "run" / "model")
    assert find_model(tmp_path / "run").folder == tmp_path / "run" / "model"
    assert isinstance(mmattn.load(tmp_path / "run", device="cpu"), TranslationPredictor)
