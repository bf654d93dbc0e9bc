"""What happened to a run: begun, resumed (with what changes), finished; one JSON object a line."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def add_event(run_dir: Path, event: str, **details: Any) -> None:
    """Appends an event with the time, on the disk when this returns.

    Raises:
        OSError: if the disk refuses.
    """
    line = json.dumps({"time": datetime.now().isoformat(timespec="seconds"), "event": event, **details})
    with (run_dir / HISTORY).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a kill while the last one was written
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run, in order; none if it isn't a run. A line torn by a kill is left out."""
    try:
        lines = (run_dir / HISTORY).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [event for event in map(_event, lines) if event]


def finished_at(run_dir: Path) -> int | None:
    """The step at which a run was finished; None if it wasn't, or was begun again since."""
    events = read_history(run_dir)
    return events[-1].get("step") if events and events[-1]["event"] == "finished" else None


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "event" in event else {}
