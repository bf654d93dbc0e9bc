"""Several processes on one machine, as launchers start them: refused, failing, stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched import errors, free_port

SETTINGS = [
    *("a.txt", "models=transformer", "models.hidden_size=16", "models.num_attention_heads=2"),
    *("data.block_size=16", "training.precision=fp32", "training.report_to=none", "training.output_dir=run"),
    *("training.global_batch_size=4", "training.max_steps=100000", "training.logging_steps=5"),
    *("training.eval_strategy=no", "training.save_steps=10", "training.sample_chars=0"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = "".join(f"the quick brown fox {i} jumps over the lazy dog\n" for i in range(60))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_processes_for_gpus_on_a_machine_without_are_refused(folder: Path, checkout: Path) -> None:
    """They would each train by themselves, all into one folder, and end with status 0."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(checkout / "accelerate_config.yaml"), "--multi_gpu"]
    command = [*launcher, "--num_processes", "2", "-m", "craft.train", *SETTINGS]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "false"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert re.match(r"error: rank [01]: 2 processes .*ACCELERATE_USE_CPU=true", line)
    assert "exitcode  : 2" in done.stderr
    assert not (folder / "run").exists()


def test_a_mistake_is_said_once_and_by_the_process_that_made_it(folder: Path) -> None:
    elsewhere = folder / "elsewhere.py"
    elsewhere.write_text(
        "import os, sys\n"
        "if os.environ['RANK'] == '1': os.chdir('/')\n"
        "from craft.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    both = subprocess.run(
        [*TORCHRUN, str(elsewhere), "train", "training.lerning_rate=1"], capture_output=True, text=True
    )
    (line,) = errors(both.stderr)
    assert re.match(r"error: rank [01]: .*'training.lerning_rate'", line)
    one = subprocess.run([*TORCHRUN, str(elsewhere), "train", "a.txt"], capture_output=True, text=True)
    (line,) = errors(one.stderr)
    assert one.returncode == 1
    assert re.match("error: rank 1: .*'a.txt'", line)


def test_what_the_first_process_decided_is_said_by_it_alone(folder: Path) -> None:
    """The others end with it, and not before: their launcher would end it in the middle."""
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")
    both = subprocess.run(
        [*TORCHRUN, "-m", "craft.train", *SETTINGS],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    (line,) = errors(both.stderr)
    assert re.match("error: rank 0: run .*training.output_dir", line)
    assert "SIGTERM:" not in both.stderr
    assert "exitcode  : 2" in both.stderr


def test_a_stopped_process_is_named_instead_of_waited_for(folder: Path) -> None:
    port = free_port()
    workers = []
    for rank in range(2):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        with Path(f"{rank}.out").open("w") as out, Path(f"{rank}.err").open("w") as err:
            command = [sys.executable, "-m", "craft", "train", *SETTINGS, "training.ddp_timeout=4"]
            workers.append(subprocess.Popen(command, env=env, stdout=out, stderr=err))
    try:
        deadline = time.monotonic() + 200
        while not Path("0.out").read_text().count("\n") > 3:
            assert workers[0].poll() is None, Path("0.err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers[1].send_signal(signal.SIGSTOP)
        assert workers[0].wait(timeout=100) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    (line,) = errors(Path("0.err").read_text())
    seen = re.match(r"error: rank 0: rank 1 \(on \S+\) .* step ([\d,]+);", line)
    assert seen, line
    *_, last, failure = map(json.loads, Path("0.out").read_text().splitlines())
    last_logged = last["step"]
    assert failure["error"]["code"] == "peer-lost"
    assert last_logged <= int(seen[1].replace(",", "")) <= last_logged + 10
    assert "(training.ddp_timeout=4 s)" in line
    assert line.endswith("with: craft resume run")
    assert not Path("1.out").read_text()
