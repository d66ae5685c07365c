"""Functions of one tensor that keep its shape: nonlinearities, softmax, dropout.

Only `prelu`, `softmax` and `log_softmax` look at axes.
"""

from __future__ import annotations

from collections.abc import Mapping

from cnnc.ir.attrs import AttrError, Choice, Float, Int, attr
from cnnc.ir.op import Init, InitKind, Op, ParamSpec, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import channels, check_axis


class Pointwise(Op):
    """Base of the ops whose result at a place depends on x at that place alone."""

    def infer(self, x: TensorType) -> TensorType:
        return x


@register
class Relu(Pointwise):
    """y = max(x, 0). Shapes: any -> the same. Source: Nair & Hinton 2010."""

    name = "relu"


@register
class LeakyRelu(Pointwise):
    """y = x where x >= 0, else slope * x. Shapes: any -> the same. Source: Maas et al. 2013."""

    name = "leaky_relu"
    slope: float = attr(Float(), "slope", default=0.01)


@register
class Prelu(Pointwise):
    """y = x where x >= 0, else weight[c] * x, with a learned slope for each channel.

    Shapes: x [N, C, ...], weight [C] -> [N, C, ...].
    Source: He et al. 2015.
    """

    name = "prelu"
    init: Init = attr(InitKind(), "init", default="constant(0.25)")

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        return {"weight": ParamSpec((channels(x, self.name),), self.init)}

    def infer(self, x: TensorType) -> TensorType:
        channels(x, self.name)
        return x


@register
class Sigmoid(Pointwise):
    """y = 1 / (1 + exp(-x)). Shapes: any -> the same."""

    name = "sigmoid"


@register
class Tanh(Pointwise):
    """y = (exp(x) - exp(-x)) / (exp(x) + exp(-x)). Shapes: any -> the same."""

    name = "tanh"


@register
class Step(Pointwise):
    """y = 1 where x >= 0, else 0. Shapes: any -> the same. Source: McCulloch & Pitts 1943; Rosenblatt 1958."""

    name = "step"


@register
class Elu(Pointwise):
    """y = x where x > 0, else alpha * (exp(x) - 1). Shapes: any -> the same. Source: Clevert et al. 2016."""

    name = "elu"
    alpha: float = attr(Float(), "alpha", default=1.0)


@register
class Selu(Pointwise):
    """y = scale * x where x > 0, else scale * alpha * (exp(x) - 1).

    alpha = 1.6732632423543772, scale = 1.0507009873554805, which keep mean 0 and variance 1.
    Shapes: any -> the same. Source: Klambauer et al. 2017.
    """

    name = "selu"


@register
class Gelu(Pointwise):
    """y = x * Phi(x), Phi the normal distribution function; `approx="tanh"` takes Phi's tanh approximation.

    none: y = x/2 * (1 + erf(x / sqrt(2))); tanh: y = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3))).
    Shapes: any -> the same. Source: Hendrycks & Gimpel 2016.
    """

    name = "gelu"
    approx: str = attr(Choice(("none", "tanh")), "approx", default="none")


@register
class Silu(Pointwise):
    """y = x / (1 + exp(-x)), also called swish.

    Shapes: any -> the same. Source: Elfwing et al. 2017; Ramachandran et al. 2017.
    """

    name = "silu"


@register
class HardSigmoid(Pointwise):
    """y = clip(x/6 + 1/2, 0, 1). Shapes: any -> the same. Source: Howard et al. 2019."""

    name = "hard_sigmoid"


@register
class HardSwish(Pointwise):
    """y = x * clip(x/6 + 1/2, 0, 1). Shapes: any -> the same. Source: Howard et al. 2019."""

    name = "hard_swish"


@register
class Clip(Pointwise):
    """y = min(max(x, low), high). Shapes: any -> the same."""

    name = "clip"
    low: float = attr(Float(), "low")
    high: float = attr(Float(), "high")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise AttrError(f"`low` of `clip` is {self.low:g}, above its `high`, {self.high:g}")


@register
class Softmax(Op):
    """y = exp(x - m) / sum of exp(x - m) along `axis`, m the maximum along it: positive, with sum 1.

    Shapes: any -> the same.
    """

    name = "softmax"
    axis: int = attr(Int(0), "axis", default=1)

    def infer(self, x: TensorType) -> TensorType:
        check_axis(x, self.axis, self.name)
        return x


@register
class LogSoftmax(Op):
    """y = x - m - log(sum of exp(x - m)) along `axis`, m the maximum along it: the logarithm of `softmax`.

    Shapes: any -> the same.
    """

    name = "log_softmax"
    axis: int = attr(Int(0), "axis", default=1)

    def infer(self, x: TensorType) -> TensorType:
        check_axis(x, self.axis, self.name)
        return x


@register
class Abs(Pointwise):
    """y = |x|. Shapes: any -> the same."""

    name = "abs"


@register
class Exp(Pointwise):
    """y = e^x. Shapes: any -> the same."""

    name = "exp"


@register
class Log(Pointwise):
    """y = the natural logarithm of x; -Inf at 0, NaN below. Shapes: any -> the same."""

    name = "log"


@register
class Sqrt(Pointwise):
    """y = the square root of x; NaN below 0. Shapes: any -> the same."""

    name = "sqrt"


@register
class Neg(Pointwise):
    """y = -x. Shapes: any -> the same."""

    name = "neg"


@register
class Dropout(Pointwise):
    """y = x. In training each value is 0 with probability p and x / (1 - p) otherwise.

    Shapes: any -> the same. Source: Srivastava et al. 2014.
    """

    name = "dropout"
    p: float = attr(Float(low=0, below=1), "p", default=0.5)
