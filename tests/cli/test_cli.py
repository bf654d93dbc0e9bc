"""The command line as its users meet it: what it prints and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
import pytest
import yaml

from craft.cli.main import COMMANDS, main
from craft.utils.errors import Code, TrainingFailed

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def craft(*words: str, cwd: Path | None = None, stdin: str | None = None, **env: str) -> Done:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "craft", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        timeout=120,
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("train", "--print-config")` in this process, which is faster, and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which `main` changes
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115

    def here(*words: str) -> Done:
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:
            main(words)
        return Done(words, end.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    return here


def refusal(done: Done) -> tuple[str | None, str]:
    """The one line of an error, and its code where standard output is for programs, which read the same."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    if not done.stdout:
        return None, line
    printed = json.loads(done.stdout)
    assert line == f"error: {printed['error']['message']}"
    assert printed.keys() == {"error"}
    return printed["error"]["code"], line


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_fits_the_terminal_and_shows_examples(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    done = run(*words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: craft")
    assert max(map(len, done.stdout.splitlines())) <= int(width)
    if words not in (("doctor",), ("benchmark",)):
        assert "craft train" in done.stdout or f"craft {words[0]}" in done.stdout


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from craft.cli.main import group; group(['--help'], standalone_mode=False);"
        "print([m for m in sys.modules if m.startswith('craft.cli.') and m != 'craft.cli.main'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)


def test_without_a_word_it_shows_the_help(run: Run) -> None:
    done = run()
    assert (done.returncode, done.stdout) == (0, run("--help").stdout)


def test_version(run: Run) -> None:
    from craft import __version__

    assert run("--version").stdout.strip() == f"craft, version {__version__}"


@pytest.mark.parametrize(
    ("code", "words", "values"),
    [
        ("usage", "trian", ["'trian'", "'train'", "craft --help"]),
        ("usage", "frobnicate", ["'frobnicate'", "craft --help"]),
        ("usage", "train --config", ["--config"]),
        ("usage", "generate --prompt", ["--prompt", "craft generate --help"]),
        ("usage", "train models.hidden_size = 64", ["KEY=VALUE"]),
        ("usage", "train --allow-changes", ["craft resume RUN_DIR --allow-changes"]),
        ("usage", "resume a b", ["a, b"]),
        ("usage", "resume a --revision v1", ["--revision v1"]),
        ("usage", "generate latest --temperature hot", ["'hot'"]),
        ("usage", "generate latest --num-samples 99999999", ["99999999", "10000"]),
        ("usage", "generate latest --prompt a --prompt-file b", ["--prompt", "--prompt-file"]),
        ("usage", "evaluate latest --json --split validtion", ["'validtion'"]),
        ("setting-unknown", "evaluate latest --json --splt all", ["'--splt'", "--split"]),
        ("setting-unknown", "doctor --fast", ["'--fast'", "craft doctor --help"]),
        ("setting-unknown", "train --print-confg", ["--print-config"]),
        ("setting-unknown", "train --max_steps 5", ["KEY=VALUE", "'training.max_steps'"]),
        ("setting-unknown", "train --max-iters=5", ["KEY=VALUE", "'training.max_steps'"]),
        ("setting-unknown", "train --training.max_steps=5", ["KEY=VALUE", "'training.max_steps'"]),
        ("setting-unknown", "train --text my.txt", ["KEY=VALUE", "'data.path'"]),
        ("setting-unknown", "train --lr 1", ["KEY=VALUE", "'training.learning_rate'"]),
        ("setting-unknown", "train --lerning-rate 1", ["KEY=VALUE", "'training.learning_rate'"]),
        ("setting-unknown", "train --foo", ["KEY=VALUE", "models, data, training, experiments"]),
        ("setting-unknown", "generate latest --temp 1", ["--temperature"]),
        ("setting-unknown", "train training.lerning_rate=1", ["'training.learning_rate'"]),
        ("file-missing", "train no_such.txt", ["no_such.txt"]),
        ("file-missing", "train --config-dir no_such_folder", ["no_such_folder"]),
        ("file-missing", "configs --config-dir no_such_folder", ["no_such_folder"]),
        ("file-unreadable", "generate latest --prompt-file no_such.txt", ["no_such.txt"]),
        ("run-missing", "train --resume no_such_run", ["no_such_run"]),
        ("run-missing", "train --resume", ["outputs/models", "craft train"]),
        ("usage", "train --resume outputs/models/a/checkpoint-5", ["outputs/models/a,"]),
        ("run-missing", "resume", ["outputs/models", "craft train"]),
        ("run-missing", "resume no_such_run", ["no_such_run"]),
        ("run-missing", "resume training.lerning_rate=1", ["outputs/models"]),
        ("path-invalid", "train --config=~nobody-here/x", ["--config", "~nobody-here/x"]),
        ("path-invalid", "export --output=~nobody-here/x", ["--output", "~nobody-here/x"]),
        (
            "path-invalid",
            "train training.output_dir=~nobody-here/x",
            ["training.output_dir=", "~nobody-here/x"],
        ),
        ("path-invalid", "generate ~nobody-here/x", ["~nobody-here/x"]),
        ("path-invalid", "resume ~nobody-here/x", ["~nobody-here/x"]),
        ("path-invalid", "generate --prompt-file=~nobody-here/x", ["--prompt-file", "~nobody-here/x"]),
        (None, "generate latest --temperature 0", ["temperature"]),
        (None, "generate latest --temperature inf", ["temperature"]),
        (None, "generate latest --seed 4294967296", ["4294967295"]),
        (None, "generate latest --top-p 2", ["top_p"]),
        ("model-missing", "generate latest", ["craft train my.txt"]),
        ("model-missing", "generate no/such/model", ["no/such/model"]),
        ("model-missing", "evaluate latest --json", ["craft train my.txt"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    run: Run, code: Code | None, words: str, values: list[str]
) -> None:
    printed, line = refusal(run(*words.split()))
    assert [value for value in values if value not in line] == [], line
    assert printed == code or None in (printed, code)
    assert (printed is not None) == (words.startswith(("train", "resume")) or "--json" in words)


def test_a_printed_configuration_is_never_an_error_as_json(run: Run) -> None:
    code, line = refusal(run("train", "--print-config", "foo=1"))
    assert code is None
    assert "'foo'" in line


def test_an_error_is_not_wrapped_or_coloured_and_holds_no_control_character(tmp_path: Path) -> None:
    words = ("train", "training.learning_rate=" + "x" * 200 + "\x1b[31m")
    done = craft(*words, cwd=tmp_path, COLUMNS="40", FORCE_COLOR="1")
    assert done.returncode == 2
    assert "x" * 200 + r"\x1b" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1


def test_a_prompt_that_is_not_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt.bin").write_bytes(b"ab\xff")
    _, line = refusal(run("generate", "latest", "--prompt-file", "prompt.bin"))
    assert "0xff at position 2" in line


@pytest.mark.parametrize(
    ("words", "code", "values"),
    [
        (("train", "mix.txt", "training.max_step=5"), "setting-unknown", ["'training.max_steps'"]),
        (("train", "mxi.txt"), "file-missing", ["'mxi.txt'", "'mix.txt'"]),
    ],
)
def test_a_newcomers_slips_are_answered_with_what_was_meant(
    run: Run, tmp_path: Path, words: tuple[str, ...], code: Code, values: list[str]
) -> None:
    """The third one, a prompt in characters that the model doesn't know, is tested with a trained model."""
    (tmp_path / "mix.txt").write_text("the quick brown fox\n" * 60)
    printed, line = refusal(run(*words))
    assert printed == code
    assert [value for value in values if value not in line] == [], line
    assert not (tmp_path / "outputs").exists()


def test_configs_lists_everything_with_a_line(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own" / "models"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# My own model\nmodel_type: char_lstm\n", encoding="utf-8")
    done = run("configs", "--config-dir", "own")
    assert done.returncode == 0
    for listed in ("experiments\n", "  quickstart ", "  char_lstm ", "  text_file ", "My own model  (yours)"):
        assert listed in done.stdout


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-8"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_every_encoding_takes_what_is_said(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "own" / "models").mkdir(parents=True)
    mine = tmp_path / "own" / "models" / "mine.yaml"
    mine.write_text("# 世界 as a model\nmodel_type: char_lstm\n", encoding="utf-8")
    command = [sys.executable, "-m", "craft", "configs", "--config-dir", "own"]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    taken = "世界" if "世界".encode() in done.stdout else r"\u4e16\u754c"
    assert f"{taken} as a model".encode() in done.stdout
    assert taken == "世界" or "utf-8" not in environment.values()
    done = subprocess.run([*command[:3], "train", "世界.txt"], capture_output=True, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


def test_print_config_is_valid_for_config(run: Run, tmp_path: Path, tiny_text: Path) -> None:
    first = run("train", str(tiny_text), "training.seed=7", "--print-config")
    assert first.returncode == 0, first.stderr
    assert yaml.safe_load(first.stdout)["data"]["path"] == str(tiny_text)
    (tmp_path / "run.yaml").write_text(first.stdout, encoding="utf-8")
    assert run("train", "--config", "run.yaml", "--print-config").stdout == first.stdout
    changed = run("train", "--config", "run.yaml", "training.seed=8", "--print-config").stdout
    assert changed == first.stdout.replace("seed: 7", "seed: 8")
    assert not (tmp_path / "outputs").exists()


def test_resume_takes_the_configuration_of_the_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "outputs/models/a_0.8M_fp32_20260101_000000"
    folder.mkdir(parents=True)
    saved = run("train", "training.seed=7", "--print-config").stdout
    (folder / "craft_run.yaml").write_text(saved, encoding="utf-8")
    for words in (
        ["train", "--resume"],
        ["train", "--resume", str(folder)],
        ["resume"],
        ["resume", str(folder)],
    ):
        assert run(*words[:1], "--print-config", *words[1:]).stdout == saved
    changed = run("train", "--resume", "training.seed=8", "--print-config").stdout
    assert changed == saved.replace("seed: 7", "seed: 8")


def test_python_m_craft_train_takes_the_same_words(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "craft.train", "training.seed=3", "--print-config"]
    done = subprocess.run(module, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == craft("train", "training.seed=3", "--print-config", cwd=tmp_path).stdout


def test_a_configuration_mistake_is_answered_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from craft.cli.main import main\n"
        "try: main(['train', '--print-config', 'training.learning_rate=abc'])\n"
        "finally: print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m craft configs | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert len(done.stdout) == 1
    assert done.stderr == ""


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = f"'{sys.executable}' -m craft configs > /dev/full"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=buffered)
    assert done.returncode == 1
    assert done.stderr == "error: standard output can't be written or read: No space left on device\n"


def test_an_error_keeps_its_status_where_its_json_cannot_be_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = f"'{sys.executable}' -m craft train foo=1 > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_closed_streams(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m craft configs >&- && '{sys.executable}' -m craft trian 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (click.exceptions.Exit(3), 3, ("", "")),
        (
            TrainingFailed("the loss at step 7 is nan", code="not-finite"),
            1,
            (
                '{"error": {"code": "not-finite", "message": "the loss at step 7 is nan"}}\n',
                "error: the loss at step 7 is nan\n",
            ),
        ),
    ],
)
def test_how_a_run_may_end(
    error: Exception, status: int, printed: tuple[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("craft.cli.train.start", start)
    done = run("train")
    assert (done.returncode, (done.stdout, done.stderr)) == (status, printed)


@pytest.mark.parametrize(
    ("error", "status", "shown", "traceback"),
    [("KeyboardInterrupt", 130, "interrupted", 0), ("ZeroDivisionError", 1, "ZeroDivisionError", 1)],
)
def test_an_interrupt_is_a_word_and_a_bug_a_traceback(
    error: str, status: int, shown: str, traceback: int, tmp_path: Path
) -> None:
    code = (
        "import craft.cli.train\nfrom craft.cli.main import main\n"
        f"def start(*args, **options):\n    raise {error}\n"
        "craft.cli.train.start = start\nmain(['train'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.splitlines()[-1] == shown
    assert done.stderr.count("Traceback") == traceback


def test_a_home_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox\n" * 60)
    for name in ("CRAFT_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = craft("train", "a.txt", cwd=tmp_path, HOME="/proc")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "/proc/.cache/craft" in done.stderr.splitlines()[-1]
