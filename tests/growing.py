"""A random graph in the making, op by op and pattern by pattern.

Operands are those that an op's `infer` accepts; the tables here hold what it does not say, such as what keeps numbers
finite and what would make a result the same whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TypeAlias, TypeVar

from hypothesis import reject
from hypothesis import strategies as st

import growing_boxes
from attribute_strategies import Draw, draw_attributes, size, sizes
from cnnc import ops
from cnnc.ir.attrs import AttrError
from cnnc.ir.dim import Sym
from cnnc.ir.graph import Input, Node, Param, Value
from cnnc.ir.op import Op, OpError, operands_of
from cnnc.ir.types import DType, TensorType
from cnnc.ops.elementwise import Merge

T = TypeVar("T")
N = Sym.of("N")
Attributes: TypeAlias = Mapping[str, object]
Ops: TypeAlias = tuple[type[Op], ...]

MAX_ELEMENTS = 2_000
"""Elements of a sample that a node may have; larger ones are not drawn upon."""

IMAGES: Ops = (
    ops.Conv, ops.Deconv, ops.Local, ops.MaxPool, ops.AvgPool, ops.L2Pool, ops.AdaptiveAvgPool, ops.GlobalAvgPool,
    ops.GlobalMaxPool, ops.Unpool, ops.Lrn, ops.Pad, ops.ChannelShuffle, ops.PixelShuffle, ops.Upsample, ops.Resize,
    ops.Crop, ops.RoiPool, ops.RoiAlign,
)  # fmt: skip
REGIONS: Ops = (ops.RoiPool, ops.RoiAlign)
BOXES: Ops = (
    ops.Anchors, ops.Decode, ops.ClipBoxes, ops.Nms, ops.Top, ops.RoiAlignPyramid,
)  # fmt: skip
"""Ops of boxes that are made for one another: `growing_boxes` puts them together, and nothing else draws them."""
FEATURES: Ops = (ops.Linear, ops.Rbf)
GROWING: Ops = (ops.Pad, ops.Upsample, ops.Resize, ops.Deconv, ops.AdaptiveAvgPool, ops.Concat)
"""Ops that may make a tensor larger: not put on large ones."""
NORMS: Ops = (ops.InstanceNorm, ops.GroupNorm, ops.LayerNorm, ops.Softmax, ops.LogSoftmax)
"""Ops that normalise more than one element, or their result would be the same for every x."""

BOUNDED: Mapping[type[Op], int] = {
    ops.Exp: 0, ops.Mul: 0, ops.MatMul: 0, ops.Rbf: 0, ops.Log: 0, ops.Sqrt: 0, ops.Div: 1,
}  # fmt: skip
"""Which operand is bounded first (`clip` or `tanh`), so that values stay finite and do not grow without end."""
POSITIVE: Ops = (ops.Log, ops.Sqrt, ops.Div)
"""Ops whose bounded operand must be positive too: a sigmoid follows."""

CHAINS: tuple[tuple[type[Op] | Op, ...], ...] = (
    (ops.BatchNorm, ops.Conv(3, 1)), (ops.BatchNorm, ops.Conv), (ops.Scale, ops.Conv(4, 1)), (ops.Scale, ops.Deconv),
    (ops.BatchNorm, ops.Linear), (ops.BatchNorm, ops.Relu, ops.Conv), (ops.Normalize, ops.Conv), (ops.Conv, ops.Scale),
    (ops.Linear, ops.Scale), (ops.Scale, ops.BatchNorm), (ops.Local, ops.Relu), (ops.Conv, ops.Prelu),
    (ops.Pad, ops.Conv), (ops.Pad, ops.MaxPool), (ops.Pad, ops.AvgPool), (ops.Pad, ops.Pad),
    (ops.Relu, ops.MaxPool(2)), (ops.Clip, ops.MaxPool), (ops.MaxPool, ops.Relu), (ops.MaxPool(2), ops.MaxPool(2)),
    (ops.MaxPool((2, 1)), ops.MaxPool((2, 1))), (ops.MaxPool((1, 2)), ops.MaxPool((1, 2))),
    (ops.AvgPool, ops.AvgPool), (ops.Concat, ops.MaxPool),
    (ops.Conv(5, 1), ops.AvgPool), (ops.AvgPool, ops.Conv(2, 1)), (ops.Conv(5, 1), ops.GlobalAvgPool),
    (ops.GlobalAvgPool, ops.Conv(5, 1)), (ops.GlobalAvgPool, ops.Flatten, ops.Linear), (ops.Linear, ops.Linear),
    (ops.Conv(5, 1), ops.Slice(1, 4)), (ops.Conv, ops.Relu, ops.Take), (ops.Deconv, ops.Slice(0, 1)),
    (ops.Concat, ops.Slice), (ops.Concat, ops.Conv), (ops.Slice, ops.Slice), (ops.Concat, ops.Concat),
    (ops.Transpose, ops.Transpose), (ops.Reshape, ops.Reshape), (ops.Flatten, ops.Reshape), (ops.Dropout, ops.Conv),
    (ops.Relu, ops.Relu), (ops.Sigmoid, ops.Relu), (ops.Clip, ops.Clip), (ops.Neg, ops.Neg),
)  # fmt: skip
"""Ops in a row that a pass may look for; some with their attributes, where few others do."""

refused: list[str] = []
"""What ops said of the attributes drawn for them: a test holds this to 1% of the networks."""


class Growing:
    """A graph in the making. A step of its growth is one op, a common pattern of some, or an old block used again.

    Only ops of `of` are drawn, of their attributes those of `fixed` as given.
    """

    def __init__(self, draw: Draw, of: Sequence[type[Op]], fixed: Attributes, dtype: DType) -> None:
        self.draw, self.of, self.fixed = draw, of, fixed
        ways = st.sampled_from([6, 1, 2, 5, 8, 9, 12])
        image = TensorType((N, draw(st.integers(1, 8)), draw(ways), draw(ways)), dtype)
        self.inputs = [Input("x0", image)]
        if draw(st.integers(0, 3)) == 3:
            self.inputs.append(Input("x1", image))
        self.nodes: list[Node] = []
        self.constant: list[Node] = []
        patterns: list[tuple[Callable[[], None], int, Ops]] = [
            (self.any_op, 6, ()), (self.again, 2, (ops.Neg,)), (self.merge, 1, (ops.Add,)),
            (self.layer, 2, (ops.Conv, ops.Deconv, ops.Linear, ops.BatchNorm, ops.Relu)),
            (self.residual, 1, (ops.Conv, ops.Add, ops.Relu)), (self.siblings, 1, (ops.Conv, ops.Concat)),
            (self.parts, 1, (ops.Slice, ops.Concat, ops.Relu)),
            (self.computed_constant, 1, (ops.Constant, ops.Maximum, ops.Neg, ops.Mul, ops.Div)),
            (self.twice, 1, (ops.Add, ops.Sub, ops.Tanh, ops.Sigmoid, ops.Abs)),
            (partial(growing_boxes.head, self), 1, growing_boxes.HEAD),
            (partial(growing_boxes.pyramid, self), 1, growing_boxes.PYRAMID),
        ]  # fmt: skip
        self.chains = [chain for chain in CHAINS if {x if isinstance(x, type) else type(x) for x in chain} <= set(of)]
        patterns += [(self.chain, 5, ())] if self.chains else []
        self.steps = [step for step, weight, needed in patterns if set(needed) <= set(of) for _ in range(weight)]

    @property
    def values(self) -> list[Value]:
        """What ops may be put on, the latest first: batches, not too large."""
        made: list[Value] = [x for x in reversed(self.nodes) if x not in self.constant and x.type.rank > 1]
        return [x for x in [*made, *self.inputs] if x.name != "rois" and prod(sizes(x.type)) <= MAX_ELEMENTS]

    @property
    def images(self) -> list[Value]:
        """The values of rank 4; there is always an input."""
        return [x for x in self.values if x.type.rank == 4]

    def pick(self, items: Sequence[T]) -> T:
        item: T = self.draw(st.sampled_from(items))
        return item

    def grow(self) -> None:
        self.pick(self.steps)()

    def any_op(self) -> None:
        """An op of all, or first a family and then an op of it: the large families have the plainer ops."""
        x = self.pick(self.values)
        fitting = [cls for cls in self.of if _fits(cls, x)]
        families: dict[str, list[type[Op]]] = {}
        for cls in fitting:
            families.setdefault(cls.__module__, []).append(cls)
        self.add(self.pick(fitting if self.pick([True, True, False]) else self.pick(list(families.values()))), x)

    def merge(self) -> None:
        x = self.pick(self.values)
        merges = (ops.Add, ops.Concat, ops.Mul, ops.Maximum)
        self.add(self.pick([cls for cls in merges if cls in self.of and _fits(cls, x)]), x)

    def layer(self) -> None:
        """Convolution or linear layer, batch norm and activation, each of the last two half of the time."""
        x = self.pick(self.values)
        x = self.add(self.pick([ops.Conv, ops.Deconv]) if x.type.rank == 4 else ops.Linear, x)
        for cls in (ops.BatchNorm, ops.Relu):
            if self.draw(st.booleans()):
                x = self.add(cls, x)

    def chain(self) -> None:
        """Ops in a row that a pass may look for, as far as they fit; a normalisation is of an input."""
        chain = self.pick(self.chains)
        x = self.inputs[0] if chain[0] is ops.Normalize else self.pick(self.values)
        for each in chain:
            if isinstance(each, Op) and _takes(each, x):
                bias = self.fixed.get("bias", getattr(each, "bias", None))
                x = self.node(replace(each, bias=bias) if isinstance(each, ops.Conv) else each, x)
            elif isinstance(each, type) and _fits(each, x):
                x = self.add(each, x)

    def residual(self) -> None:
        """x plus a convolution of x, then relu."""
        x = self.pick(self.images)
        kernel = self.pick([1, 3])
        conv = self.conv(size(x.type, 1), kernel, x)
        self.node(ops.Relu(), self.node(ops.Add(), *self.pick([(conv, x), (x, conv)])))

    def siblings(self) -> None:
        """Two or three 1x1 convolutions of one value, half of the time joined."""
        x = self.pick(self.images)
        arms = [self.conv(self.draw(st.integers(1, 3)), 1, x) for _ in range(self.draw(st.integers(2, 3)))]
        if self.draw(st.booleans()):
            self.node(ops.Concat(), *arms)

    def parts(self) -> None:
        """A value cut in two along its channels and joined again, half of the time after an op on one part."""
        x = self.pick(self.values)
        if size(x.type, 1) > 1:
            at = self.draw(st.integers(1, size(x.type, 1) - 1))
            first, second = self.node(ops.Slice(0, at), x), self.node(ops.Slice(at, size(x.type, 1)), x)
            if self.draw(st.booleans()):
                second = self.node(ops.Relu(), second)
            self.node(ops.Concat(), first, second)

    def computed_constant(self) -> None:
        """A constant that changes nothing, or one that something is made of, and x with that."""
        x = self.pick(self.values)
        if self.draw(st.booleans()):
            one = self.node(ops.Constant([1], dtype=x.type.dtype))
            self.node(self.pick([ops.Mul(), ops.Div()]), x, one)
            return
        constant = self.add(ops.Constant, x)
        if self.draw(st.booleans()):
            constant = self.node(self.pick([ops.Neg(), ops.Tanh()]), constant)
        else:
            constant = self.node(ops.Maximum(), constant, self.add(ops.Constant, x))
        self.node(self.pick([ops.Mul(), ops.Add()]), x, constant)

    def twice(self) -> None:
        """The same op on the same value twice, and x with both."""
        x = self.pick(self.values)
        op = self.pick([ops.Tanh(), ops.Sigmoid(), ops.Abs()])
        self.node(ops.Sub(), self.node(ops.Add(), x, self.node(op, x)), self.node(ops.Tanh(), self.node(op, x)))

    def again(self) -> None:
        """A node with weights once more, with the same weights, on another value of the type of its operand."""
        made = [node for node in self.nodes if node.params and node.inputs[0] in self.values]
        if not made:
            self.any_op()
            return
        node = self.pick(made)
        (before, *_) = node.inputs
        others = [x for x in self.values if x.type == before.type and x is not before]
        x = self.pick(others) if others else self.node(ops.Neg(), before)
        self.node(node.op, x, params=node.params)

    def conv(self, channels: int, kernel: int, x: Value) -> Node:
        """A convolution that keeps the size."""
        bias = bool(self.fixed.get("bias", self.draw(st.booleans())))
        return self.node(ops.Conv(channels, (kernel, kernel), pad="half", bias=bias), x)

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
            return [self.boxes(x.type.dtype)]
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

    def boxes(self, dtype: DType) -> Input:
        """The input of regions of interest."""
        for x in self.inputs:
            if x.name == "rois":
                return x
        rois = Input("rois", TensorType((N, self.pick([1, 2]), 4), dtype))
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
    """Whether ops of this class can be put on x, and their results can differ."""
    if cls is ops.Constant or cls in BOXES or (cls in IMAGES and x.type.rank != 4):
        return False  # constants are made where another operand is wanted
    if cls in REGIONS and x.type.shape[0] != N:
        return False  # regions of regions
    if cls in GROWING and prod(sizes(x.type)) > MAX_ELEMENTS // 8:
        return False
    if cls in NORMS and prod(sizes(x.type)[int(cls is ops.InstanceNorm) :]) == 1:
        return False
    return x.type.rank > 2 or cls not in (ops.InstanceNorm, ops.MatMul)


def _takes(op: Op, *operands: Value) -> bool:
    """Whether the op takes these operands and keeps the batch in front: [N, 5] broadcast with [N, 3, 1, 5] does not."""
    try:
        out = op.result(*(x.type for x in operands))
    except OpError:
        return False
    return all(isinstance(dim, int) for dim in out.shape[1:])
