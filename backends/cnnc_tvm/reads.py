"""What expressions read."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, te, tirx

from cnnc_tvm.tensor import Expr


def is_load(call: Any) -> bool:
    """Whether it reads an element of a tensor of TE."""
    return bool(call.op == ir.Op.get("te.tensor_load"))


def loads(value: Expr) -> list[Any]:
    """The tensors of TE that an expression reads, each with its index."""
    found: list[Any] = []

    def visit(call: Any) -> None:
        if is_load(call):
            found.append(tuple(call.args))

    tvm_ffi.structural_walk(value, (ir.Call, visit))
    return found


def mentions(index: Expr, var: Expr) -> bool:
    """Whether an expression holds a variable."""
    found: list[Any] = []
    tvm_ffi.structural_walk(index, (tirx.Var, lambda x: found.append(x.same_as(var))))
    return any(found)


def placeholders(tensor: Any) -> list[Any]:
    """The stored tensors an expression reads, in order of first reading."""
    found: dict[Any, Any] = {}
    seen = set()

    def visit(x: Any) -> None:
        if x.op in seen:
            return
        seen.add(x.op)
        if isinstance(x.op, te.PlaceholderOp):
            found[x.op] = x
        for operand in x.op.input_tensors:
            visit(operand)

    visit(tensor)
    return list(found.values())
