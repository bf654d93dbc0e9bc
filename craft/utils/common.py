"""What every room needs: missing extras, spelling help, names of protocols, readable numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec

from craft.utils.errors import UserError

TEMPERATURE = 0.8
"""Of samples, unless another one is asked for: a bit safer than the model's own distribution."""
SAMPLE_CHARACTERS = 500
"""How much is written where nobody says how much."""


def require_extra(extra: str, *packages: str) -> None:
    """Refuses to start `craft <extra>` without the packages of the extra of that name.

    Raises:
        UserError: with what is missing and the command that installs it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"craft {extra} needs what isn't installed ({', '.join(missing)}): "
            f"pip install 'craft-lm[{extra}]'",
            code="package-missing",
        )


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`", did you mean 'x'?"` with the nearest of `candidates`, or an empty string if none is near."""
    names = [str(c) for c in candidates]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def human(number: float) -> str:
    """`803_000 -> '0.8M'`, `1_250 -> '1.2K'`: a count as people write it in names and tables.

    Examples:
        >>> human(803_000), human(10_650_000), human(950)
        ('0.8M', '10.7M', '950')
    """
    for limit, divisor, suffix in ((1e9, 1e9, "B"), (1e5, 1e6, "M"), (1e3, 1e3, "K")):
        if abs(number) >= limit:
            return f"{number / divisor:.1f}{suffix}"
    return f"{number:.0f}"


PROTOCOLS = ("blocks", "stateful", "nanogpt-sampled")
"""By which a text can be scored, besides "sliding-N" and, of a finished model, "dynamic"; see
`craft.evaluation.protocols`."""


PROTOCOL_NAMES = f"{', '.join(PROTOCOLS)}, or sliding-N such as sliding-32"


def is_protocol(name: object) -> bool:
    """Whether a text can be scored by a protocol of this name."""
    return name in PROTOCOLS or (isinstance(name, str) and bool(parsed_stride(name)))


def parsed_stride(protocol: str) -> int | None:
    """The N of the protocol "sliding-N", 0 for the others; None if there is no such protocol."""
    if protocol in PROTOCOLS:
        return 0
    stride = protocol.removeprefix("sliding-")
    return int(stride) if stride != protocol and stride.isascii() and stride.isdigit() else None
