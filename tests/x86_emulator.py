"""Runs machine code with AMX-BF16 and AVX512-BF16 instructions on a processor that has only AVX-512.

    with emulated() as emulation:
        ...  # any native code, in any thread
    assert native("amx_bf16") or emulation.count("tdpbf16ps")

What the processor lacks comes to a handler of SIGILL, see x86_emulator.c; what it has it does itself, and nothing is
counted. Each instruction emulated takes some microseconds. What is illegal still ends the process by SIGILL, with a
line on stderr where it is a wrong use of tiles.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from cnnc_tvm.instructions import cpuinfo

SOURCE: Final = Path(__file__).with_suffix(".c")
COMPILE: Final = ("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
INSTRUCTIONS: Final = (
    "tdpbf16ps", "vdpbf16ps", "vcvtne2ps2bf16", "vcvtneps2bf16", "ldtilecfg", "sttilecfg", "tilerelease", "tilezero",
    "tileloadd", "tilestored",
)  # fmt: skip
"""What is counted, in the order of x86_emulator.c; `tileloaddt1` counts as `tileloadd`."""
NEEDED: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl")


def native(flag: str) -> bool:
    """Whether the processor has what Linux calls so: `amx_tile`, `amx_bf16`, `avx512_bf16`."""
    return flag in _flags()


@cache
def _flags() -> frozenset[str]:
    return frozenset(cpuinfo().get("flags", "").split())


def available() -> bool:
    """Whether `emulated` works here: on Linux, on x86-64 with AVX-512, with a C compiler."""
    here = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return here and all(map(native, NEEDED)) and shutil.which("cc") is not None


class Emulation:
    """What was emulated, in all threads, since it began."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._before = self._all()

    def count(self, instruction: str) -> int:
        i = INSTRUCTIONS.index(instruction)
        return self._all()[i] - self._before[i]

    def counts(self) -> dict[str, int]:
        """Those that came at all."""
        counts = {name: self.count(name) for name in INSTRUCTIONS}
        return {name: count for name, count in counts.items() if count}

    def _all(self) -> list[int]:
        return [int(self._library.emulated(i)) for i in range(len(INSTRUCTIONS))]


@contextmanager
def emulated() -> Iterator[Emulation]:
    """Emulate what the processor lacks. May be nested."""
    library = _compiled()
    if library.install():
        raise OSError(ctypes.get_errno(), "sigaction")
    try:
        yield Emulation(library)
    finally:
        library.uninstall()


@cache
def _compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "x86_emulator.so"))
        subprocess.run([*COMPILE, str(SOURCE), "-o", path], check=True)
        loaded = ctypes.CDLL(path, use_errno=True)
    loaded.emulated.restype = ctypes.c_long
    return loaded
