"""Programs of the target `cpu` touch nothing past the end of their memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import guarded_memory

SCRIPT = Path(guarded_memory.__file__)


READ = """
import ctypes
from guarded_memory import ALIGNMENT, guarded_memory
memory = guarded_memory(1)
start = memory.ctypes.data
print(ctypes.string_at(start + ALIGNMENT - 1, 1), flush=True)
print(ctypes.string_at(start + ALIGNMENT, 1), flush=True)
"""


def test_the_guard_ends_a_process() -> None:
    """The byte before it can be read, the first of it cannot."""
    done = subprocess.run([sys.executable, "-c", READ], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (r"b'\xff'" + "\n", -signal.SIGSEGV)


@pytest.mark.slow
def test_nothing_is_touched_past_the_end() -> None:
    """A process of its own, which an access past the end ends: the last network that it names is the one."""
    done = subprocess.run([sys.executable, SCRIPT, "2"], capture_output=True, text=True)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
