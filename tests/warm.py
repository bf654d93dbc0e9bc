"""Programs that start with their imports behind them: each runs in a fork of a process that waits.

Everything is as in a process of its own, but for the seconds that torch takes to be imported. What is read
while it is imported (`OMP_NUM_THREADS`, `HF_ENDPOINT`) is that of the process that waits.

As a program: a line of JSON on the standard input asks for a run (`arguments` of Python, `cwd`, `env` to
change), a line of JSON answers (`status`, `out`, `err`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

LIBRARIES = [
    *(
        "torch",
        "transformers.trainer",
        "transformers.integrations.integration_utils",
        "transformers.generation",
    ),
    *("transformers.models.auto.modeling_auto", "datasets", "hydra.compose"),
]
"""What commands import, without craft."""
CRAFT = ["craft.train", "craft.config.compose", "craft.models", "craft.training.base", "craft.views.png"]


class Warm:
    """A process that waits to become one program after the other.

    Args:
        modules: what it imports at once.
        environment: its variables, beside those that craft sets before it imports.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        from craft.cli.main import ENVIRONMENT

        environment = {**ENVIRONMENT, **environment}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__, *modules], env=environment, **pipes)

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.communicate()

    def python(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What `python ARGUMENTS` gives: `-m module …`, `-c code …` or `file.py …`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"arguments": arguments, "cwd": str(cwd), "env": dict(env or {})}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, answer["status"], answer["out"], answer["err"])


def _run(arguments: list[str]) -> None:
    first, *rest = arguments
    folder = str(Path(first).resolve().parent) if first.endswith(".py") else os.getcwd()
    sys.path[:0] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(rest[0], vars(main))
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")


def _fork(arguments: list[str], cwd: str, env: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(cwd)
                os.environ.update(env)
                _run(arguments)
                status = 0
            except SystemExit as done:
                status = done.code if isinstance(done.code, int) else int(done.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(ended),
            "out": out.read().decode(),
            "err": err.read().decode(),
        }


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of the tests
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    for name in sys.argv[1:]:
        importlib.import_module(name)
    sys.stdout.flush()  # what they printed, or each fork would print it, too
    gc.freeze()  # what is here already is none of a program's garbage
    for line in sys.stdin:
        answer = _fork(**json.loads(line))
        print(json.dumps(answer), file=answers, flush=True)
