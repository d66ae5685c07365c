"""What programs of TVM depend on beside their networks, as the compile cache asks. TVM itself is not imported."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from cnnc_tvm.ffi import threads
from cnnc_tvm.instructions import cpuinfo

_ABOUT_CPU = ("vendor_id", "model name", "stepping", "cache size", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo that tell processors apart by what runs on them, and how fast."""


def tvm() -> str:
    """The version of TVM. PackageNotFoundError where it is not installed."""
    return version("apache-tvm")


def tool(path: str) -> str:
    """A compiler or a library, told apart from others that may once lie at its place: by the file, and by what it says
    its version is, for a script may call another. OSError where it cannot be read or run."""
    file = Path(path)
    if not file.exists():  # the name of a library need not be a path
        return path
    about = file.stat()
    runs = os.access(file, os.X_OK) and ".so" not in file.name
    told = subprocess.run([path, "--version"], capture_output=True, check=False).stdout if runs else b""
    return f"{file.resolve()} {about.st_size} {about.st_mtime_ns} {told.decode(errors='replace')}"


def machine() -> str:
    """The processor: what `native` stands for, and what kernels are chosen by."""
    told = cpuinfo()
    about = [f"{name}: {told[name]}" for name in _ABOUT_CPU if name in told] or [platform.processor()]
    return "\n".join([platform.machine(), f"{threads()} threads", *about])
