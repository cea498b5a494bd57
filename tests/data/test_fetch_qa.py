"""The public question answering sets from a server on loopback: SQuAD v1.1 as documented, or one error and no files."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.fetch.archive import fetch, sources, validation
from scripts.fetch.qa import find_answer, join_tokens
from tests.data.fetching import NOWHERE, get, measured_on, not_got

PARTS = ("train", "val", "test")


def parts_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The articles of each part."""
    contents = {part: json.loads((folder / f"{part}.json").read_text(encoding="utf-8")) for part in PARTS}
    assert {content["version"] for content in contents.values()} == {"1.1"}
    return {part: content["data"] for part, content in contents.items()}


def test_validation_lists() -> None:
    assert len(validation("qamr")) == len(set(validation("qamr"))) == 14
    assert len(validation("tweetqa_span")) == len(set(validation("tweetqa_span"))) == 403
    chosen = validation("xquad_en")
    assert {part: len(titles) for part, titles in chosen.items()} == {"train": 24, "val": 8}
    assert not set(chosen["train"]) & set(chosen["val"])


# QAMR: tokenized sentences


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("He did n't , she 'd say : `` No ! ''", "He didn't, she'd say: \"No!\""),
        ("The dogs ' home -LRB- 5 % -RRB- is Ann 's .", "The dogs' home (5%) is Ann's."),
        ("-LSB- ... -RSB- # 3bn or $ 4 ; 5 -- 3", "[...] #3bn or $4; 5 -- 3"),
        ("A ` small ' ice - and water-free road/rail", "A ` small' ice - and water-free road/rail"),
        ("", ""),
    ],
)
def test_join_tokens(tokens: str, text: str) -> None:
    joined, places = join_tokens(tokens.split())
    assert joined == text
    spelled = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "``": '"', "''": '"'}
    assert [joined[start:end] for start, end in places] == [spelled.get(token, token) for token in tokens.split()]


def qamr_rows(*rows: tuple[str, str, str]) -> bytes:
    """Sentence, question and responses, separated by commas; the first is of the question's author."""
    lines = []
    for sentence, question, responses in rows:
        author, *validators = responses.split(",")
        answers = [author, *(f"{number}:{response}" for number, response in enumerate(validators))]
        lines.append("\t".join([sentence, "1 2", "7", "0", "1", question, *answers]) + "\n")
    return "".join(lines).encode()


TRAIN_ARTICLE, VAL_ARTICLE = "Wiki1k:wikinews:5", validation("qamr")[0]
QAMR = {
    "data/wiki-sentences.tsv": (
        f"{TRAIN_ARTICLE}:9:0\tA dog -LRB- brown -RRB- barks .\n{TRAIN_ARTICLE}:10:0\tTwo cats sleep .\n"
        f"{VAL_ARTICLE}:0:1\tIt 's late .\nWiki1k:wikinews:49:0:0\tRain .\nWiki1k:wikipedia:1:0:0\tSnow .\n"
    ).encode(),
    "data/filtered/dev.tsv": qamr_rows(
        (f"{TRAIN_ARTICLE}:9:0", "What  barks? ", "0 1,0 1 2 3 4,1"),
        ("Wiki1k:wikinews:49:0:0", "What falls?", "0,0,0"),
        (f"{TRAIN_ARTICLE}:9:0", "What is left out?", "0 3,1 5,3 5"),
        (f"{TRAIN_ARTICLE}:9:0", "Which dog?", "3,1 3,2 3 4"),
        (f"{TRAIN_ARTICLE}:10:0", "What sleeps?", "0 1,1,0 1"),
        (f"{VAL_ARTICLE}:0:1", "What time is it?", "2,2,1 2"),
    ),
    "data/filtered/test.tsv": qamr_rows(("Wiki1k:wikipedia:1:0:0", "What falls?", "0,0,0")),
    "data/full/dev.tsv": b"no",
}


