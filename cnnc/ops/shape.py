"""Ops that move, cut, join or reinterpret values without computing new ones (element types aside)."""

from __future__ import annotations

from math import prod

from cnnc.ir.attrs import AttrError, DTypeKind, Float, Int, ListOf, Padding, PadKind, attr
from cnnc.ir.dim import Dim, ceildiv, exact_quotient, minimum, product
from cnnc.ir.op import Op, OpError, register
from cnnc.ir.types import DType, TensorType, shape_text
from cnnc.ops.checks import channels, check_axis, check_groups, check_same, images, known


@register
class Concat(Op):
    """The operands joined along `axis`. Shapes: equal but for that axis, whose sizes add up."""

    name = "concat"
    axis: int = attr(Int(0), "axis", default=1)

    def infer(self, *xs: TensorType) -> TensorType:
        first = xs[0]
        check_axis(first, self.axis, self.name)
        total: Dim = 0
        for operand, x in enumerate(xs):
            if x.rank != first.rank:
                raise OpError("E0301", f"branches of `concat` have different ranks: {first} and {x}", operand=operand)
            for axis in range(first.rank):
                if axis != self.axis:
                    check_same(self.name, x.rank, axis, first.shape[axis], x.shape[axis], operand, nouns="branches")
            total = total + x.shape[self.axis]
        return first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))


@register
class Slice(Op):
    """x[start:stop:step] along `axis` as in Python: `stop` is cut to the size, negative bounds count from the end.

    Shapes: the axis becomes ceil((min(stop, size) - start) / step). Negative bounds need a known size.
    """

    name = "slice"
    start: int = attr(Int(), "start")
    stop: int = attr(Int(), "stop")
    step: int = attr(Int(1), "step", default=1)
    axis: int = attr(Int(0), "axis", default=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start >= self.stop and (self.start < 0) == (self.stop < 0):
            raise AttrError(f"`stop` of `slice` is {self.stop}: it must be above `start`, {self.start}")

    def bounds(self, x: TensorType) -> tuple[int, int]:
        """`start` and `stop` counted from the beginning; `stop` may lie beyond a symbolic size."""
        size = x.shape[self.axis]
        if self.start < 0 or self.stop < 0:
            size = known(x, self.axis, self.name, "to count from the end")
        if isinstance(size, int):
            start, stop, _ = slice(self.start, self.stop).indices(size)
            return start, stop
        return self.start, self.stop

    def infer(self, x: TensorType) -> TensorType:
        check_axis(x, self.axis, self.name)
        start, stop = self.bounds(x)
        size = ceildiv(minimum(stop, x.shape[self.axis]) - start, self.step)
        return x.with_shape((*x.shape[: self.axis], size, *x.shape[self.axis + 1 :]))


@register
class Take(Op):
    """The entries of `axis` at these positions, in this order. Shapes: the axis becomes len(indices)."""

    name = "take"
    indices: tuple[int, ...] = attr(ListOf(Int(0)), "indices")
    axis: int = attr(Int(0), "axis", default=1)

    def infer(self, x: TensorType) -> TensorType:
        check_axis(x, self.axis, self.name)
        size = known(x, self.axis, self.name, "to take entries by position")
        if max(self.indices) >= size:
            message = f"`indices` of `take` has {max(self.indices)}, but the last of {size} positions is {size - 1}"
            raise OpError("E0317", message, axis=self.axis)
        return x.with_shape((*x.shape[: self.axis], len(self.indices), *x.shape[self.axis + 1 :]))


@register
class Pad(Op):
    """x with rows and columns of `value` around it.

    Shapes: x [N, C, H, W] -> [N, C, H + top + bottom, W + left + right].
    """

    name = "pad"
    pad: Padding = attr(PadKind(modes=()), "pad")
    value: float = attr(Float(), "value", default=0.0)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Padding in numbers: top, left, bottom, right."""
        assert not isinstance(self.pad, str)  # its kind has no modes
        return self.pad

    def infer(self, x: TensorType) -> TensorType:
        n, c, h, w = images(x, self.name)
        top, left, bottom, right = self.pads
        return x.with_shape((n, c, h + top + bottom, w + left + right))


@register
class Flatten(Op):
    """The axes from `axis` on as one. Shapes: x [N, d1, d2, ...] -> [N, d1*d2*...]."""

    name = "flatten"
    axis: int = attr(Int(0), "axis", default=1)

    def infer(self, x: TensorType) -> TensorType:
        check_axis(x, self.axis, self.name)
        return x.with_shape((*x.shape[: self.axis], product(x.shape[self.axis :])))


@register
class Reshape(Op):
    """The values of each sample in a new shape, in the same (row-major) order; axis 0 stays.

    Shapes: x [N, ...] -> [N, *dims]; one of `dims` may be -1, which takes what is left.
    """

    name = "reshape"
    dims: tuple[int, ...] = attr(ListOf(Int(-1)), "dims", variadic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in self.dims:
            raise AttrError("`dims` of `reshape` has a 0: write the size, or -1 for what is left")
        if self.dims.count(-1) > 1:
            raise AttrError(f"`dims` of `reshape` has -1 more than once: {list(self.dims)}")

    def infer(self, x: TensorType) -> TensorType:
        if x.rank < 1:
            raise OpError("E0301", f"`reshape` keeps axis 0, but {x} has none")
        elements = product(x.shape[1:])
        named = prod(dim for dim in self.dims if dim != -1)
        rest = exact_quotient(elements, named)
        if rest is None or (-1 not in self.dims and rest != 1):
            hint = "give the input a fixed size, or pool to one: `adaptive_avgpool(7)`"
            raise OpError(
                "E0314",
                f"`reshape` cannot make {shape_text(self.dims)} of {shape_text(x.shape[1:])}:"
                f" {'a multiple of ' if -1 in self.dims else ''}{named} elements from {elements}",
                help=None if isinstance(elements, int) else hint,
            )
        return x.with_shape((x.shape[0], *(rest if dim == -1 else dim for dim in self.dims)))


@register
class Transpose(Op):
    """The axes in another order: axis i of y is axis axes[i] of x. Shapes: x's, permuted."""

    name = "transpose"
    axes: tuple[int, ...] = attr(ListOf(Int(0)), "axes", variadic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.axes) != list(range(len(self.axes))):
            count = len(self.axes)
            raise AttrError(f"`axes` of `transpose` are {list(self.axes)}, not 0 to {count - 1} in some order")

    def infer(self, x: TensorType) -> TensorType:
        if x.rank != len(self.axes):
            raise OpError("E0301", f"`transpose` orders {len(self.axes)} axes, but {x} has {x.rank}")
        return x.with_shape(x.shape[axis] for axis in self.axes)


@register
class Cast(Op):
    """x in another element type, rounded to nearest, ties to even. Shapes: the same."""

    name = "cast"
    dtype: DType = attr(DTypeKind(), "dtype")

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, self.dtype)


