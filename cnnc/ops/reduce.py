"""Reductions over axes."""

from __future__ import annotations

from cnnc.ir.attrs import AttrError, Bool, Int, ListOf, attr
from cnnc.ir.op import Op, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import check_axis


class Reduce(Op):
    """Base of the reductions: the axes named go, or stay with size 1 if `keep`. `axes` is sorted."""

    axes: tuple[int, ...] = attr(ListOf(Int(0)), "axes")
    keep: bool = attr(Bool(), "keep", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.axes)) < len(self.axes):
            raise AttrError(f"`axes` of `{self.name}` names an axis twice: {list(self.axes)}")
        object.__setattr__(self, "axes", tuple(sorted(self.axes)))

    def infer(self, x: TensorType) -> TensorType:
        for axis in self.axes:
            check_axis(x, axis, self.name, "axes")
        if self.keep:
            return x.with_shape(1 if axis in self.axes else dim for axis, dim in enumerate(x.shape))
        return x.with_shape(dim for axis, dim in enumerate(x.shape) if axis not in self.axes)


@register
class ReduceMean(Reduce):
    """y = the mean over `axes`. Shapes: x's without these axes, or with 1 there if `keep`."""

    name = "reduce_mean"


@register
class ReduceSum(Reduce):
    """y = the sum over `axes`. Shapes: x's without these axes, or with 1 there if `keep`."""

    name = "reduce_sum"


@register
class ReduceMax(Reduce):
    """y = the maximum over `axes`. Shapes: x's without these axes, or with 1 there if `keep`."""

    name = "reduce_max"


@register
class ReduceMin(Reduce):
    """y = the minimum over `axes`. Shapes: x's without these axes, or with 1 there if `keep`."""

    name = "reduce_min"
