"""Requests per second of concurrent clients, against bare calls of the same predictor on the same items.

    python scripts/bench/serve.py [--threads 1] [--clients 32] [--items 512] [--rounds 5]

The server and the bare calls run in this process, interleaved, with one predictor; the clients are another process,
each with a connection of its own and one request at a time. "loop" predicts one item a call, which is what a product
without a server writes; "batches" as many items a call as there are clients, the most that a server can do with their
requests; "list" all items in one call, which also sorts them by length. Ratios are of throughput: more than one means
that the server answers more items in a second. Latencies are those of the clients.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Run, arguments, interleave, machine, ratio, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the forms of the tests
CASES = {"classification/demo": "image", "translation/demo": "text"}  # models and the field of their items
BARE = ("loop", "batches", "list")


@contextmanager
def serving(model: Any) -> Iterator[str]:
    """The address of a server of one model, in a thread."""
    from mmattn.tasks.common.serve import bound, make_server
    from mmattn.tasks.common.serving.app import create_app

    place = bound("127.0.0.1", 0)
    server = make_server(create_app([model], token=""), place)
    thread = threading.Thread(target=server.run, args=([place],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.address
    server.should_exit = True
    thread.join()


def request_of(name: str, field: str, item: dict[str, Any]) -> bytes:
    """A whole request of HTTP: a form for media, JSON for texts."""
    from tests.tasks.servers import form

    if isinstance(item[field], bytes):
        body, headers = form({field: item[field]})
    else:
        body, headers = json.dumps({"item": {field: item[field]}}).encode(), {"Content-Type": "application/json"}
    head = f"POST /predict HTTP/1.1\r\nHost: {name}\r\nContent-Length: {len(body)}\r\n"
    return (head + "".join(f"{key}: {value}\r\n" for key, value in headers.items()) + "\r\n").encode() + body


async def load(address: str, requests: list[bytes], clients: int) -> list[float]:
    """Send the requests from so many connections; returns the seconds of each."""
    host, port = address.removeprefix("http://").split(":")
    waiting, seconds = iter(requests), list[float]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for request in waiting:
            begun = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            seconds.append(time.perf_counter() - begun)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds


def clients_main(path: str, address: str, count: int) -> None:
    """The process of the clients: for each line on standard input all requests once, and their latencies as JSON."""
    requests = [bytes.fromhex(line) for line in Path(path).read_text().splitlines()]
    for _ in sys.stdin:
        print(json.dumps(asyncio.run(load(address, requests, count))), flush=True)


def measure(name: str, field: str, options: Any, scratch: Path) -> dict[str, Any]:
    """The row of a model."""
    from mmattn.tasks.common.serving.inputs import check_item
    from mmattn.tasks.common.serving.models import open_models

    (model,) = open_models([name], device="cpu")
    shown = [check_item(model.fields, item, number) for number, item in enumerate(model.examples)]
    items = [shown[number % len(shown)] for number in range(options.items)]
    scratch.write_text("\n".join(request_of(name, field, item).hex() for item in items))
    latencies: list[float] = []
    with serving(model) as address:
        words = [sys.executable, __file__, "clients", str(scratch), address, str(options.clients)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def served() -> None:
                process.stdin.write("go\n")
                process.stdin.flush()
                latencies.extend(json.loads(process.stdout.readline()))

            def looped() -> None:
                for item in items:
                    model.predictor.predict([item])

            def batched() -> None:
                for start in range(0, len(items), options.clients):
                    model.predictor.predict(items[start : start + options.clients])

            runs: dict[str, Run] = {
                "served": served,
                "loop": looped,
                "batches": batched,
                "list": lambda: model.predictor.predict(items),
            }
            seconds = interleave(runs, options.rounds, warmup=1)
            process.stdin.close()
    del latencies[: len(items)]  # those of the warm-up
    rates = {run: len(items) / statistics.median(found) for run, found in seconds.items()}
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "model": name,
        "rates": rates,
        **{bare: ratio(seconds, bare, "served") for bare in BARE},
        "p50": cuts[49],
        "p95": cuts[94],
        "p99": cuts[98],
    }


def main() -> None:
    """Print a row for each model."""
    if sys.argv[1:2] == ["clients"]:
        return clients_main(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    options = arguments(__doc__, clients=32, items=512, rounds=5)
    print(f"{machine()}; {options.clients} clients, {options.items} requests a round")
    head = "".join(f"{run:>9}" for run in ("served", *BARE)) + "".join(f"  {'over ' + bare:^22}" for bare in BARE)
    print(f"{'model':<22}{head}  p50 ms  p95 ms  p99 ms")
    import tempfile

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, field in CASES.items():
            row = measure(name, field, options, Path(folder, "requests"))
            rates = "".join(f"{rate:9.0f}" for rate in row["rates"].values())
            times = "".join(f"{1000 * row[key]:8.1f}" for key in ("p50", "p95", "p99"))
            print(f"{name:<22}{rates}  {'  '.join(str(row[bare]) for bare in BARE)}{times}", flush=True)
            rows.append(row)
    write_rows(options.json, rows)


if __name__ == "__main__":
    main()
