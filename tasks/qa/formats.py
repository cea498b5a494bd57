"""Files of questions: SQuAD's JSON, versions 1.1 and 2.0, and tables of a question, a context and an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.readers import as_path, has_rows, read_json, read_rows, report_missing
from mmattn.data.table import Table

KEYS = ("question", "context", "answer", "start", "id", "title")  # of a table's rows
FORMATS = "SQuAD's JSON (articles under data), or CSV, TSV or JSONL with question, context and answer"


def read_questions(path: str | Path | Table, labeled: bool, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields of each question: id, question, context, title and answers, pairs of a text and its start.

    In SQuAD's JSON a question without answers must have ``is_impossible: true``. In a table an empty answer means that
    the context has none; without a start, an answer is at the first place where the context contains it.

    Args:
        path: The file or table.
        labeled: Whether a question without a label is an error.
        problems: Collects invalid items.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    if as_path(path).suffix.lower() == ".json" and not isinstance(path, Table) and not has_rows(path, "data"):
        yield from _squad(path, labeled, problems)
    else:
        yield from _rows(path, labeled, problems)


def _rows(path: str | Path | Table, labeled: bool, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    needed = ("question", "context", "answer") if labeled else ("question", "context")
    for where, line, row in read_rows(path, problems):
        missing = [name for name in needed if name not in row]
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        fields = {name: row[name] for name in ("question", "context")}
        name = row.get("id")
        answers = _row_answers(row, where, problems) if "answer" in row else None
        if answers is not None or "answer" not in row:
            title = str(row.get("title") or "")
            yield where, {**fields, "id": str(line if name in (None, "") else name), "title": title, "answers": answers}


def _row_answers(row: Mapping[str, Any], where: str, problems: Problems) -> list[tuple[str, int]] | None:
    """The answers of a row; None for an invalid one, which is added to the problems."""
    text, start, context = row["answer"], row.get("start"), row["context"]
    if text is None or text == "":
        return []
    if not isinstance(text, str) or not isinstance(context, str):
        problems.add(where, "a context and an answer that are texts", shorten([context, text]))
        return None
    if start in (None, ""):
        place = context.find(text)
        if place < 0:
            problems.add(where, "an answer that the context contains, or an empty one", shorten(text))
            return None
        return [(text, place)]
    try:
        return [(text, int(str(start)))]
    except ValueError:
        problems.add(where, "the character at which the answer starts, a whole number", shorten(start))
        return None


def _squad(path: str | Path, labeled: bool, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_json(path)
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise DataError(str(path), FORMATS, shorten(content))
    for number, article in enumerate(articles, start=1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            problems.add(f"{path}, article {number}", "a list under paragraphs", shorten(article))
            continue
        title = str(article.get("title") or "")
        for count, paragraph in enumerate(paragraphs, start=1):
            place = f"{path}, article {number}, paragraph {count}"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or not isinstance(paragraph.get("context"), str):
                problems.add(place, "a text under context and a list under qas", shorten(paragraph))
                continue
            for index, asked in enumerate(questions, start=1):
                name = asked.get("id") if isinstance(asked, dict) else None
                where = f"{place}, question {index}" + (f" (id {name!r})" if name is not None else "")
                try:
                    answers = _squad_answers(asked, where, labeled)
                except DataError as error:
                    problems.take(where, error)
                    continue
                fields = {"question": asked.get("question"), "context": paragraph["context"], "title": title}
                yield (
                    where,
                    {**fields, "id": str(f"{number}.{count}.{index}" if name is None else name), "answers": answers},
                )


def _squad_answers(asked: Any, where: str, labeled: bool) -> list[tuple[str, int]] | None:
    """The answers of a question; None: it is unlabeled.

    Raises:
        DataError: The question is invalid.
    """
    if not isinstance(asked, dict) or "question" not in asked:
        raise DataError(where, "a question with the keys id, question and answers", shorten(asked))
    answers, impossible = asked.get("answers"), asked.get("is_impossible")
    if answers is None and not labeled:
        return None
    if not isinstance(answers, list) or type(impossible) not in (bool, type(None)):
        raise DataError(where, "a list under answers, and true or false under is_impossible", shorten(asked))
    if impossible and answers:
        raise DataError(where, "no answers of a question with is_impossible: true", shorten(answers))
    if not answers and not impossible:
        if labeled:
            raise DataError(where, "answers, or is_impossible: true", "neither")
        return None
    found = []
    for answer in answers:
        text, start = (
            (answer.get(key) for key in ("text", "answer_start")) if isinstance(answer, dict) else (None, None)
        )
        if not isinstance(text, str) or type(start) is not int:
            raise DataError(where, "answers with a text and a whole number answer_start", shorten(answer))
        found.append((text, start))
    return found
