"""Rules of the element-wise ops: activations, arithmetic with broadcasting, affine maps per channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te

from cnnc import ops
from cnnc.ir.op import Op
from cnnc.ir.types import TensorType
from cnnc.target import numpy_dtype
from cnnc_tvm.builder import Builder
from cnnc_tvm.rules import per_channel, rule, spread
from cnnc_tvm.scalar import (
    at_least,
    at_most,
    bound,
    c_function,
    choose,
    exp,
    exp_less_one,
    f32,
    maximum,
    minimum,
    sigmoid,
    tanh,
)
from cnnc_tvm.tensor import Expr, Tensor, floated

if TYPE_CHECKING:
    from cnnc.target import Array

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _hard_sigmoid(v: Expr) -> Expr:
    return at_most(at_least(v / f32(6) + f32(0.5), 0), 1)


def _elu(v: Expr, alpha: float) -> Expr:
    return floated(exp_less_one(v), lambda e: choose(v < f32(0), f32(alpha) * e, v))


def _gelu(v: Expr, approx: str) -> Expr:
    if approx == "tanh":
        inner = f32(math.sqrt(2 / math.pi)) * (v + f32(0.044715) * v * v * v)
        return floated(tanh(inner), lambda t: f32(0.5) * v * (f32(1) + t))
    return f32(0.5) * v * c_function("erfc", v * f32(-math.sqrt(0.5)))  # erfc(-z) = 1 + erf(z), without cancellation


_FUNCTIONS: dict[type[Op], Callable[[Any, Expr], Expr]] = {
    ops.Relu: lambda op, v: at_least(v, 0),
    ops.LeakyRelu: lambda op, v: choose(v < f32(0), v * f32(op.slope), v),
    ops.Sigmoid: lambda op, v: sigmoid(v),
    ops.Tanh: lambda op, v: tanh(v),
    ops.Step: lambda op, v: choose(v >= f32(0), f32(1), f32(0)),
    ops.Elu: lambda op, v: _elu(v, op.alpha),
    ops.Selu: lambda op, v: floated(_elu(v, _SELU_ALPHA), lambda e: f32(_SELU_SCALE) * e),
    ops.Gelu: lambda op, v: _gelu(v, op.approx),
    ops.Silu: lambda op, v: floated(sigmoid(v), lambda s: v * s),
    ops.HardSigmoid: lambda op, v: _hard_sigmoid(v),
    ops.HardSwish: lambda op, v: floated(_hard_sigmoid(v), lambda s: v * s),
    ops.Clip: lambda op, v: at_most(at_least(v, op.low), op.high),
    ops.Abs: lambda op, v: te.abs(v),
    ops.Exp: lambda op, v: exp(v),
    ops.Log: lambda op, v: c_function("log", v),
    ops.Sqrt: lambda op, v: te.sqrt(v),
    ops.Neg: lambda op, v: -v,
    ops.Cast: lambda op, v: v,
}


@rule(*_FUNCTIONS)
def _(b: Builder, op: Op, out: TensorType, x: Tensor) -> Tensor:
    function = _FUNCTIONS[type(op)]
    return b.points(out, lambda *i: bound(x[i], lambda v: function(op, v)), x)


@rule(ops.Prelu)
def _(b: Builder, op: ops.Prelu, out: TensorType, x: Tensor, weight: Tensor) -> Tensor:
    slope = per_channel(weight)
    return b.points(out, lambda *i: bound(x[i], lambda v: choose(v < f32(0), v * slope(*i), v)), x)


_ARITHMETIC: dict[type[Op], Callable[[Expr, Expr], Expr]] = {
    ops.Add: lambda v, w: v + w,
    ops.Sub: lambda v, w: v - w,
    ops.Mul: lambda v, w: v * w,
    ops.Div: lambda v, w: v / w,
    ops.Maximum: maximum,
    ops.Minimum: minimum,
}


@rule(*_ARITHMETIC)
def _(b: Builder, op: Op, out: TensorType, *xs: Tensor) -> Tensor:
    arithmetic = _ARITHMETIC[type(op)]

    def combine(x: Expr, y: Expr) -> Expr:
        return floated(x, lambda x: floated(y, lambda y: arithmetic(x, y)))

    reads = [spread(x, out.rank) for x in xs]
    return b.points(out, lambda *i: reduce(combine, [read(*i) for read in reads]), *xs)


@rule(ops.BatchNorm)
def _(
    b: Builder, op: ops.BatchNorm, out: TensorType, x: Tensor,
    weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
) -> Tensor:  # fmt: skip
    def scale(weight: Array, var: Array) -> Array:
        with np.errstate(all="ignore"):
            return weight / np.sqrt(var + np.float32(op.eps))

    factor = b.derived(f"scale {op.eps}", scale, weight, running_var)
    gain, shift, mean = map(per_channel, (factor, bias, running_mean))

    def element(*i: Expr) -> Expr:
        return floated(x[i], lambda v: (v - mean(*i)) * gain(*i) + shift(*i))

    return b.points(out, element, x)


@rule(ops.Scale)
def _(b: Builder, op: ops.Scale, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    gain = per_channel(weight)
    if bias is None:
        return b.points(out, lambda *i: floated(x[i], lambda v: v * gain(*i)), x)
    shift = per_channel(bias)
    return b.points(out, lambda *i: floated(x[i], lambda v: v * gain(*i) + shift(*i)), x)


@rule(ops.Normalize)
def _(b: Builder, op: ops.Normalize, out: TensorType, x: Tensor) -> Tensor:
    def constant(name: str, values: tuple[float, ...]) -> Callable[..., Expr]:
        channels = x.type.shape[1]
        assert isinstance(channels, int)
        return per_channel(b.constant(f"{b.node}:{name}", lambda: np.full(channels, values, np.float32)))

    mean, std = constant("mean", op.mean), constant("std", op.std)
    return b.points(out, lambda *i: floated(x[i], lambda v: (v - mean(*i)) / std(*i)), x)


@rule(ops.Constant)
def _(b: Builder, op: ops.Constant, out: TensorType) -> Tensor:
    return b.constant(f"{b.node}:values", lambda: np.array(op.values, numpy_dtype(op.dtype)).reshape(op.shape))


@rule(ops.Dropout)
def _(b: Builder, op: ops.Dropout, out: TensorType, x: Tensor) -> Tensor:
    return x
