"""Secrets in what craft says and keeps."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from craft.utils.logging import setup_logging
from craft.utils.masking import has_secret, mask, masked

TOKEN = "planted-secret-value-1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", TOKEN)
    monkeypatch.setenv("SERVICE_KEY", "plain-key-123456")
    monkeypatch.setenv("CLOUD_SECRET_ACCESS_KEY", "/abcdEFGH1234567890")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("DB_PASSWORD", "4711081512")
    monkeypatch.setenv("MAX_TOKENS", "100000000")
    monkeypatch.setenv("DEVICE_TOKEN", "1234567")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    (tmp_path / "token").write_text("login-token-of-the-hub\n")


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "plain-key-123456",
        "/abcdEFGH1234567890",
        "login-token-of-the-hub",
        "4711081512",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "hf_Ab3defgh",
        ["ada:pw12345678", "example.org"][0],
    ],
)
def test_a_secret_is_masked_wherever_it_stands(secret: str) -> None:
    text = f"https://{secret}@example.org" if ":" in secret else f"x={secret}/y"
    assert secret not in mask(text)
    assert "***" in mask(text)
    assert masked({"a": [text], "b": (text, 1)}) == {"a": [mask(text)], "b": (mask(text), 1)}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "MY_TOKEN",
            "TOKENS_OF_MINE",
            "MYSECRET",
            "DB_PASSWD",
            "db_password",
            "APIKEYS",
            "API_KEY_2",
            "KEY",
        ),
        *("my_key", "ACCESS_KEY_ID", "ACCESSKEYS", "PRIVATE_KEY_2", "PRIVATEKEYS", "CREDENTIALS"),
    ],
)
def test_every_name_of_a_secret_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "of-this-name-alone")
    assert mask("with of-this-name-alone.") == "with ***."


def test_the_path_of_a_secret_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MY_TOKEN_PATH", "MY_SECRET_FILE", "MY_KEY_DIR", "MONKEY", "KEYBOARD_KEYS"):
        monkeypatch.setenv(name, "somewhere-else")
    monkeypatch.setenv("MY_SECRET", str(tmp_path))
    for text in ("somewhere-else", str(tmp_path)):
        assert mask(text) == text


def test_a_secret_that_is_part_of_another_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "beginning")
    monkeypatch.setenv("B_TOKEN", "beginning-and-end")
    monkeypatch.setenv("C_TOKEN", "beginning-and")
    assert mask("beginning-and-end, beginning") == "***, ***"


def test_a_key_of_weights_and_biases_is_known() -> None:
    assert mask("with wandb_v1_abcdefghIJKLMNOP1234.") == "with ***."


@pytest.mark.parametrize(
    "request_header",
    [
        "Authorization: Bearer {}",
        '{{"authorization": "Bearer {}"}}',
        "-H 'Authorization: bearer {}'",
        "Authorization=Bearer  {}",
    ],
)
@pytest.mark.parametrize("secret", ["abcdefghij", "abc-def.ghi~jkl+mno/p=", "12345678"])
def test_the_token_of_a_header_is_masked_whatever_it_looks_like(request_header: str, secret: str) -> None:
    shown = mask(request_header.format(secret))
    assert secret not in shown
    assert shown == request_header.format("***")


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-abc123def456",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF_ghi",
        "0123456789abcdef",
    ],
)
def test_a_bearer_token_with_digits_is_masked_among_words(secret: str) -> None:
    for word in ("Bearer", "bearer"):
        assert mask(f"with {word} {secret}, which") == f"with {word} ***, which"


def test_words_are_left_alone() -> None:
    for text in ("tokens 100000000", "step 1234567", "0.4711081512", "47110815123", "14711081512"):
        assert not has_secret(text)
    for text in (
        "the bearer therefore",
        "The standard bearer thereupon fell.",
        "He is the bearer MacDonald, bearer THEREFORE, bearer-of-tidings",
        "Put the bearers to sudden death, bearer notwithstanding/otherwise",
        "a bearer\ntherefore",
    ):
        assert not has_secret(text)
    for text in ("false", "hf_datasets/my.txt", "bearer of news", "a" * 40, "https://example.org/a@b"):
        assert not has_secret(text)


def test_logs_and_their_files_hold_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path / "log")
    try:
        raise ValueError(TOKEN)
    except ValueError:
        logging.getLogger("craft.x").exception("failed with %s", TOKEN)
    setup_logging()
    shown = capsys.readouterr().err + (tmp_path / "log").read_text(encoding="utf-8")
    assert shown.count("ValueError: ***") == 2
    assert TOKEN not in shown


def test_uncaught_errors_hold_no_secret(tmp_path: Path) -> None:
    code = (
        "import sys, os, craft.train\nfrom craft.cli.main import main\n"
        "def train(*a, **k): raise ZeroDivisionError(os.environ['SERVICE_API_KEY'])\n"
        "craft.train.train = train\nmain(['train'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "ZeroDivisionError: ***" in done.stderr
    assert TOKEN not in done.stderr


def test_a_token_on_the_command_line_is_refused(tmp_path: Path) -> None:
    for word in ("training.run_name=hf_abcdefghijklmnop1", f"data.name={TOKEN}"):
        command = [sys.executable, "-m", "craft", "train", word]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert f"{word.partition('=')[0]}=***" in done.stderr
        assert word.partition("=")[2] not in done.stderr


def test_a_token_in_a_file_of_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    text = "# @package _global_\ndata:\n  name: ${oc.env:SERVICE_API_KEY}\n"
    (tmp_path / "experiments" / "mine.yaml").write_text(text)
    command = [
        sys.executable,
        "-m",
        "craft",
        "train",
        "--config-dir",
        ".",
        "experiments=mine",
        "--print-config",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "data.name" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
