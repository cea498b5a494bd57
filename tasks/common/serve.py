"""The command `serve`: models over HTTP, with a page for the browser. It needs the extra `serve`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

from mmattn.data.errors import UserError
from mmattn.tasks.common.errors import require
from mmattn.tasks.common.serving.options import PACKAGES, add_server_options, limits_of
from mmattn.tasks.common.task import Task

HEAD_SECONDS = 10.0  # in which the first line and the headers of a request must arrive
CONNECTIONS = 1024


def serve(task: Task | None, sources: Sequence[str], options: argparse.Namespace) -> None:
    """Serve models until interrupted.

    Args:
        task: The task that loads the models; None: each model's own.
        sources: Models as of `load`, or NAME=MODEL.
        options: The options of the command.

    Raises:
        CheckpointError: A model is missing or damaged.
        UserError: The address or the port cannot be used.
    """
    require(*PACKAGES)
    place = bound(options.host, options.port)  # before the models are loaded, which takes longer
    from mmattn.tasks.common.serving.app import create_app
    from mmattn.tasks.common.serving.models import open_models

    loads = [option.name for option in (task.options if task else ()) if option.kind == "load"]
    given = {name: value for name in loads if (value := getattr(options, name)) is not None}
    named: dict[str, Any] = {"device": options.device, "precision": options.precision, "examples": options.examples}
    models = list(open_models(sources, task=task.name if task else None, given=given, **named))
    app, names = create_app(models, limits_of(options)), ", ".join(model.name for model in models)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once the requests are answered
        make_server(app, place, names).run([place])
    print("stopped", flush=True)


def bound(host: str, port: int) -> socket.socket:
    """A socket with an address, which does not listen yet.

    Raises:
        UserError: The address is none of this machine, or the port is taken.
    """
    if not 0 <= port < 1 << 16:  # the system would take it modulo 65,536
        raise UserError(f"--port: expected a number from 0 to 65535, found {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, kind, protocol)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error}") from None
    return place


def make_server(app: Any, place: socket.socket, names: str = "") -> Any:
    """The server of an application; its method `run` ends by an interrupt, or once `should_exit` is set.

    Args:
        app: The application.
        place: Of `bound`; to be passed to `run`, too.
        names: What is printed before the address, once the server answers; empty: nothing.
    """
    import uvicorn

    class Server(uvicorn.Server):
        host, port = place.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started and names:
                print(f"{names}: {self.address} (Ctrl-C stops it)", flush=True)

    config = uvicorn.Config(
        app,
        http=patient_protocol(),
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        limit_concurrency=CONNECTIONS,
        server_header=False,
    )
    return Server(config)


def patient_protocol() -> Any:
    """uvicorn's protocol, which also closes connections whose request does not begin in time."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.expect_head()

        def expect_head(self) -> None:
            self.waiting = self.loop.call_later(HEAD_SECONDS, self.give_up)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self.waiting is None:  # not the first request of the connection
                self.expect_head()

        def on_headers_complete(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None
            super().on_headers_complete()

        def give_up(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.expect_head()  # after the answer to the request before
            elif not self.transport.is_closing():
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            super().connection_lost(exc)

    return Protocol


def main(argv: Sequence[str]) -> None:
    """The command `mmattn serve MODEL [MODEL ...]`.

    Args:
        argv: Its words.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    serve(None, options.models, options)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `mmattn serve`."""
    parser = argparse.ArgumentParser(
        prog="mmattn serve", description="serve models over HTTP, with a page for the browser", allow_abbrev=False
    )
    about = "a named model such as asr/fsdd (`mmattn models` lists them), a run or its model, a public model's folder, "
    parser.add_argument("models", nargs="+", metavar="MODEL", help=about + "or hf:owner/name; NAME=MODEL renames it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_server_options(parser)
    return parser
