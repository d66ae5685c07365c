"""The tables of rules: for each op, how its result is computed from its operands.

A rule is called as `rule(builder, op, result type, *operands, **parameters)`, with the operands and the parameters (by
role) as tensors, and returns the result as a tensor. Most ops have one rule for both targets; those whose form
depends on the machine have one each. Importing this package's `rules_*` modules fills the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from cnnc.ir.op import Op
from cnnc.target import Rules
from cnnc_tvm.tensor import Tensor

Rule: TypeAlias = Callable[..., Tensor]

CPU: Rules[Rule] = Rules("cpu")
CUDA: Rules[Rule] = Rules("cuda")


def rule(*ops: type[Op]) -> Callable[[Rule], Rule]:
    """Decorator: the function lowers these op classes for both targets."""

    def add(function: Rule) -> Rule:
        return CUDA(*ops)(CPU(*ops)(function))

    return add


def spread(x: Tensor, rank: int) -> Callable[..., Any]:
    """x read at the index of a tensor of this rank that x is broadcast to, by NumPy's rules."""
    ones = [dim == 1 for dim in x.type.shape]

    def read(*index: Any) -> Any:
        own = index[rank - len(ones) :]
        return x[tuple(0 if one else i for one, i in zip(ones, own, strict=True))]

    return read


def per_channel(x: Tensor) -> Callable[..., Any]:
    """x [C] read at the index of a tensor [N, C, ...]."""
    return lambda *index: x[index[1]]
