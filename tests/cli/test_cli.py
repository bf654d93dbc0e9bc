"""The command line as its users meet it: real processes, what they print and how they exit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from craft.cli.main import COMMANDS

Done = subprocess.CompletedProcess[str]


def craft(*words: str, cwd: Path | None = None, stdin: str | None = None, **env: str) -> Done:
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


def refused(done: Done) -> str:
    """The one line of an error; nothing else was printed."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_fits_the_terminal_and_shows_examples(words: tuple[str, ...], width: str) -> None:
    done = craft(*words, "--help", COLUMNS=width)
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


def test_without_a_word_it_shows_the_help() -> None:
    done = craft()
    assert (done.returncode, done.stdout) == (0, craft("--help").stdout)


def test_version() -> None:
    from craft import __version__

    assert craft("--version").stdout.strip() == f"craft, version {__version__}"


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["trian"], "did you mean 'train'?"),
        (["frobnicate"], "train, resume, generate"),
        (["sample"], "did you mean 'generate'?"),
        (["finetune", "new.txt"], "did you mean 'train'?"),
        (["train", "--print-confg"], "--print-config"),
        (["train", "--max_steps", "5"], "without dashes, did you mean 'training.max_steps'?"),
        (["train", "--max-iters=5"], "without dashes, did you mean 'training.max_steps'?"),
        (["train", "--training.max_steps=5"], "without dashes, did you mean 'training.max_steps'?"),
        (["train", "--text", "my.txt"], "without dashes, did you mean 'data.path'?"),
        (["train", "models.hidden_size", "=", "64"], "without spaces around the ="),
        (["generate", "--length", "9"], "did you mean '--max-new-tokens'? (see 'craft generate --help')"),
        (["generate", "--prompt"], "requires an argument (see 'craft generate --help')"),
        (["doctor", "--fast"], "No such option '--fast' (see 'craft doctor --help')"),
        (["train", "--lr", "1"], "written KEY=VALUE without dashes, did you mean 'training.learning_rate'?"),
        (["train", "--lerning-rate", "1"], "without dashes, did you mean 'training.learning_rate'?"),
        (["train", "--foo"], "settings are written KEY=VALUE without dashes (groups are"),
        (["generate", "latest", "--temp", "1"], "did you mean '--temperature'?"),
        (["train", "--config"], "--config"),
        (["train", "training.lerning_rate=1"], "did you mean 'training.learning_rate'?"),
        (["train", "no_such.txt"], "no_such.txt"),
        (["train", "no_\x1b[31msuch\x07.txt"], r"no_\x1b[31msuch\x07.txt"),
        (["train", "--resume", "no_such_run"], "no_such_run"),
        (["train", "--resume"], "no run to resume"),
        (["train", "--config", "run.yaml", "--resume"], "--resume RUN_DIR"),
        (["train", "--resume", "outputs/models/a/checkpoint-5"], "name its run, outputs/models/a,"),
        (["train", "--allow-changes"], "craft resume RUN_DIR --allow-changes"),
        (["resume"], "no run to resume"),
        (["resume", "a", "b"], "two runs given, 'a' and 'b'"),
        (["resume", "no_such_run"], "no_such_run: no run there"),
        (["resume", "training.lerning_rate=1"], "no run to resume"),
        (["train", "--config-dir", "no_such_folder"], "no_such_folder"),
        (["train", "--config=~nobody-here/x"], "--config ~nobody-here/x"),
        (["export", "--output=~nobody-here/x"], "--output ~nobody-here/x"),
        (["train", "training.output_dir=~nobody-here/x"], "training.output_dir=~nobody-here/x"),
        (["generate", "~nobody-here/x"], "no user 'nobody-here'"),
        (["resume", "~nobody-here/x"], "no user 'nobody-here'"),
        (["generate", "--prompt-file=~nobody-here/x"], "--prompt-file ~nobody-here/x"),
        (["configs", "--config-dir", "no_such_folder"], "no_such_folder"),
        (["generate", "latest", "--temperature", "0"], "temperature"),
        (["generate", "latest", "--temperature", "inf"], "temperature"),
        (["generate", "latest", "--temperature", "hot"], "hot"),
        (["generate", "latest", "--seed", "4294967296"], "4294967295"),
        (["generate", "latest", "--num-samples", "99999999"], "10000"),
        (["benchmark", "encode", "--size", "nan"], "nan"),
        (["generate", "latest", "--top-p", "2"], "top_p"),
        (["generate", "latest", "--prompt", "a", "--prompt-file", "b"], "exclude each other"),
        (["generate", "latest", "--prompt-file", "no_such.txt"], "no_such.txt"),
        (["generate", "latest"], "no finished model"),
        (["generate", "no/such/model"], "no/such/model"),
        (["evaluate", "latest", "--split", "validtion"], "validtion"),
        (["evaluate", "latest"], "no finished model"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], phrase: str, tmp_path: Path) -> None:
    assert phrase in refused(craft(*words, cwd=tmp_path))


