"""What the requests to one application share: its models, limits and figures."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect

from mmattn.data.errors import UserError, nearest, shorten
from mmattn.tasks.common.serving.batching import Job, QueueFullError, StoppedError
from mmattn.tasks.common.serving.bodies import Bodies
from mmattn.tasks.common.serving.inputs import PLACE, Asked, RequestError, check_item, check_options, request_options
from mmattn.tasks.common.serving.models import ServedModel
from mmattn.tasks.common.serving.options import Limits

LOG = logging.getLogger("mmattn.serve")
DASHES = re.compile(r"(?<![^\s(])--(?=[a-z])")  # of options, which requests have by name alone
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # of batches, in the histogram


class Server:
    """The models of an application, with their limits and figures.

    Args:
        models: The models.
        limits: What one client may ask for.
    """

    def __init__(self, models: Iterable[ServedModel], limits: Limits) -> None:
        self.models = {model.name: model for model in models}
        self.limits, self.bodies = limits, Bodies(limits)
        self.registry = CollectorRegistry()
        named: Any = {"registry": self.registry, "namespace": "mmattn"}
        self.requests = Counter("requests", "Requests by path, model and status", ["path", "model", "status"], **named)
        self.seconds = Histogram("request_seconds", "Time from a request to its answer", ["path", "model"], **named)
        self.batches = Histogram("batch_items", "Items of a batch", ["model"], buckets=SIZES, **named)
        self.waiting = Gauge("waiting_items", "Items that wait for a model", ["model"], **named)

    def start(self) -> None:
        """Start the models' threads."""
        for name, model in self.models.items():
            model.start(self.limits, self.batches.labels(name).observe)
            self.waiting.labels(name).set_function(functools.partial(getattr, model.worker, "size"))

    def stop(self) -> None:
        """Stop the models' threads."""
        for model in self.models.values():
            model.worker.stop()

    def count(self, path: str, model: ServedModel | None, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        name = "" if model is None else model.name
        self.requests.labels(path, name, str(status)).inc()
        self.seconds.labels(path, name).observe(seconds)

    def model(self, name: str | None) -> ServedModel:
        """The model that a request names; the first one if it names none.

        Raises:
            RequestError: There is none of this name.
        """
        found = self.models.get(next(iter(self.models)) if name is None else name)
        if found is None:
            known = ", ".join(self.models)
            hint = nearest(str(name), self.models)
            raise RequestError(404, f"model: expected one of {known}, found {shorten(name)}{hint}.")
        return found

    async def asked(self, request: Request, command: str) -> tuple[ServedModel, Asked, list[Any]]:
        """The model of a request, the request with checked options, and its checked items or what is wrong with each.

        Raises:
            RequestError: The request as a whole cannot be answered.
            ClientDisconnect: The client has left.
        """
        fields = {name: [option.name for option in model.fields] for name, model in self.models.items()}
        asked = await self.bodies.read(request, fields)
        model = request.state.model = self.model(asked.model)
        if len(asked.items) > self.limits.max_items:
            raise RequestError(413, f"items: expected at most {self.limits.max_items}, found {len(asked.items)}.")
        if asked.form:
            self.check_form(model, asked, command)
        asked = asked._replace(options=check_options(model.task, asked.options, command))
        try:
            model.predictor.check_options(asked.options)
        except UserError as error:  # of the request as a whole
            raise failure(error) from None
        items: list[Any] = []
        for number, item in enumerate(asked.items):
            try:
                items.append(check_item(model.fields, item, number) | {PLACE: number})
            except RequestError as error:
                items.append(error)
        return model, asked, items

    def check_form(self, model: ServedModel, asked: Asked, command: str) -> None:
        """Check that the fields of a form are those of the model's items or options.

        Raises:
            RequestError: One is another.
        """
        fields = [option.name for option in model.fields]
        options = [option.name for option in request_options(model.task, command)]
        if wrong := next((name for name in asked.options if name not in options), None):
            hint = nearest(wrong, fields + options)
            message = f"form: expected the fields {', '.join(fields)}, found {shorten(wrong)}{hint}"
            message += f"; options: {', '.join(options) or 'none'}."
            if asked.model is None and len(self.models) > 1:
                others = ", ".join(name for name in self.models if name != model.name)
                message += f" Without the field model, {model.name} answers; the other models: {others}."
            raise RequestError(422, message)

    async def answers(self, request: Request, model: ServedModel, jobs: Sequence[Job]) -> list[Any]:
        """The answer to each job, or its exception. Those that still wait are cancelled if the client leaves.

        Raises:
            RequestError: The queue is full, the time is over, or the server stops.
            ClientDisconnect: The client has left.
        """
        submit(model, jobs)
        found = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs), return_exceptions=True)
        found.add_done_callback(lambda done: done.cancelled() or done.exception())  # cancelled below: nobody asks
        left: asyncio.Future[Any] = asyncio.ensure_future(gone(request))
        both: set[asyncio.Future[Any]] = {found, left}
        try:
            await asyncio.wait(both, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if found.done():
                return list(found.result())
            if left.done():
                raise ClientDisconnect
            raise RequestError(504, f"expected an answer within {self.limits.timeout:g} seconds, found none.")
        finally:
            left.cancel()
            found.cancel()
            for job in jobs:
                job.future.cancel()


def submit(model: ServedModel, jobs: Sequence[Job]) -> None:
    """Give jobs to a model.

    Raises:
        RequestError: Its queue is full, or it has stopped.
    """
    try:
        model.worker.submit(jobs)
    except QueueFullError:
        raise RequestError(429, f"{model.name}: too many items wait; try again later.") from None
    except StoppedError:
        raise RequestError(503, f"{model.name}: the server shuts down.") from None


async def gone(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def failure(error: BaseException) -> RequestError:
    """What a client learns of an exception: its message if the item is at fault, otherwise that the model failed."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, StoppedError):
        return RequestError(503, "the server shuts down.")
    if isinstance(error, UserError) and not isinstance(error, OSError):
        return RequestError(422, DASHES.sub("", str(error)))
    LOG.error("the model failed on an item", exc_info=error)
    return RequestError(500, "the model failed on this item; the server's log says why.")


def result(model: ServedModel, item: Any, answer: Any) -> dict[str, Any]:
    """A prediction of a list as JSON, or its error."""
    if isinstance(answer, Exception):
        wrong = failure(answer)
        return {"error": str(wrong), "status": wrong.status}
    return model.result(item, answer)
