"""Whether an installed wheel serves: for every named model the same answers from Python, `curl`, streams and the page.

    pip wheel --no-deps -w wheels . && python -m venv fresh && fresh/bin/pip install 'mmattn[serve,video] @ wheels/...'
    python scripts/check_serving.py --python fresh/bin/python [--screenshots FOLDER] [MODEL ...]

The server and the predictions in Python run offline in the given environment, in an empty folder. The page is opened in
a Chromium from this one, which needs playwright; without it that column is empty. The exit code is 1 if answers differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmattn.tasks.common.named import described
from mmattn.tasks.common.sources import find_model
from mmattn.tasks.common.task import tasks

ASK = """
import base64, json, sys
from mmattn import load
from mmattn.tasks.common.serving.inputs import check_item, item_fields
from mmattn.tasks import tasks
for line in sys.stdin:
    name, item = json.loads(line)
    predictor = load(name, device="cpu")
    checked = check_item(item_fields(tasks()[predictor.task]), item, 0)
    print(json.dumps(predictor.answer_of(predictor(checked))))
"""


@contextmanager
def server(python: str, names: list[str], folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of `mmattn serve` in another environment."""
    words = [python, "-m", "mmattn", "serve", *names, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            sys.exit(f"the server did not start: {line}")
        try:
            yield line.rpartition(": ")[2].split()[0]
        finally:
            process.terminate()


def curl(address: str, path: str, body: Any = None) -> Any:
    """What curl receives, as JSON; of a stream its last event, whose answer must be that of all."""
    words = ["curl", "--silent", "--show-error", f"{address}{path}"]
    sent = None if body is None else json.dumps(body)
    words += [] if sent is None else ["--header", "Content-Type: application/json", "--data-binary", "@-"]
    done = subprocess.run(words, input=sent, capture_output=True, text=True, check=True)
    if not done.stdout.startswith("data: "):
        return json.loads(done.stdout)
    *parts, last = (json.loads(event.removeprefix("data: ")) for event in done.stdout.strip().split("\n\n"))
    return {"results": [last | {"answer": "".join(part["text"] for part in parts)}]} if "answer" in last else last


def named(python: str) -> Iterator[str]:
    """The named models without a base of public weights; those with a backbone of timm if the environment has it."""
    has_timm = subprocess.run([python, "-c", "import timm"], capture_output=True).returncode == 0
    for entry in described(tasks()):
        name, needs_timm = entry["model"], "timm/" in json.dumps(find_model(entry["model"]).config["model"])
        if needs_timm and not has_timm:
            print(f"{name:<32} left out: its backbone needs timm, of the extra train", flush=True)
        elif entry["base"] is None:
            yield name


def streams(address: str, name: str, item: Any) -> bool | None:
    """Whether the text that comes in parts is that of one answer; None: the model generates none."""
    if not next(model["streams"] for model in curl(address, "/models")["models"] if model["model"] == name):
        return None
    has_beams = name.startswith(("translation/", "summarization/", "captioning/"))
    body = {"model": name, "item": item, "options": {"num_beams": 1} if has_beams else {}}
    whole, parts = (curl(address, "/predict", body | {"stream": stream}) for stream in (False, True))
    return bool(whole["results"][0]["answer"] == parts["results"][0]["answer"])


@contextmanager
def browser() -> Iterator[Callable[[str, str, Path | None], str] | None]:
    """A function that asks the page for the answer to the first example of a model; None without a browser."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        yield None
        return
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

        def ask(address: str, name: str, picture: Path | None) -> str:
            page = chromium.new_page(viewport={"width": 1100, "height": 900})
            page.goto(f"{address}/#{name}")
            page.click("#examples button")
            page.wait_for_selector("#ask:enabled", timeout=120_000)
            page.wait_for_selector("#picture:not([hidden])")
            if picture is not None:
                page.screenshot(path=picture, full_page=True)
            found = page.inner_text("#answer")
            page.close()
            return found

        yield ask
        chromium.close()


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="default: all named models that need no public weights")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment with the wheel")
    parser.add_argument("--screenshots", type=Path, help="a folder for those of the page")
    options = parser.parse_args()
    python = os.path.abspath(options.python)
    names = options.models or [*named(python)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    different = 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        browser() as look,
        server(python, names, Path(scratch), environment) as address,
    ):
        items = {name: curl(address, f"/examples?model={name}")["items"][0] for name in names}
        lines = "\n".join(json.dumps(pair) for pair in items.items())
        words: dict[str, Any] = {"cwd": scratch, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([python, "-c", ASK], input=lines, check=True, **words)
        for name, line in zip(names, done.stdout.splitlines(), strict=True):
            expected = json.loads(line)
            reply = curl(address, "/predict", {"model": name, "item": items[name]})
            found = {"curl": reply["results"][0]["answer"]}
            if look is not None:
                picture = options.screenshots and options.screenshots / f"{name.replace('/', '_')}.png"
                found["page"] = look(address, name, picture)
            wrong = [key for key, value in found.items() if value.split() != (expected or "(nothing)").split()]
            in_parts = streams(address, name, items[name])
            wrong += ["stream"] if in_parts is False else []
            found |= {"stream": ""} if in_parts else {}
            different += bool(wrong)
            state = f"differs: {', '.join(wrong)}" if wrong else f"equal: Python, {', '.join(found)}"
            print(f"{name:<32} {reply['version']}  {state:<36} {expected[:60]!r}", flush=True)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
