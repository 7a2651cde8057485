"""Memory of freed arrays stays in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, threading
import numpy as np
from moed.daemon.allocator import keep_freed_memory
assert keep_freed_memory()
faults = []
def work():
    for step in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.full(4 << 20, 1.0, np.float32)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_an_array_as_large_as_the_last_one_takes_no_new_pages() -> None:
    """In a thread too: 16 MiB are 4,096 pages, and from the second time on hardly one is asked for."""
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400
