"""How long the command line lets a person wait: whole processes, from their start to their exit."""

from __future__ import annotations

from collections.abc import Iterator

from craft.benchmarks.harness import Comparison, Contender, Options
from craft.benchmarks.processes import process

PROTOCOL = """Seconds of a whole process, with a warm file cache. The baseline is `import torch`, the least
that a command line which imports torch can take; `python -c pass` is the least that any Python program can
take."""

TORCH = 'python -c "import torch"'
# name: (arguments of the interpreter, exit status)
COMMANDS: dict[str, tuple[list[str], int]] = {
    TORCH: (["-c", "import torch"], 0),
    'python -c "import transformers.training_args"': (["-c", "import transformers.training_args"], 0),
    "python -c pass": (["-c", "pass"], 0),
    'python -c "import craft"': (["-c", "import craft"], 0),
    "craft --help": (["-m", "craft", "--help"], 0),
    "craft train --print-config": (["-m", "craft", "train", "--print-config"], 0),
    "craft train training.lerning_rate=1": (["-m", "craft", "train", "training.lerning_rate=1"], 2),
}


def comparisons(options: Options) -> Iterator[Comparison]:
    names = [TORCH, "python -c pass", "craft --help"] if options.quick else list(COMMANDS)
    contenders = [Contender(name, process(*COMMANDS[name])) for name in names]
    yield Comparison("time to answer", "s", contenders, TORCH)
