"""craft with its imports behind it: each command of the standard input runs in a fork of this process.

A line of JSON asks for one (`argv`, `cwd`, `env` to change), a line of JSON answers (`status`, `out`, `err`).
Everything runs as in a process of its own but for the seconds that torch takes to be imported.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import traceback
from typing import Any

from craft.cli.main import ENVIRONMENT, main

for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)


def prepare() -> None:
    """Imports what commands import."""
    import datasets  # noqa: F401
    import hydra.compose  # noqa: F401
    import torch  # noqa: F401
    import transformers.integrations.integration_utils  # noqa: F401
    from transformers import AutoModelForCausalLM, GenerationConfig, Trainer  # noqa: F401

    import craft.config.compose
    import craft.models
    import craft.train
    import craft.training.base
    import craft.views.png  # noqa: F401

    with contextlib.suppress(ImportError):  # of an extra
        import matplotlib.pyplot  # noqa: F401


def run(argv: list[str], cwd: str, env: dict[str, str]) -> dict[str, Any]:
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
                main(argv)
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
    prepare()
    gc.freeze()  # what is here already is none of a command's garbage
    for line in sys.stdin:
        answer = run(**json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
