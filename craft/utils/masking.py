"""Secrets never reach a log, a report or a message: every text that craft shows or keeps passes here."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from craft.utils.terminal import visible

MASK = "***"
SECRET_NAMES = re.compile(
    r"(?i)(?!.*_(path|file|dir)$).*"  # which say only where a secret lies (HF_TOKEN_PATH)
    r"(token|secret|passw(or)?d|api_?key|(^|_)key$|access_?key|private_?key|credential)"
)
DIGIT_NAMES = re.compile(r"(?i)(token|secret|passw(or)?d|pass(phrase)?|pin|code|key|credentials?)$")
"""Names of variables that hold a secret even if it is a number; MAX_TOKENS is a setting."""
MIN_LENGTH = 8
"""Length of a secret. Whatever is shorter ("true", "1") is a setting, and a word of many texts."""
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])hf_(?:[A-Za-z0-9]{16,}|(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{8,})|wandb_v\d_\w{16,}"
    r"|(?<=://)[^/\s@]+:[^/\s@]+(?=@)"
)
"""Tokens of the Hugging Face Hub (`hf_datasets` is a word) and of Weights & Biases; a password in a URL."""
BEARER = re.compile(r"(?i)(authorization\W{1,6}bearer\s+|bearer (?=[^\s\"',]*\d))[^\s\"',]{8,}")
"""The token of a request: any in a header, one with a digit among other words."""


def secrets() -> list[str]:
    """The secrets that this process can read: variables whose name says so, and the token of the HF login.
    The longest come first, since one may hold another."""
    named = {name: value for name, value in os.environ.items() if SECRET_NAMES.match(name)}
    found = {value for name, value in named.items() if not value.isdigit() or DIGIT_NAMES.search(name)}
    found.add(_login_token())
    kept = [secret for secret in found if len(secret) >= MIN_LENGTH and not _is_existing_path(secret)]
    return sorted(kept, key=len, reverse=True)


def mask(text: str) -> str:
    """`text` with every secret as `***`."""
    for secret in secrets():
        if secret.isdigit():  # but not a part of a longer number
            text = re.sub(rf"(?<!\d)(?<!\d\.){secret}(?!\d)", MASK, text)
        else:
            text = text.replace(secret, MASK)
    return BEARER.sub(rf"\1{MASK}", TOKENS.sub(MASK, text))


def masked(value: Any) -> Any:
    """Plain data (dicts, lists, texts) with every secret as `***`."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: masked(each) for key, each in value.items()}
    return type(value)(map(masked, value)) if isinstance(value, list | tuple) else value


def has_secret(text: str) -> bool:
    return mask(text) != text


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an error that nobody caught as Python does, without secrets in it."""
    sys.stderr.write(visible(mask("".join(traceback.format_exception(kind, error, trace)))))


def _is_existing_path(text: str) -> bool:
    """Whether a variable holds the place of something that is there, rather than a secret."""
    return text[0] in "/~." and os.path.exists(os.path.expanduser(text))


def _login_token() -> str:
    """The token that `hf auth login` left, read without importing huggingface_hub; empty if there is none."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
