"""The instructions that a program needs beyond those every processor has, and whether this processor has them: without
a look, the operating system would end the process. TVM is not imported."""

from __future__ import annotations

import ctypes
import json
import platform
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from cnnc.diagnostics import error

_FLAGS: Final = {
    "sse3": "pni", "bmi": "bmi1", "lzcnt": "abm", "avxvnni": "avx_vnni", "avxvnniint8": "avx_vnni_int8",
    "avxneconvert": "avx_ne_convert", "avxifma": "avx_ifma",
    **dict.fromkeys(("ccmp", "egpr", "ndd", "nf", "ppx", "push2pop2", "zu"), "apx"),
    **{
        f"avx512{name}": f"avx512_{name}"
        for name in ("vnni", "bf16", "fp16", "bitalg", "vbmi2", "vpopcntdq", "vp2intersect")
    },
    **{
        name: name.replace(".", "_")
        for name in (
            "ssse3", "sse4.1", "sse4.2", "sse4a", "popcnt", "movbe", "avx", "avx2", "fma", "fma4", "xop", "tbm", "f16c",
            "bmi2", "gfni", "vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
            "avx512ifma", "avx512vbmi",
        )
    },
}  # fmt: skip
"""What LLVM calls the instructions that it chooses by itself, and what Linux calls them."""

_ARCH_PRCTL: Final = 158
_REQUEST_PERMISSION, _TILES = 0x1023, 18
"""The call of Linux on x86-64 that asks for a part of the processor's state, and the number of AMX's (asm/prctl.h)."""


def cpuinfo(file: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What Linux says of the first processor, by the names it has for it; nothing on other systems."""
    text = file.read_text(errors="replace").partition("\n\n")[0] if file.exists() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def needed(features: Iterable[str]) -> list[str]:
    """What code needs that was made with these features of LLVM's: Linux's names, in alphabetical order."""
    return sorted({_FLAGS[name] for name in features if name in _FLAGS})


def lacking(needs: Collection[str]) -> list[str]:
    """What of that this processor lacks. Where the system does not say what it has, nothing."""
    flags = cpuinfo().get("flags", "").split()
    return [name for name in needs if name not in flags] if flags else []


def stated(needs: Collection[str]) -> bytes:
    """The needs of code that was made on this machine, as artifacts have them."""
    return json.dumps({"machine": platform.machine(), "instructions": list(needs)}).encode()


def tiles_granted() -> bool:
    """Whether this processor has AMX for bf16 and the system grants its tiles, which it does on request alone: then to
    all threads of this process."""
    if lacking(["amx_bf16", "amx_tile"]) or platform.system() != "Linux":
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILES)) == 0


def check(statement: bytes) -> None:
    """CnncError E0626 where this processor cannot run code that needs what was `stated`, or the system forbids it."""
    told = json.loads(statement)
    machine, needs = str(told["machine"]), [str(name) for name in told["instructions"]]
    if machine != platform.machine():
        raise error(
            "E0626", f"the program is for processors of {machine}, this one is of {platform.machine()}",
            help="compile it here: programs are for machines of the kind that compiled them",
        )  # fmt: skip
    if missing := lacking(needs):
        raise error(
            "E0626", f"this processor lacks instructions that the program needs: {', '.join(missing)}",
            help="compile it here, or with `--mcpu` for a processor that has less",
        )  # fmt: skip
    if "amx_tile" in needs and not tiles_granted():
        raise error(
            "E0626", "the system does not grant AMX, which the program needs",
            help="compile it with `-X bf16=off`, or here",
        )  # fmt: skip
