"""Modules of the user's, imported before a command reads its settings: they may define an optimizer."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from craft.utils.errors import UserError, one_line


def import_plugins(names: Sequence[str]) -> None:
    """Imports modules by name, also from the current folder.

    Raises:
        UserError: for one that can't be imported.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module of the user's does
            raise UserError(
                f"--plugin {name} can't be imported ({type(error).__name__}: {one_line(error)}); it is the "
                "name of a module in the current folder or on PYTHONPATH, without .py",
                code="usage",
            ) from error
