"""What a graph costs and what it sees: parameters, arithmetic, memory, receptive fields.

Counts are dims: ints where all sizes are known, else expressions in the symbols of the graph, such as `1000*N`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import TypeAlias

from cnnc import memory, ops
from cnnc.ir.attrs import Pair
from cnnc.ir.dim import Dim, Sym
from cnnc.ir.graph import Graph, Node, Value
from cnnc.ir.op import Op
from cnnc.ir.types import TensorType
from cnnc.ops.activation import Pointwise
from cnnc.ops.elementwise import Merge
from cnnc.ops.pool import Pool


def params(graph: Graph) -> int:
    """Number of trained parameters, each shared one once; running statistics of batch norms are not trained."""
    return sum(_static(x.type) for x in graph.params.values() if x.trainable)


def weight_bytes(graph: Graph) -> int:
    """Bytes of all parameters and statistics."""
    return sum(_static(x.type) * x.type.dtype.size for x in graph.params.values())


def macs(graph: Graph) -> Dim:
    """Multiply-accumulates of one run, those of convolutions and matrix products, as the literature counts."""
    return _total(node.macs for node in graph.nodes)


def units(graph: Graph) -> Dim:
    """Number of neurons: elements of the results of layers, the nodes that sum weighted inputs."""
    return _total(node.type.size for node in graph.nodes if node.params and node.macs != 0)


def activation_bytes(graph: Graph) -> Dim:
    """Bytes of all results of nodes, as if each were kept (as training does)."""
    return _total(node.type.bytes for node in graph.nodes)


def peak_bytes(graph: Graph) -> Dim | None:
    """The most bytes of inputs and results that live at one time when nodes run in order and each result is dropped
    after its last use; an op needs its operands and its result at once. Weights and workspace are not counted.

    None where the answer depends on which of the unknown sizes is larger: bind them first.
    """
    last = {x: node for node in graph.nodes for x in node.inputs}
    outputs = set(graph.outputs.values())
    live = _total(x.type.bytes for x in graph.inputs)
    peak: Dim | None = live
    for node in graph.nodes:
        live = live + node.type.bytes
        peak = None if peak is None else _larger(peak, live)
        for x in dict.fromkeys(node.inputs):
            if last[x] is node and x not in outputs:
                live = live - x.type.bytes
    return peak


_VIEWS = (ops.Flatten, ops.Reshape, ops.Dropout)
"""Ops whose result is their operand in another shape."""

_BY_PLACE = (Pointwise, Merge, ops.Sub, ops.Div, ops.BatchNorm, ops.Scale, ops.Normalize)
"""Ops each element of whose result depends on the operands' elements at its place, or on smaller operands."""


def memory_plan(graph: Graph) -> memory.Arrangement[Value]:
    """Where inputs and results lie, of each node by itself; constants are weights."""
    values: tuple[Value, ...] = (*graph.inputs, *graph.nodes)
    views: dict[Value, Value] = {x: x.inputs[0] for x in graph.nodes if isinstance(x.op, _VIEWS)}
    steps = [_step(x) for x in graph.nodes if x not in views and not isinstance(x.op, ops.Constant)]
    return memory.arrange({x: x.type for x in values}, graph.inputs, views, steps, graph.outputs.values())


def planned_bytes(graph: Graph) -> Dim | None:
    """The bytes of one piece of memory that all inputs and results find room in by that plan.

    None where the unknown sizes do not scale all values alike, as a batch does: bind them first.
    """
    blocks = tuple(memory_plan(graph).blocks.values())
    sizes = [_scaled(block.type.bytes) for block in blocks]
    if len({scale for scale, _ in sizes}) > 1:
        return None
    return sizes[0][0] * memory.pack(blocks, (factor for _, factor in sizes)).size


def _step(node: Node) -> memory.Step[Value]:
    """The node as a plan of memory sees it."""
    if isinstance(node.op, ops.Concat) and all(isinstance(x.type.shape[node.op.axis], int) for x in node.inputs):
        return memory.Step(node, node.inputs, axis=node.op.axis)
    return memory.Step(node, node.inputs, node.inputs if isinstance(node.op, _BY_PLACE) else ())


def _scaled(dim: Dim) -> tuple[Dim, int]:
    """The dim as a product of what is unknown of it and a number."""
    if isinstance(dim, int):
        return 1, dim
    (names, factor), *others = dim.terms
    return (dim, 1) if others else (Sym(((names, 1),)), factor)


@dataclass(frozen=True, slots=True)
class Field:
    """A receptive field: how many rows and columns of the image a value sees, and how far apart neighbours' fields are.

    Below a stride of 1 (after upsampling) the stride is a fraction, and the size counts every pixel touched.
    """

    size: Pair
    stride: tuple[Fraction, Fraction]

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


_Extent: TypeAlias = tuple[Fraction, Fraction]
"""Size and stride along one axis; the size is kept unrounded."""


_PIXEL: _Extent = (Fraction(1), Fraction(1))


def receptive_fields(graph: Graph) -> dict[Value, Field | None]:
    """The receptive field of each value of images; None where it has none, as after a global pool or `flatten`.

    Source: Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks", 2019. Where branches
    meet, the field is that of the widest: they are taken to be centred on each other.
    """
    extents: dict[Value, tuple[_Extent, _Extent] | None] = {}
    for x in graph.inputs:
        extents[x] = (_PIXEL, _PIXEL) if x.type.rank == 4 else None
    for node in graph.nodes:
        extents[node] = _see(node, extents)
    return {value: None if both is None else _field(both) for value, both in extents.items()}


