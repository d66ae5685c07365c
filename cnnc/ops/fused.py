"""A layer and its epilogue as one node: what the optimiser makes of conv -> add -> relu.

The language does not have it. A target that can compute the epilogue where the layer's result still is in registers
says so (`Target.fuses`); others get the nodes one by one, as `unfused` gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from cnnc.ir.attrs import Bool, Kind, ListOf, attr
from cnnc.ir.dim import Dim
from cnnc.ir.graph import Graph, Node, Value, keep
from cnnc.ir.op import Op, OpError, ParamSpec, register
from cnnc.ir.text import parse_op
from cnnc.ir.types import TensorType
from cnnc.ops.elementwise import Merge

T = TypeVar("T")


class OpKind(Kind):
    """An op, written as in the language."""

    text = "an op"

    def coerce(self, value: object) -> Op:
        if isinstance(value, Op):
            return value
        if isinstance(value, str):
            return parse_op(value)
        raise self._refuse(value)

    def show(self, value: Op) -> str:
        return str(value)


@register
class Fused(Op):
    """The first of `parts` on x, and each further one on the result so far.

    A further part keeps the shape. One that merges (`add`) has a second operand, in order after x. The parameters of
    the first part have their roles; those of the k-th part after it are `{op}{k}_{role}`, such as `prelu2_weight`.
    With `wide`, results in f16 and bf16 are rounded once: a target may keep those of the parts before the last in f32.

    Shapes: those of the first part; every other operand broadcasts to its result.
    """

    name = "fused"
    internal = True
    parts: tuple[Op, ...] = attr(ListOf(OpKind()), "parts", variadic=True)
    wide: bool = attr(Bool(), "wide", default=False)

    def steps(self, operands: Sequence[T]) -> Iterator[tuple[Op, tuple[T, ...]]]:
        """Each part with the operands it has beside the result so far; the first has x."""
        rest = iter(operands)
        for k, part in enumerate(self.parts):
            yield part, tuple(islice(rest, int(k == 0 or isinstance(part, Merge))))

    def role(self, k: int, role: str) -> str:
        """The role here of a parameter of the k-th part."""
        return f"{self.parts[k].name}{k}_{role}" if k else role

    def infer(self, x: TensorType, *others: TensorType) -> TensorType:
        takes = 1 + sum(isinstance(part, Merge) for part in self.parts[1:])
        if takes != 1 + len(others):
            raise OpError("E0302", f"`{self}` takes {takes} operands, not {1 + len(others)}")
        (layer, own), *epilogue = self.steps((x, *others))
        out = layer.result(*own)
        for part, more in epilogue:
            if part.result(out, *more) != out:
                raise OpError("E0308", f"`{part.name}` in `{self.name}` does not keep {out}")
        return out

    def params(self, x: TensorType, *others: TensorType) -> Mapping[str, ParamSpec]:
        layer = self.parts[0]
        found = dict(layer.params(x))
        out = layer.result(x)
        for k, (part, more) in enumerate(self.steps((x, *others))):
            if k:
                found |= {self.role(k, role): spec for role, spec in part.params(out, *more).items()}
        return found

    def macs(self, out: TensorType, x: TensorType, *others: TensorType) -> Dim:
        return self.parts[0].macs(out, x)


def parts_of(op: Op) -> tuple[Op, ...]:
    """The parts of a fused op; another op is its own only part."""
    return op.parts if isinstance(op, Fused) else (op,)


def chain(node: Node, inputs: Sequence[Value]) -> Iterator[Node]:
    """The nodes that a fused node on these inputs stands for, operands first; the last has its name."""
    op = node.op
    assert isinstance(op, Fused)
    value: tuple[Value, ...] = ()
    last = len(op.parts) - 1
    for k, (part, own) in enumerate(op.steps(inputs)):
        prefix = op.role(k, "")
        params = {role: node.params[prefix + role] for role in part.param_types(*(x.type for x in (*value, *own)))}
        name = node.name if k == last else f"{node.name}+{k}"
        value = (Node(part, (*value, *own), params, name, node.origin),)
        yield value[0]


def unfused(graph: Graph) -> Graph:
    """The graph with the parts of its fused nodes as nodes of their own."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Value:
        return list(chain(node, inputs))[-1] if isinstance(node.op, Fused) else keep(node, inputs)

    return graph.rebuild(rule) if any(isinstance(node.op, Fused) for node in graph.nodes) else graph
