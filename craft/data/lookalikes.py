"""Characters that look alike: é in one piece or in two, kinds of spaces, of quotes, of dashes.

Whoever types a prompt sees a sign and can't know that the keyboard gives another character than the text of
the model has; so what refuses a character names what the alphabet has instead.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

NAMED = 3
"""How many look-alikes of one character are named."""
ALIKE = {"Pd": "-", "Pi": '"', "Pf": '"', "Zs": " ", "Zl": " ", "Zp": " ", "Cc": " "}
"""What stands for the dashes, quotes and spaces of a category of Unicode."""


def look_alikes(char: str, alphabet: Collection[str]) -> list[str]:
    """What `alphabet` has instead of `char`, which it lacks: characters, or several that make one sign."""
    shown = _sign(char)
    for parts in (unicodedata.normalize("NFD", char), shown):
        if len(parts) > 1 and set(parts) <= set(alphabet):
            return [parts]
    signs = {known: _sign(known) for known in alphabet}
    found = (
        [known for known, sign in signs.items() if sign == shown]
        or [known for known, sign in signs.items() if shown in sign[1:]]  # an accent, or a dot of an ellipsis
        or [known for known, sign in signs.items() if sign.casefold() == shown.casefold()]
    )
    return sorted(found)[:NAMED]


def suggest_look_alikes(char: str, alphabet: Collection[str]) -> str:
    """`, but it has …` with the look-alikes of `char` for a message; empty if there are none."""
    alike = look_alikes(char, alphabet)
    return f", but it has {' or '.join(map(with_code_points, alike))}" if alike else ""


def with_code_points(text: str) -> str:
    """Characters with their code points: 'é' (U+0065 U+0301)."""
    return f"{text!r} ({' '.join(f'U+{ord(char):04X}' for char in text)})"


def _sign(text: str) -> str:
    """What characters show, by the equivalences of Unicode and its categories."""
    plain = (ALIKE.get(unicodedata.category(char), char) for char in unicodedata.normalize("NFKD", text))
    return "".join(plain).translate({ord("'"): '"', ord("−"): "-"})
