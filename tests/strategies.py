"""Hypothesis strategies of random networks, built from the op registry.

`cases()` draws a well-typed graph with a symbolic batch, a batch size and a seed for its weights and inputs. Operands
are those that an op's `infer` accepts; the tables below hold what it does not say, such as what keeps numbers finite.
A falsified case prints as IR text and as `.cnn` text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, TypeAlias, TypeVar

from hypothesis import reject
from hypothesis import strategies as st

from attribute_strategies import Draw, draw_attributes, size, sizes
from cnnc import ops
from cnnc.ir.attrs import AttrError
from cnnc.ir.dim import Sym
from cnnc.ir.graph import Graph, Input, Node, Param, Value
from cnnc.ir.op import Op, OpError, operands_of, registry
from cnnc.ir.text import to_text
from cnnc.ir.types import TensorType
from cnnc.ops.elementwise import Merge
from cnnc_numpy.rules import rule as numpy_rule
from numerics import Array, random_inputs, random_weights

T = TypeVar("T")
N = Sym.of("N")
Attributes: TypeAlias = Mapping[str, object]

MAX_ELEMENTS = 2_000
"""Elements of a sample that a node may have; larger ones are not drawn upon."""

OPS = tuple(cls for cls in registry().values() if cls in numpy_rule)
"""The ops whose values can be computed."""
HOMOGENEOUS: tuple[type[Op], ...] = (
    ops.Conv, ops.Deconv, ops.Linear, ops.Relu, ops.LeakyRelu, ops.Prelu, ops.Abs, ops.Neg, ops.Dropout, ops.MaxPool,
    ops.AvgPool, ops.GlobalAvgPool, ops.GlobalMaxPool, ops.AdaptiveAvgPool, ops.Add, ops.Sub, ops.Maximum, ops.Minimum,
    ops.Concat, ops.Slice, ops.Take, ops.Flatten, ops.Reshape, ops.Transpose, ops.ChannelShuffle, ops.PixelShuffle,
    ops.Upsample, ops.Resize, ops.Crop, ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin, ops.Unpool,
)  # fmt: skip
"""Ops with f(2^k x) = 2^k f(x) in every bit, where they have no bias."""

IMAGES: tuple[type[Op], ...] = (
    ops.Conv, ops.Deconv, ops.Local, ops.MaxPool, ops.AvgPool, ops.L2Pool, ops.AdaptiveAvgPool, ops.GlobalAvgPool,
    ops.GlobalMaxPool, ops.Unpool, ops.Lrn, ops.Pad, ops.ChannelShuffle, ops.PixelShuffle, ops.Upsample, ops.Resize,
    ops.Crop, ops.RoiPool, ops.RoiAlign,
)  # fmt: skip
REGIONS: tuple[type[Op], ...] = (ops.RoiPool, ops.RoiAlign)
FEATURES: tuple[type[Op], ...] = (ops.Linear, ops.Rbf)
GROWING: tuple[type[Op], ...] = (ops.Pad, ops.Upsample, ops.Resize, ops.Deconv, ops.AdaptiveAvgPool, ops.Concat)
"""Ops that may make a tensor larger: not put on large ones."""

refused: list[str] = []
"""What ops said of the attributes drawn for them: a test holds this to 1% of the networks."""

BOUNDED: Mapping[type[Op], int] = {
    ops.Exp: 0, ops.Mul: 0, ops.MatMul: 0, ops.Rbf: 0, ops.Log: 0, ops.Sqrt: 0, ops.Div: 1,
}  # fmt: skip
"""Which operand is bounded first (`clip` or `tanh`), so that values stay finite and do not grow without end."""
POSITIVE: tuple[type[Op], ...] = (ops.Log, ops.Sqrt, ops.Div)
"""Ops whose bounded operand must be positive too: a sigmoid follows."""


@dataclass(frozen=True, repr=False)
class Case:
    """A random network: its graph, the size of its batch, and its weights and inputs by a seed."""

    graph: Graph
    batch: int
    seed: int

    @cached_property
    def weights(self) -> dict[str, Array]:
        return random_weights(self.graph, self.seed)

    @cached_property
    def inputs(self) -> dict[str, Array]:
        return random_inputs(self.graph, self.seed, N=self.batch)

    def __repr__(self) -> str:
        return f"N={self.batch}, seed={self.seed} of\n{to_text(self.graph)}\n{to_cnn(self.graph)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # how Hypothesis prints a falsified case
        printer.text(repr(self))


@st.composite
def cases(draw: Draw, of: Sequence[type[Op]] = OPS, fixed: Attributes | None = None) -> Case:
    """Networks of 2 to 8 nodes; `fixed` sets attributes by their Python names wherever an op has them."""
    return Case(draw(graphs(of, fixed or {})), draw(st.integers(1, 3)), draw(st.integers(0, 1000)))


@st.composite
def graphs(draw: Draw, of: Sequence[type[Op]], fixed: Attributes) -> Graph:
    """Graphs on one or two inputs; everything that nothing reads is an output, and sometimes another value is."""
    growing = _Growing(draw, of, fixed)
    count = draw(st.integers(2, 8))
    while len(growing.nodes) < count:
        growing.grow()
    read = {x for node in growing.nodes for x in node.inputs}
    live = [node for node in growing.nodes if node not in growing.constant]
    outputs = [node for node in live if node not in read]
    inner = [node for node in live if node in read]
    if inner and draw(st.integers(0, 3)) == 3:
        outputs.append(draw(st.sampled_from(inner)))
    return Graph("Random", tuple(growing.inputs), {f"y{i}": node for i, node in enumerate(outputs)})


class _Growing:
    """A graph in the making. A step of its growth is one op, a common block of some, or an old block used again."""

    def __init__(self, draw: Draw, of: Sequence[type[Op]], fixed: Attributes) -> None:
        self.draw, self.of, self.fixed = draw, of, fixed
        ways = st.sampled_from([6, 1, 2, 5, 8, 9, 12])
        shape = (N, draw(st.integers(1, 8)), draw(ways), draw(ways))
        self.inputs = [Input("x0", TensorType(shape))]
        if draw(st.integers(0, 3)) == 3:
            self.inputs.append(Input("x1", TensorType(shape)))
        self.nodes: list[Node] = []
        self.constant: list[Node] = []

    @property
    def values(self) -> list[Value]:
        """What ops may be put on, the latest first: batches, not too large."""
        made: list[Value] = [x for x in reversed(self.nodes) if x not in self.constant and x.type.rank > 1]
        return [x for x in [*made, *self.inputs] if x.name != "rois" and prod(sizes(x.type)) <= MAX_ELEMENTS]

    def pick(self, items: Sequence[T]) -> T:
        item: T = self.draw(st.sampled_from(items))
        return item

    def grow(self) -> None:
        step = self.pick([self.any_op, self.any_op, self.any_op, self.merge, self.layer, self.residual, self.again])
        step()

    def any_op(self) -> None:
        """An op of a family of ops: a choice from all would favour the large families."""
        x = self.pick(self.values)
        families: dict[str, list[type[Op]]] = {}
        for cls in self.of:
            if _fits(cls, x):
                families.setdefault(cls.__module__, []).append(cls)
        self.add(self.pick(self.pick(list(families.values()))), x)

    def merge(self) -> None:
        x = self.pick(self.values)
        merges = (ops.Add, ops.Concat, ops.Mul, ops.Maximum)
        self.add(self.pick([cls for cls in merges if cls in self.of and _fits(cls, x)]), x)

    def layer(self) -> None:
        """Convolution or linear layer, batch norm and activation, each of the last two half of the time."""
        x = self.pick(self.values)
        x = self.add(self.pick([ops.Conv, ops.Deconv]) if x.type.rank == 4 else ops.Linear, x)
        for cls in (ops.BatchNorm, ops.Relu):
            if cls in self.of and self.draw(st.booleans()):
                x = self.add(cls, x)

    def residual(self) -> None:
        """x plus a convolution of x, then relu."""
        x = self.pick(self.values)
        if x.type.rank == 4:
            kernel = self.pick([1, 3])
            conv = ops.Conv(size(x.type, 1), (kernel, kernel), pad="half", bias=bool(self.fixed.get("bias", True)))
            self.node(ops.Relu(), self.node(ops.Add(), self.node(conv, x), x))
        else:
            self.layer()

    def again(self) -> None:
        """A node with weights once more, with the same weights, on another value it can take."""
        made = [node for node in self.nodes if node.params]
        same = [(node, x) for node in made for x in self.values if x.type == node.inputs[0].type]
        pairs = [(node, x) for node, x in same if x is not node.inputs[0]]
        if pairs:
            node, x = self.pick(pairs)
            self.node(node.op, x, params=node.params)
        else:
            self.any_op()

    def add(self, cls: type[Op], x: Value) -> Node:
        """An op of this class on x: what must come before it, its attributes, its other operands."""
        if cls in FEATURES and x.type.rank != 2:
            x = self.node(ops.Flatten(), x)
        operands = [x, *self.partners(cls, x)]
        if cls in BOUNDED:
            bounded = self.node(self.pick([ops.Clip(-4, 4), ops.Tanh()]), operands[BOUNDED[cls]])
            operands[BOUNDED[cls]] = self.node(ops.Sigmoid(), bounded) if cls in POSITIVE else bounded
        values = draw_attributes(self.draw, cls, [y.type for y in operands])
        values |= {name: value for name, value in self.fixed.items() if name in values}
        if cls is ops.Unpool:
            operands = [self.node(ops.MaxPool(**values), x), x]
        try:
            return self.node(cls(**values), *([] if cls is ops.Constant else operands))
        except (AttrError, OpError) as e:
            refused.append(str(e))
            reject()

    def partners(self, cls: type[Op], x: Value) -> list[Value]:
        """Operands to go with x: values that the op, with its simplest attributes, takes beside it."""
        takes = operands_of(cls)
        if cls in REGIONS:
            return [self.boxes()]
        if cls is ops.Unpool or takes.most in (0, 1):
            return []
        count = self.draw(st.integers(takes.least, takes.most or 3)) - 1
        if takes.most is None and cls is not ops.Concat:
            count = max(count, 1)
        probe = ops.Crop((0, 0)) if cls is ops.Crop else cls()
        fitting = [y for y in [*self.values, *self.constant] if _takes(probe, x, y)]
        arithmetic = issubclass(cls, Merge | ops.Sub | ops.Div)
        if arithmetic and ops.Constant in self.of and self.draw(st.integers(0, 3)) == 3:
            fitting = [self.add(ops.Constant, x)]
        if cls is ops.Sub:  # x - x is 0 whatever x is
            fitting = [y for y in fitting if y is not x] or [self.node(ops.Neg(), x)]
        if cls is ops.MatMul and not fitting:
            rank = x.type.rank
            fitting = [self.node(ops.Transpose((*range(rank - 2), rank - 1, rank - 2)), x)]
        return [self.pick(fitting) for _ in range(count)]

    def boxes(self) -> Input:
        """The input of regions of interest."""
        for x in self.inputs:
            if x.name == "rois":
                return x
        rois = Input("rois", TensorType((N, self.pick([1, 2]), 4)))
        self.inputs.append(rois)
        return rois

    def node(self, op: Op, *operands: Value, params: Mapping[str, Param] | None = None) -> Node:
        name = f"n{len(self.nodes)}"
        node = Node.make(op, *operands, name=name) if params is None else Node(op, operands, params, name)
        self.nodes.append(node)
        if all(x in self.constant for x in operands):
            self.constant.append(node)
        return node

def _fits(cls: type[Op], x: Value) -> bool:
    """Whether ops of this class can be put on x."""
    if cls is ops.Constant or (cls in IMAGES and x.type.rank != 4):
        return False  # constants are made where another operand is wanted
    if cls in REGIONS and x.type.shape[0] != N:
        return False  # regions of regions
    if cls in GROWING and prod(sizes(x.type)) > MAX_ELEMENTS // 8:
        return False
    return x.type.rank > 2 or cls not in (ops.InstanceNorm, ops.MatMul)


def _takes(op: Op, *operands: Value) -> bool:
    """Whether the op takes these operands and keeps the batch in front: [N, 5] broadcast with [N, 3, 1, 5] does not."""
    try:
        out = op.result(*(x.type for x in operands))
    except OpError:
        return False
    return all(isinstance(dim, int) for dim in out.shape[1:])


def to_cnn(graph: Graph) -> str:
    """The graph in the language; a block used again is `shared`."""
    uses: dict[Param, list[Node]] = {}
    for node in graph.nodes:
        for param in node.params.values():
            uses.setdefault(param, []).append(node)
    shared = {param: f"s{i}" for i, param in enumerate(p for p, nodes in uses.items() if len(nodes) > 1)}
    lines = [f"input {x.name}: {x.type}" for x in graph.inputs] + [f"output {', '.join(graph.outputs)}"]
    for node in graph.nodes:
        operands = [x.name for x in node.inputs]
        block = str(node.op)
        if params := [param for param in node.params.values() if param in shared]:
            name = shared[params[0]]
            if uses[params[0]][0] is node:
                lines.append(f"shared {name} = {block}")
            block = name
        call = f"{operands[0]} -> {block}" if len(operands) == 1 else f"{block} {{ {' | '.join(operands)} }}"
        lines.append(f"{node.name} = {call if operands else block}")
    lines += [f"{name} = {x.name}" for name, x in graph.outputs.items()]
    return "\n".join([f"model {graph.name} {{", *(f"  {line}" for line in lines), "}"])
