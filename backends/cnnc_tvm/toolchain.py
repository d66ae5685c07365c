"""What programs of TVM depend on beside their networks, as the compile cache asks. TVM itself is not imported."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

_ABOUT_CPU = ("vendor_id", "model name", "stepping", "cache size", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo that tell processors apart by what runs on them, and how fast."""


def tvm() -> str:
    """The version of TVM. PackageNotFoundError where it is not installed."""
    return version("apache-tvm")


def tool(path: str) -> str:
    """An executable or a library, told apart from others that may once lie at its place."""
    file = Path(path)
    about = file.stat() if file.exists() else None  # the name of a library need not be a path
    return f"{file.resolve()} {about.st_size} {about.st_mtime_ns}" if about else path


def machine() -> str:
    """The processor: what `native` stands for, and what kernels are chosen by."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace").partition("\n\n")[0] if info.exists() else platform.processor()
    about = [line for line in text.splitlines() if line.partition(":")[0].strip() in _ABOUT_CPU] or [text]
    threads = os.environ.get("TVM_NUM_THREADS", os.cpu_count())
    return "\n".join([platform.machine(), f"{threads} threads", *about])