def test_qamr(tmp_path: Path) -> None:
    folder = get("qamr", QAMR, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "test.json", "train.json", "val.json"]
    parts = parts_of(folder)
    assert [article["title"] for article in parts["train"]] == ["Wiki1k:wikinews:49", TRAIN_ARTICLE]
    assert [paragraph["context"] for paragraph in parts["train"][1]["paragraphs"]] == [
        "Two cats sleep.",
        "A dog (brown) barks.",
    ]
    assert parts["train"][1]["paragraphs"][1]["qas"] == [
        {
            "id": f"{TRAIN_ARTICLE}:9:0#0",
            "question": "What barks?",
            "answers": [
                {"text": "A dog", "answer_start": 0},
                {"text": "A dog (brown)", "answer_start": 0},
                {"text": "dog", "answer_start": 2},
            ],
        },
        {
            "id": f"{TRAIN_ARTICLE}:9:0#1",
            "question": "Which dog?",
            "answers": [{"text": "brown", "answer_start": 7}, {"text": "(brown)", "answer_start": 6}],
        },
    ]
    answers = [{"text": "late", "answer_start": 5}] * 2 + [{"text": "'s late", "answer_start": 2}]
    question = {"id": f"{VAL_ARTICLE}:0:1#0", "question": "What time is it?", "answers": answers}
    assert parts["val"] == [
        {"title": VAL_ARTICLE, "paragraphs": [{"context": "It's late.", "qas": [question]}]},
    ]
    assert [article["title"] for article in parts["test"]] == ["Wiki1k:wikipedia:1"]


# TweetQA: free answers


PLACES = "A dog ate The Cat, the #CAT: don't tell @_meow_"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("the cat.", "The Cat"),  # the first place, without the annotator's full stop
        (' "a  dog" ', "A dog"),
        ("#cat", "#CAT"),
        ("meow", "meow"),
        ("don't", "don't"),
        ("at", None),  # no whole word
        ("the dog", None),
        ("?!", None),
    ],
)
def test_find_answer(answer: str, found: str | None) -> None:
    place = find_answer(PLACES, answer)
    assert place == (found and {"text": found, "answer_start": PLACES.index(found)})


VAL_ID = validation("tweetqa_span")[0]


def tweet(text: str, question: str, identity: str, *answers: str) -> dict[str, Any]:
    return {"Question": question, "Answer": list(answers), "Tweet": text, "qid": identity}


TWEETS = [
    tweet("Rain in  Rome. Ann (@ann)", "where? ", "t1", "rome."),
    tweet("Rain in Rome. Ann (@ann)", "is it dry?", "t2", "no"),
    tweet("Café au lait! Bob", "what does bob drink?", "t3", "CAFÉ"),
    tweet("We won. Cy", "who won?", "v1", "we"),
    tweet("Rain in Rome. Ann (@ann)", "who writes?", "t0", "@ann"),
    tweet("We won. Cy", "who writes?", VAL_ID, "cy"),
    tweet("Seen in both. Di", "who?", "t4", "di"),
]
TWEETQA: dict[str, Any] = {"train": TWEETS, "dev": [tweet("Seen in both. Di", "who?", "d1", "di", "none", "both")]}


def tweetqa_files(**parts: Any) -> dict[str, bytes]:
    return {f"data/{part}.json": json.dumps(rows).encode() for part, rows in (TWEETQA | parts).items()}


def test_tweetqa(tmp_path: Path) -> None:
    parts = parts_of(get("tweetqa_span", tweetqa_files() | {"data/dev_squad_format.json": b"no"}, tmp_path))
    assert [article["title"] for article in parts["train"]] == ["tweet_00000", "tweet_00001"]
    contexts = [article["paragraphs"][0]["context"] for article in parts["train"]]
    assert contexts == ["Café au lait! Bob", "Rain in Rome. Ann (@ann)"]
    assert parts["train"][1]["paragraphs"][0]["qas"] == [
        {"id": "t1", "question": "where?", "answers": [{"text": "Rome", "answer_start": 8}]},
        {"id": "t0", "question": "who writes?", "answers": [{"text": "@ann", "answer_start": 19}]},
    ]
    (val,) = parts["val"]
    assert val["title"] == "tweet_00000"
    assert [question["id"] for question in val["paragraphs"][0]["qas"]] == ["v1", VAL_ID]
    (test,) = parts["test"]
    assert [answer["text"] for answer in test["paragraphs"][0]["qas"][0]["answers"]] == ["Di", "both"]


