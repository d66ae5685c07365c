"""The system's linker, which makes a shared library of the object file that TVM writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from cnnc.diagnostics import error

COMPILERS = ("cc", "gcc", "clang", "c++", "g++", "clang++")


def find_linker() -> str:
    """A C or C++ compiler to link with: $CC, or the first there is. CnncError E0621 where there is none."""
    candidates = [os.environ.get("CC", ""), *COMPILERS]
    found = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if found is None:
        raise error(
            "E0621", "target `cpu` needs a C compiler to link with, and there is none",
            notes=[f"looked for {', '.join(COMPILERS)}"], help="install gcc or clang, or set CC",
        )  # fmt: skip
    return found


def link(linker: str, write: Callable[[str], object]) -> bytes:
    """The shared library of the object file that `write` puts at a path. CnncError E0621 where the linker refuses."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "program.o"), Path(folder, "program.so")
        write(str(source))
        command = [linker, "-shared", "-o", str(library), str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise error("E0621", f"linking with `{linker}` failed", notes=done.stderr.splitlines()[-3:])
        return library.read_bytes()
