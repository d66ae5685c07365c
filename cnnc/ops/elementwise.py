"""Arithmetic of several tensors, place by place, with NumPy's broadcasting."""

from __future__ import annotations

from cnnc.ir.dim import Dim
from cnnc.ir.op import Op, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import differ


def broadcast(op: str, *shapes: tuple[Dim, ...], nouns: str = "branches") -> tuple[Dim, ...]:
    """The common shape: dims are aligned at the last; they must be equal, or 1, which stretches.

    A symbolic dim equals only itself. OpError names the first operand that does not fit those before it.
    """
    rank = max(map(len, shapes))
    out: list[Dim] = [1] * rank
    for operand, shape in enumerate(shapes):
        for axis_there, dim in enumerate(shape):
            axis = axis_there + rank - len(shape)
            if out[axis] == 1:
                out[axis] = dim
            elif dim not in (1, out[axis]):
                raise differ(op, rank, axis, out[axis], dim, operand=operand, axis_there=axis_there, nouns=nouns)
    return tuple(out)


class Merge(Op):
    """Base of the ops that combine any number of tensors: the result does not depend on their order."""

    def infer(self, *xs: TensorType) -> TensorType:
        return xs[0].with_shape(broadcast(self.name, *(x.shape for x in xs)))


@register
class Add(Merge):
    """y = the sum of the operands. Shapes: broadcast. Source: the shortcut of He et al. 2016."""

    name = "add"


@register
class Mul(Merge):
    """y = the product of the operands, place by place. Shapes: broadcast. Source: the gate of Hu et al. 2018."""

    name = "mul"


@register
class Maximum(Merge):
    """y = the largest of the operands at each place. Shapes: broadcast. Source: maxout, Goodfellow et al. 2013."""

    name = "maximum"


@register
class Minimum(Merge):
    """y = the smallest of the operands at each place. Shapes: broadcast."""

    name = "minimum"


@register
class Sub(Op):
    """z = x - y. Shapes: broadcast."""

    name = "sub"

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        return x.with_shape(broadcast(self.name, x.shape, y.shape, nouns="operands"))


@register
class Div(Op):
    """z = x / y. Shapes: broadcast."""

    name = "div"

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        return x.with_shape(broadcast(self.name, x.shape, y.shape, nouns="operands"))
