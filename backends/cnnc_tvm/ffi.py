"""Importing TVM's libraries without what cnnc does not need of them.

`tvm_ffi` imports PyTorch if it is installed, which takes seconds and which nothing here uses. Running a program needs
TVM's small runtime library alone; the compiler (ten times slower to load) is imported only to compile.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import cast

from cnnc.diagnostics import error

_LIBRARY = "libtvm_runtime.so"


@contextmanager
def _without_torch() -> Iterator[None]:
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = cast(ModuleType, None)  # makes `import torch` raise ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


def installed() -> bool:
    """Whether the package apache-tvm is there; imports nothing."""
    return find_spec("tvm") is not None


def import_compiler() -> None:
    """Import TVM whole; CnncError E0620 where it is missing or only its runtime is there."""
    try:
        with _without_torch():
            import tvm
    except ImportError as e:
        raise _missing(f"cannot import it: {e}") from e
    if tvm.base._RUNTIME_ONLY:
        raise _missing("only its runtime library is loaded (is TVM_USE_RUNTIME_LIB set?)")


def cores(folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """How many cores this process may run on. `folder` has what Linux knows of the processors."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = {cpu: folder / f"cpu{cpu}" / "topology" / "thread_siblings_list" for cpu in allowed}
    return len({file.read_text() if file.exists() else str(cpu) for cpu, file in siblings.items()})


def threads() -> int:
    """How many threads the parallel loops of programs have: TVM_NUM_THREADS, else one for each core. TVM by itself
    takes half of the processors, as if each core counted as two.

    They run where the system lets them, unless TVM_BIND_THREADS says otherwise. TVM would bind all but the first to a
    core each, and let that one run on any: after a pause it may wake up on the core of another, and two threads take as
    long as one. And all processes would have the same cores, whatever `taskset` says.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    if not (stated := os.environ.get("TVM_NUM_THREADS", "")).isdecimal() or int(stated) < 1:
        os.environ["TVM_NUM_THREADS"] = str(cores())
    return int(os.environ["TVM_NUM_THREADS"])


@cache
def import_runtime() -> ModuleType:
    """`tvm_ffi`, with TVM's runtime library loaded for programs to call; CnncError E0620 where it is missing."""
    threads()
    found = find_spec("tvm")
    library = (
        next((p / "lib" / _LIBRARY for p in map(Path, found.submodule_search_locations or ())), None) if found else None
    )
    try:
        with _without_torch():
            import tvm_ffi
        ctypes.CDLL(str(library or _LIBRARY), ctypes.RTLD_GLOBAL)
    except (ImportError, OSError) as e:
        raise _missing(f"cannot load its runtime: {e}") from e
    return tvm_ffi


def _missing(why: str) -> Exception:
    return error("E0620", "this target needs Apache TVM", notes=[why], help="install it: pip install 'cnnc[tvm]'")
