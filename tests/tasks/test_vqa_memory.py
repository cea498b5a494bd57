"""The memory of examples: against a naive solve, without pictures, saved, halved, exported, resumed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tasks.common.checkpoint import WEIGHTS, load_weights, read_config, read_weights, save_directory
from tasks.common.export import export_model
from tasks.vqa.memory import DESCRIPTORS, MAX_EXAMPLES, ExampleMemory, describe
from tasks.vqa.model import VQAModel
from tests.tasks import test_vqa_model as vqa  # the module: pytest would collect the class once more
from tests.tasks.base import NoProcessor
from tests.tasks.runs import run

M, QUESTIONS, PICTURES, ANSWERS, VOCAB = 40, 25, 9, 7, 30
PARTS = list(DESCRIPTORS.values())


def examples(hidden: bool = False) -> tuple[Tensor, ...]:
    """Described pictures (R, 720), index (M,), ids (M, 6), mask and targets; questions come more than once."""
    generator = torch.Generator().manual_seed(3)
    pictures = torch.rand(PICTURES, 3, 32, 32, generator=generator) * 2 - 1
    length = torch.randint(1, 7, (QUESTIONS, 1), generator=generator)
    mask = torch.arange(6) < length
    ids = torch.randint(4, 12, (QUESTIONS, 6), generator=generator) * mask
    asked = torch.randint(QUESTIONS, (M,), generator=generator)
    targets = torch.rand(M, ANSWERS, generator=generator)
    index = torch.randint(PICTURES, (M,), generator=generator)
    return describe(pictures * (not hidden)), index, ids[asked], mask[asked], targets


def filled(hidden: bool = False, **options: float) -> ExampleMemory:
    memory = ExampleMemory(VOCAB, ANSWERS, 8, (M, QUESTIONS, PICTURES), **options).double()
    memory.fit(*examples(hidden))
    return memory


def model(filled_with: bool = True, **keywords: Any) -> VQAModel:
    torch.manual_seed(0)
    made = VQAModel(**{**vqa.SMALL, "memory": 0.7, "memory_size": (M, QUESTIONS, PICTURES), **keywords})
    if filled_with:
        made.memory.fit(*examples())
    return made.eval()


def phrases(ids: Tensor, mask: Tensor) -> set[tuple]:
    words = ["start", *ids[mask].tolist(), "end"]
    return {tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}


def naive_kernel(pictures: Tensor, picture: float) -> Tensor:
    """Pair by pair, from sets of phrases and lists of numbers."""
    _, index, ids, mask, _ = examples()
    said = [phrases(*pair) for pair in zip(ids, mask, strict=True)]
    count = {phrase: sum(phrase in other for other in said) for phrase in set().union(*said)}
    weight = {phrase: math.log(M / n) for phrase, n in count.items() if n > 1}
    norm = [math.sqrt(sum(weight.get(p, 0) ** 2 for p in one)) for one in said]
    parts = pictures.split(PARTS, 1)
    medians = [torch.stack([((a - b) ** 2).sum() for a in x for b in x]).median() for x in parts]
    kernel = torch.zeros(M, M, dtype=torch.float64)
    for i in range(M):
        for j in range(M):
            cosine = sum(weight.get(p, 0) ** 2 for p in said[i] & said[j]) / (norm[i] * norm[j])
            far = [((x[index[i]] - x[index[j]]) ** 2).sum() / m for x, m in zip(parts, medians, strict=True)]
            alike = sum(math.exp(-d / 0.2) for d in far) / 3
            kernel[i, j] = math.exp(-(2 - 2 * cosine)) * (1 + picture * alike)
    return kernel


def test_it_is_kernel_ridge_regression() -> None:
    memory = filled(picture=5.0, ridge=2.0)
    pictures, index, ids, mask, targets = examples()
    kernel = naive_kernel(pictures, 5.0)
    torch.testing.assert_close(memory.kernel(pictures, ids, mask, index), kernel, atol=1e-8, rtol=0)
    values = torch.linalg.solve(kernel + 2.0 * torch.eye(M, dtype=torch.float64), targets.double())
    torch.testing.assert_close(memory.values, values, atol=1e-8, rtol=0)


def test_descriptors_by_hand() -> None:
    """Left half black, right half white: two colours, one direction of edges, the layout itself."""
    picture = torch.full((1, 3, 16, 16), -1.0)
    picture[..., 8:] = 1.0
    colour, edges, layout = describe(picture).split(PARTS, 1)
    whole, upper, lower = colour.view(3, 64)
    assert whole.nonzero().flatten().tolist() == [0, 63]
    torch.testing.assert_close(whole**2, (upper**2 + lower**2) / 2)
    torch.testing.assert_close(whole[[0, 63]] ** 2, torch.tensor([0.5, 0.5], dtype=torch.float64))
    first = edges.view(3, 8, 4, 4)[0]
    assert first.sum((1, 2)).nonzero().flatten().tolist() in ([0], [7])  # across: between the first and the last
    assert first.sum((0, 1)).nonzero().flatten().tolist() == [1, 2]  # in the middle columns
    assert layout.view(3, 6, 8)[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_without_a_picture_words_alone_remain() -> None:
    pictures, index, ids, mask, _ = examples(hidden=True)
    assert not pictures.any()
    words_alone = filled(picture=0.0).kernel(*(examples()[i] for i in (0, 2, 3, 1)))
    torch.testing.assert_close(filled(hidden=True).kernel(pictures, ids, mask, index), words_alone, atol=0, rtol=0)
    torch.testing.assert_close(filled(hidden=True).values, filled(picture=0.0).values, atol=1e-12, rtol=0)


def test_in_training_the_network_answers_alone() -> None:
    inputs = vqa.TestVQAModel().inputs(4, 5)
    plain, mixed = VQAModel(**vqa.SMALL), model()
    plain.load_state_dict(mixed.state_dict(), strict=False)
    torch.testing.assert_close(mixed.train()(**inputs).logits, plain.train()(**inputs).logits)
    mixed.eval(), plain.eval()
    remembered = mixed.memory(**inputs).clamp_min(1e-3)
    share = 0.3 * plain(**inputs).logits.softmax(-1) + 0.7 * remembered / remembered.sum(-1, keepdim=True)
    torch.testing.assert_close(mixed(**inputs).logits.softmax(-1), share.float(), atol=1e-6, rtol=0)


def test_padding_and_sharing_change_nothing() -> None:
    tests, mixed = vqa.TestVQAModel(), model().double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in tests.inputs(5, 6).items()}
    expected = mixed(**inputs).logits
    torch.testing.assert_close(mixed(**tests.pad(inputs, 4)).logits, expected, atol=1e-8, rtol=0)
    index = torch.tensor([2, 0, 2, 1, 2])
    single = mixed(**{**inputs, "pixel_values": inputs["pixel_values"][index]}).logits
    shared = mixed(**{**inputs, "pixel_values": inputs["pixel_values"][:3]}, image_index=index).logits
    torch.testing.assert_close(shared, single, atol=1e-8, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_it_says_the_same(tmp_path: Path, half: bool) -> None:
    mixed, inputs = model(), vqa.TestVQAModel().inputs(6, 5)
    save_directory(tmp_path / "m", task="vqa", model=mixed, keywords={}, processor=NoProcessor(), half=half)
    other = model(filled_with=False)
    assert not other.memory.is_filled
    load_weights(other, read_weights(tmp_path / "m" / WEIGHTS), tmp_path)
    mine, theirs = mixed(**inputs).logits.softmax(-1), other(**inputs).logits.softmax(-1)
    torch.testing.assert_close(mine, theirs, atol=2e-3 if half else 0, rtol=0)


def test_exported_it_says_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    tests = vqa.TestVQAModel()
    shapes = [tests.inputs(3, 7), tests.inputs(1, 2), tests.inputs(4, 9)]
    assert len(export_model(model(), shapes, tests.dynamic, tmp_path, "model", ("torch", "onnx"))) == 2


def test_under_mixed_precision_the_memory_stays_exact() -> None:
    memory, inputs = filled(), vqa.TestVQAModel().inputs(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = memory(**inputs)
    assert torch.equal(rough, memory(**inputs))


def test_it_recalls_the_question_asked() -> None:
    pictures, index, ids, mask, _ = examples()
    memory = ExampleMemory(VOCAB, ANSWERS, 8, (M, QUESTIONS, PICTURES), picture=0.0, ridge=0.01)
    memory.fit(pictures, index, ids, mask, torch.eye(M)[:, :ANSWERS])  # example n alone has the answer n
    pixels = torch.rand(1, 3, 32, 32)
    added, tokens = memory.recall(pixels, ids[:1], mask[:1], None, torch.tensor([0]), count=2)
    assert tokens.shape == (1, 2, 8)
    assert added[0, 0] > added[0, 1]
    assert tokens[0, 0][tokens[0, 0] >= 0].tolist() == ids[0][mask[0]].tolist()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"memory": 1.0}, "memory: expected a share from 0 to below 1, found 1.0"),
        ({"memory_size": (0, 0, 0)}, "expected 1 to 20,000 training examples, found 0"),
        ({"memory_size": (MAX_EXAMPLES + 1, 9, 9)}, "expected 1 to 20,000 training examples, found 20,001"),
        ({"memory_ridge": 0.0}, "memory_ridge must be positive"),
    ],
)
def test_what_cannot_be_is_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(filled_with=False, **keywords)


def test_a_run_fills_it_and_a_resumed_run_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--model.memory 0.8 --data.batch_size 18"
    folder = run("fit", tmp_path / "run", options)
    assert read_config(folder / "model")["model"]["memory_size"][0] == 12 * 18
    before = load_file(folder / "model" / WEIGHTS)
    assert before["memory.values"].any()
    assert before["memory.pictures"].any()

    def fit(*_: Any) -> None:
        raise AssertionError("a resumed run fills its memory anew")

    monkeypatch.setattr(ExampleMemory, "fit", fit)
    run("fit", folder, f"{options} --ckpt_path last")
    after = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    names = [name for name in before if name.startswith("memory.")]
    assert all(torch.equal(before[name], after[f"model.{name}"]) for name in names)


def test_a_run_without_pictures_remembers_none(tmp_path: Path) -> None:
    options = "--model.memory 0.8 --data.batch_size 18 --data.hide image --trainer.max_steps 1"
    state = load_file(run("fit", tmp_path / "run", options) / "model" / WEIGHTS)
    assert state["memory.values"].any()
    assert not state["memory.pictures"].any()
