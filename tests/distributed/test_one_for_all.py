"""What one process does for all of them, or alone among them, and can't: all of them hear of it at once.

Two real processes, which stay alive behind every failure, so that nothing but a word of the one that had it
can end the other's wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import errors, free_port

from craft.utils.locks import run_lock

TESTS = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, sys
from pathlib import Path
import tiny_run
import torch
import torch.distributed as dist
from craft.training import sanity
from craft.training.callbacks import lifecycle, uploads
from craft.training.checkpointing import checkpointer
from craft.training.distributed import rendezvous
from craft.training.distributed.agreement import on_rank0_broadcast, raise_on_all_ranks
from craft.utils.errors import Failed, UserError

rank = int(sys.argv[1])
torch.set_num_threads(1)

class Own(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")

def fail(error, on=0):
    def raises(*args, **kwargs):
        if rank == on:
            raise error
    return raises

def trainer(name, **changes):
    settings = {"eval_strategy": "no", "max_steps": 8, "ddp_timeout": 30, "report_to": "none", **changes}
    return tiny_run.trainer("char_transformer", name, **settings)

def at_step(made, step, error, real, on=0):
    def raises(*args, **kwargs):
        if rank == on and made.state.global_step == step:
            raise error
        return real(*args, **kwargs)
    return raises

FULL = OSError(28, "No space left on device")
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

def first(): on_rank0_broadcast(fail(Own(1, 2)))
def second(): raise_on_all_ranks(fail(Own(1, 2), on=1))
def folder(): trainer("locked").train()
def repository():
    uploads.open_repo = fail(Failed("can't push to ada/x", code="network"))
    trainer("repository", push_to_hub=True, hub_model_id="ada/x")
def accepted():
    made = trainer("accepted")
    made.on_run_validated = fail(UserError("accepted can't be written", code="file-unwritable"))
    made.train()
def start():
    real, lifecycle.add_event = lifecycle.add_event, fail(FULL)
    try:
        trainer("start").train()
    finally:
        lifecycle.add_event = real
def saved(name, error, on):
    made = trainer(name)
    watch = made.watch
    watch.state_dict = at_step(made, 4, error, watch.state_dict, on)
    made.train()
def bug(): saved("bug", KeyError("a bug"), 0)
def memory(): saved("memory", MEMORY, 0)
def disk(*full):
    def raises(tree, path):
        if rank in full:
            raise OSError(28, f"No space left on device for {rank}")
        save_tree(tree, path)
    save_tree, checkpointer.save_tree = checkpointer.save_tree, raises
    try:
        trainer(f"disk{full}").train()
    finally:
        checkpointer.save_tree = save_tree
def disk_of_another(): disk(1)
def disk_of_both(): disk(0, 1)
def data(): # of the second process only
    real = sanity.check_data
    sanity.check_data = fail(UserError("the training text holds the id 99", code="data-invalid"), on=1)
    try:
        trainer("data")
    finally:
        sanity.check_data = real

rendezvous.start_heartbeat = lambda seconds: None  # they would tell of the first failure too
trainer("joins")
for case in json.loads(sys.argv[2]):
    try:
        globals()[case]()
        said = ["nothing", "", ""]
    except Exception as error:
        kind = getattr(error, "code", type(error).__name__)
        said = [kind, f"{error} {error.__cause__ or ''}", getattr(error, "printed_elsewhere", False)]
    print(json.dumps([case, *said]), flush=True)
    dist.barrier()
dist.destroy_process_group()
"""


def two(folder: Path, *command: str) -> list[subprocess.Popen[str]]:
    """Two processes that know of each other, without a launcher; RANK becomes their number."""
    path = os.pathsep.join([str(TESTS / "training"), str(TESTS.parent)])
    env = {**os.environ, "PYTHONPATH": path, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), ACCELERATE_USE_CPU="true")
    env.pop("TORCHELASTIC_ERROR_FILE", None)
    return [
        subprocess.Popen(
            [sys.executable, *(word.replace("RANK", str(rank)) for word in command)],
            cwd=folder,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


EXPECTED = {
    "first": (0, "Own", "peer-lost", "Own: 1 2"),
    "second": (1, "Own", "peer-lost", "Own: 1 2"),
    "folder": (0, "run-locked", "run-locked", "locked"),
    "repository": (0, "network", "network", "ada/x"),
    "accepted": (0, "file-unwritable", "file-unwritable", "accepted"),
    "start": (0, "disk-full", "disk-full", "history.jsonl"),
    "bug": (0, "KeyError", "peer-lost", "'a bug'"),
    "memory": (0, "out-of-memory", "peer-lost", "CUDA out of memory"),
    "disk_of_another": (1, "disk-full", "disk-full", "checkpoint-4"),
    "disk_of_both": (0, "disk-full", "disk-full", "checkpoint-4"),
    "data": (1, "data-invalid", "data-invalid", "99"),
}
"""Which process fails, by which code or class, the other one's, and a value in that."""


def test_all_processes_hear_of_what_one_of_them_met(tmp_path: Path) -> None:
    with run_lock(tmp_path / "locked"):
        both = two(tmp_path, "-c", PROGRAM, "RANK", json.dumps(list(EXPECTED)))
        output = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(err for _, err in output)
    found = [[json.loads(line) for line in out.splitlines() if line.startswith('["')] for out, _ in output]
    for (case, (rank, own, others, value)), *said in zip(EXPECTED.items(), *found):
        assert [line[0] for line in said] == [case, case]
        assert (own, others) == (said[rank][1], said[1 - rank][1]), said
        assert value in said[1 - rank][2], said
        assert (said[rank][3], said[1 - rank][3]) == (False, True), said
    assert not list((tmp_path / "bug").glob(".staging*"))
    saved = {path.parent.name for path in tmp_path.glob("*/checkpoint-*")}
    assert saved == set()


def test_a_run_that_one_process_refuses_is_refused_by_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both end as for a user's mistake; the second isn't left to find that the first is gone."""
    monkeypatch.setenv("CRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("".join(f"the quick brown fox {i} jumps over it\n" for i in range(60)))
    (tmp_path / "run").mkdir()
    words = ["a.txt", "models=transformer", "models.hidden_size=16", "models.num_attention_heads=2"]
    words += ["data.block_size=16", "training.report_to=none", "training.global_batch_size=4"]
    words += ["training.max_steps=5", "training.eval_strategy=no", "training.output_dir=run"]
    with run_lock(tmp_path / "run"):
        both = two(tmp_path, "-m", "craft", "train", *words)
        output = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], "\n".join(output)
    said = [errors(text) for text in output]
    assert [len(lines) for lines in said] == [1, 0]
    assert "rank 0: run " in said[0][0]
