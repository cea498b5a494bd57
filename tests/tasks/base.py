"""Tests of every task's model: subclass, and define the model and its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mmattn.tasks.common.checkpoint import WEIGHTS, load_weights, read_weights, save_directory
from mmattn.tasks.common.export import export_model, outputs_of
from tests.conftest import refused


class NoProcessor:
    """A stub processor for tests of the weights."""

    def save(self, folder: Path) -> None:
        folder.mkdir()


def written_step_by_step(
    folder: Path, mask: Tensor | None, given: dict[str, Tensor], layers: int, never: Any = ()
) -> Tensor:
    """Five tokens for two samples, (2, 5), by the exported step: each the most probable one that is not in `never`."""
    step = torch.export.load(folder / "step.pt2").module()
    if "hidden" not in given:  # of an LSTM; else the past is empty
        empty = torch.zeros(layers, 2, 2, 0, 8)  # layers, batch, heads, past, head size
        given |= {"keys": empty, "values": empty}
    given |= {} if mask is None else {"source_mask": mask}
    ids, written = torch.full((2, 1), 2), []
    for _ in range(5):
        output = step(ids=ids, **given)._asdict()
        logits = output.pop("logits")
        logits[:, list(never)] = -torch.inf
        ids = logits.argmax(-1, keepdim=True)
        written.append(ids)
        given |= output
    return torch.cat(written, 1)


class TaskModelTests:
    """The tests that every task's model inherits.

    A subclass defines `task`, `variants` (keywords by name), `wrong` (keywords, and the error message),
    `build(**keywords)`, `inputs(batch, length)` (tensors by argument name, floating ones in float32), `dynamic` (for
    export), `pad(inputs, extra)` and `heads()`.
    """

    task: str
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    wrong: ClassVar[list[tuple[dict[str, Any], str]]] = []
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {}
    unused: tuple[str, ...] = ()  # parameters without a gradient by design
    exported_elsewhere = False  # whether another test exports the model, so that the one here is slow

    def build(self, **keywords: Any) -> nn.Module:
        raise NotImplementedError

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def pad(self, inputs: Mapping[str, Tensor], extra: int) -> dict[str, Tensor]:
        """The same samples with `extra` padding positions; models without padding do not override this."""
        pytest.skip("this model's inputs cannot be padded")

    def heads(self) -> Iterable[Any]:
        """Standalone heads, their inputs with other feature sizes than the model's, and the output shapes."""
        return []

    @pytest.fixture
    def model(self, variant: str) -> nn.Module:
        torch.manual_seed(0)
        return self.build(**self.variants[variant])

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if "variant" in metafunc.fixturenames:
            name = metafunc.function.__name__
            slow = pytest.mark.slow if "exported" in name or "overfits" in name else ()
            first, *others = self.variants
            if "exported" in name and self.exported_elsewhere:
                first = pytest.param(first, marks=slow)
            metafunc.parametrize("variant", [first, *(pytest.param(name, marks=slow) for name in others)])

    def test_incompatible_options(self) -> None:
        for keywords, message in self.wrong:
            refused(message, self.build, **keywords)

    def test_head_with_other_feature_sizes(self) -> None:
        for head, given, shapes in self.heads():
            found = outputs_of(head(*given))
            assert [tuple(output.shape) for output in found] == shapes
            assert all(output.isfinite().all() for output in found)
            sum(output.sum() for output in found).backward()
            assert all(parameter.grad is not None for parameter in head.parameters())

    def test_every_parameter_gets_a_finite_gradient(self, model: nn.Module) -> None:
        total = sum(output.float().pow(2).sum() for output in outputs_of(model.train()(**self.inputs(4, 6))))
        total.backward()
        without = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith(self.unused or ("-",))]
        assert not without
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_padding_invariance(self, model: nn.Module) -> None:
        model = model.double().eval()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs(3, 5).items()}
        padded = self.pad(inputs, 4)
        for mine, theirs in zip(outputs_of(model(**inputs)), outputs_of(model(**padded)), strict=True):
            if mine.ndim > 1 and theirs.shape[1] == mine.shape[1] + 4:  # an output for each position
                theirs = theirs[:, : mine.shape[1]]
            torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=0)

    def test_single_sample_equals_batched(self, model: nn.Module) -> None:
        model = model.double().eval()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs(3, 5).items()}
        alone = outputs_of(model(**{name: value[1:2] for name, value in inputs.items()}))
        for mine, theirs in zip(alone, outputs_of(model(**inputs)), strict=True):
            if theirs.shape[0] == 3:
                torch.testing.assert_close(mine[0], theirs[1], atol=1e-8, rtol=0)

    def test_saved_model_gives_equal_outputs(self, model: nn.Module, variant: str, tmp_path: Path) -> None:
        keywords = self.variants[variant]
        folder = save_directory(tmp_path / "m", task=self.task, model=model, keywords=keywords, processor=NoProcessor())
        other = self.build(**keywords)
        load_weights(other, read_weights(folder / WEIGHTS), folder)
        inputs = self.inputs(2, 5)
        for mine, theirs in zip(outputs_of(model.eval()(**inputs)), outputs_of(other.eval()(**inputs)), strict=True):
            assert torch.equal(mine, theirs)

    def test_exported_model_gives_equal_outputs(self, model: nn.Module, tmp_path: Path) -> None:
        examples = [self.inputs(3, 7), self.inputs(1, 2), self.inputs(4, 9)]
        lines = export_model(model, examples, self.dynamic, tmp_path, "model", ("torch",))
        assert (tmp_path / "model.pt2").exists()
        assert len(lines) == 1
