"""Codes of errors: each is documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from craft.utils.errors import Code


def test_the_guide_lists_every_code_of_an_error(checkout: Path) -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", (checkout / "docs/guides/errors.md").read_text("utf-8"), re.M)
    assert listed == list(get_args(Code))
