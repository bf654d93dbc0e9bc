"""Characters that look alike: é in one piece or in two, kinds of spaces, of quotes, of dashes.

Whoever types a prompt sees a sign and can't know that the keyboard gives another character than the text of
the model has; so what refuses a character names what the alphabet has instead.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

NAMED = 3
"""How many look-alikes of one character are named."""
# Those that Unicode's own equivalences (NFKD) leave apart; the first of each stands for the others.
_ALIKE = ("'‘’‚‛′`´ʹʻʼ", '"“”„‟″«»', "-‐‑‒–—―−⁃", " \t", "\n\r\v\f\x85\u2028\u2029")
_FIRST = str.maketrans({char: alike[0] for alike in _ALIKE for char in alike[1:]})


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


def instead(char: str, alphabet: Collection[str]) -> str:
    """The look-alikes of `char` as a message names them; empty if there are none."""
    return " or ".join(map(named, look_alikes(char, alphabet)))


def doubled(alphabet: Sequence[str]) -> list[str]:
    """Signs for which `alphabet` has two ways that nobody can tell apart: accents, kinds of spaces."""
    known = set(alphabet)
    spaces = [char for char in alphabet if char != "\t" and _sign(char) == " "]
    accents = [(char, unicodedata.normalize("NFD", char)) for char in alphabet]
    pairs = [(char, parts) for char, parts in accents if parts != char and set(parts) <= known]
    return [" and ".join(map(named, ways)) for ways in ([spaces] if len(spaces) > 1 else []) + pairs]


def named(text: str) -> str:
    """Characters with their code points: 'é' (U+0065 U+0301)."""
    return f"{text!r} ({' '.join(f'U+{ord(char):04X}' for char in text)})"


def _sign(text: str) -> str:
    """What characters show, whichever of their look-alikes they are."""
    return unicodedata.normalize("NFKD", text.translate(_FIRST)).translate(_FIRST)