def _field(both: tuple[_Extent, _Extent]) -> Field:
    rows, columns = both
    return Field((ceil(rows[0]), ceil(columns[0])), (rows[1], columns[1]))


def _see(node: Node, extents: Mapping[Value, tuple[_Extent, _Extent] | None]) -> tuple[_Extent, _Extent] | None:
    sources = [extents[x] for x in node.inputs if not (isinstance(x, Node) and isinstance(x.op, ops.Constant))]
    known = [x for x in sources if x is not None]
    window = _window(node.op)
    strides = {(rows[1], columns[1]) for rows, columns in known}
    if window is None or len(known) < len(sources) or len(strides) != 1:
        return None
    rows, columns = (_through(max(x[axis][0] for x in known), known[0][axis][1], window, axis) for axis in (0, 1))
    return rows, columns


def _through(size: Fraction, stride: Fraction, window: _Window, axis: int) -> _Extent:
    return size + (window.span[axis] - 1) * stride, stride * window.stride[axis] / window.finer[axis]


@dataclass(frozen=True, slots=True)
class _Window:
    """How many neighbours of its operand each value of a result looks at, how far apart those of two values are, and
    how many values the result has for one of the operand."""

    span: Pair = (1, 1)
    stride: Pair = (1, 1)
    finer: Pair = (1, 1)


def _window(op: Op) -> _Window | None:
    match op:
        case ops.Conv() | Pool():
            return _Window(op.span, op.stride)
        case ops.Local():
            return _Window(op.kernel, op.stride)
        case ops.Deconv():
            return _Window((ceil(op.span[0] / op.stride[0]), ceil(op.span[1] / op.stride[1])), finer=op.stride)
        case ops.Upsample():
            return _Window((1, 1) if op.mode == "nearest" else (2, 2), finer=op.scale)
        case ops.PixelShuffle():
            return _Window(finer=(op.scale, op.scale))
        case ops.Lrn():
            return _Window((op.size, op.size) if op.within else (1, 1))
        case ops.Softmax() | ops.LogSoftmax() | ops.Concat() | ops.Slice() | ops.Take():
            return _Window() if op.axis == 1 else None
        case Pointwise() | Merge() | ops.Sub() | ops.Div() | ops.BatchNorm() | ops.Scale() | ops.Normalize():
            return _Window()
        case ops.Cast() | ops.ChannelShuffle() | ops.Pad() | ops.Crop():
            return _Window()
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the summary: a node, or a block of nodes whose names begin with its path. A block's counts are sums,
    its type and field those of its last node. A shared parameter counts where it is first used."""

    name: str
    op: str
    type: TensorType
    params: int
    macs: Dim
    bytes: Dim
    field: Field | None
    rows: tuple[Row, ...] = ()


@dataclass(slots=True)
class _Block:
    node: Node | None = None
    blocks: dict[str, _Block] = field(default_factory=dict)


def table(graph: Graph) -> tuple[Row, ...]:
    """The rows of the graph's nodes in running order, nested by the dots in their names."""
    root = _Block()
    for node in graph.nodes:
        block = root
        for part in node.name.split("."):
            block = block.blocks.setdefault(part, _Block())
        block.node = node
    owners: dict[str, Node] = {}
    for node in graph.nodes:
        for param in node.params.values():
            owners.setdefault(param.name, node)
    counts: dict[Node, int] = {}
    for name, node in owners.items():
        if graph.params[name].trainable:
            counts[node] = counts.get(node, 0) + _static(graph.params[name].type)
    fields = receptive_fields(graph)
    return tuple(_row(name, block, counts, fields) for name, block in root.blocks.items())


def _row(name: str, block: _Block, counts: Mapping[Node, int], fields: Mapping[Value, Field | None]) -> Row:
    rows = tuple(_row(part, inner, counts, fields) for part, inner in block.blocks.items())
    if (node := block.node) is None:
        return _summed(Row(name, "", rows[-1].type, 0, 0, 0, rows[-1].field, rows))
    own = Row(name, str(node.op), node.type, counts.get(node, 0), node.macs, node.type.bytes, fields[node], rows)
    return _summed(own)


def _summed(row: Row) -> Row:
    """The row with the counts of those below it added."""
    return replace(
        row,
        params=row.params + sum(x.params for x in row.rows),
        macs=row.macs + _total(x.macs for x in row.rows),
        bytes=row.bytes + _total(x.bytes for x in row.rows),
    )


def _total(dims: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for dim in dims:
        total = total + dim
    return total


def _larger(left: Dim, right: Dim) -> Dim | None:
    """The larger dim where one is, whatever the sizes (all at least 1)."""
    difference = left - right
    signs = {difference >= 0} if isinstance(difference, int) else {c > 0 for _, c in difference.terms}
    if len(signs) > 1:
        return None
    return left if signs == {True} else right


def _static(type: TensorType) -> int:
    """The number of elements of a parameter, whose sizes are always known."""
    assert isinstance(type.size, int)
    return type.size
