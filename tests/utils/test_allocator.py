from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from craft.utils.allocator import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
bytearray(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*words: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    assert page_faults("keep") < page_faults() / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_the_users_own_settings_of_the_allocator_win() -> None:
    assert page_faults("keep") < page_faults("keep", MALLOC_TRIM_THRESHOLD_="131072") / 10
