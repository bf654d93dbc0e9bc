"""The page about Python and notebooks, run cell by cell in one process, as a notebook would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "guides" / "python.md"


def test_the_cells_of_the_page_run_one_after_the_other(tmp_path: Path) -> None:
    cells = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(cells) == 2
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200, encoding="utf-8")
    (tmp_path / "cells.py").write_text("\n".join(cells), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "CRAFT_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert 0 < float(said[0]) < 4  # bits per character of 30, by chance 4.9
    assert len("".join(said[1:-1])) > 20
    assert 0 < float(said[-1]) < 4  # nats per character
    assert (tmp_path / "notebook" / "checkpoint-60" / "manifest.json").is_file()
    assert (tmp_path / "plain" / "model" / "config.json").is_file()
