from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused
from torch import nn
from transformers.trainer_utils import SchedulerType

from craft.training import muon
from craft.training.muon import NEWTON_SCHULZ, MuonAdamW, _direction_dtype, orthogonalized
from craft.training.optimization import (
    POLAR_EXPRESS,
    STEPS_PER_DIRECTION,
    decay_parameter_names,
    muon_groups,
    muon_optimizer,
)
from craft.training.precision import Hardware

SETTINGS = SimpleNamespace(
    learning_rate=1e-2,
    muon_learning_rate=2e-2,
    muon_momentum=0.95,
    weight_decay=0.1,
    adam_beta1=0.8,
    adam_beta2=0.95,
    adam_epsilon=1e-8,
    precision="bf16",
)


JORDAN: dict[str, Any] = {"polynomials": NEWTON_SCHULZ, "steps_per_direction": 1}
"""Muon as it was published, and as torch has it."""


class Small(nn.Module):
    """Two equal matrices, a tall and a wide one, an embedding, a norm and a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 16)
        self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.up, self.down = nn.Linear(16, 64, bias=True), nn.Linear(64, 16, bias=False)
        self.norm = nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids))
        return self.down(torch.tanh(self.up(self.two(torch.tanh(self.one(x))))))


def steps(model: nn.Module, *optimizers: torch.optim.Optimizer, first: int = 0, last: int = 5) -> None:
    for seed in range(first, last):
        ids = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(seed))
        model.zero_grad()
        model(ids).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def is_matrix(name: str) -> int:
    return int(name.split(".")[0] in ("one", "two", "up", "down"))


@pytest.mark.precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_and_adamw_in_one_equal_those_of_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batching matrices of one shape, and having both methods in one optimizer, changes nothing.

    Torch turns in bfloat16 everywhere, ours only where that is native, so both are given one format. Then
    they may differ by the rounding of each step, which moves a weight by up to twice the rate (tall ones).
    """
    monkeypatch.setattr("craft.training.muon._direction_dtype", lambda device: dtype)
    if dtype == torch.float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    rounding = 5 * 2 * SETTINGS.muon_learning_rate * torch.finfo(dtype).eps
    ours, theirs = Small(), Small()
    groups = muon_groups(ours, is_matrix, SETTINGS)
    steps(
        ours,
        MuonAdamW([group | JORDAN for group in groups]),
    )
    matrices = [p for n, p in theirs.named_parameters() if p.ndim == 2 and is_matrix(n)]
    others = [p for n, p in theirs.named_parameters() if not (p.ndim == 2 and is_matrix(n))]
    muon = torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.1, momentum=0.95)
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    steps(theirs, muon, adamw)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(a, b, rtol=1e-6, atol=rounding if is_matrix(name) else 1e-4), name
        assert not torch.equal(a, Small().get_parameter(name)), name


@pytest.mark.precision
def test_stacked_matrices_are_orthogonalized_one_by_one() -> None:
    torch.manual_seed(0)
    gates = nn.Parameter(torch.zeros(4 * 8, 8))
    gates.grad = torch.randn(32, 8)
    group = {"params": [gates], "blocks": 4, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    MuonAdamW([group]).step()
    for gate, gradient in zip(gates.detach().split(8), gates.grad.split(8)):
        alone = orthogonalized(gradient[None], NEWTON_SCHULZ)[0]
        assert torch.allclose(-gate, alone.float(), atol=1e-6)
        # Newton-Schulz brings every singular value near 1, and turns nothing.
        u, _, v = torch.linalg.svd(gradient)
        assert torch.linalg.matrix_norm(-gate - u @ v, 2) < 0.45


@pytest.mark.precision
@pytest.mark.parametrize("polynomials", [NEWTON_SCHULZ, POLAR_EXPRESS])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 32, 8), (2, 8, 32)])
def test_orthogonalized_singular_values(
    shape: tuple[int, int, int], polynomials: tuple[tuple[float, float, float], ...]
) -> None:
    matrices = torch.randn(shape, generator=torch.manual_seed(3))
    values = torch.linalg.svdvals(orthogonalized(matrices, polynomials).float())
    assert values.min() > 0.5
    assert values.max() < (1.4 if _direction_dtype("cpu") is torch.bfloat16 else 1.3)


