"""The words by which the Hub sorts what it lists. Only the Hub knows which there are."""

from __future__ import annotations

import re
from typing import Any

from craft.utils.settings import must


def is_licence(word: Any) -> bool:
    """Whether a word may be an identifier of a licence."""
    return isinstance(word, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,63}", word) is not None


def is_language(word: Any) -> bool:
    """Whether a word may be a code of ISO 639, or what the Hub takes besides."""
    return isinstance(word, str) and re.fullmatch("[a-z]{2,3}|multilingual|code", word) is not None


LICENCE = must("be an identifier of the Hub: apache-2.0, mit, cc-by-4.0, or other for your own", is_licence)
LANGUAGE = must("be a code of ISO 639 such as en or de, multilingual or code, or be left out", is_language)
