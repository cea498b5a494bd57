"""The web application: predictions and explanations over HTTP, with limits, metrics, and one page."""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mmattn import __version__
from mmattn.tasks.common.serving.batching import Job
from mmattn.tasks.common.serving.inputs import AUTO, RequestError
from mmattn.tasks.common.serving.models import ServedModel
from mmattn.tasks.common.serving.openapi import body_schema, docs_page, responses
from mmattn.tasks.common.serving.options import TOKEN, Limits
from mmattn.tasks.common.serving.server import Server, failure, result
from mmattn.tasks.common.serving.streaming import can_stream, streamed

FOLDER, PARTS = Path(__file__).parent, ("page.css", "media.js", "page.js", "page.html")
# The page runs its own script alone, and loads nothing from elsewhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
POLICY += "img-src 'self' data: blob:; media-src data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors *"
Answer = Callable[[Request], Awaitable[Response]]


def create_app(models: Iterable[ServedModel], limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application that serves models.

    Args:
        models: The models; requests that name none are answered by the first.
        limits: What one client may ask for; None: the defaults.
        token: Bearer token that requests must send; None: the environment variable MMATTN_TOKEN, if it is set.
    """
    server = Server(models, limits or Limits())
    secret = os.environ.get(TOKEN, "") if token is None else token

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await asyncio.to_thread(server.stop)

    app = FastAPI(title="mmattn", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server

    def route(path: str, answer: Answer, *, method: str = "GET", about: str = "", is_open: bool = False) -> None:
        async def handled(request: Request) -> Response:
            begun = time.monotonic()
            request.state.model = None
            try:
                if secret and not is_open:
                    check_token(request, secret)
                response = await answer(request)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it; the status is that of nginx
            except Exception as error:
                response = refusal(failure(error), request.state.model)
            server.count(path, request.state.model, response.status_code, time.monotonic() - begun)
            return response

        described: dict[str, Any] = {} if is_open else {"security": [{"bearer": []}]}
        if method == "POST":
            described["requestBody"] = body_schema(server.models.values(), server.limits, path[1:])
        named: dict[str, Any] = {
            "methods": [method],
            "summary": about,
            "openapi_extra": described,
            "response_model": None,
        }
        named |= {"responses": responses(path[1:])} if method == "POST" else {"include_in_schema": bool(about)}
        app.add_api_route(path, handled, operation_id=path[1:] or "page", **named)

    async def predict(request: Request) -> Response:
        model, asked, items = await server.asked(request, "predict")
        if asked.stream is True or (asked.stream == AUTO and len(items) == 1 and can_stream(model, asked.options)):
            return await streamed(server, request, model, asked, items)
        jobs = [Job("predict", item, asked.options) for item in items if not isinstance(item, Exception)]
        found = iter(await server.answers(request, model, jobs) if jobs else [])
        answers = [item if isinstance(item, Exception) else next(found) for item in items]
        if asked.alone and isinstance(answers[0], Exception):
            raise answers[0]
        results = [result(model, item, answer) for item, answer in zip(items, answers, strict=True)]
        return JSONResponse({**model.label, "results": results})

    async def explain(request: Request) -> Response:
        model, asked, items = await server.asked(request, "explain")
        if not model.explains:
            raise RequestError(
                422, "explain: expected a model without --precision, whose packed weights have no gradients."
            )
        if len(items) != 1:
            raise RequestError(422, f"explain: expected one item, found {len(items)}.")
        if isinstance(items[0], Exception):
            raise items[0]
        (answer,) = await server.answers(request, model, [Job("explain", items[0], asked.options)])
        if isinstance(answer, Exception):
            raise answer
        headers = {"X-Model": model.name, "X-Model-Version": model.version}
        return Response(answer, media_type="image/png", headers=headers)

    async def described(request: Request) -> Response:
        found = [model.describe() for model in server.models.values()]
        return JSONResponse({"models": found, "mmattn": __version__, "limits": server.limits._asdict()})

    async def examples(request: Request) -> Response:
        model = server.model(request.query_params.get("model"))
        request.state.model = model
        return JSONResponse({**model.label, "items": await asyncio.to_thread(lambda: model.examples)})

    async def health(request: Request) -> Response:
        alive = {model.name: "ok" if model.worker.alive else "stopped" for model in server.models.values()}
        right = all(state == "ok" for state in alive.values())
        return JSONResponse({"status": "ok" if right else "failing", "models": alive}, 200 if right else 503)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(server.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(request: Request) -> Response:
        return HTMLResponse(start_page(), headers={"Content-Security-Policy": POLICY})

    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page([*server.models.values()], server.limits, str(request.base_url), bool(secret)))

    route("/predict", predict, method="POST", about="Predict one item, or a list of items.")
    route("/explain", explain, method="POST", about="Draw what the prediction of one item is based on.")
    route("/models", described, about="The models with their fields and options.")
    route("/examples", examples, about="Items to try a model with.")
    route("/metrics", metrics, about="Figures of the server, for Prometheus.")
    route("/health", health, about="Whether all models answer.", is_open=True)
    route("/", page, is_open=True)
    route("/docs", docs, is_open=True)
    app.add_exception_handler(HTTPException, _unknown)
    _describe_token(app)
    return app


def start_page() -> str:
    """The page: one document, with its style and its scripts in it."""
    style, *scripts, page = ((FOLDER / name).read_text(encoding="utf-8") for name in PARTS)
    return page.replace("{style}", style).replace("{script}", "\n".join(scripts))


def check_token(request: Request, secret: str) -> None:
    """Check the bearer token of a request.

    Raises:
        RequestError: It is another one.
    """
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {secret}".encode()):
        raise RequestError(401, f"expected the header Authorization: Bearer TOKEN, with the server's {TOKEN}.")


def refusal(error: RequestError, model: ServedModel | None) -> Response:
    """An error as the whole answer."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status, {})
    if error.unread:
        headers = {**headers, "Connection": "close"}
    label = model.label if model is not None else {}
    return JSONResponse({**label, "error": str(error), "status": error.status}, error.status, headers)


async def _unknown(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path:.80}: {error.detail}."
    return JSONResponse({"error": text, "status": error.status_code}, error.status_code, error.headers)


def _describe_token(app: FastAPI) -> None:
    """Put the bearer token into the OpenAPI description."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        schema.setdefault("components", {})["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