@pytest.mark.precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_singular_value_that_outweighs_all_others_does_not_explode(
    noise: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded, its matrix may be longer than the norm that it was divided by."""
    monkeypatch.setattr("craft.training.muon._direction_dtype", lambda device: dtype)
    torch.manual_seed(4)
    matrices = torch.randn(200, 24, 1) @ torch.randn(200, 1, 16) + noise * torch.randn(200, 24, 16)
    largest = torch.linalg.matrix_norm(orthogonalized(matrices, POLAR_EXPRESS).float(), 2)
    assert largest.max() < 1.35


def test_directions_are_kept_and_the_matrices_take_turns() -> None:
    model = Small()
    groups = muon_groups(model, is_matrix, SETTINGS)
    optimizer = MuonAdamW(groups)
    matrices = [p for group in groups if group["blocks"] for p in group["params"]]
    before: list[torch.Tensor] = []
    turned = []
    for step in range(1 + 2 * STEPS_PER_DIRECTION):
        steps(model, optimizer, first=step, last=step + 1)
        now = [optimizer.state[p]["direction"].clone() for p in matrices]
        turned.append([not torch.equal(a, b) for a, b in zip(before, now)] if before else [True] * len(now))
        before = now
    assert all(turned[0])
    for number in range(len(matrices)):
        assert sum(step[number] for step in turned[1:]) == 2
    for step in turned[1:]:  # about equally many a step
        assert sum(step) == len(matrices) / STEPS_PER_DIRECTION


def assert_goes_on_bitwise(settings: dict[str, Any], forget: Callable[[dict[str, Any]], None]) -> None:
    """Three steps, a state that is saved and changed by `forget`, two steps: with a new optimizer as without.

    Args:
        settings: of Muon's groups in the optimizer that begins.
    """
    model = Small()
    optimizer = MuonAdamW([group | settings for group in muon_groups(model, is_matrix, SETTINGS)])
    steps(model, optimizer, last=3)
    weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    steps(model, optimizer, first=3)
    forget(saved)
    again = Small()
    again.load_state_dict(weights)
    resumed = MuonAdamW(muon_groups(again, is_matrix, SETTINGS))
    resumed.load_state_dict(saved)
    steps(again, resumed, first=3)
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_state_dict_round_trip_is_bitwise() -> None:
    assert_goes_on_bitwise({}, lambda saved: None)


def test_a_state_from_before_directions_were_kept_goes_on_as_it_began() -> None:
    def forget(saved: dict[str, Any]) -> None:
        for group in saved["param_groups"]:
            for name in JORDAN:
                del group[name]
        for state in saved["state"].values():
            for name in ("direction", "steps_since_update"):
                state.pop(name, None)

    assert_goes_on_bitwise(JORDAN, forget)


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_every_weight_of_a_model_is_in_one_group(kind: str) -> None:
    model = tiny_run.model(kind)
    groups = muon_groups(model, model.muon_blocks, SETTINGS)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert groups[0]["lr"] == SETTINGS.learning_rate  # the first group's rate is what is logged
    blocks = {group["blocks"] for group in groups}
    assert blocks == ({0, 4} if kind == "char_lstm" else {0, 1})
    embedding = model.get_input_embeddings().weight
    assert any(
        p is embedding for g in groups if not g["blocks"] and not g["weight_decay"] for p in g["params"]
    )


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    assert decay_parameter_names(Small()) == ["one.weight", "two.weight", "up.weight", "down.weight"]


def test_a_gradient_scaler_and_a_schedule_accept_it() -> None:
    model = Small()
    optimizer = MuonAdamW(muon_groups(model, is_matrix, SETTINGS))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.clone() for p in model.parameters()]
    scaler.scale(model(torch.zeros(1, 2, dtype=torch.long)).mean() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))  # the overflow was skipped
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("schedule", [name.value for name in SchedulerType])
def test_every_schedule_works_without_extras(tmp_path: Path, schedule: str) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path, lr_scheduler_type=schedule, optim="muon")
    trainer.create_optimizer_and_scheduler(100)
    rates = []
    for _ in range(100):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        if schedule in ("reduce_lr_on_plateau", "greedy"):
            trainer.lr_scheduler.step(1.0)
        else:
            trainer.lr_scheduler.step()
    assert max(rates) <= 1e-2 * 1.3
    if schedule == "warmup_stable_decay":
        assert rates[79] == pytest.approx(1e-2)
        assert rates[95] < 4e-3


def test_muon_needs_a_model_that_names_its_matrices(tmp_path: Path) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path, optim="muon")
    trainer.model = Small()
    with refused("model-mismatch", "training.optim=muon", "Small"):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    ("hardware", "dtype"),
    [
        (Hardware("cuda", (8, 0)), torch.bfloat16),
        (Hardware("cuda", (7, 5)), torch.float32),
        (Hardware("cpu", native_bf16=True), torch.bfloat16),
        (Hardware("cpu"), torch.float32),
        (Hardware("mps"), torch.float32),
    ],
)
def test_directions_are_in_bfloat16_where_it_is_native(
    hardware: Hardware, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hardware, "detect", classmethod(lambda cls, use_cpu: hardware))
    assert _direction_dtype.__wrapped__(hardware.device) is dtype


@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("bf16", False)])
def test_muon_turns_exactly_where_float32_was_asked_for(precision: str, exact: bool, tmp_path: Path) -> None:
    """Otherwise one process and two would differ by more than rounding."""
    model = tiny_run.model("char_transformer")
    args = tiny_run.arguments(tmp_path, precision=precision, optim="muon")
    groups = muon_optimizer(model, args).param_groups
    assert [group["exact"] for group in groups if group["blocks"]] == [exact]


def shared_out(rank: int, processes: int, folder: Path) -> None:
    """Three steps of four square matrices, a stack of two and a wide one, as one of several processes."""
    torch.set_num_threads(1)
    if processes > 1:
        store = torch.distributed.FileStore(str(folder / "store"), processes)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    found: list[int] = []
    real = muon.orthogonalized
    muon.orthogonalized = lambda stack, *rest: found.append(len(stack)) or real(stack, *rest)
    torch.manual_seed(0)
    shapes = [(6, 6)] * 4 + [(12, 6), (6, 24)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    groups = [{"params": weights[:4] + weights[5:], "blocks": 1}, {"params": [weights[4]], "blocks": 2}]
    optimizer = MuonAdamW([{**group, "lr": 0.1, "exact": True} for group in groups], processes)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
    torch.save((found, [weight.detach() for weight in weights]), folder / f"{processes}-{rank}.pt")
    if processes > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_directions_out(processes: int, tmp_path: Path) -> None:
    """All have the weights of one that finds them alone, also where their number leaves a remainder."""
    torch.multiprocessing.spawn(shared_out, (processes, tmp_path), nprocs=processes)
    torch.multiprocessing.spawn(shared_out, (1, tmp_path), nprocs=1)
    found, alone = torch.load(tmp_path / "1-0.pt")
    assert found == [4, 1, 2] * 3
    for rank in range(processes):
        found, weights = torch.load(tmp_path / f"{processes}-{rank}.pt")
        assert found == [2, 1, 1] * 3
        for one, other in zip(weights, alone):
            assert torch.allclose(one, other, atol=1e-6)
        first = torch.load(tmp_path / f"{processes}-0.pt")[1]
        assert all(torch.equal(one, other) for one, other in zip(weights, first))


def test_a_copy_steps_as_one_process() -> None:
    model = Small()
    optimizer = copy.deepcopy(MuonAdamW(muon_groups(model, is_matrix, SETTINGS), processes=2))
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimizer.step()
