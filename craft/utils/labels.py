"""The words by which the Hub sorts what it lists: licences and languages."""

from __future__ import annotations

import json
import re
from difflib import SequenceMatcher
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HUB_LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research
lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 osl-3.0 pddl postgresql
ofl-1.1 ncsa unlicense zlib deepfloyd-if-license fair-noncommercial-research-license gemma llama2 llama3
llama3.1 llama3.2 llama3.3 llama4 grok2-community other unknown
"""
"""Licences that the Hub listed in August 2026. It takes other words as names of licences of your own only."""
LICENCES = tuple(HUB_LICENCES.split())
LICENCE_TEXTS = ("LICENSE", "LICENSE.md", "LICENSE.txt")
"""Where the words of one are looked for, by the Hub and here."""


def is_licence(word: Any) -> bool:
    """Whether a word is a licence that the Hub lists, or may be the name of another one."""
    return isinstance(word, str) and not wrong_licence(word, "")


def wrong_licence(word: str, where: str) -> str:
    """What to say of a word that isn't an identifier of a licence; empty if it is one.

    Args:
        where: the option or setting, to begin with: `--license `, `data.language=`.
    """
    named = re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,63}", word)
    if word in LICENCES or (named and (_is_spdx(word) or not _suggestion(word))):
        return ""
    if meant := _suggestion(word):
        return f"{where}{word!r} isn't an identifier of the Hub, did you mean {meant!r}?"
    return (
        f"{where}{word!r} isn't an identifier of the Hub; write for example apache-2.0, mit, cc-by-4.0, or a "
        "name such as my-licence-1.0 for one of your own"
    )


@cache
def _languages() -> dict[str, str]:
    """The names of languages by their codes of ISO 639, as `datasets` lists them; it needn't be imported."""
    package = Path(str(find_spec("datasets").origin)).parent  # type: ignore[union-attr]
    names = json.loads((package / "utils" / "resources" / "languages.json").read_text(encoding="utf-8"))
    return {**names, "multilingual": "texts in several languages"}


def is_language(word: Any) -> bool:
    """Whether a word is a code of ISO 639 or what the Hub takes besides; three letters aren't looked up."""
    return isinstance(word, str) and (word in _languages() or re.fullmatch("[a-z]{3}", word) is not None)


def wrong_language(word: str, where: str) -> str:
    """What to say of a word that isn't the code of a language; empty if it is one."""
    if is_language(word):
        return ""
    base = re.split("[-_]", word.lower())[0]
    named = (code for code, name in _languages().items() if word.lower() in name.lower().split("; "))
    code = next(named, base if is_language(base) else "")
    near = f", did you mean {code!r}?" if code else ""
    return (
        f"{where}{word!r} isn't a language code{near}; write one of ISO 639 such as en or de, multilingual "
        "or code, or leave it out"
    )


def _suggestion(word: str) -> str:
    """The licence of the Hub that a word begins to say (`gpl3`, `cc-by`) or misspells (`mti`), if any.

    A version is never misspelt: `llama5` isn't a slip for `llama4`.
    """
    letters, digits = _letters_and_digits(word)
    found = []
    for known in LICENCES:
        known_letters, known_digits = _letters_and_digits(known)
        likeness = SequenceMatcher(None, letters, known_letters).ratio()
        alike = likeness >= 0.8 or sorted(letters) == sorted(known_letters)
        begun = len(letters + digits) > 2 and letters != "" and known_letters.startswith(letters)
        if (alike or begun) and known_digits.startswith(digits):
            found.append((likeness, digits == known_digits, known_digits, -len(known), known))
    return max(found)[-1] if found else ""


def _letters_and_digits(licence: str) -> tuple[str, str]:
    """What it is called and its version: `("gpl", "30")` of `GPL v3.0`, `("mit", "")` of `MIT License`."""
    bare = re.sub(r"[^a-z0-9]|licen[cs]e|v(ersion)?(?=[\s._-]*\d)", "", licence.lower())
    return re.sub(r"\d", "", bare), re.sub(r"\D", "", bare)


def _is_spdx(word: str) -> bool:
    """Whether SPDX knows it, as `bsd-4-clause`: then it is no slip of the pen, whatever it is near."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return bool(canonicalize_license_expression(word))
    except InvalidLicenseExpression:
        return False
