"""Build a graph in Python, without the language.

    net = Builder("Tiny")
    x = net.input("image", ("N", 3, 32, 32))
    x = net.add(Relu(), net.add(Conv(16, 3, pad=1), x, name="stem"))
    graph = net.graph(features=x)
"""

from __future__ import annotations

from collections.abc import Iterable

from cnnc.diagnostics import CnncError, error
from cnnc.ir.dim import Dim, parse_dim
from cnnc.ir.explain import diagnose
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.op import Op, OpError
from cnnc.ir.types import DType, TensorType


class Builder:
    """Collects inputs and nodes under unique names; `graph` makes the graph of what its outputs reach."""

    def __init__(self, name: str, doc: str = "") -> None:
        self.name, self.doc = name, doc
        self._inputs: list[Input] = []
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    def input(self, name: str, shape: Iterable[Dim | str], dtype: DType = DType.F32, doc: str = "") -> Input:
        """A new input. A dim is an int or a text such as "N" or "16*h"; CnncError E0902 for anything else."""
        try:
            dims = tuple(parse_dim(dim) if isinstance(dim, str) else dim for dim in shape)
        except ValueError as e:
            raise error("E0902", f"input `{name}`: {e}") from None
        value = Input(self._take(name), TensorType(dims, dtype), doc)
        self._inputs.append(value)
        return value

    def add(self, op: Op, *values: Value, name: str | None = None) -> Node:
        """A new node, named by the op and a number unless `name` is given. CnncError where the operands do not fit."""
        try:
            return Node.make(op, *values, name=self._next(op.name) if name is None else self._take(name))
        except OpError as e:
            raise CnncError((diagnose(e, op, values, None),)) from None

    def graph(self, **outputs: Value) -> Graph:
        """The graph with these outputs; nodes that none of them reaches are not part of it."""
        if not outputs:
            raise error("E0902", f"graph `{self.name}` needs at least one output")
        return Graph(self.name, tuple(self._inputs), outputs, self.doc)

    def _take(self, name: str) -> str:
        if name in self._names:
            raise error("E0902", f"graph `{self.name}` has two values named `{name}`")
        self._names.add(name)
        return name

    def _next(self, stem: str) -> str:
        while True:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}{self._counts[stem]}"
            if name not in self._names:
                return self._take(name)
