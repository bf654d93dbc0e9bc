"""Upstream's own test suite over craft's models and tokenizers: `make conformance`.

The sdist of the installed transformers carries most of its `tests/`. It is downloaded into a scratch folder,
our thin test classes (`suites/`) are laid beside it as upstream lays its own, and pytest runs there, over
Llama too, so that one sees what an in-tree model skips. What the sdist leaves out (the mixins for generation
and export, the pipeline tests) is taken from a checkout of transformers if UPSTREAM names one; without it an
empty mixin stands in, and those tests are missing from the table. Nothing of upstream's is kept here.

    make conformance                               what the sdist has
    make conformance UPSTREAM=path/to/transformers everything (best at the tag of the installed version)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

STAND_INS = {
    "tests/__init__.py": "",
    "tests/models/__init__.py": "",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "tests/pipelines/__init__.py": "",
    "tests/fixtures/sample_text.txt": "A sample of a text.\nIt has three lines,\nand Zoë reads them.\n" * 20,
    "tests/distributed_testing_utils.py": (HERE / "distributed.py").read_text(encoding="utf-8"),
    "pytest.ini": "[pytest]\naddopts = -p no:cacheprovider\nfilterwarnings = ignore\n",
}
"""What the sdist may lack, in its simplest form; a checkout's own files come before these."""

FROM_A_CHECKOUT = ("generation", "exporters", "pipelines", "utils", "fixtures")


class Unavailable(Exception):
    """Upstream's tests can't be had here; the message says why."""


def download(scratch: Path, release: str) -> Path:
    """The unpacked sdist of that release of transformers, below `scratch`.

    Raises:
        Unavailable: the registry has no such file, or can't be reached.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(scratch), f"transformers=={release}"]
    done = subprocess.run(command, capture_output=True, text=True)
    files = sorted(scratch.glob("transformers-*.tar.gz"))
    if done.returncode or not files:
        reason = (done.stderr.strip().splitlines() or ["pip downloaded nothing"])[-1]
        raise Unavailable(f"the source of transformers {release} can't be downloaded: {reason}")
    with tarfile.open(files[0]) as archive:
        # The first releases of Python 3.10 and 3.11 have no filter; Debian 12 ships one.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(scratch, **safely)
    return files[0].with_name(files[0].name.removesuffix(".tar.gz"))


def lay_out(tree: Path, upstream: Path | None) -> None:
    """Completes the sdist at `tree`: a checkout's files, the stand-ins, our suites, tiny models."""
    if upstream is not None:
        for folder in (*(f"tests/{name}" for name in FROM_A_CHECKOUT), "utils"):
            for file in sorted((upstream / folder).rglob("*")):
                place = tree / file.relative_to(upstream)
                if file.is_file() and not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, place)
    for name, text in STAND_INS.items():
        place = tree / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    shutil.copytree(HERE / "suites", tree / "tests/models/craft")
    (tree / "tests/models/craft/__init__.py").touch()
    make_tiny_models(tree / "tiny", any((tree / "tests/pipelines").glob("test_*.py")))


def make_tiny_models(folder: Path, any_at_all: bool) -> None:
    """A saved model of each class with its tokenizer, where the pipeline tests look for them.

    They skip a class without one, as they must where the sdist has left them out but for their mixin.
    """
    import craft.models as models
    from craft.data.tokenization import CharTokenizer

    tokenizer = CharTokenizer.train([bytes(range(32, 127)).decode()], unknown="unk")
    summary = {}
    lstm = ("CharLSTMModel", "CharLSTMForCausalLM")
    heads = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
    for name in (*lstm, *(f"Transformer{ending}" for ending in heads)) if any_at_all else ():
        maker = getattr(models, name)
        fields = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
        fields |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        place = folder / maker.config_class.model_type / name
        maker(maker.config_class(**fields)).save_pretrained(place)
        tokenizer.save_pretrained(place)
        summary[name] = {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}
    (folder / "reports").mkdir(parents=True)
    (folder / "reports/tiny_model_summary.json").write_text(json.dumps(summary), encoding="utf-8")


