"""The words by which the Hub sorts what it lists. Only the Hub knows which there are."""

from __future__ import annotations

import re
from typing import Any


def is_licence(word: Any) -> bool:
    """Whether a word may be an identifier of a licence."""
    return isinstance(word, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,63}", word) is not None


def wrong_licence(word: str) -> str:
    """What to say behind a word that isn't an identifier of a licence; empty if it may be one."""
    usual = "apache-2.0, mit, cc-by-4.0, or other for one of your own"
    return "" if is_licence(word) else f"isn't an identifier of the Hub; write {usual}"


def is_language(word: Any) -> bool:
    """Whether a word may be a code of ISO 639, or what the Hub takes besides."""
    return isinstance(word, str) and re.fullmatch("[a-z]{2,3}|multilingual|code", word) is not None


def wrong_language(word: str) -> str:
    """What to say behind a word that isn't the code of a language; empty if it may be one."""
    usual = "one of ISO 639 such as en or de, multilingual or code, or leave it out"
    return "" if is_language(word) else f"isn't a language code; write {usual}"
