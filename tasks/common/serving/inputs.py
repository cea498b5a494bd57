"""Items and options of requests, checked against the description of a task. No field of a request names a file.

Media arrive as the bytes of an upload, or in JSON as a data URL or Base64; a text is never taken for a path.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmattn.data.errors import UserError, is_broken, nearest, shorten
from mmattn.tasks.common.task import Option, Task

# What a client may ask for, since it shares the model with others: least and greatest values of options by name.
RANGES: dict[str, tuple[float, float]] = {
    "num_beams": (1, 16),
    "temperature": (0, 100),
    "top_k": (1, 100),
    "passages": (1, 20),
    "max_answer_len": (1, 200),
    "num_sentences": (1, 100),
    "clips": (1, 10),
    "crops": (1, 3),
    "tile": (256, 4096),
}
RANGES |= dict.fromkeys(("max_len", "max_new_tokens"), (1, 1024)) | dict.fromkeys(("window", "stride"), (0.5, 60))
RANGES |= dict.fromkeys(("top_p", "min_p"), (0, 1))
WRITES = ("DIR", "PATH")  # metavars of options that name files of this machine
ID, PLACE = "id", "place"  # of an item; its place in the request
AUTO = "auto"
LONGEST_ID = 200


class RequestError(UserError):
    """A request that cannot be answered.

    Args:
        status: Status of HTTP.
        message: What was expected and what was found.
        unread: Whether a part of the body was not read, so that the connection must be closed.
    """

    def __init__(self, status: int, message: str, unread: bool = False) -> None:
        super().__init__(message)
        self.status, self.unread = status, unread


class Asked(NamedTuple):
    """A request before it is checked against a task."""

    model: str | None  # None: the first one of the server
    items: list[Any]
    options: dict[str, Any]
    alone: bool  # whether one item was given, and not a list
    stream: bool | str  # AUTO: if the model and the options allow it
    form: bool = False  # whose options are all fields that no item has


def item_fields(task: Task, loaded: Iterable[str] = ()) -> list[Option]:
    """The fields of a task's items, without those that an option given to `load` replaces.

    Args:
        task: The task.
        loaded: Names of the options given to `load`.
    """
    given = set(loaded)
    return [option for option in task.options if option.kind == "item" and option.unless not in given]


def request_options(task: Task, command: str = "predict") -> list[Option]:
    """The options of `predict` or `explain` that a request may give: those that write no files."""
    return [
        option
        for option in task.options
        if option.kind == "predict" and option.only in (None, command) and option.metavar not in WRITES
    ]


def read_json(body: bytes | bytearray) -> Asked:
    """Read a request `{"item": {...}}` or `{"items": [...]}`, with `model`, `options` and `stream` where wanted.

    Raises:
        RequestError: The body is no such JSON.
    """
    try:
        given = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else shorten(str(error))
        raise RequestError(400, f"body: expected JSON in UTF-8, found another text ({reason}).") from None
    if not isinstance(given, dict):
        raise RequestError(400, f"body: expected a JSON object, found {type(given).__name__}.")
    known = ("model", "item", "items", "options", "stream")
    if wrong := next((name for name in given if name not in known), None):
        raise RequestError(
            422, f"body: expected the keys {', '.join(known)}, found {shorten(wrong)}{nearest(wrong, known)}."
        )
    if ("item" in given) == ("items" in given):
        raise RequestError(422, f"body: expected item or items, found {'both' if 'item' in given else 'neither'}.")
    items = given.get("items", [given.get("item")])
    types: dict[str, Any] = {"model": (str, type(None)), "options": (dict, type(None))}
    stream = given.get("stream", False)
    if not isinstance(stream, bool) and stream != AUTO:
        raise RequestError(422, f"stream: expected true, false or {AUTO!r}, found {shorten(stream)}.")
    for name, kind in types.items():
        if name in given and not isinstance(given[name], kind):
            raise RequestError(422, f"{name}: expected another type of value, found {shorten(given[name])}.")
    if not isinstance(items, list) or not items:
        raise RequestError(422, f"items: expected a list that is not empty, found {shorten(items)}.")
    return Asked(given.get("model"), items, given.get("options") or {}, "item" in given, stream)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def read_fields(fields: Sequence[tuple[str, str | bytes]], known: Mapping[str, Iterable[str]]) -> Asked:
    """Read a form: the fields of one item, `model`, `stream`, and options by their names.

    Args:
        fields: Names and values of the form, a file's as bytes.
        known: Names of the fields of an item, by the model that the form may name.

    Raises:
        RequestError: A field occurs twice.
    """
    given: dict[str, Any] = {}
    for name, value in fields:
        if name in given:
            raise RequestError(422, f"form: expected each field once, found {shorten(name)} twice.")
        # Browsers send the end of a line of a text as CRLF, which a model of text would read otherwise.
        given[name] = value.replace("\r\n", "\n") if isinstance(value, str) else value
    model, stream = given.pop("model", None), given.pop("stream", "false")
    streams: dict[str, bool | str] = {"true": True, "false": False, AUTO: AUTO}
    if not isinstance(model, (str, type(None))) or not isinstance(stream, str) or stream not in streams:
        raise RequestError(422, f"form: expected model, a name, and stream, {', '.join(streams)}; found another value.")
    names = {ID, *known.get(model or next(iter(known)), ())}
    item = {name: given.pop(name) for name in list(given) if name in names}
    return Asked(model, [item], given, True, streams[stream], form=True)


def check_item(fields: Sequence[Option], item: Any, number: int) -> dict[str, Any]:
    """The item of a request as a mapping for a predictor, its media as bytes.

    Args:
        fields: The fields of the task's items.
        item: As it came: a mapping; or a text, if the first field is one.
        number: Its place in the request, which is its default id.

    Raises:
        RequestError: A field is unknown, missing, or of another type.
    """
    first = fields[0]
    if isinstance(item, str) and not first.media:
        item = {first.name: item}
    names = [option.name for option in fields]
    if not isinstance(item, Mapping):
        raise RequestError(422, f"item {number}: expected an object with {', '.join(names)}, found {shorten(item)}.")
    if wrong := next((name for name in item if name not in (ID, *names)), None):
        raise RequestError(
            422,
            f"item {number}: expected the fields {', '.join(names)}, found {shorten(wrong)}{nearest(wrong, names)}.",
        )
    found: dict[str, Any] = {ID: _id(item.get(ID), number)}
    for option in fields:
        value = item.get(option.name)
        if value is None or value == b"":
            if not option.optional:
                raise RequestError(422, f"item {number}: expected {option.name}, {option.help}; found none.")
        elif option.media:
            found[option.name] = _bytes(value, f"item {number}: {option.name}")
        elif isinstance(value, str) and not is_broken(value):
            found[option.name] = value
        else:
            raise RequestError(422, f"item {number}: {option.name}: expected a text, found {shorten(value)}.")
    return found


def _id(value: Any, number: int) -> str:
    if value is None:
        return str(number)
    text = str(value)
    if isinstance(value, (str, int)) and len(text) <= LONGEST_ID and text.isprintable():
        return text
    raise RequestError(
        422, f"item {number}: expected an id of at most {LONGEST_ID} characters, found {shorten(value)}."
    )


def _bytes(value: Any, where: str) -> bytes:
    """The bytes of an upload, of a data URL, or of Base64."""
    if isinstance(value, bytes):
        return value
    expected = "a file's bytes: an upload, a data URL, or Base64"
    if not isinstance(value, str):
        raise RequestError(422, f"{where}: expected {expected}; found {shorten(value)}.")
    text = value
    if value.startswith("data:"):
        head, _, text = value.partition(",")
        if not head.endswith(";base64"):
            raise RequestError(422, f"{where}: expected a data URL in Base64, found {shorten(head)}.")
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(422, f"{where}: expected {expected}; found {shorten(value)}.") from None
    if not found:
        raise RequestError(422, f"{where}: expected {expected}; found an empty one.")
    return found


def check_options(task: Task, given: Mapping[str, Any], command: str = "predict") -> dict[str, Any]:
    """The options of a request, of their types and in their ranges; texts of a form are converted.

    Raises:
        RequestError: An option is unknown, of another type, or out of range.
    """
    known = {option.name: option for option in request_options(task, command)}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            there = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise RequestError(422, f"{shorten(name)}: {task.name} has no such option{nearest(name, known)}; {there}.")
        if value is not None and value != "":
            found[name] = _option(known[name], value)
    return found


def _option(option: Option, given: Any) -> Any:
    low, high = RANGES.get(option.name, (-1e9, 1e9))
    value: Any = given
    if option.type is bool:
        value = {"true": True, "false": False}.get(given) if isinstance(given, str) else given
        right, expected = isinstance(value, bool), "true or false"
    elif option.type in (int, float):
        if isinstance(given, str) and len(given) < 40:
            try:
                value = option.type(given)
            except ValueError:
                value = None
        kinds = (int,) if option.type is int else (int, float)
        right = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        expected = f"{'an integer' if option.type is int else 'a number'} from {low:g} to {high:g}"
    else:
        right, expected = isinstance(value, str) and not is_broken(value) and len(value) <= 10_000, "a text"
    if not right:
        raise RequestError(422, f"{option.name}: expected {expected}, found {shorten(given)}.")
    return value