# XQuAD: SQuAD v1.1 without parts


def article(title: str) -> dict[str, Any]:
    answers = [{"text": "Rome", "answer_start": 3}]
    question = {"question": "Where?", "id": f"{title} 1", "answers": answers, "is_impossible": False}
    return {"title": title, "paragraphs": [{"qas": [question], "context": "In Rome."}]}


def xquad_files(*titles: str) -> dict[str, bytes]:
    data = {"version": "1.1", "data": [article(title) for title in titles]}
    return {"xquad.en.json": json.dumps(data, indent=2).encode(), "xquad.de.json": b"no"}


def test_xquad(tmp_path: Path) -> None:
    chosen = validation("xquad_en")
    order = [chosen["val"][1], "Another", chosen["train"][2], chosen["train"][0], chosen["val"][0]]
    folder = get("xquad_en", xquad_files(*order), tmp_path)
    titles = {part: [article["title"] for article in articles] for part, articles in parts_of(folder).items()}
    assert titles == {"train": [order[2], order[3]], "val": [order[0], order[4]], "test": ["Another"]}
    assert (folder / "test.json").read_text() == (
        '{"version":"1.1","data":[{"paragraphs":[{"context":"In Rome.","qas":[{"answers":[{"answer_start":3,'
        '"text":"Rome"}],"id":"Another 1","question":"Where?"}]}],"title":"Another"}]}\n'
    )


# Unexpected content

