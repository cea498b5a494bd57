"""The public sets of labeled texts from a server on loopback: converted as documented, or one error and no files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmattn.tasks.text_classification.data import TextDataset
from scripts.fetch import labels
from scripts.fetch.archive import FetchError, fetch, sources, validation
from tests.conftest import refused
from tests.data.fetching import NOWHERE, archive, get, measured_on, not_got, serve

SETS = {
    "sst2": "jsonl",
    "trec6": "jsonl",
    "sick": "jsonl",
    "stsb": "jsonl",
    "agnews_8k": "jsonl",
    "goemotions": "jsonl",
}
SETS |= {"wnut17": "conll", "ewt_pos": "conllu"}
SST2 = {f"data/stsa.binary.{part}": text.encode() for part, text in {
    "train": "1 a good film .\n0 bad\n1 It is Seen!\n", "dev": "0 so bad it hurts\n", "test": "1 it is seen\n"
}.items()}  # fmt: skip
HEAD = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
SICK = {f"data/sts/sick2014/SICK_{part}.txt": (HEAD + text).encode() for part, text in {
    "train": "1\tA dog runs\tA cat sits \t1.5\tNEUTRAL\n2\tA b\tC d\t4\tENTAILMENT\n",
    "trial": "3\tNo dog\tA dog\t3\tCONTRADICTION\n",
    "test_annotated": "4\tX\tY\t5\tENTAILMENT\n",
}.items()}  # fmt: skip
STSB = {f"data/stsbenchmark/sts-{part}.csv": text.encode() for part, text in {
    "train": 'main\tMSR\t2012\t1\t5.000\tA "plane"\tA jet.\textra\nmain\tMSR\t2012\t2\t1.0\tX\tY\n',
    "dev": "main\tMSR\t2012\t3\t3.8\tP\tQ\n",
    "test": "main\tMSR\t2012\t4\t2\tc, d\ta B!\n",
}.items()}  # fmt: skip


def parts(folder: Path, suffix: str) -> dict[str, list[Any]]:
    return {part: TextDataset(folder / f"{part}.{suffix}").samples for part in labels.PARTS}


def test_sst2(tmp_path: Path) -> None:
    found = parts(get("sst2", SST2, tmp_path), "jsonl")
    assert [(s.text, s.labels) for s in found["train"]] == [("a good film .", ["positive"]), ("bad", ["negative"])]
    assert [len(samples) for samples in found.values()] == [2, 1, 1]
    message = "stsa.binary.dev has a line without a class"
    not_got(message, "sst2", SST2 | {"data/stsa.binary.dev": b"x\n"}, tmp_path / "other")


def test_trec6_and_agnews_have_listed_validation_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [labels.text_digest(text) for text in ("Qui\xe9n ?", "a man's plan")]
    monkeypatch.setattr(labels, "validation", lambda name: chosen)
    train = "DESC:def What is it ?\nHUM:ind Qui\xe9n ?\n".encode("latin-1")
    files = {"data/raw/TREC.train.all": train, "data/raw/TREC.test.all": b"NUM:count How many ?\n"}
    found = parts(get("trec6", files, tmp_path), "jsonl")
    assert [(s.text, s.labels) for s in found["val"]] == [("Qui\xe9n ?", ["HUM"])]
    assert len(found["train"]) == len(found["test"]) == 1
    rows = 'label,content\n1,"a man #39;s  plan"\n4,"one\\two, three"\n'
    files = {"data/ag_news/dev.csv": rows.encode(), "data/ag_news/test.csv": b"label,content\n2,x\n"}
    found = parts(get("agnews_8k", files, tmp_path), "jsonl")
    assert [(s.text, s.labels) for s in found["train"]] == [("one two, three", ["Sci/Tech"])]
    assert found["test"][0].labels == ["Sports"]
    bad = files | {"data/ag_news/dev.csv": b"label,content\n7,x\n"}
    not_got("dev.csv has no class and text a row", "agnews_8k", bad, tmp_path / "other")


@pytest.mark.parametrize(("name", "own", "other"), [("sick", SICK, STSB), ("stsb", STSB, SICK)])
def test_pairs_of_one_set_that_stand_in_the_other_are_left_out(name: str, own: Any, other: Any, tmp_path: Path) -> None:
    source = replace(sources()[name], sha256={})
    with serve(dict(zip(source.urls(""), map(archive, (own, other)), strict=True))) as base:
        found = parts(fetch(source, tmp_path, base), "jsonl")
    (sample,) = found["train"]
    if name == "sick":
        assert (sample.text, sample.text_pair, sample.labels) == ("A dog runs", "A cat sits", ["neutral"])
    else:
        assert (sample.text, sample.text_pair, sample.score) == ('A "plane"', "A jet.", 5.0)


def test_goemotions(tmp_path: Path) -> None:
    files = {f"data/original/{part}.tsv": f"so  {part}\t1,0\te{part}\n".encode() for part in ("train", "dev", "test")}
    files["data/original/labels.txt"] = b"joy\nlove\n"
    folder = get("goemotions", files, tmp_path)
    (sample,) = parts(folder, "jsonl")["val"]
    assert (sample.id, sample.text, sample.labels) == ("edev", "so dev", ["love", "joy"])
    bad = files | {"data/original/dev.tsv": b"x\t7\ty\n"}
    not_got("dev, line 1 cannot be read", "goemotions", bad, tmp_path / "other")


def test_wnut17_and_ewt(tmp_path: Path) -> None:
    text = b"Ada \tB-person\r\n\t\r\nin\tO\n"
    files = dict.fromkeys(("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"), text)
    found = parts(get("wnut17", files, tmp_path), "conll")
    assert [s.labels for s in found["train"]] == [["B-person"], ["O"]]
    row = "{}\t{}\t_\tX\tY\t_\t0\troot\t0:root\tSpaceAfter=No|Lem=1\n"
    block = "# sent_id = 1\n# other = x\n" + row.format("1-2", "don't") + row.format("1", "Do") + row.format("2.1", "x")
    other = "# newdoc id = a\n" + row.format("1", "{}")
    files = {"not-to-release/sources/a/1.conllu": (block + "\n" + other.format("hello") + "\n").encode()}
    files |= {f"not-to-release/sources/b/{n}.conllu": (other.format(n) + "\n").encode() for n in ("HELLO", "z")}
    lists = {"train": "a/1.conllu", "dev": "b/z.conllu", "test": "b/HELLO.conllu"}
    files |= {f"not-to-release/file-lists/files.{part}": f"{path}\n".encode() for part, path in lists.items()}
    folder = get("ewt_pos", files, tmp_path)
    assert [s.words for s in parts(folder, "conllu")["train"]] == [["Do"]], "the other sentence stands in test"
    line = (folder / "train.conllu").read_text().splitlines()[2]
    assert line.endswith("\t_\tSpaceAfter=No")
    del files["not-to-release/sources/b/z.conllu"]
    not_got("the archive lacks b/z.conllu", "ewt_pos", files, tmp_path / "other")


def test_missing_parts(tmp_path: Path) -> None:
    not_got("trec6: the archive has no texts of test", "trec6", {"data/raw/TREC.train.all": b"A:b c\n"}, tmp_path)
    refused("files that match", get, "sst2", {"README.md": b"no"}, tmp_path, error=FetchError)


@pytest.mark.parametrize("name", SETS)
def test_they_are_the_measured_sets(name: str, real_data: Path, tmp_path: Path) -> None:
    """The checksums are those of the data of the measurements, which the conversion writes alike."""
    folder = measured_on(real_data, name)
    (tmp_path / name).symlink_to(folder)
    assert fetch(sources()[name], tmp_path, NOWHERE) == tmp_path / name
    if SETS[name] == "jsonl":
        rows = [json.loads(line) for line in (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()]
        labels.write_parts(tmp_path, {"train": [{"text": "_"}], "val": rows, "test": [{"text": "__"}]})
        assert (tmp_path / "val.jsonl").read_bytes() == (folder / "val.jsonl").read_bytes()
        if name in ("trec6", "agnews_8k"):
            assert labels.listed_digests([row["text"] for row in rows]) == sorted(validation(name))
    elif name == "ewt_pos":
        blocks = (folder / "val.conllu").read_text(encoding="utf-8").strip().split("\n\n")
        assert ["\n".join(labels.sentence(block)[1]) for block in blocks] == blocks
