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
    r"(?i)token|secret|passw(or)?d|api_?key|(^|_)key$|access_?key|private_?key|credential"
)
PATH_NAMES = re.compile(r"(?i)_(path|file|dir)$")
"""Names of variables that hold where a secret lies (HF_TOKEN_PATH), which is none."""
DIGIT_NAMES = re.compile(r"(?i)(token|secret|passw(or)?d|pass(phrase)?|pin|code|key|credentials?)$")
"""Names of variables that hold a secret even if it is a number; MAX_TOKENS is a setting."""
MIN_LENGTH = 8
"""Characters of a secret. Whatever is shorter ("true", "1") is a setting, and a word of many texts."""
HUB_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_(?:[A-Za-z0-9]{16,}|(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{8,})")
"""A token of the Hugging Face Hub; `hf_datasets` is a word."""
BEARER_HEADER = re.compile(r"(?i)(authorization\W{1,6}bearer\s+)[^\s\"']{8,}")
"""The token of a request, whatever it looks like."""
OTHER_TOKENS = re.compile(
    r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)|wandb_v\d_\w{16,}"
    r"|(?<=[Bb]earer )(?:(?=[\w.~+/-]*\d)[\w.~+/-]{8,}|(?=[\w.~+/-]*[a-z][A-Z])[\w.~+/-]{20,})"
)
"""A password inside a URL, a key of Weights & Biases, the token of a request. In prose the word behind
"bearer" has neither digits nor inner capitals."""


def secrets() -> list[str]:
    """The secrets that this process can read: variables whose name says so, and the token of the HF login.
    The longest come first, since one may hold another."""
    named = {n: v for n, v in os.environ.items() if SECRET_NAMES.search(n) and not PATH_NAMES.search(n)}
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
    return OTHER_TOKENS.sub(MASK, BEARER_HEADER.sub(rf"\1{MASK}", HUB_TOKEN.sub(MASK, text)))


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
