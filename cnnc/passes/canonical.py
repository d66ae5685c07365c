"""Bring chains of data movement and clipping to one form.

All of these keep every bit:

- transpose(q) of transpose(p) is transpose(p[q]); of a reshape or flatten after another only the last is needed, since
  both keep the row-major order within a sample;
- zero padding before a convolution is the convolution's own padding; so it is before a pool that sums and counts
  padding, and before a max-pool of what is never negative: each window has a place of the map;
- concat of a concat along the same axis is one concat; consecutive slices that make up a tensor, joined again, are
  that tensor; a slice that is exactly one operand of a concat is that operand;
- relu of what is never negative (relu, sigmoid, exp, softmax, abs, clip from 0 on) is the identity; clip(c, d) of
  clip(a, b) is one clip, to min(max(a, c), d) and max(min(b, d), c).
"""

from __future__ import annotations

from dataclasses import replace

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.engine import Pass, Refusal, Sweep

CHAINED = (
    ops.Transpose, ops.Reshape, ops.Flatten, ops.Conv, ops.AvgPool, ops.L2Pool, ops.MaxPool, ops.Concat, ops.Slice,
    ops.Relu, ops.Clip,
)  # fmt: skip
"""Ops at the end of what is brought to one form."""


def movement(node: Node, sweep: Sweep) -> Value | None:
    """Two transposes as one; a reshape of a reshape as the last."""
    before = node.inputs[0] if node.inputs else None
    if not isinstance(before, Node):
        return None
    match node.op, before.op:
        case ops.Transpose(axes=outer), ops.Transpose(axes=inner):
            return _on(node, ops.Transpose(tuple(inner[axis] for axis in outer)), before.inputs[0])
        case (ops.Reshape() | ops.Flatten(axis=1)), ops.Reshape():
            return _on(node, node.op, before.inputs[0])
        case (ops.Reshape() | ops.Flatten(axis=1)), ops.Flatten(axis=axis) if axis > 0:
            return _on(node, node.op, before.inputs[0])
        case _:
            return None


def padding(node: Node, sweep: Sweep) -> Value | None:
    """pad(value=0) -> conv as conv."""
    before = node.inputs[0] if node.inputs else None
    if not isinstance(node.op, ops.Conv) or isinstance(node.op.pad, str) or not isinstance(before, Node):
        return None
    if not isinstance(before.op, ops.Pad):
        return None
    _check_zeros(before)
    top, left, bottom, right = (a + b for a, b in zip(node.op.pad, before.op.pads, strict=True))
    op = replace(node.op, pad=(top, left, bottom, right))
    return Node(op, before.inputs, node.params, node.name, node.origin)


def pool_padding(node: Node, sweep: Sweep) -> Value | None:
    """pad(value=0) -> pool as pool."""
    before = node.inputs[0] if isinstance(node.op, ops.AvgPool | ops.L2Pool | ops.MaxPool) else None
    if not isinstance(before, Node) or not isinstance(before.op, ops.Pad):
        return None
    pool, (x,) = node.op, before.inputs
    assert isinstance(pool, ops.AvgPool | ops.L2Pool | ops.MaxPool)
    _check_zeros(before)
    if isinstance(pool.pad, str) or pool.ceil:
        raise Refusal(f"a window of `{node.name}` may start in `{before.name}`, but not in padding of its own")
    match pool:
        case ops.AvgPool(count_include_pad=counted) if not counted and any(pool.pad):
            raise Refusal(f"`{node.name}` counts the zeros of `{before.name}`, but not those of its own padding")
        case ops.MaxPool(dilation=dilation) if dilation != (1, 1) or not _never_negative(x):
            raise Refusal(f"the zeros of `{before.name}` may be maxima, which those of `{node.name}` are not")
    top, left, bottom, right = (a + b for a, b in zip(pool.pad, before.op.pads, strict=True))
    if any(size >= k for size, k in zip((top, left, bottom, right), pool.kernel * 2, strict=True)):
        raise Refusal(f"a window of `{node.name}` could lie in its padding alone")
    op = replace(pool, pad=(top, left, bottom, right))
    op = replace(op, count_include_pad=True) if isinstance(op, ops.AvgPool) else op
    return Node(op, before.inputs, {}, node.name, node.origin)


