"""Emitting ONNX nodes: names, constants, and arithmetic on symbolic dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeAlias

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from cnnc.ir.dim import Dim, Floor, Min, Sym, evaluate, symbols
from cnnc.ir.graph import Graph
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.target import Rules, numpy_dtype

ELEMENT: Final[dict[DType, int]] = {
    DType.F32: TensorProto.FLOAT,
    DType.F16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16,
}


@dataclass(frozen=True, slots=True)
class Ref:
    """An operand of a rule: the name of its tensor and its type."""

    name: str
    type: TensorType


Tensor: TypeAlias = Ref | str
"""An operand, or the name of a tensor that the rule has emitted."""

Rule: TypeAlias = Callable[..., Tensor]
"""`rule(op, e, *operands, **params) -> result`: emits the nodes of one op through the emitter `e`."""

rules: Rules[Rule] = Rules("onnx")


def in_f32(rule: Rule) -> Rule:
    """The rule, taking its steps in f32 and rounding the result once: f16 and bf16 would round after every step."""

    @wraps(rule)
    def wide(op: Op, e: Emitter, *operands: Ref, **params: Ref) -> Tensor:
        narrow = e.type
        if narrow.dtype is DType.F32:
            return rule(op, e, *operands, **params)
        e.type = TensorType(narrow.shape, DType.F32)
        result = rule(op, e, *map(e.widened, operands), **{role: e.widened(x) for role, x in params.items()})
        e.type = narrow
        return e("Cast", result, to=ELEMENT[narrow.dtype])

    return wide


class UnsupportedError(Exception):
    """A rule cannot write its op; the message completes "target `onnx` ..."."""


class Emitter:
    """Collects the nodes of a model. A rule calls it with an ONNX op type, operands and attributes, and gets a name."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph, self.opset = graph, opset
        self.nodes: list[NodeProto] = []
        self.type = TensorType(())  # of the result of the node that is being lowered
        self._prefix, self._doc, self._start = "", "", 0
        self._taken = {x.name for x in graph.inputs} | set(graph.params)
        self._dims: dict[Dim, str] = {}

    def unique(self, name: str) -> str:
        """`name`, or `name` with a number where another tensor has it already."""
        found, number = name, 1
        while found in self._taken:
            number += 1
            found = f"{name}/{number}"
        self._taken.add(found)
        return found

    def begin(self, name: str, type: TensorType, doc: str) -> None:
        """What follows lowers the node `name`; `doc` says where it was written."""
        self._prefix, self.type, self._doc, self._start = name, type, doc, len(self.nodes)

    def finish(self, result: Tensor, name: str | None) -> str:
        """End the node: its result gets `name`, or the node's own. An operand handed on keeps its name if it may."""
        found = result.name if isinstance(result, Ref) else result
        if len(self.nodes) == self._start or self.nodes[-1].output[0] != found:
            if name is None:
                return found
            self("Identity", result)
        name = name or self.unique(self._prefix)
        self.nodes[-1].output[0] = name
        self.nodes[-1].name = self._prefix
        return name

    def needs_opset(self, least: int, what: str) -> None:
        """UnsupportedError where the model is written for an opset older than `least`."""
        if self.opset < least:
            raise UnsupportedError(f"writes {what} from opset {least} on, and opset {self.opset} was asked for")

    def __call__(self, kind: str, *operands: Tensor | None, **attributes: object) -> str:
        """Emit a node with one output; its name."""
        return self.many(kind, 1, *operands, **attributes)[0]

    def many(self, kind: str, outputs: int, *operands: Tensor | None, **attributes: object) -> list[str]:
        """Emit a node with several outputs; their names. An operand of None is an optional one left out."""
        names = [x.name if isinstance(x, Ref) else x or "" for x in operands]
        while names and not names[-1]:
            names.pop()
        made = [self.unique(f"{self._prefix}/{kind}") for _ in range(outputs)]
        node = helper.make_node(kind, names, made, name=made[0], doc_string=self._doc)
        node.attribute.extend(_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return made

    def widened(self, x: Ref) -> Ref:
        """`x` in f32."""
        return Ref(self("Cast", x, to=ELEMENT[DType.F32]), TensorType(x.type.shape, DType.F32))

    # Constants

    def ints(self, *values: int) -> str:
        """A constant of rank 1: axes, sizes, offsets."""
        return self.array(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A scalar of the result's element type."""
        return self.floats(np.array(value))

    def floats(self, values: np.ndarray[Any, Any]) -> str:
        """A constant of the result's element type."""
        return self.array(values.astype(numpy_dtype(self.type.dtype)))

    def array(self, array: np.ndarray[Any, Any]) -> str:
        return self("Constant", value=numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape)))

    # Dimensions

    def dims(self, dims: Sequence[Dim]) -> str:
        """The dims as a tensor of rank 1; computed from the shapes of the inputs where some are symbolic."""
        fixed = [d for d in dims if isinstance(d, int)]
        if len(fixed) == len(dims):
            return self.ints(*fixed)
        return self("Concat", *map(self.dim, dims), axis=0)

    def dim(self, dim: Dim) -> str:
        """A dim as a tensor of one element."""
        if dim not in self._dims:
            self._dims[dim] = self._dim(dim)
        return self._dims[dim]

    def _dim(self, dim: Dim) -> str:
        if isinstance(dim, int):
            return self.ints(dim)
        total = ""
        for atoms, factor in dim.terms:
            factors = [self._atom(atom) for atom in atoms]
            if factor != 1 or not factors:
                factors.append(self.ints(factor))
            term = factors[0]
            for other in factors[1:]:
                term = self("Mul", term, other)
            total = self("Add", total, term) if total else term
        return total

    def _atom(self, atom: str | Floor | Min) -> str:
        match atom:
            case Floor(of, by):  # `Div` rounds towards zero, `Mod` has the divisor's sign
                value, divisor = self.dim(of), self.ints(by)
                return self("Div", self("Sub", value, self("Mod", value, divisor)), divisor)
            case Min(left, right):
                return self("Min", self.dim(left), self.dim(right))
            case name:
                return self._symbol(name)

    def _symbol(self, name: str) -> str:
        """A symbol, solved from the first input dim that is k*symbol + c."""
        for x in self.graph.inputs:
            for axis, dim in enumerate(x.type.shape):
                if symbols(dim) != {name}:
                    continue
                constant = evaluate(dim, {name: 0})
                factor = evaluate(dim, {name: 1}) - constant
                if factor < 1 or Sym.of(name) * factor + constant != dim:
                    continue
                size = self("Gather", self("Shape", x.name), self.ints(axis))
                size = self("Sub", size, self.ints(constant)) if constant else size
                return self("Div", size, self.ints(factor)) if factor > 1 else size
        raise UnsupportedError(f"cannot compute `{name}` from the shapes of the inputs")

    def range(self, dim: Dim) -> str:
        """0, 1, ..., dim - 1 as int64."""
        if isinstance(dim, int):
            return self.ints(*range(dim))
        first, step = self.array(np.array(0)), self.array(np.array(1))
        return self("Range", first, self("Squeeze", self.dim(dim), self.ints(0)), step)

    # Pieces that several rules use

    def reshape(self, x: Tensor, before: Sequence[Dim], after: Sequence[Dim]) -> str:
        """`x` of one shape in another; the new shape is a constant wherever one will do."""
        shape = list(after)
        symbolic = [i for i, dim in enumerate(shape) if not isinstance(dim, int)]
        if len(symbolic) > 1:
            kept = [i for i in symbolic if i < len(before) and before[i] == after[i]]
            for i in kept:
                shape[i] = 0  # which ONNX takes from x
            symbolic = [i for i in symbolic if i not in kept]
        if len(symbolic) == 1:
            shape[symbolic[0]] = -1
        return self("Reshape", x, self.dims(shape))

    def channels(self, param: Tensor, rank: int) -> Tensor:
        """A vector of one number a channel, shaped to broadcast over axis 1 of a tensor of this rank."""
        return self("Reshape", param, self.ints(-1, *[1] * (rank - 2))) if rank > 2 else param

    def affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, rank: int) -> Tensor:
        """weight*x + bias a channel; either may be missing."""
        x = self("Mul", x, self.channels(weight, rank)) if weight is not None else x
        return self("Add", x, self.channels(bias, rank)) if bias is not None else x

    def reduce(self, kind: str, x: Tensor, axes: Sequence[int], *, keep: bool) -> str:
        """A reduction; its axes are an operand since opset 18 (sums: 13), an attribute before."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self(kind, x, self.ints(*axes), keepdims=int(keep))
        return self(kind, x, axes=list(axes), keepdims=int(keep))


def _attribute(key: str, value: object) -> AttributeProto:
    return helper.make_attribute(key, list(value) if isinstance(value, tuple) else value)
