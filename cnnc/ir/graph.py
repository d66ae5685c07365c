"""The graph: immutable values, each with its type, its origin and one output.

A value is an `Input`, a `Param` or a `Node`. A graph is a name, its inputs and its named outputs; everything else
(order, parameters, users) is derived from them, so nothing can go stale and what no output reaches does not exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

from cnnc.diagnostics import Span
from cnnc.ir.dim import Dim
from cnnc.ir.op import Init, Op
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Frame:
    """A call on the way to a node: `layer1: stage(c=64, n=3, s=1)`, inside `parent`."""

    call: str
    parent: Frame | None = None

    def path(self) -> tuple[str, ...]:
        """The calls from the outermost, the model, to this one; none for what stands in the model itself."""
        if self.parent is None:
            return ()
        calls: list[str] = []
        frame: Frame | None = self
        while frame is not None:
            calls.append(frame.call)
            frame = frame.parent
        return tuple(reversed(calls))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in which source a value was written, and through which calls."""

    span: Span
    frame: Frame | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """A tensor given at each run."""

    name: str
    type: TensorType
    doc: str = ""
    origin: Origin | None = None

    def __repr__(self) -> str:
        return f"<Input {self.name}: {self.type}>"


@dataclass(frozen=True, slots=True, eq=False)
class Param:
    """A weight or a statistic, by name; its array lives outside the graph. One Param used at two nodes is shared."""

    name: str
    type: TensorType
    init: Init
    trainable: bool = True


_NO_PARAMS: Mapping[str, Param] = MappingProxyType({})
_set = object.__setattr__  # what is frozen is written once, while it is made


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An op applied to `inputs`, with its `params` by role. The type is computed here, by `op`; OpError refuses."""

    op: Op
    inputs: tuple[Value, ...]
    params: Mapping[str, Param]
    name: str
    origin: Origin | None = None
    type: TensorType = field(init=False)

    def __post_init__(self) -> None:
        _set(self, "type", self.op.result(*(x.type for x in self.inputs)))
        if not isinstance(self.params, MappingProxyType):  # else they are those of another node
            params = MappingProxyType(dict(self.params)) if self.params else _NO_PARAMS
            _set(self, "params", params)

    @staticmethod
    def make(op: Op, *inputs: Value, name: str, origin: Origin | None = None) -> Node:
        """A node with fresh parameters named `{name}.{role}`."""
        return Node(op, inputs, fresh_params(op, inputs, name), name, origin)

    def __repr__(self) -> str:
        return f"<Node {self.name} = {self.op}: {self.type}>"

    def on(self, inputs: tuple[Value, ...]) -> Node:
        """The node on other operands; OpError where they have other types, and its op refuses these."""
        if [x.type for x in inputs] != [x.type for x in self.inputs]:
            return Node(self.op, inputs, self.params, self.name, self.origin)
        new = object.__new__(Node)  # inferring the same type again would be half the cost of what passes make most
        _set(new, "op", self.op)
        _set(new, "inputs", inputs)
        _set(new, "params", self.params)
        _set(new, "name", self.name)
        _set(new, "origin", self.origin)
        _set(new, "type", self.type)
        return new

    @property
    def macs(self) -> Dim:
        """Multiply-accumulates of one run."""
        return self.op.macs(self.type, *(x.type for x in self.inputs))


Value: TypeAlias = "Input | Node"


def fresh_params(op: Op, inputs: Iterable[Value], prefix: str) -> dict[str, Param]:
    """The parameters `op` wants on `inputs`, named `{prefix}.{role}`, in the element type of the first input."""
    operands = [x.type for x in inputs]
    op.result(*operands)
    types = op.param_types(*operands)
    return {
        role: Param(f"{prefix}.{role}", types[role], spec.init, spec.trainable)
        for role, spec in op.params(*operands).items()
    }


@dataclass(frozen=True, eq=False)
class Graph:
    """Inputs in order and outputs by name; nodes, parameters and users are derived."""

    name: str
    inputs: tuple[Input, ...]
    outputs: Mapping[str, Value]
    doc: str = ""

    def __repr__(self) -> str:
        inputs = ", ".join(f"{x.name}: {x.type}" for x in self.inputs)
        return f"<Graph {self.name}({inputs}) -> {', '.join(f'{name}: {x.type}' for name, x in self.outputs.items())}>"

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """What the outputs reach, operands before users. The order is that of a depth-first walk from the outputs."""
        order: dict[Node, None] = {}
        stack = [x for x in reversed([*self.outputs.values()]) if isinstance(x, Node)]
        while stack:
            node = stack[-1]
            first = [x for x in node.inputs if isinstance(x, Node) and x not in order]
            if first:
                stack.extend(reversed(first))
            else:
                order[stack.pop()] = None
        return tuple(order)

    @cached_property
    def classes(self) -> frozenset[type[Op]]:
        """The classes of the ops."""
        return frozenset(type(node.op) for node in self.nodes)

    @cached_property
    def params(self) -> Mapping[str, Param]:
        """The parameters of the nodes by name, in order of first use."""
        return {param.name: param for param in self.param_uses}

    @cached_property
    def users(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value; a node that reads it twice stands twice."""
        values: tuple[Value, ...] = (*self.inputs, *self.nodes)
        users: dict[Value, list[Node]] = {x: [] for x in values}
        for node in self.nodes:
            for x in node.inputs:
                users[x].append(node)
        return {value: tuple(nodes) for value, nodes in users.items()}

    @cached_property
    def uses(self) -> Mapping[Value, int]:
        """How many operands of nodes, and outputs, each value is. KeyError where one is no value of the graph."""
        uses: dict[Value, int] = dict.fromkeys((*self.inputs, *self.nodes), 0)
        for node in self.nodes:
            for x in node.inputs:
                uses[x] += 1
        for value in self.outputs.values():
            uses[value] += 1
        return uses

    @cached_property
    def param_uses(self) -> Mapping[Param, int]:
        """How many nodes use each parameter."""
        return Counter(param for node in self.nodes for param in node.params.values())

    @property
    def symbols(self) -> frozenset[str]:
        """The symbolic dims of the inputs."""
        return frozenset(name for x in self.inputs for name in x.type.symbols)

    def rebuild(
        self, rule: Callable[[Node, tuple[Value, ...]], Value], inputs: tuple[Input, ...] | None = None
    ) -> Graph:
        """The graph with each node replaced by `rule(node, its rebuilt inputs)`, operands first; itself if none is."""
        inputs = self.inputs if inputs is None else inputs
        new: dict[Value, Value] = {old: x for old, x in zip(self.inputs, inputs, strict=True) if x is not old}
        for node in self.nodes:
            value = rule(node, tuple([new.get(x, x) for x in node.inputs]) if new else node.inputs)
            if value is not node:
                new[node] = value
        if not new:
            return self
        return replace(self, inputs=inputs, outputs={name: new.get(x, x) for name, x in self.outputs.items()})

    def with_outputs(self, outputs: Mapping[str, Value]) -> Graph:
        """The graph pruned to other outputs; inputs stay."""
        return replace(self, outputs=dict(outputs))


def keep(node: Node, inputs: tuple[Value, ...]) -> Node:
    """`node` on other inputs; the same object where they are the same."""
    return node if inputs == node.inputs else node.on(inputs)
