"""The public question answering sets of ``scripts/fetch_data.py``: conversion to SQuAD v1.1, and the split into parts.

None of them has train, validation and test parts that can be used as they are. The articles and questions of the
validation parts were drawn once and are in ``validation/``. An answer's offset counts the characters of its context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.fetch.archive import Archive, FetchError, validation

_LAYOUT_ERRORS = (LookupError, TypeError, ValueError, AttributeError)  # what unexpected content raises


def write_squad(folder: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write ``PART.json`` in the layout of SQuAD v1.1, from the articles of each part."""
    for part, articles in parts.items():
        if not articles:
            raise FetchError(f"{folder.name}: the archive has no articles of {part}")
        content = json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False, separators=(",", ":"))
        (folder / f"{part}.json").write_text(content + "\n", encoding="utf-8", newline="\n")


# Tokens of the Penn Treebank: brackets and quotes are spelled out, clitics and punctuation stand apart.
_SPELLED = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"'}
_NO_SPACE_BEFORE = re.compile(r"[.,;:!?%]|\.\.\.|-R[RSC]B-|'|''|n't|'(?:s|m|d|re|ve|ll)", re.IGNORECASE)
_NO_SPACE_AFTER = re.compile(r"-L[RSC]B-|``|[$#]")


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The plain text of a tokenized sentence, and the start and end of each token in it."""
    text, places, is_glued = "", [], True
    for token in tokens:
        word = _SPELLED.get(token, token)
        text += "" if is_glued or _NO_SPACE_BEFORE.fullmatch(token) else " "
        places.append((len(text), len(text) + len(word)))
        text += word
        is_glued = _NO_SPACE_AFTER.fullmatch(token) is not None
    return text, places


def convert_qamr(archive: Archive, folder: Path) -> None:
    """Join tokens to text and keep the answers of contiguous tokens; the official dev part becomes train and val.

    It is split by article. The official training part is not used, as the figures were measured without it.
    """
    lines = archive.text(r"data/wiki-sentences\.tsv").split("\n")
    sentences = {name: join_tokens(tokens.split()) for name, _, tokens in (line.partition("\t") for line in lines)}
    val = set(validation("qamr"))
    dev = _qamr_articles(archive.text(r"data/filtered/dev\.tsv"), sentences, "dev")
    parts = {
        "train": [article for article in dev if article["title"] not in val],
        "val": [article for article in dev if article["title"] in val],
        "test": _qamr_articles(archive.text(r"data/filtered/test\.tsv"), sentences, "test"),
    }
    write_squad(folder, parts)


def _qamr_articles(
    rows: str, sentences: Mapping[str, tuple[str, list[tuple[int, int]]]], part: str
) -> list[dict[str, Any]]:
    """Articles and their sentences in the order of their names, questions in the order of the file."""
    articles: dict[str, dict[str, dict[str, Any]]] = {}
    for number, row in enumerate(rows.removesuffix("\n").split("\n"), start=1):
        try:
            name, _, _, _, _, question, *responses = row.split("\t")  # of the question's author and the validators
            text, places = sentences[name]
            answers = []
            for response in responses:
                chosen = [int(index) for index in response.rpartition(":")[2].split()]
                if chosen and chosen == list(range(chosen[0], chosen[-1] + 1)):
                    start, end = places[chosen[0]][0], places[chosen[-1]][1]
                    answers.append({"text": text[start:end], "answer_start": start})
        except _LAYOUT_ERRORS as error:
            raise FetchError(f"qamr: {part}.tsv, line {number} is no question about a sentence ({error})") from None
        if answers:
            article = articles.setdefault(name.rsplit(":", 2)[0], {})
            questions = article.setdefault(name, {"context": text, "qas": []})["qas"]
            identity = f"{name}#{len(questions)}"
            questions.append({"id": identity, "question": " ".join(question.split()), "answers": answers})
    return [
        {"title": title, "paragraphs": [article[name] for name in sorted(article)]}
        for title, article in sorted(articles.items())
    ]


_TWEETQA_EDGES = " .,;:!?\"'"  # what annotators wrote around their answers


def find_answer(tweet: str, answer: str) -> dict[str, Any] | None:
    """The first place where an answer stands in a tweet as whole words, ignoring case."""
    words = " ".join(answer.split()).strip(_TWEETQA_EDGES)
    match = re.search(rf"(?<![^\W_]){re.escape(words)}(?![^\W_])", tweet, re.IGNORECASE) if words else None
    return {"text": match[0], "answer_start": match.start()} if match else None


def convert_tweetqa(archive: Archive, folder: Path) -> None:
    """Keep the questions whose answer stands in the tweet; train is split by tweet, the official dev part is test.

    Tweets of the test part are left out of train and val.
    """
    training, test = (_tweets(archive.text(rf"data/{part}\.json"), part) for part in ("train", "dev"))
    chosen = set(validation("tweetqa_span"))
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "val": {}, "test": test}
    for tweet, questions in training.items():
        if tweet not in test:
            part = "val" if any(question["id"] in chosen for question in questions) else "train"
            parts[part][tweet] = questions
    write_squad(folder, {part: _tweet_articles(tweets) for part, tweets in parts.items()})


def _tweets(content: str, part: str) -> dict[str, list[dict[str, Any]]]:
    tweets: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in json.loads(content):
            tweet, question = (" ".join(row[key].split()) for key in ("Tweet", "Question"))
            if not isinstance(row["Answer"], list):
                raise ValueError(f"expected a list of answers, found {row['Answer']!r}")
            found = [place for answer in row["Answer"] if (place := find_answer(tweet, answer))]
            if found:
                tweets.setdefault(tweet, []).append({"id": row["qid"], "question": question, "answers": found})
    except _LAYOUT_ERRORS as error:
        raise FetchError(f"tweetqa_span: {part}.json is not a list of questions about tweets ({error})") from None
    return tweets


def _tweet_articles(tweets: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"title": f"tweet_{number:05}", "paragraphs": [{"context": tweet, "qas": tweets[tweet]}]}
        for number, tweet in enumerate(sorted(tweets))
    ]


def convert_xquad(archive: Archive, folder: Path) -> None:
    """Split by article: XQuAD is one evaluation set. Articles neither of train nor of val are test."""
    chosen = validation("xquad_en")
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    try:
        for article in json.loads(archive.text(r"xquad\.en\.json"))["data"]:
            title = article["title"]
            part = next((part for part, titles in chosen.items() if title in titles), "test")
            paragraphs = [
                {"context": paragraph["context"], "qas": [_xquad_question(question) for question in paragraph["qas"]]}
                for paragraph in article["paragraphs"]
            ]
            parts[part].append({"paragraphs": paragraphs, "title": title})
    except FetchError:
        raise
    except _LAYOUT_ERRORS as error:
        raise FetchError(f"xquad_en: xquad.en.json does not have the layout of SQuAD v1.1 ({error!r})") from None
    write_squad(folder, parts)


def _xquad_question(question: Mapping[str, Any]) -> dict[str, Any]:
    answers = [{"answer_start": answer["answer_start"], "text": answer["text"]} for answer in question["answers"]]
    return {"answers": answers, "id": question["id"], "question": question["question"]}