@register
class Constant(Op):
    """A tensor of fixed values, row by row; without a shape, a single number. Shapes: no operands -> `shape`."""

    name = "constant"
    values: tuple[float, ...] = attr(ListOf(Float()), "values")
    shape: tuple[int, ...] = attr(ListOf(Int(1), least=0), "shape", default=())
    dtype: DType = attr(DTypeKind(), "dtype", default="f32")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) != prod(self.shape):
            raise AttrError(
                f"`values` of `constant` has {len(self.values)} numbers, but shape {shape_text(self.shape)}"
                f" has {prod(self.shape)} elements"
            )

    def infer(self) -> TensorType:
        return TensorType(self.shape, self.dtype)


@register
class ChannelShuffle(Op):
    """Channels dealt out across groups: y[:, i*g + j] = x[:, j*(C/g) + i], g groups.

    Shapes: x [N, C, H, W], C a multiple of g -> the same. Source: Zhang et al. 2018 (ShuffleNet).
    """

    name = "shuffle"
    groups: int = attr(Int(1), "groups")

    def infer(self, x: TensorType) -> TensorType:
        images(x, self.name)
        check_groups(self.name, channels(x, self.name), self.groups)
        return x


@register
class PixelShuffle(Op):
    """Channels become places: y[n, c, h*r + i, w*r + j] = x[n, c*r*r + i*r + j, h, w], r the scale.

    Shapes: x [N, C, H, W], C a multiple of r*r -> [N, C/(r*r), H*r, W*r]. Source: Shi et al. 2016.
    """

    name = "pixel_shuffle"
    scale: int = attr(Int(1), "scale")

    def infer(self, x: TensorType) -> TensorType:
        n, _, h, w = images(x, self.name)
        c, square = channels(x, self.name), self.scale**2
        if c % square:
            raise OpError(
                "E0311", f"`pixel_shuffle` by {self.scale} needs a multiple of {square} channels, not {c}", axis=1
            )
        return x.with_shape((n, c // square, h * self.scale, w * self.scale))