def run_pytest(tree: Path, arguments: list[str]) -> tuple[Path, int]:
    """Runs the suites in their tree; the file of results, and pytest's verdict (0: all that ran passed)."""
    results = tree / "results.xml"
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "TRANSFORMERS_TINY_MODEL_PATH": str(tree / "tiny"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--timeout=900", f"--junitxml={results}"]
    threads = {"OMP_NUM_THREADS": "1"}  # tiny models in several processes: more threads only get in the way
    done = subprocess.run(
        [*command, "tests/models/craft", *arguments], cwd=tree, env={**threads, **os.environ, **environment}
    )
    return results, done.returncode


def read(results: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Suite -> test -> (passed, failed or skipped; why); empty if pytest left no results."""
    suites: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    if not results.is_file():
        return suites
    for case in ElementTree.parse(results).iter("testcase"):
        outcome, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, why = "failed", child.get("message", "").partition("\n")[0]
            elif child.tag == "skipped" and outcome == "passed":
                outcome, why = "skipped", child.get("message", "")
        before = suites[case.get("classname", "").rpartition(".")[2]].get(case.get("name", ""), ("", ""))[0]
        if before != "failed":  # a test of many parts is listed once for each part that failed
            suites[case.get("classname", "").rpartition(".")[2]][case.get("name", "")] = (outcome, why)
    return suites


def report(suites: dict[str, dict[str, tuple[str, str]]]) -> str:
    """Markdown: counts of every suite; its failures; what it skips and Llama doesn't, and what all skip."""
    lines = ["| suite | passed | failed | skipped | of these not by Llama |", "|---|---:|---:|---:|---:|"]
    llama = suites.get("LlamaTest", {})
    details = []
    for suite, tests in sorted(suites.items()):
        counts = Counter(outcome for outcome, _ in tests.values())
        own: dict[str, list[str]] = defaultdict(list)
        for name, (outcome, why) in sorted(tests.items()):
            if outcome == "failed":
                details.append(f"- {suite}: **{name} failed**: {why}")
            elif outcome == "skipped" and llama.get(name, ("absent",))[0] != "skipped":
                own[why].append(name)
        compared = set(tests) & set(llama)  # tokenizers have nothing to do with Llama's tests
        alone = str(sum(map(len, own.values()))) if compared else "-"
        lines.append(f"| {suite} | {counts['passed']} | {counts['failed']} | {counts['skipped']} | {alone} |")
        for why, names in sorted(own.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            details.append(f"- {suite}, {len(names)}: {why} ({shown})")
    common = Counter(shorten(why) for outcome, why in llama.values() if outcome == "skipped")
    lines += ["", "Failures, and what a suite skips although Llama does not:", "", *(details or ["none"])]
    lines += ["", "What Llama skips too:", "", *(f"- {count}: {why}" for why, count in common.most_common())]
    return "\n".join(lines) + "\n"


def shorten(reason: str) -> str:
    """A reason without the names of one test."""
    if "is not in `self.pipeline_model_mapping`" in reason:
        return "a pipeline for another kind of model"
    return re.sub(r"^\w+::\w+ is skipped: ", "", reason)


def verdict(suites: dict[str, dict[str, tuple[str, str]]], code: int) -> str:
    """Why a run proves nothing or too little, in a few words; empty if all went well."""
    outcomes = Counter(outcome for tests in suites.values() for outcome, _ in tests.values())
    if not outcomes["passed"] + outcomes["failed"]:
        return f"no test ran (pytest ended with {code})"
    if outcomes["failed"]:
        return f"{outcomes['failed']} failed"
    return f"pytest ended with {code}, so not everything was collected and run" if code else ""


def heading(release: str, upstream: Path | None) -> str:
    """What was run on what."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True
    )
    parts = [f"transformers {release}, torch {version('torch')}, tokenizers {version('tokenizers')}"]
    parts += [f"Python {platform.python_version()}, commit {commit.stdout.strip() or 'unknown'}"]
    parts += ["generation, export and pipeline tests from a checkout" if upstream else "sdist alone"]
    return "; ".join(parts) + ".\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upstream", type=Path, help="a checkout of transformers, for what the sdist lacks")
    parser.add_argument("--scratch", type=Path, help="where to work; by default a folder that goes away")
    parser.add_argument("--results", type=Path, help="read these results instead of running anything")
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --")
    options = parser.parse_args()
    release = version("transformers")
    if options.results is not None:
        print(heading(release, options.upstream), report(read(options.results)), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = options.scratch or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            tree = download(scratch, release)
        except Unavailable as error:
            print(f"nothing was tested: {error}")
            return 1
        lay_out(tree, options.upstream)
        results, code = run_pytest(tree, options.pytest)
        suites = read(results)
    print(heading(release, options.upstream), report(suites), sep="\n")
    if wrong := verdict(suites, code):
        print(f"not passed: {wrong}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