def test_an_error_is_not_wrapped_or_coloured(tmp_path: Path) -> None:
    message = refused(
        craft("train", "training.learning_rate=" + "x" * 200, cwd=tmp_path, COLUMNS="40", FORCE_COLOR="1")
    )
    assert "\x1b" not in message
    assert "x" * 200 in message


def test_a_prompt_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "prompt.bin").write_bytes(b"ab\xff")
    assert "0xff at position 2" in refused(
        craft("generate", "latest", "--prompt-file", "prompt.bin", cwd=tmp_path)
    )


def test_configs_lists_everything_with_a_line(tmp_path: Path) -> None:
    own = tmp_path / "own" / "models"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# My own model\nmodel_type: char_lstm\n", encoding="utf-8")
    done = craft("configs", "--config-dir", "own", cwd=tmp_path)
    assert done.returncode == 0
    for phrase in ("experiments\n", "  quickstart ", "  char_lstm ", "  text_file ", "My own model  (yours)"):
        assert phrase in done.stdout


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


def test_print_config_is_valid_for_config(tmp_path: Path, tiny_text: Path) -> None:
    first = craft("train", str(tiny_text), "training.seed=7", "--print-config", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert yaml.safe_load(first.stdout)["data"]["path"] == str(tiny_text)
    (tmp_path / "run.yaml").write_text(first.stdout, encoding="utf-8")
    assert craft("train", "--config", "run.yaml", "--print-config", cwd=tmp_path).stdout == first.stdout
    changed = craft("train", "--config", "run.yaml", "training.seed=8", "--print-config", cwd=tmp_path).stdout
    assert changed == first.stdout.replace("seed: 7", "seed: 8")
    assert not (tmp_path / "outputs").exists()


def test_resume_takes_the_configuration_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "outputs/models/a_0.8M_fp32_20260101_000000"
    run.mkdir(parents=True)
    saved = craft("train", "training.seed=7", "--print-config", cwd=tmp_path).stdout
    (run / "craft_run.yaml").write_text(saved, encoding="utf-8")
    assert craft("train", "--resume", "--print-config", cwd=tmp_path).stdout == saved
    assert craft("train", "--print-config", "--resume", str(run), cwd=tmp_path).stdout == saved
    assert craft("resume", "--print-config", cwd=tmp_path).stdout == saved
    assert craft("resume", str(run), "--print-config", cwd=tmp_path).stdout == saved
    changed = craft("train", "--resume", "training.seed=8", "--print-config", cwd=tmp_path).stdout
    assert changed == saved.replace("seed: 7", "seed: 8")


def test_python_m_craft_train_takes_the_same_words(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "craft.train", "training.seed=3", "--print-config"]
    done = subprocess.run(module, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == craft("train", "training.seed=3", "--print-config", cwd=tmp_path).stdout


def test_a_configuration_mistake_is_answered_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from craft.cli.main import main\n"
        "try: main(['train', 'training.learning_rate=abc'])\n"
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


def test_closed_streams(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m craft configs >&- && '{sys.executable}' -m craft trian 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


PATCHED = """
import sys
import click
import craft.train
from craft.cli.main import main
from craft.utils.errors import TrainingFailed

def train(run, **options):
    raise {error}

craft.train.train = train
main(["train"])
"""


@pytest.mark.parametrize(
    ("error", "status", "phrase", "traceback"),
    [
        ("click.exceptions.Exit(3)", 3, "", False),
        ("KeyboardInterrupt", 130, "interrupted", False),
        ("TrainingFailed('the loss at step 7 is nan')", 1, "error: the loss at step 7 is nan", False),
        ("ZeroDivisionError('a bug')", 1, "ZeroDivisionError: a bug", True),
    ],
)
def test_how_a_run_may_end(error: str, status: int, phrase: str, traceback: bool, tmp_path: Path) -> None:
    code = PATCHED.format(error=error)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == status
    assert phrase in done.stderr
    assert ("Traceback" in done.stderr) is traceback


def test_ctrl_c_while_the_program_is_still_imported(tmp_path: Path) -> None:
    """One word instead of a traceback through whatever was being imported."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = craft("configs", PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_home_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox\n" * 60)
    for name in ("CRAFT_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = craft("train", "a.txt", cwd=tmp_path, HOME="/proc")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the cache folder /proc/.cache/craft: it can't be made" in done.stderr.splitlines()[-1]
