"""Compiling CUDA C for a GPU that need not be there: by nvcc, or by NVRTC where only that library is installed."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

from cnnc.diagnostics import CnncError, error

DEFAULT_ARCH = "sm_80"


def check_arch(arch: str) -> str:
    """The architecture, if it is written as one. CnncError E0622 otherwise."""
    if re.fullmatch(r"sm_[1-9]\d{1,2}[af]?", arch) is None:
        raise error("E0622", f"`{arch}` is no CUDA architecture", help="they are written sm_80, sm_90, ...")
    return arch


def find_nvcc() -> str | None:
    """The path of nvcc: in $CUDA_HOME, on the path, or where CUDA is installed."""
    places = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    candidates = [*(str(place / "nvcc") for place in places), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def find_nvrtc() -> str | None:
    """The NVRTC library: the system's, or that of a package such as nvidia-cuda-nvrtc."""
    packages = find_spec("nvidia")
    folders = map(Path, packages.submodule_search_locations or ()) if packages else ()
    return find_library("nvrtc") or next((str(x) for f in folders for x in sorted(f.glob("*/lib/libnvrtc.so.*"))), None)


def compiler() -> str:
    """What compiles CUDA C here. CnncError E0623 where nothing does."""
    found = find_nvcc() or find_nvrtc()
    if found is None:
        raise error(
            "E0623", "target `cuda` needs nvcc or NVRTC to compile its kernels, and there is neither",
            help="install the CUDA toolkit, and put nvcc on PATH or set CUDA_HOME; no GPU is needed to compile",
        )  # fmt: skip
    return found


def compile_kernels(source: str, arch: str) -> bytes:
    """Code that a CUDA driver loads: for `arch`, and (by nvcc) in a form it translates for newer GPUs.

    CnncError E0623 where neither nvcc nor NVRTC is found, E0624 where it refuses the source or the architecture.
    """
    compiler()
    nvcc = find_nvcc()
    return _by_nvcc(nvcc, source, arch) if nvcc else _by_nvrtc(str(find_nvrtc()), source, arch)


def _by_nvcc(nvcc: str, source: str, arch: str) -> bytes:
    virtual = arch.replace("sm_", "compute_")
    with tempfile.TemporaryDirectory() as folder:
        text, code = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        text.write_text(source)
        command = [nvcc, "-fatbin", "-gencode", f"arch={virtual},code=[{arch},{virtual}]", str(text), "-o", str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused("nvcc", arch, done.stderr)
        return code.read_bytes()


def _by_nvrtc(library: str, source: str, arch: str) -> bytes:
    nvrtc = ctypes.CDLL(library)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture={arch}", "--std=c++17", *(f"--include-path={x}" for x in _include_folders())]
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
    )
    if status:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise _refused("NVRTC", arch, log.value.decode(errors="replace"))
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


def _include_folders() -> list[str]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home, "include", *more) for home in homes if home for more in ((), ("cccl",))]
    return [str(folder) for folder in folders if folder.is_dir()]


def _refused(by: str, arch: str, log: str) -> CnncError:
    lines = [line for line in log.splitlines() if line.strip()]
    return error("E0624", f"{by} cannot compile the kernels for {arch}", notes=lines[:3])
