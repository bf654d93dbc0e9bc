"""Two hosts on one machine: network namespaces with an address and a name each, and a cable between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parent.parent.parent / "accelerate_config.yaml"


@dataclass
class Hosts:
    """Hosts 0 and 1; what they start runs in `folder`, their shared disk."""

    folder: Path
    names: tuple[str, str]
    addresses: tuple[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, host: int, *command: str, output: str, **env: str) -> subprocess.Popen[str]:
        """Starts a command there, with `output`.out and `output`.err for what it says."""
        enter = ["ip", "netns", "exec", self.names[host], "unshare", "--uts", "sh", "-c"]
        named = 'hostname "$0" && exec "$@"'
        with (
            (self.folder / f"{output}.out").open("w") as out,
            (self.folder / f"{output}.err").open("w") as err,
        ):
            process = subprocess.Popen(
                [*enter, named, self.names[host], *command],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def launch(self, host: int, *words: str, output: str, c10d: bool = False) -> subprocess.Popen[str]:
        """`accelerate launch … -m craft.train WORDS` with one process on each host."""
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        launcher += [
            "--multi_gpu",
            "--num_machines",
            "2",
            "--num_processes",
            "2",
            "--machine_rank",
            str(host),
        ]
        launcher += ["--main_process_ip", self.addresses[0], "--main_process_port", "29500"]
        env = {}
        if c10d:
            launcher += ["--rdzv_backend", "c10d", "--max_restarts", "3"]
            env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return self.start(host, *launcher, "-m", "craft.train", *words, output=output, **env)

    def cable(self, state: str) -> None:
        """`down` cuts the hosts off from each other, `up` mends it."""
        subprocess.run(["ip", "-n", self.names[0], "link", "set", "eth0", state], check=True)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """The whole host: a launcher and all that it started, at once."""
        os.killpg(process.pid, signal.SIGKILL)
        for pid in pids(self.names[self.host_of(process)]):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    def host_of(self, process: subprocess.Popen[str]) -> int:
        return self.names.index(str(process.args[3]))  # type: ignore[index]

    def workers(self, host: int) -> list[int]:
        """The processes there that train, without their launcher."""
        return [pid for pid in pids(self.names[host]) if "RANK" in environment(pid)]


def pids(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Makes them, or skips the test and says what is missing; afterwards nothing of them is left."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("two hosts need iproute2 and unshare (apt-get install iproute2)")
    if os.geteuid() != 0:
        pytest.skip("two hosts need root, to make network namespaces")
    number = os.getpid() % 200 + 20
    names = (f"craft{os.getpid()}a", f"craft{os.getpid()}b")
    hosts = Hosts(folder, names, (f"10.{number}.7.1", f"10.{number}.7.2"))
    table = "".join(f"{a} {n}\n" for a, n in zip(hosts.addresses, names))
    try:
        for name in names:
            _ip("netns", "add", name)
            etc = Path("/etc/netns") / name
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{table}")
        _ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, hosts.addresses):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for name in names:
            for pid in pids(name) if Path(f"/run/netns/{name}").exists() else []:
                os.kill(pid, signal.SIGKILL)
        for process in hosts.started:
            process.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no two hosts here: 'ip {' '.join(words)}' says {done.stderr.strip()!r}")
