"""The Dockerfile and the compose file: what they copy exists, what they start is a command, and none needs root."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from mmattn.tasks.common import serve
from mmattn.tasks.common.sources import find_model
from mmattn.tasks.common.task import tasks

ROOT = Path(__file__).resolve().parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")).splitlines()
WORDS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]


def of(instruction: str) -> list[str]:
    """The arguments of each such instruction, in order."""
    return [rest for name, rest in WORDS if name == instruction]


def served(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> tuple[list[str], str, int]:
    """Models, host and port of a command line of `serve`, which is not run."""
    found: list = []
    monkeypatch.setattr(serve, "serve", lambda task, models, options: found.append((models, options)))
    serve.main(words)
    ((models, options),) = found
    return models, options.host, options.port


def test_two_stages_without_root() -> None:
    assert len(of("FROM")) == 2
    last = [name for name, _ in WORDS][[name for name, _ in WORDS].index("FROM", 1) :]
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert of("USER") == ["10001"]
    assert "useradd --uid 10001" in of("RUN")[-1]


def test_the_build_of_torch_is_chosen() -> None:
    """Without an index the image is not built; compose, which runs on a GPU, has an empty one."""
    assert "TORCH_INDEX" in of("ARG")
    (line,) = [rest for rest in of("RUN") if "TORCH_INDEX" in rest]
    assert line.startswith(': "${TORCH_INDEX?')
    for environment, is_refused in (({}, True), ({"TORCH_INDEX": ""}, False)):
        found = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
        assert bool(found.returncode) == is_refused, found.stderr
        assert ("expected --build-arg TORCH_INDEX" in found.stderr) == is_refused
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["mmattn"]
    assert service["build"]["args"] == {"TORCH_INDEX": ""}


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for rest in of("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    assert sources
    assert set(sources) <= kept
    assert all((ROOT / source).exists() for source in sources)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (given,) = re.findall(r'EXTRAS="([\w,]+)"', "\n".join(of("ARG")))
    assert set(given.split(",")) <= extras.keys()


def test_its_command_serves_named_models(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, default = json.loads(of("ENTRYPOINT")[0]), json.loads(of("CMD")[0])
    assert entry[:2] == ["mmattn", "serve"]
    models, host, port = served(monkeypatch, [*entry[2:], *default])
    assert (host, port) == ("0.0.0.0", int(of("EXPOSE")[0]))
    assert all(find_model(name).config["task"] in tasks() for name in models)
    assert f":{port}/health" in " ".join(of("HEALTHCHECK"))


def test_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["mmattn"]
    assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    models, _, port = served(monkeypatch, [*json.loads(of("ENTRYPOINT")[0])[2:], *service["command"]])
    assert service["volumes"][0].endswith(f":{models[0]}:ro")
    assert service["ports"] == [f"127.0.0.1:{port}:8000"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
