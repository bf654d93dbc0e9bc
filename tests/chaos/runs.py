"""Real `craft` commands in processes that can be killed at any moment, and what must be equal at their end.

The commands are forked from a server that has torch and craft imported: a process costs a tenth of a second
instead of several, so a campaign is made of runs and not of imports.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
processes = multiprocessing.get_context("forkserver")

STEPS = 24
TEXT = "".join(f"{n} green bottles hanging on the wall, if one fell: {n * n % 97}.\n" for n in range(60))
TINY = [
    "text.txt",
    "models.hidden_size=16",
    "models.num_hidden_layers=2",
    "models.dropout=0.1",
    "data.block_size=16",
    "training.precision=fp32",
    "training.use_cpu=true",
    "training.global_batch_size=16",
    "training.gradient_accumulation_steps=2",
    f"training.max_steps={STEPS}",
    "training.logging_steps=1",
    "training.eval_steps=8",
    "training.save_steps=3",
    "training.load_best_model_at_end=false",
    "training.report_to=none",
    "training.sample_chars=0",
    "training.output_dir=run",
]
HEADS = ["models=transformer", "models.num_attention_heads=2"]


@dataclass(frozen=True)
class Case:
    """A run to torment: its settings beside `TINY`, and its number of processes."""

    name: str
    settings: Sequence[str]
    world: int = 1


CASES = [
    Case("lstm-adamw", ["models=char_lstm", "training.optim=adamw_torch_fused"]),
    Case("lstm-muon-ema-2", ["models=char_lstm", "training.ema_decay=0.9"], world=2),
    Case("transformer-muon-ema", [*HEADS, "training.ema_decay=0.9"]),
    Case("transformer-adamw-2", [*HEADS, "training.optim=adamw_torch_fused"], world=2),
]


def prepare() -> None:
    """Starts the server that all commands are forked from."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS / "chaos"), str(TESTS.parent)])
    processes.set_forkserver_preload(["worker"])
    forkserver.ensure_running()


@dataclass
class Running:
    """The processes of one command; rank r says what it has to say in `said/r.err` and `said/r.out`."""

    ranks: list[Any]
    said: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout: float = 180) -> list[int | None]:
        """Exit codes, minus the number of a signal; None for one that hangs, which is then killed."""
        until = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(max(0.0, until - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        self.kill()
        return codes

    def kill(self, which: Sequence[int] | None = None) -> None:
        """SIGKILL to all ranks, or to some."""
        for rank in range(len(self.ranks)) if which is None else which:
            self.ranks[rank].kill()
        if which is None:
            for process in self.ranks:
                process.join()

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.ranks[rank].pid, number)

    def until(self, happened: Callable[[], bool], timeout: float = 60) -> bool:
        """Waits for something; False if the command ended, or nothing happened, before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and any(rank.is_alive() for rank in self.ranks):
            if happened():
                return True
            time.sleep(0.002)
        return happened()

    def err(self, rank: int = 0) -> str:
        return self._read(f"{rank}.err")

    def out(self, rank: int = 0) -> str:
        return self._read(f"{rank}.out")

    def _read(self, name: str) -> str:
        path = self.said / name  # there once the process has begun
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def start(words: Sequence[str], folder: Path, world: int = 1, **environment: str) -> Running:
    """Starts `craft WORDS` in `folder`, in as many processes as `accelerate launch` would start."""
    import worker

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    said = folder / ".said"
    shutil.rmtree(said, ignore_errors=True)
    said.mkdir(parents=True)
    ranks = []
    for rank in range(world):
        variables = {"CRAFT_CACHE": str(folder.parent / ".cache"), **environment}
        if world > 1:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            variables |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables |= {"ACCELERATE_USE_CPU": "true"}
        say = str(said / str(rank))
        keywords = {"words": list(words), "folder": str(folder), "variables": variables, "say": say}
        ranks.append(processes.Process(target=worker.command, kwargs=keywords))
        ranks[-1].start()
    return Running(ranks, said)


def craft(words: Sequence[str], folder: Path, world: int = 1, **environment: str) -> Running:
    """The same, to its end; see `Running.wait` for how it ended."""
    running = start(words, folder, world, **environment)
    running.wait()
    return running


def train_words(case: Case) -> list[str]:
    return ["train", *TINY, *case.settings]


def fresh(folder: Path) -> Path:
    """A new folder with the text in it."""
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def whole(case: Case, folder: Path) -> dict[str, str]:
    """The sums of a run to which nothing happens."""
    done = start(train_words(case), fresh(folder), case.world)
    codes = done.wait()
    assert codes == [0] * case.world, [done.err(rank) for rank in range(case.world)]
    return sums(folder)


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of all that a run ends with: the finished model's weights, and in the last checkpoint weights,
    averages, optimizer, generators, carried states, running sums."""
    model = folder / f"run_step_{STEPS}" / "model.safetensors"
    checkpoint = folder / "run" / f"checkpoint-{STEPS}"
    found = {"finished model": sha256(model)}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = sha256(path)
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
    for name, entry in manifest.items():
        assert entry["sha256"] == sha256(checkpoint / name), f"{name} isn't what the manifest says"
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resume_to_end(case: Case, folder: Path) -> Running:
    done = start(["resume", "run"], folder, case.world)
    codes = done.wait()
    assert codes == [0] * case.world, [done.err(rank) for rank in range(case.world)]
    return done


def seeded(*parts: object) -> random.Random:
    """A generator that the same parts make again."""
    return random.Random(" ".join(map(str, parts)))


def tell(text: str) -> None:
    """A line that is seen even if the test passes."""
    print(text, file=sys.__stderr__, flush=True)
