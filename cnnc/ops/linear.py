"""Linear layers, matrix products, radial basis units and per-channel scales."""

from __future__ import annotations

from collections.abc import Mapping

from cnnc.ir.attrs import Bool, Int, attr
from cnnc.ir.dim import Dim
from cnnc.ir.op import ONES, ZEROS, Init, InitKind, Op, OpError, ParamSpec, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import channels
from cnnc.ops.elementwise import broadcast


@register
class Linear(Op):
    """Fully connected layer: y[n, o] = bias[o] + sum over f of weight[o, f] * x[n, f].

    Shapes: x [N, F], weight [c, F], bias [c] -> [N, c].
    """

    name = "linear"
    channels: int = attr(Int(1), "c")
    bias: bool = attr(Bool(), "bias", default=True)
    init: Init = attr(InitKind(), "init", default="he_normal")

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        weight = {"weight": ParamSpec((self.channels, _features(x, self.name)), self.init)}
        return {**weight, "bias": ParamSpec((self.channels,), ZEROS)} if self.bias else weight

    def infer(self, x: TensorType) -> TensorType:
        _features(x, self.name)
        return x.with_shape((x.shape[0], self.channels))

    def macs(self, out: TensorType, x: TensorType) -> Dim:
        return out.size * x.shape[1]


@register
class MatMul(Op):
    """Matrix product of the last two axes: z[..., i, j] = sum over k of x[..., i, k] * y[..., k, j].

    Shapes: x [..., I, K], y [..., K, J] -> [..., I, J], the axes before broadcast.
    """

    name = "matmul"

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        for operand, z in enumerate((x, y)):
            if z.rank < 2:
                raise OpError("E0301", f"`matmul` works on matrices [..., I, K], not on {z}", operand=operand)
        if x.shape[-1] != y.shape[-2]:
            raise OpError(
                "E0316",
                f"`matmul` of {x} and {y}: the left has {x.shape[-1]} columns, the right {y.shape[-2]} rows",
                operand=1,
                axis=y.rank - 2,
            )
        batch = broadcast(self.name, x.shape[:-2], y.shape[:-2], nouns="operands")
        return x.with_shape((*batch, x.shape[-2], y.shape[-1]))

    def macs(self, out: TensorType, x: TensorType, y: TensorType) -> Dim:
        return out.size * x.shape[-1]


@register
class Rbf(Op):
    """Radial basis units: the squared distance of x to each of c learned points.

    y[n, o] = sum over f of (x[n, f] - weight[o, f])^2.
    Shapes: x [N, F], weight [c, F] -> [N, c].
    Source: LeCun et al. 1998, the output layer of LeNet-5.
    """

    name = "rbf"
    channels: int = attr(Int(1), "c")
    init: Init = attr(InitKind(), "init", default="normal(1)")

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        return {"weight": ParamSpec((self.channels, _features(x, self.name)), self.init)}

    def infer(self, x: TensorType) -> TensorType:
        _features(x, self.name)
        return x.with_shape((x.shape[0], self.channels))

    def macs(self, out: TensorType, x: TensorType) -> Dim:
        return out.size * x.shape[1]


@register
class Scale(Op):
    """y = weight[c] * x + bias[c], a learned factor and offset for each channel.

    Shapes: x [N, C, ...], weight [C], bias [C] -> [N, C, ...]. The weight starts at 1.
    Source: the trainable coefficient and bias of the subsampling layers of LeCun et al. 1998.
    """

    name = "scale"
    bias: bool = attr(Bool(), "bias", default=True)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        shape = (channels(x, self.name),)
        weight = {"weight": ParamSpec(shape, ONES)}
        return {**weight, "bias": ParamSpec(shape, ZEROS)} if self.bias else weight

    def infer(self, x: TensorType) -> TensorType:
        channels(x, self.name)
        return x


def _features(x: TensorType, op: str) -> int:
    """The number of features of an operand that must be [N, F], F known."""
    if x.rank != 2:
        hint = "put `flatten` before it" if x.rank > 2 else None
        raise OpError("E0301", f"`{op}` works on [N, F], not on {x}", help=hint)
    features = x.shape[1]
    if not isinstance(features, int):
        raise OpError(
            "E0305",
            f"`{op}` has a weight for every feature, so it needs a known number of them, not {features}",
            axis=1,
            help="pool to a fixed size before `flatten` (`gap`, `adaptive_avgpool(7)`), or give the input a fixed size",
        )
    return features
