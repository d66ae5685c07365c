"""Remove output channels that nobody reads.

Where everything that reads a value takes some of its channels (slice, take), the others are not computed: the layer
that makes them loses those rows of its weights, per-channel parameters on the way (of batch norm, prelu, scale) lose
theirs, and the slices count anew. The way leads back over ops that keep channels apart (place by place, pooling,
resampling, depthwise convolution) to a convolution or linear layer. Each channel that is left sums what it did.

Not done past a value that is read elsewhere too, for shared weights, or in a grouped convolution, whose groups would
have different sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from cnnc import ops
from cnnc.ir.graph import Node, Param, Value
from cnnc.ir.op import Op
from cnnc.ops.activation import Pointwise
from cnnc.passes.engine import Pass, Refusal, Sweep

Kept: TypeAlias = Sequence[int]
"""Channels in ascending order."""
Reads: TypeAlias = Callable[[Node, Sweep], "set[int] | None"]
"""Which channels of its operand a node reads; None where it is not known to leave any out."""
Adapt: TypeAlias = Callable[[Node, Value, Kept, Sweep], Value]
"""The node on an operand of which these channels were kept."""

APART = (
    Pointwise, ops.BatchNorm, ops.Scale, ops.InstanceNorm, ops.Cast, ops.Pad, ops.MaxPool, ops.AvgPool, ops.L2Pool,
    ops.AdaptiveAvgPool, ops.GlobalAvgPool, ops.GlobalMaxPool, ops.Upsample,
)  # fmt: skip
"""Ops each channel of whose result depends on that channel of x alone, with a row of each parameter."""
MAKERS = (ops.Conv, ops.Local, ops.Linear, ops.Rbf)
"""Ops whose parameters have a row for each output channel."""


SELECTING = (ops.Slice, ops.Take)
"""Ops that read some channels of their operand."""


def unread(node: Node, sweep: Sweep) -> Value | None:
    """A slice or take of channels, of what is left when those that no other one reads are gone."""
    return narrow(node, sweep, selected, select)


def narrow(node: Node, sweep: Sweep, reads: Reads, adapt: Adapt) -> Value | None:
    """What becomes of `node`, a reader of a value some of whose channels no reader reads.

    All readers of a value are dealt with when the first of them is met, so each value is looked at once.
    """
    if sweep.written in sweep.memo:
        return _taken(sweep)
    source = sweep.written.inputs[0] if node.inputs else None
    if source is None or source in sweep.memo:
        return None
    sweep.memo[source] = source
    x, readers = node.inputs[0], sweep.readers(source)
    if sweep.uses(x) != len(readers):
        return None  # an output
    read: set[int] = set()
    for reader in readers:
        found = reads(reader, sweep)
        if found is None:
            return None
        read |= found
    kept = sorted(read) or [0]  # a tensor has one channel at least
    if len(kept) == x.type.shape[1] or (narrowed := _narrowed(x, kept, sweep)) is None:
        return None
    if len(readers) == 1 and isinstance(node.op, ops.Slice | ops.Take) and list(_positions(node)) == kept:
        return narrowed
    sweep.memo.update({reader: adapt(reader, narrowed, kept, sweep) for reader in readers})
    return _taken(sweep)


def _taken(sweep: Sweep) -> Value:
    value: Value = sweep.memo.pop(sweep.written)
    return value


def selected(node: Node, sweep: Sweep) -> set[int] | None:
    """The channels that a slice or take reads."""
    match node.op:
        case ops.Slice(axis=1) | ops.Take(axis=1):
            return set(_positions(node))
        case _:
            return None


def select(node: Node, x: Value, kept: Kept, sweep: Sweep) -> Value:
    """A slice or take of the same channels of x, which has the kept ones alone."""
    where = {channel: i for i, channel in enumerate(kept)}
    wanted = [where[channel] for channel in _positions(node)]
    step = wanted[1] - wanted[0] if len(wanted) > 1 else 1
    if step > 0 and wanted == list(range(wanted[0], wanted[-1] + 1, step)):
        return Node(ops.Slice(wanted[0], wanted[-1] + 1, step), (x,), {}, node.name, node.origin)
    return Node(ops.Take(tuple(wanted)), (x,), {}, node.name, node.origin)


def _positions(node: Node) -> Sequence[int]:
    match node.op:
        case ops.Slice(step=step):
            return range(*node.op.bounds(node.inputs[0].type), step)
        case ops.Take(indices=indices):
            return indices
        case _:
            raise TypeError(node.op.name)


def _narrowed(x: Value, kept: Kept, sweep: Sweep) -> Value | None:
    """x with these channels alone, from the layer that makes them on; None where no layer does."""
    way: list[Node] = []
    while isinstance(x, Node) and (isinstance(x.op, APART) or _depthwise(x)):
        way.append(x)
        (x,) = x.inputs
        if not sweep.used_once(x):
            raise Refusal(f"`{x.name}`, whose channels they are, is read elsewhere too")
    if not isinstance(x, Node) or not isinstance(x.op, MAKERS):
        return None
    if isinstance(x.op, ops.Conv) and x.op.groups > 1:
        raise Refusal(f"the {x.op.groups} groups of `{x.name}` would have different sizes")
    for node in (x, *way):
        if not all(map(sweep.owned, node.params.values())):
            raise Refusal(f"the weights of `{node.name}` are shared")
    value = _with_rows(x, replace(x.op, channels=len(kept)), x.inputs, kept, sweep)
    for node in reversed(way):
        op = replace(node.op, channels=len(kept), groups=len(kept)) if isinstance(node.op, ops.Conv) else node.op
        value = _with_rows(node, op, (value,), kept, sweep)
    return value


def _with_rows(node: Node, op: Op, inputs: tuple[Value, ...], kept: Kept, sweep: Sweep) -> Node:
    params = {role: rows(node, role, kept, sweep) for role in node.params}
    return Node(op, inputs, params, node.name, node.origin)


def _depthwise(node: Node) -> bool:
    return isinstance(node.op, ops.Conv) and node.op.groups == node.op.channels == node.inputs[0].type.shape[1]


def rows(node: Node, role: str, kept: Kept, sweep: Sweep, axis: int = 0) -> Param:
    """A parameter of a node with these of its rows (of its entries along an axis) alone."""
    like = node.params[role]
    return sweep.param(like.name, sweep.weights[like.name].take(kept, axis), like)


DEAD_CHANNELS = Pass("dead_channels", __doc__ or "", (unread,), level=2, of=SELECTING)
