"""What `make conformance` does around upstream's tests: downloading, laying out, counting."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_run", Path(__file__).with_name("run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_network_it_says_so_and_fails(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    assert capsys.readouterr().out.startswith(
        f"nothing was tested: the source of transformers {run.version('transformers')} "
    )


@pytest.mark.parametrize("filters", [True, False], ids=["a Python with filters", "an early 3.11"])
def test_the_source_is_unpacked_by_any_python(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: bool
) -> None:
    def pip(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "transformers-1").mkdir()
        (tmp_path / "transformers-1/setup.py").touch()
        with tarfile.open(tmp_path / "transformers-1.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "transformers-1", "transformers-1")
        shutil.rmtree(tmp_path / "transformers-1")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(run.subprocess, "run", pip)
    if not filters:
        extractall = tarfile.TarFile.extractall

        def early(self: tarfile.TarFile, path: Path) -> None:
            extractall(self, path)

        monkeypatch.setattr(tarfile.TarFile, "extractall", early)
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    assert (run.download(tmp_path, "1") / "setup.py").is_file()


def test_a_tree_is_completed_and_never_overwritten(run: ModuleType, tmp_path: Path) -> None:
    tree, checkout = tmp_path / "tree", tmp_path / "checkout"
    for place, text in (
        (tree / "tests/utils/here.py", "sdist"),
        (checkout / "tests/utils/here.py", "checkout"),
        (checkout / "tests/generation/test_utils.py", "checkout"),
        (checkout / "tests/pipelines/test_pipelines_text_generation.py", "checkout"),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    run.lay_out(tree, checkout)
    assert (tree / "tests/utils/here.py").read_text() == "sdist"
    assert (tree / "tests/generation/test_utils.py").read_text() == "checkout"
    assert "class ExportTesterMixin" in (tree / "tests/exporters/test_export.py").read_text()
    assert (tree / "tests/models/craft/test_char_lstm.py").is_file()
    assert (tree / "tiny/char_lstm/CharLSTMForCausalLM/tokenizer.json").is_file()


def test_without_the_tests_of_pipelines_they_are_skipped_for_want_of_models(
    run: ModuleType, tmp_path: Path
) -> None:
    run.lay_out(tmp_path, None)
    assert (tmp_path / "tiny/reports/tiny_model_summary.json").read_text() == "{}"
    assert not list((tmp_path / "tiny").rglob("*.safetensors"))


def test_results_are_counted_beside_llamas(run: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "results.xml"
    cases = [
        ("LlamaTest", "test_a", ""),
        ("LlamaTest", "test_b", '<skipped message="test is slow"/>'),
        ("LlamaTest", "test_c", ""),
        ("OurTest", "test_a", '<failure message="AssertionError: 1 != 2&#10;more"/>'),
        ("OurTest", "test_a", ""),  # another part of the same test
        ("OurTest", "test_b", '<skipped message="test is slow"/>'),
        ("OurTest", "test_c", '<skipped message="no attention"/>'),
    ]
    rows = "".join(f'<testcase classname="t.{s}" name="{n}">{inside}</testcase>' for s, n, inside in cases)
    file.write_text(f"<testsuites><testsuite>{rows}</testsuite></testsuites>")
    text = run.report(run.read(file))
    assert "| OurTest | 0 | 1 | 2 | 1 |" in text
    assert "- OurTest: **test_a failed**: AssertionError: 1 != 2\n" in text
    assert "- OurTest, 1: no attention (test_c)" in text
    assert "- 1: test is slow" in text


@pytest.mark.parametrize(
    ("suite", "arguments", "said"),
    [
        ("def test_a(): pass", [], ""),
        ("def test_a(): pass", ["-k", "nothing"], "no test ran (pytest ended with 5)"),
        ("x = 1", [], "no test ran (pytest ended with 5)"),
        ("def test_a(): pass", ["--no-such-option"], "no test ran (pytest ended with 4)"),
        ("import pytest\ndef test_a(): pytest.skip('why')", [], "no test ran (pytest ended with 0)"),
        ("def test_a(): assert False", [], "1 failed"),
        ("import not_there", [], "1 failed"),
        (
            "import pytest\ndef test_a(): pass\ndef test_b(): pytest.exit('enough', 3)",
            [],
            "pytest ended with 3",
        ),
    ],
)
def test_a_run_that_proves_nothing_fails(
    run: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suite: str,
    arguments: list[str],
    said: str,
) -> None:
    def lay_out(tree: Path, upstream: Path | None) -> None:
        place = tree / "tests/models/craft/test_suite.py"
        place.parent.mkdir(parents=True)
        place.write_text(suite)

    monkeypatch.setattr(run, "download", lambda scratch, release: tmp_path)
    monkeypatch.setattr(run, "lay_out", lay_out)
    monkeypatch.setattr(sys, "argv", ["run.py", "--", *arguments])
    assert run.main() == int(bool(said))
    last = capsys.readouterr().out.splitlines()[-1]
    assert said in last if said else "not passed" not in last
