"""Having memory fetched into a cache before it is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.script.ir_builder import tirx as T
from tvm.target import codegen

from cnnc_tvm.conv_shape import Finish
from cnnc_tvm.tensor import Expr

_NAME = "llvm.prefetch"


def prefetch(buffer: Any, *index: Expr, level: int = 1, write: bool = False) -> None:
    """Have a line of memory fetched into the first cache, or the second, to be read or written; it need not exist."""
    kind, locality, data = (tirx.const(int(x), "int32") for x in (write, 4 - level, True))
    T.evaluate(T.call_llvm_intrin("void", f"{_NAME}.p0", T.address_of(buffer[index]), kind, locality, data))


def by_turns(total: int, turns: int, turn: Expr, fetch: Callable[[Expr], None]) -> None:
    """Emit, for one of the turns of a loop, `fetch(i)` for some i below `total`: for all of them by the last turn."""
    count = -(-total // turns)

    def some() -> None:
        with T.serial(count) as k:
            fetch(turn * count + k)

    if turns * count == total:
        some()
        return
    with T.If(turn * count < total), T.Then():
        some()


def prefetched(body: Any) -> Counter[Any]:
    """How often elements of each buffer are named to be fetched, which is not to read them."""
    found: Counter[Any] = Counter()

    def visit(call: Any) -> None:
        if call.op.name == "tirx.call_llvm_intrin" and int(call.args[0]) == _number():
            found[call.args[1].args[0].source] += 1

    tvm_ffi.structural_walk(body, (ir.Call, visit))
    return found


@cache
def _number() -> int:
    return int(codegen.llvm_lookup_intrinsic_id(f"{_NAME}.p0"))


def images_read(finish: Finish, n: Expr, block: Expr, i: Expr, j: Expr) -> list[tuple[Any, list[Expr]]]:
    """The images in blocks that an epilogue reads for a place of a block, each with the index of the first lane."""
    found: dict[Any, list[Expr]] = {}

    def visit(load: Any) -> None:
        if len(load.indices) == 5:
            found.setdefault(load.source, list(load.indices))

    value = finish(tirx.const(0.0, "float32"), n, block, tirx.const(0, "int32"), i, j)
    tvm_ffi.structural_walk(value, (tvm.ir.TensorLoad, visit))
    return list(found.items())
