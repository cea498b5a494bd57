"""What the server says of itself: its OpenAPI description, and the page /docs, made from the models' fields."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mmattn.tasks.common.page import Markup, page, table
from mmattn.tasks.common.serving.inputs import AUTO, ID, RANGES, request_options
from mmattn.tasks.common.serving.models import ServedModel
from mmattn.tasks.common.serving.options import TOKEN, Limits
from mmattn.tasks.common.task import Option

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
STATUSES = {
    400: "The body is no JSON or no form.",
    401: f"The bearer token is missing or wrong ({TOKEN}).",
    404: "The server has no model of this name.",
    408: "The body came too slowly.",
    413: "The body is too large, or has too many items.",
    415: "The body is of another content type.",
    422: "An item or an option is invalid; of a list, this is the status of the item alone.",
    429: "Too many items wait; try again later.",
    500: "The model failed on the item.",
    503: "The server shuts down.",
    504: "The answer took too long.",
}
STREAM = "send the text as it is generated; auto: if the model and the options allow it"
WRONG = {"error": {"type": "string"}, "status": {"type": "integer"}}


def field_schema(option: Option, upload: bool = False) -> dict[str, Any]:
    """The JSON schema of a field of an item, or of an option."""
    if option.media:
        kind = {"format": "binary"} if upload else {"contentEncoding": "base64"}
        return {"type": "string", **kind, "contentMediaType": option.media, "description": option.help}
    schema: dict[str, Any] = {"type": JSON_TYPES[option.type], "description": option.help}
    if option.type in (int, float) and option.name in RANGES:
        schema |= dict(zip(("minimum", "maximum"), RANGES[option.name], strict=True))
    return schema


def item_schema(model: ServedModel, upload: bool = False) -> dict[str, Any]:
    """The JSON schema of a model's items."""
    named = {option.name: field_schema(option, upload) for option in model.fields}
    required = [option.name for option in model.fields if not option.optional]
    return {
        "type": "object",
        "title": model.name,
        "properties": {ID: {"type": "string"}, **named},
        "required": required,
    }


def body_schema(models: Iterable[ServedModel], limits: Limits, command: str) -> dict[str, Any]:
    """The description of a request's body, as JSON and as a form."""
    models = list(models)
    names = {"type": "string", "enum": [model.name for model in models], "default": models[0].name}
    items = {"oneOf": [item_schema(model) for model in models]}
    options = {option.name: field_schema(option) for model in models for option in request_options(model.task, command)}
    properties: dict[str, Any] = {"model": names, "item": items}
    if command == "predict":
        properties |= {"items": {"type": "array", "items": items, "maxItems": limits.max_items}}
        properties |= {"stream": {"enum": [True, False, AUTO], "description": STREAM}}
    properties["options"] = {"type": "object", "properties": options}
    forms = []
    for model in models:
        form = item_schema(model, upload=True)
        own = {option.name: field_schema(option) for option in request_options(model.task, command)}
        forms.append(form | {"properties": {"model": names, **form["properties"], **own}})
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "properties": properties}},
            "multipart/form-data": {"schema": {"anyOf": forms}},
        },
    }


def responses(command: str) -> dict[int | str, dict[str, Any]]:
    """The description of the answers."""
    text = {"type": "string"}
    result = {
        "type": "object",
        "properties": {"answer": text, "prediction": {"type": "object"}, **WRONG},
    }
    whole = {"model": text, "version": text, "results": {"type": "array", "items": result}}
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object", "properties": whole}}}
    content["text/event-stream"] = {"schema": text}
    if command == "explain":
        content = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    wrong = {"application/json": {"schema": {"type": "object", "properties": WRONG}}}
    return {
        200: {"description": "The answer.", "content": content},
        **{status: {"description": about, "content": wrong} for status, about in STATUSES.items()},
    }


def docs_page(models: Sequence[ServedModel], limits: Limits, address: str, token: bool = False) -> str:
    """The page /docs, which needs no other file: models, fields, options, statuses, and commands to copy.

    Args:
        models: The models of the server.
        limits: Its limits.
        address: Its address as the client knows it.
        token: Whether it asks for a token.
    """
    parts = ["<h1>mmattn: HTTP interface</h1>"]
    parts.append(
        '<p>The page <a href="./">/</a> asks the models from the browser; <a href="openapi.json">openapi.json</a> '
        "describes this interface to programs. <code>GET /models</code>, <code>/examples</code>, <code>/health</code> "
        "and <code>/metrics</code> (Prometheus) take no body. <code>POST /predict</code> takes JSON or a form, "
        "<code>POST /explain</code> the same for one item, and answers with a PNG. With the environment variable "
        f"{TOKEN} of the server, requests need the header <code>Authorization: Bearer TOKEN</code>.</p>"
    )
    rows = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in limits._asdict().items()]
    parts.append("<h2>Limits</h2>" + table(rows, ("limit", "value")))
    for model in models:
        parts.append(f"<h2>{escape(model.name)}</h2><p>{escape(model.task.title)} {escape(model.about)}</p>")
        named = [
            (option.name, option.media or JSON_TYPES[option.type], kind, option.help)
            for kind, options in (("item", model.fields), ("option", request_options(model.task)))
            for option in options
        ]
        parts.append(table(named, ("name", "type", "of", "meaning")))
        parts.append(f"<pre>{escape(command_of(model, address, token))}</pre>")
    parts.append("<h2>Statuses</h2>" + table([(Markup(str(key)), text) for key, text in STATUSES.items()]))
    return page("mmattn: HTTP interface", "\n".join(parts))


def command_of(model: ServedModel, address: str, token: bool = False) -> str:
    """A command that asks the model of a server, to copy."""
    curl = "curl -H 'Authorization: Bearer TOKEN'" if token else "curl"
    place = shlex.quote(f"{address.rstrip('/')}/predict")
    if any(option.media for option in model.fields):
        words = [
            f"-F {option.name}=@FILE" if option.media else f"-F {option.name}='...'"
            for option in model.fields
            if not option.optional
        ]
        return f"{curl} -F model={model.name} {' '.join(words)} {place}"
    item = {option.name: "..." for option in model.fields if not option.optional}
    body = json.dumps({"model": model.name, "item": item})
    return f"{curl} --json '{body}' {place}"
