from __future__ import annotations

import os

import pytest
from refusals import refused

from craft.utils import launch

TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch.COUNTS, *launch.RENDEZVOUS, "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "abc"}, ["WORLD_SIZE=abc"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE=0"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "MASTER_ADDR"]),
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0", "WORLD_SIZE"]),
        ({"RANK": "0"}, ["RANK=0", "WORLD_SIZE"]),
        ({**TWO, "RANK": "5"}, ["RANK=5", "WORLD_SIZE=2"]),
        ({**TWO, "MASTER_ADDR": ""}, ["WORLD_SIZE=2", "MASTER_ADDR"]),
        ({**TWO, "MASTER_PORT": "x"}, ["MASTER_PORT=x"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp61"}, ["ACCELERATE_MIXED_PRECISION=fp61", "fp16"]),
        ({"ACCELERATE_USE_CPU": "maybe"}, ["ACCELERATE_USE_CPU=maybe", "true"]),
        ({"TORCHELASTIC_MAX_RESTARTS": "-1"}, ["TORCHELASTIC_MAX_RESTARTS=-1"]),
    ],
    ids=str,
)
def test_variables_that_no_launcher_sets_are_refused(
    variables: dict[str, str], named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with refused("launch-invalid", *named):
        launch.check()


@pytest.mark.parametrize(
    "variables",
    [{}, TWO, {"WORLD_SIZE": "1"}, {"RANK": "", "LOCAL_RANK": ""}, {"RANK": "0", **TWO}],
    ids=str,
)
def test_variables_of_launchers_are_accepted(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launch.check()
    assert launch.world_size() == int(variables.get("WORLD_SIZE", 1))


def test_an_empty_variable_is_unset_unless_that_means_something(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "HF_HOME", "CRAFT_CACHE", "WANDB_MODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    launch.drop_empty()
    left = [name for name in ("WORLD_SIZE", "HF_HOME", "CRAFT_CACHE", "WANDB_MODE") if name in os.environ]
    assert left == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_truth_values_are_spelled_as_every_library_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "Yes")
    launch.check()
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
