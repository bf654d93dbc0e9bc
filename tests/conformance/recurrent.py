"""What the LSTM skips of upstream's tests, run over upstream's own recurrent models.

    python tests/conformance/run.py --upstream CHECKOUT --scratch FOLDER -- -k CharLSTMTest
    python tests/conformance/recurrent.py --upstream CHECKOUT FOLDER/transformers-*

Prints for each of them how many of those tests it skips too and how many it runs, and those that all run.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from run import read

MODELS = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma")


class Only:
    """A plugin of pytest that leaves the tests of these names, in suites of models."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [i for i in items if i.name in self.names and i.parent.name.endswith("ModelTest")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tree", type=Path, help="what run.py left in its scratch folder")
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of transformers")
    options = parser.parse_args()
    upstream = options.upstream.resolve()
    os.chdir(options.tree)
    skipped = {n for n, (out, _) in read(Path("results.xml"))["CharLSTMTest"].items() if out == "skipped"}
    for model in MODELS:
        shutil.copytree(upstream / "tests/models" / model, f"tests/models/{model}", dirs_exist_ok=True)
    shutil.copy(upstream / "tests/causal_lm_tester.py", "tests")
    folders = [f"tests/models/{model}" for model in MODELS]
    pytest.main(["-q", "--tb=line", "--junitxml=recurrent.xml", *folders], plugins=[Only(skipped)])
    theirs = read(Path("recurrent.xml"))
    print(f"\n| of the {len(skipped)} tests that CharLSTMTest skips | skipped too | run |\n|---|---:|---:|")
    for suite, tests in sorted(theirs.items()):
        counts = Counter(outcome == "skipped" for outcome, _ in tests.values())
        print(f"| {suite} | {counts[True]} | {counts[False]} |")
    run_by = Counter(
        n for tests in theirs.values() for n, (outcome, _) in tests.items() if outcome != "skipped"
    )
    everywhere = sorted(name for name, times in run_by.items() if times == len(theirs))
    print("\nRun by all of them:", ", ".join(everywhere) or "none")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
