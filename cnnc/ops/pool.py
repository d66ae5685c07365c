"""Pooling over windows and over whole maps, and its inverse."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from cnnc.ir.attrs import AttrError, Bool, Optional, Padding, PadKind, Pair, PairKind, attr
from cnnc.ir.op import Op, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import check_same, images
from cnnc.ops.window import Pads, extent, padding, static_padding, windows


class Windowed(Op):
    """Base of the ops with pooling windows: `s` is the kernel's size where it is not given."""

    kernel: Pair = attr(PairKind(), "k")
    stride: Pair = attr(Optional(PairKind()), "s", default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel)

    def default(self, field: Field[Any]) -> object:
        return self.kernel if field.name == "stride" else super().default(field)


class Pool(Windowed):
    """Base of the pooling ops. Shapes: x [N, C, H, W] -> [N, C, H', W'], H' = floor((H + top + bottom - k) / s) + 1.

    With `ceil` the division rounds up, and a window that would start in the padding after x is dropped. A dilated
    kernel counts with the rows it spans.
    """

    pad: Padding = attr(PadKind(), "pad", default=0)
    ceil: bool = attr(Bool(), "ceil", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            pad = static_padding(self.pad, self.span, self.stride)
        except AttrError as e:
            raise AttrError(f"`pad` of `{self.name}`: {e}") from None
        if not isinstance(pad, str):
            for size, k in zip(pad, self.span * 2, strict=True):
                if size >= k:
                    raise AttrError(f"`pad` of `{self.name}` is {size}: it must be less than the kernel's span, {k}")
        object.__setattr__(self, "pad", pad)

    @property
    def span(self) -> Pair:
        """Rows and columns of a window."""
        return self.kernel

    def pads(self, x: TensorType) -> Pads:
        """Padding in numbers on an input of x's size: top, left, bottom, right."""
        return padding(self.pad, x.shape[2], x.shape[3], self.span, self.stride)

    def infer(self, x: TensorType) -> TensorType:
        n, c, _, _ = images(x, self.name)
        return x.with_shape((n, c, *windows(x, self.name, self.pad, self.span, self.stride, ceil=self.ceil)))


@register
class MaxPool(Pool):
    """y = the maximum of each window; the padding counts as -Inf. Shapes: as `Pool`. Source: Ranzato et al. 2007."""

    name = "maxpool"
    dilation: Pair = attr(PairKind(), "dilation", default=1)

    @property
    def span(self) -> Pair:
        """Rows and columns the dilated window spans."""
        return extent(self.kernel, self.dilation)


@register
class AvgPool(Pool):
    """y = the sum of each window over the number of its places.

    The places are those inside x and, with `count_include_pad`, in the padding; what a `ceil` window has beyond the
    padding is never counted. Shapes: as `Pool`. Source: LeCun et al. 1989.
    """

    name = "avgpool"
    count_include_pad: bool = attr(Bool(), "count_include_pad", default=True)


@register
class L2Pool(Pool):
    """y = the square root of the sum of squares of each window; zero outside x. Shapes: as `Pool`.

    Source: Hyvarinen & Koster 2007; Sermanet et al. 2012 (LPPool of PyTorch and ONNX with p = 2).
    """

    name = "l2pool"


@register
class AdaptiveAvgPool(Op):
    """y = means over a grid of `size` windows that cover x, whatever its size.

    Window i of the rows spans rows floor(i*H/h) to ceil((i + 1)*H/h) - 1, for `size` h x w; columns likewise.
    Shapes: x [N, C, H, W] -> [N, C, h, w]. Source: He et al. 2014 (spatial pyramid pooling); PyTorch.
    """

    name = "adaptive_avgpool"
    size: Pair = attr(PairKind(), "size")

    def infer(self, x: TensorType) -> TensorType:
        n, c, _, _ = images(x, self.name)
        return x.with_shape((n, c, *self.size))


@register
class GlobalAvgPool(Op):
    """y = the mean of each map. Shapes: x [N, C, H, W] -> [N, C, 1, 1]. Source: Lin et al. 2014."""

    name = "gap"

    def infer(self, x: TensorType) -> TensorType:
        n, c, _, _ = images(x, self.name)
        return x.with_shape((n, c, 1, 1))


@register
class GlobalMaxPool(Op):
    """y = the maximum of each map. Shapes: x [N, C, H, W] -> [N, C, 1, 1]. Source: Oquab et al. 2015."""

    name = "gmp"

    def infer(self, x: TensorType) -> TensorType:
        n, c, _, _ = images(x, self.name)
        return x.with_shape((n, c, 1, 1))


@register
class Unpool(Windowed):
    """Max-unpooling: x's values go where the windows of `source` have their maxima, zero elsewhere.

    Of equal maxima in a window the first counts, row by row; where the maximum of overlapping windows is one place, the
    values add up. The maxima are found again from `source`, so no index tensor is passed along.

    Shapes: x [N, C, H', W'], source [N, C, H, W], H' = floor((H - k) / s) + 1 as `maxpool(k, s)` -> [N, C, H, W].
    Source: Zeiler & Fergus 2014; Noh et al. 2015.
    """

    name = "unpool"

    def infer(self, x: TensorType, source: TensorType) -> TensorType:
        images(x, self.name)
        n, c, _, _ = images(source, self.name, operand=1)
        pooled = (n, c, *windows(source, self.name, (0, 0, 0, 0), self.kernel, self.stride, operand=1))
        for axis, (there, here) in enumerate(zip(x.shape, pooled, strict=True)):
            check_same(self.name, 4, axis, there, here, operand=1, nouns="operand and pooled source")
        return source
