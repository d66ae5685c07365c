"""Convolutions: plain, grouped and dilated; transposed; locally connected."""

from __future__ import annotations

from collections.abc import Mapping

from cnnc.ir.attrs import AttrError, Bool, Int, Padding, PadKind, Pair, PairKind, attr
from cnnc.ir.dim import Dim
from cnnc.ir.op import ZEROS, Init, InitKind, Op, ParamSpec, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import channels, check_groups, images, known
from cnnc.ops.window import Pads, extent, padding, static_padding, windows

HE = Init("he_normal")


@register
class Conv(Op):
    """2-D convolution (cross-correlation), grouped and dilated.

    y[n, o, i, j] = bias[o] + sum over c, p, q of weight[o, c, p, q] * x[n, g(o) + c, i*s + p*dilation - top, ...],
    with zeros outside x; g(o) is the first input channel of o's group.

    Shapes: x [N, C, H, W], weight [c, C/groups, kh, kw], bias [c] -> [N, c, H', W'],
    H' = floor((H + top + bottom - dilation*(kh - 1) - 1) / s) + 1.
    Source: LeCun et al. 1989; groups from Krizhevsky et al. 2012; dilation from Yu & Koltun 2016.
    """

    name = "conv"
    channels: int = attr(Int(1), "c")
    kernel: Pair = attr(PairKind(), "k")
    stride: Pair = attr(PairKind(), "s", default=1)
    pad: Padding = attr(PadKind(), "pad", default=0)
    dilation: Pair = attr(PairKind(), "dilation", default=1)
    groups: int = attr(Int(1), "groups", default=1)
    bias: bool = attr(Bool(), "bias", default=True)
    init: Init = attr(InitKind(), "init", default=HE)

    def __post_init__(self) -> None:
        super().__post_init__()
        _resolve_padding(self)
        if self.channels % self.groups:
            raise AttrError(f"`groups` of `conv` is {self.groups}: it does not divide its {self.channels} channels")

    @property
    def span(self) -> Pair:
        """Rows and columns the dilated kernel spans."""
        return extent(self.kernel, self.dilation)

    def pads(self, x: TensorType) -> Pads:
        """Padding in numbers on an input of x's size: top, left, bottom, right."""
        return padding(self.pad, x.shape[2], x.shape[3], self.span, self.stride)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        c = channels(x, self.name)
        return _weights((self.channels, c // self.groups, *self.kernel), self.channels, self.bias, self.init)

    def infer(self, x: TensorType) -> TensorType:
        n, _, _, _ = images(x, self.name)
        check_groups(self.name, channels(x, self.name), self.groups)
        return x.with_shape((n, self.channels, *windows(x, self.name, self.pad, self.span, self.stride)))

    def macs(self, out: TensorType, x: TensorType) -> Dim:
        return out.size * (channels(x, self.name) // self.groups * self.kernel[0] * self.kernel[1])


@register
class Deconv(Op):
    """Transposed convolution: each input value stamps the kernel, scaled, onto the output; the gradient of `conv`.

    y[n, o, i*s + p*dilation - top, j*s + q*dilation - left] += weight[c, o, p, q] * x[n, c, i, j], plus bias[o].

    Shapes: x [N, C, H, W], weight [C, c/groups, kh, kw], bias [c] -> [N, c, H', W'],
    H' = (H - 1)*s - top - bottom + dilation*(kh - 1) + out_pad + 1.
    Source: Zeiler et al. 2010; Long, Shelhamer & Darrell 2015.
    """

    name = "deconv"
    channels: int = attr(Int(1), "c")
    kernel: Pair = attr(PairKind(), "k")
    stride: Pair = attr(PairKind(), "s", default=1)
    pad: Padding = attr(PadKind(modes=("half", "valid")), "pad", default=0)
    out_pad: Pair = attr(PairKind(0), "out_pad", default=0)
    dilation: Pair = attr(PairKind(), "dilation", default=1)
    groups: int = attr(Int(1), "groups", default=1)
    bias: bool = attr(Bool(), "bias", default=True)
    init: Init = attr(InitKind(), "init", default=HE)

    def __post_init__(self) -> None:
        super().__post_init__()
        _resolve_padding(self)
        if self.channels % self.groups:
            raise AttrError(f"`groups` of `deconv` is {self.groups}: it does not divide its {self.channels} channels")
        for extra, s, d in zip(self.out_pad, self.stride, self.dilation, strict=True):
            if extra >= max(s, d):
                raise AttrError(f"`out_pad` of `deconv` is {extra}: it must be less than the stride or the dilation")

    @property
    def span(self) -> Pair:
        """Rows and columns the dilated kernel spans."""
        return extent(self.kernel, self.dilation)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Padding in numbers: top, left, bottom, right."""
        assert not isinstance(self.pad, str)  # its modes are resolved at construction
        return self.pad

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        c = channels(x, self.name)
        return _weights((c, self.channels // self.groups, *self.kernel), self.channels, self.bias, self.init)

    def infer(self, x: TensorType) -> TensorType:
        n, _, h, w = images(x, self.name)
        check_groups(self.name, channels(x, self.name), self.groups)
        top, left, bottom, right = self.pads
        rows = (h - 1) * self.stride[0] - top - bottom + self.span[0] + self.out_pad[0]
        columns = (w - 1) * self.stride[1] - left - right + self.span[1] + self.out_pad[1]
        return x.with_shape((n, self.channels, rows, columns))

    def macs(self, out: TensorType, x: TensorType) -> Dim:
        return x.size * (self.channels // self.groups * self.kernel[0] * self.kernel[1])


@register
class Local(Op):
    """Locally connected layer: a convolution whose weights differ from place to place.

    y[n, o, i, j] = bias[o, i, j] + sum over c, p, q of weight[o, i, j, c, p, q] * x[n, c, i*s + p - top, ...].

    Shapes: x [N, C, H, W] of known size, weight [c, H', W', C, kh, kw], bias [c, H', W'] -> [N, c, H', W'] as `conv`.
    Source: LeCun 1989; Taigman et al. 2014 (DeepFace).
    """

    name = "local"
    channels: int = attr(Int(1), "c")
    kernel: Pair = attr(PairKind(), "k")
    stride: Pair = attr(PairKind(), "s", default=1)
    pad: Padding = attr(PadKind(), "pad", default=0)
    bias: bool = attr(Bool(), "bias", default=True)
    init: Init = attr(InitKind(), "init", default=HE)

    def __post_init__(self) -> None:
        super().__post_init__()
        _resolve_padding(self)

    def pads(self, x: TensorType) -> Pads:
        """Padding in numbers on an input of x's size: top, left, bottom, right."""
        return padding(self.pad, x.shape[2], x.shape[3], self.kernel, self.stride)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        out = self.infer(x)
        places = (self.channels, *(known(out, axis, self.name, "to have weights for each place") for axis in (2, 3)))
        weight = ParamSpec((*places, channels(x, self.name), *self.kernel), self.init)
        return {"weight": weight, "bias": ParamSpec(places, ZEROS)} if self.bias else {"weight": weight}

    def infer(self, x: TensorType) -> TensorType:
        n, _, _, _ = images(x, self.name)
        channels(x, self.name)
        for axis in (2, 3):
            known(x, axis, self.name, "to have weights for each place")
        return x.with_shape((n, self.channels, *windows(x, self.name, self.pad, self.kernel, self.stride)))

    def macs(self, out: TensorType, x: TensorType) -> Dim:
        return out.size * (channels(x, self.name) * self.kernel[0] * self.kernel[1])


def _resolve_padding(op: Conv | Deconv | Local) -> None:
    span = op.kernel if isinstance(op, Local) else op.span
    try:
        pad = static_padding(op.pad, span, op.stride)
    except AttrError as e:
        raise AttrError(f"`pad` of `{op.name}`: {e}") from None
    object.__setattr__(op, "pad", pad)


def _weights(shape: tuple[int, ...], channels: int, bias: bool, init: Init) -> dict[str, ParamSpec]:
    weight = {"weight": ParamSpec(shape, init)}
    return {**weight, "bias": ParamSpec((channels,), ZEROS)} if bias else weight