def _check_zeros(pad: Node) -> None:
    """Refusal unless a pad adds zeros."""
    if isinstance(pad.op, ops.Pad) and pad.op.value != 0:
        raise Refusal(f"`{pad.name}` pads with {pad.op.value:g}, not with zeros")


def joining(node: Node, sweep: Sweep) -> Value | None:
    """concat of concat, concat of all slices, slice of concat."""
    match node.op:
        case ops.Concat(axis=axis):
            return _whole(node, axis) or _flat(node, axis, sweep)
        case ops.Slice(axis=axis, step=1) if isinstance(node.inputs[0], Node):
            return _operand(node, node.inputs[0], axis)
        case _:
            return None


def clipping(node: Node, sweep: Sweep) -> Value | None:
    """relu of what is never negative; clip of clip."""
    before = node.inputs[0] if node.inputs else None
    if not isinstance(before, Node):
        return None
    match node.op, before.op:
        case ops.Relu(), _ if _never_negative(before):
            return before
        case ops.Clip(low=c, high=d), ops.Clip(low=a, high=b):
            return _on(node, ops.Clip(min(max(a, c), d), max(min(b, d), c)), before.inputs[0])
        case _:
            return None


def _never_negative(x: Value) -> bool:
    """Whether x is the result of an op that gives no number below 0."""
    match x.op if isinstance(x, Node) else None:
        case ops.Relu() | ops.Sigmoid() | ops.HardSigmoid() | ops.Exp() | ops.Softmax() | ops.Abs():
            return True
        case ops.Clip(low=low):
            return low >= 0
        case _:
            return False


def _on(node: Node, op: ops.Transpose | ops.Reshape | ops.Flatten | ops.Clip, x: Value) -> Node:
    """`op` on x in the place of `node`, which has no parameters."""
    return Node(op, (x,), {}, node.name, node.origin)


def _whole(node: Node, axis: int) -> Value | None:
    """The tensor whose consecutive slices are joined, all of them."""
    source, position = None, 0
    for x in node.inputs:
        if not isinstance(x, Node) or not isinstance(x.op, ops.Slice) or x.op.axis != axis or x.op.step != 1:
            return None
        start, stop = x.op.bounds(x.inputs[0].type)
        if start != position or (source is not None and x.inputs[0] is not source):
            return None
        source, position = x.inputs[0], stop
    return source if source is not None and source.type == node.type else None


def _flat(node: Node, axis: int, sweep: Sweep) -> Value | None:
    """One concat of the operands of concats that nothing else reads."""
    inputs: list[Value] = []
    for x in node.inputs:
        inner = isinstance(x, Node) and isinstance(x.op, ops.Concat) and x.op.axis == axis and sweep.used_once(x)
        inputs += x.inputs if inner and isinstance(x, Node) else (x,)
    return Node(node.op, tuple(inputs), {}, node.name, node.origin) if len(inputs) > len(node.inputs) else None


def _operand(node: Node, joined: Node, axis: int) -> Value | None:
    """The operand of a concat that a slice cuts out again."""
    if not isinstance(node.op, ops.Slice) or not isinstance(joined.op, ops.Concat) or joined.op.axis != axis:
        return None
    start, stop = node.op.bounds(joined.type)
    position = 0
    for x in joined.inputs:
        size = x.type.shape[axis]
        if not isinstance(size, int):
            return None
        if (position, position + size) == (start, stop):
            return x
        position += size
    return None


CANONICAL = Pass("canonical", __doc__ or "", (movement, padding, pool_padding, joining, clipping), level=1, of=CHAINED)
