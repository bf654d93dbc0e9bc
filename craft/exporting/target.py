"""Where an export goes: a place that nobody has yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from craft.utils.errors import UserError
from craft.utils.outputs import resolve


def target(
    model: str | Path, revision: str | None, output: Path | None, default: Callable[[str], Path]
) -> tuple[str, Path]:
    """The folder or Hub id behind `model`, and where its export goes.

    Args:
        revision: of a model on the Hub, which is part of the name then.
        output: where the user wants it, if anywhere.
        default: makes the usual place of the name of the model.

    Raises:
        UserError: if there is no such model, or the place is taken or can't be made.
    """
    where = resolve(model)
    version = "-".join(filter(None, (where, revision)))
    place = output or default(Path(where).resolve().name if Path(where).is_dir() else version)
    if os.path.lexists(place):
        raise UserError(f"{place} exists; name another by --output, or delete it", code="setting-conflict")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place} can't be made: {error.strerror}; name another by --output", code="file-unwritable"
        ) from error
    return where, place
