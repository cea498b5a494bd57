"""Muon for hidden matrices: steps, state, and which weights it takes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mmattn.tasks.common.muon import MOMENTUM, Muon, orthogonalize
from mmattn.tasks.common.parameters import hidden_matrices, parameter_groups


class Tagger(nn.Module):
    """Tied and untied embeddings, hidden matrices of several shapes, a convolution, and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(3))
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.tied = nn.Linear(8, 11)
        self.tied.weight = self.embedding.weight
        self.head = nn.ModuleDict({"fc": nn.Linear(8, 8), "out": nn.Linear(8, 3)})

    def forward(self, ids: Tensor) -> Tensor:
        """Scores (B, 3) of sequences of five tokens (B, 5)."""
        x = self.embedding(ids) + self.positions.weight
        for layer in self.layers:
            x = x + layer[1](layer[0](x).relu())
        x = x + self.conv(x.mT).mT
        x = x + self.tied(x).softmax(-1) @ self.embedding.weight
        return self.head["out"](self.head["fc"](self.norm(x).mean(1)))


HIDDEN = {f"layers.{i}.{j}.weight" for i in range(3) for j in range(2)} | {"head.fc.weight"}


def optimizer_of(model: nn.Module) -> Muon:
    return Muon(parameter_groups(model, 0.1, 0.02, hidden=True), betas=(0.9, 0.98), foreach=True)


def train(model: nn.Module, optimizer: Muon, steps: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        ids = torch.randint(11, (32, 5), generator=generator)
        loss = nn.functional.cross_entropy(model(ids), (ids < 2).sum(1).clamp(max=2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_which_weights_it_takes() -> None:
    model = Tagger()
    assert hidden_matrices(model) == HIDDEN
    model.layers[0].requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1, 0.02, hidden=True)
    found = {names[id(p)] for group in groups if group["hidden"] for p in group["params"]}
    assert found == HIDDEN - {"layers.0.0.weight", "layers.0.1.weight"}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("shape", [(6, 6), (4, 32), (32, 4)])
def test_singular_values_become_one(shape: tuple[int, int]) -> None:
    """Singular vectors are kept, values lie near one; a matrix of zeros stays one."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    matrices[1] = 0
    found = orthogonalize(matrices)
    assert found[1].count_nonzero() == 0
    for given, made in ((matrices[0], found[0]), (matrices[2], found[2])):
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        values = u.mT @ made @ v.mT
        torch.testing.assert_close(values, values.diagonal().diag(), atol=1e-9, rtol=0)
        assert 0.6 < values.diagonal().min() <= values.diagonal().max() < 1.25


def test_steps_equal_those_of_torch() -> None:
    """`torch.optim.Muon`, whose iterations are in bfloat16, for hidden matrices, AdamW for the rest, exactly."""
    torch.manual_seed(0)
    model = Tagger()
    peer = copy.deepcopy(model)
    ours = optimizer_of(model)
    weights = dict(peer.named_parameters())
    muon = torch.optim.Muon(
        [weights[name] for name in HIDDEN], 0.02, 0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [p for name, p in weights.items() if name not in HIDDEN and (p.ndim >= 2) is many]} | decay
            for many, decay in ((True, {"weight_decay": 0.1}), (False, {"weight_decay": 0.0}))
        ],
        0.02,
        (0.9, 0.98),
    )
    for seed in range(3):
        gradients = torch.Generator().manual_seed(seed)
        for mine, other in zip(model.parameters(), peer.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=gradients)
            other.grad = mine.grad.clone()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        ours.step(), muon.step(), adamw.step()
        for name, parameter in model.named_parameters():
            if name in HIDDEN:  # bfloat16 has eight bits; the step is compared, then taken over
                step = (parameter - before[name]).norm()
                assert (parameter - weights[name]).norm() < 0.03 * step, name
                weights[name].data.copy_(parameter.data)
            else:
                torch.testing.assert_close(parameter, weights[name])


def test_state_is_saved_and_loaded() -> None:
    """A run goes on from a state dict as if it had not been interrupted; a schedule reaches both parts."""
    torch.manual_seed(0)
    model = Tagger()
    optimizer = optimizer_of(model)
    losses = train(model, optimizer, 30, seed=0)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    again = Tagger()
    again.load_state_dict(model.state_dict())
    resumed = optimizer_of(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, 5, seed=1) == train(again, resumed, 5, seed=1)

    scheduler = torch.optim.lr_scheduler.LambdaLR(resumed, lambda step: 0.0)
    before = copy.deepcopy(again.state_dict())
    train(again, resumed, 1, seed=2)
    scheduler.step()
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def test_weights_without_gradients_are_left_alone() -> None:
    """A layer that is unfrozen later has no state until then."""
    model = Tagger()
    optimizer = optimizer_of(model)
    before = model.layers[1][0].weight.detach().clone()
    model.layers[1].requires_grad_(False)
    train(model, optimizer, 2, seed=0)
    assert torch.equal(model.layers[1][0].weight, before)
    model.layers[1].requires_grad_(True)
    train(model, optimizer, 1, seed=0)
    assert not torch.equal(model.layers[1][0].weight, before)