DEV, SENTENCES = "data/filtered/dev.tsv", "data/wiki-sentences.tsv"


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("qamr", QAMR | {DEV: QAMR[DEV] + b"x\ty\n"}, r"dev\.tsv, line 7 is no question about a sentence"),
        ("qamr", QAMR | {DEV: QAMR[DEV].replace(b"0 1 2 3 4", b"Invalid")}, r"dev\.tsv, line 1 is no question"),
        ("qamr", QAMR | {DEV: QAMR[DEV].replace(b"0 1 2 3 4", b"6 7 8")}, r"line 1 .*\(list index out of range\)"),
        ("qamr", QAMR | {SENTENCES: b"a\tA dog .\n"}, r"line 1 is no question about a sentence \('Wiki1k:wikinews:5"),
        ("qamr", {DEV: QAMR[DEV]}, r"0 files that match data/wiki-sentences"),
        ("tweetqa_span", tweetqa_files(train=[{"Question": "who?"}]), r"train\.json is not a list of questions"),
        ("tweetqa_span", tweetqa_files(train=[TWEETS[0] | {"Answer": "rome"}]), "a list of answers, found 'rome'"),
        ("tweetqa_span", tweetqa_files() | {"data/train.json": b"no json"}, r"train\.json is not a list"),
        ("tweetqa_span", tweetqa_files(train=TWEETS[:3]), "the archive has no articles of val"),
        ("xquad_en", xquad_files("Another"), "the archive has no articles of train"),
        ("xquad_en", {"xquad.en.json": b'{"data": [{"paragraphs": []}]}'}, r"layout of SQuAD v1\.1 .*'title'"),
        ("xquad_en", {"xquad.en.json": b"[1]"}, r"layout of SQuAD v1\.1"),
    ],
)
def test_unexpected_content(name: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    not_got(message, name, files, tmp_path / "out")


def test_changed_content_raises(tmp_path: Path) -> None:
    message = r"train\.json has sha256 .*, expected 7bc651d6aac9; val\.json has sha256"
    not_got(message, "tweetqa_span", tweetqa_files(), tmp_path / "out", checked=True)


# The data of the measurements: sources are rebuilt from them, and converting these must reproduce the data


OPENING = {"(": "-LRB-", "[": "-LSB-", '"': "``", "#": "#"}
CLOSING = {")": "-RRB-", "]": "-RSB-", '"': "''"}


@functools.cache
def tokens_of(context: str) -> list[tuple[str, int, int]]:
    """Each token with its start and end; punctuation and clitics stand apart."""
    tokens = []
    for word in re.finditer(r"\S+", context):
        start, end = word.span()
        after: list[tuple[str, int, int]] = []
        while edge := re.search(r"(?<=.)(?:n't|'(?:s|m|re|ve)|[.,;:!?%)\]\"'])$", context[start:end]):
            after.insert(0, (CLOSING.get(edge[0], edge[0]), start + edge.start(), end))
            end = start + edge.start()
        while end - start > 1 and context[start] in OPENING:
            tokens.append((OPENING[context[start]], start, start + 1))
            start += 1
        tokens += [(context[start:end], start, end), *after]
    return tokens


def articles_of(given: Path) -> list[dict[str, Any]]:
    """The articles of val and train, in another order than that of the source."""
    parts = [json.loads((given / f"{part}.json").read_text(encoding="utf-8"))["data"] for part in ("val", "train")]
    return [article for part in parts for article in part]


def questions_of(given: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each question with its context."""
    paragraphs = [paragraph for article in articles_of(given) for paragraph in article["paragraphs"]]
    return [(paragraph["context"], question) for paragraph in paragraphs for question in paragraph["qas"]]


def qamr(given: Path) -> dict[str, bytes]:
    """In each sentence one more question has no answer of contiguous tokens."""
    sentences, rows = {}, []
    for context, question in questions_of(given):
        name = question["id"].partition("#")[0]
        tokens = tokens_of(context)
        starts, ends = ({token[place]: i for i, token in enumerate(tokens)} for place in (1, 2))
        if name not in sentences:
            rows.append((name, "Which?", "0 2,0 2,1 0"))
        sentences[name] = " ".join(token for token, _, _ in tokens)
        responses = []
        for answer in question["answers"]:
            start = answer["answer_start"]
            chosen = range(starts[start], ends[start + len(answer["text"])] + 1)
            responses.append(" ".join(str(index) for index in chosen))
        responses = ["0 2"] * (3 - len(responses)) + responses
        rows.append((name, question["question"] + " ", ",".join(responses)))
    content = "".join(f"{name}\t{sentence}\n" for name, sentence in sentences.items())
    return {
        "data/wiki-sentences.tsv": (content + "Wiki1k:wikipedia:1:0:0\tSnow .\n").encode(),
        "data/filtered/dev.tsv": qamr_rows(*rows),
        "data/filtered/test.tsv": QAMR["data/filtered/test.tsv"],
    }


def tweetqa_span(given: Path) -> dict[str, bytes]:
    rows = [
        tweet(f" {context} ", question["question"], question["id"], f'"{question["answers"][0]["text"].lower()}".')
        for context, question in questions_of(given)
    ]
    return tweetqa_files(train=[*rows, TWEETS[-1], tweet(rows[0]["Tweet"], "who?", "t9", "not in the tweet")])


def xquad_en(given: Path) -> dict[str, bytes]:
    return {"xquad.en.json": json.dumps({"data": [article("Another"), *articles_of(given)]}).encode()}


@pytest.mark.slow
@pytest.mark.parametrize("rebuild", [qamr, tweetqa_span, xquad_en])
def test_splits_are_reproducible(rebuild: Any, real_data: Path, tmp_path: Path) -> None:
    """All files have the checksums of the table."""
    name = rebuild.__name__
    given = measured_on(real_data, name)
    get(name, rebuild(given), tmp_path, checked=True)
    assert fetch(sources()[name], real_data, NOWHERE) == given  # recognized in place
