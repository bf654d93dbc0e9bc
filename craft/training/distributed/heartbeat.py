"""How processes that train together know which of them is gone.

Training in step means that everyone waits for the slowest, and a process that was killed, stopped or cut off
would be waited for without a word. So each has a heartbeat: a thread that writes about once a second, into
the store at which they all met, at which step it is and where. When a collective fails, the others read who
doesn't write any more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from craft.utils.errors import PeerLost, first_line
from craft.utils.logging import first_to_say

SECONDS = 1.0
"""Between two beats of up to 32 processes; more of them beat more slowly, which spares the store."""
SILENCE = 5.0
"""Seconds without a beat after which a process isn't just slow."""
FAILED = "craft/failed"
"""In the store if a process failed, which says why itself."""

Beats = dict[int, dict[str, Any]]
"""What other processes wrote last, by rank: beat, step, host, place, and whether they are done."""


class Heartbeat(threading.Thread):
    """Tells the other processes that this one lives, and finds out whether they do.

    Args:
        store: shared by all processes.
        timeout: seconds that a collective waits for a process, for messages.

    Attributes:
        step: how far this process is.
    """

    def __init__(self, store: Any, rank: int, world: int, timeout: int) -> None:
        super().__init__(name="craft-heartbeat", daemon=True)
        self.store, self.rank, self.world, self.timeout = store, rank, world, timeout
        self.interval = max(SECONDS, world / 32)
        self.step, self.beat = 0, 0
        self.others: Beats = {}
        self._over = threading.Event()
        self._failed = self._somebody_failed = False
        self._write()

    def run(self) -> None:
        try:
            while not self._over.wait(self.interval):
                self._write()
                self._somebody_failed |= self.store.check([FAILED])
            self._write()
            if self._failed:
                self.store.set(FAILED, "")
        except RuntimeError:  # the store is gone, perhaps since rank 0 is done
            pass

    def stop(self, failed: bool = False) -> None:
        """Tells the others that this process is done, or has failed and says why itself."""
        self._failed = failed
        self._over.set()
        self.join(timeout=2 * self.interval)  # over a link that was cut it never ends
        if failed and self.rank == 0:
            time.sleep(1.5 * self.interval)  # the store may end with this process: let the others read

    def diagnosis(self, error: BaseException, recovery_hint: str) -> PeerLost:
        """Why a collective failed; empty if another process says it."""
        sentence = self.missing() or self._where_all_are(error)
        said = self._somebody_failed or not first_to_say(FAILED)
        self.stop(failed=True)
        return PeerLost("" if said else "; ".join(filter(None, (sentence, recovery_hint))))

    def missing(self) -> str:
        """A sentence about the processes that don't write any more; empty if all do. It takes seconds."""
        self._read()
        before = dict(self.others)
        time.sleep(SILENCE + self.interval)
        if self._read():
            same = [rank for rank, beat in self.others.items() if beat == before.get(rank)]
            silent = [rank for rank in same if not self.others[rank]["done"]]
            names = [f"rank {rank} (on {self.others[rank]['host']})" for rank in silent]
        else:  # rank 0 keeps the store
            silent = [0]
            names = [f"rank 0 (at {os.environ.get('MASTER_ADDR', '')}) or its whole machine"]
        if not names:
            return ""
        # A step that this process has finished is one that all of them took part in.
        step = max([self.step, *(self.others[rank]["step"] for rank in silent if rank in self.others)])
        when = f"at step {step:,}" if step else "before the first step"
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return (
            f"{', '.join(names[:4])}{more} {'is' if len(names) == 1 else 'are'} missing: last seen {when}; "
            f"killed, stopped, or cut off from the network (training.ddp_timeout={self.timeout} s)"
        )

    def _where_all_are(self, error: BaseException) -> str:
        behind = sorted(self.others.items(), key=lambda entry: entry[1]["step"])[:4]
        places = "; ".join(f"rank {rank} at step {b['step']:,} in {b['place']}" for rank, b in behind)
        return (
            f"no process is missing, but they can't work together ({first_line(error)[:200]}): {places}; if "
            f"one has more to do than training.ddp_timeout={self.timeout} s allow, raise it"
        )

    def _write(self) -> None:
        self.beat += 1
        own: dict[str, Any] = {"beat": self.beat, "step": self.step, "done": self._over.is_set()}
        own |= {"host": socket.gethostname(), "place": main_thread_location()}
        self.store.set(f"craft/heartbeat/{self.rank}", json.dumps(own))

    def _read(self) -> bool:
        """Reads what the others wrote; whether the store answered, which over a link that was cut it never
        does."""
        ranks = [rank for rank in range(self.world) if rank != self.rank]
        answers: list[bytes] = []

        def read() -> None:
            with suppress(RuntimeError):
                connection = self.store.clone()  # a read that waits would delay heartbeats
                answers.extend(connection.multi_get([f"craft/heartbeat/{rank}" for rank in ranks]))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(timeout=SILENCE)
        self.others.update({rank: json.loads(text) for rank, text in zip(ranks, answers)})
        return bool(answers)


def main_thread_location() -> str:
    """Where the main thread is, outside of torch: `craft/data/prepare.py:120`."""
    stack = traceback.walk_stack(sys._current_frames().get(threading.main_thread().ident or 0))
    places = ((Path(frame.f_code.co_filename), line) for frame, line in stack)
    own = ((file, line) for file, line in places if Path(torch.__file__).parent not in file.parents)
    file, line = next(own, (Path("?"), 0))
    return f"{'/'.join(file.parts[-3:])}:{line}"
