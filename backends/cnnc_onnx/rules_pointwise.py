"""Rules: nonlinearities, arithmetic of several tensors, reductions, linear layers."""

from __future__ import annotations

import math

from cnnc import ops
from cnnc.ir.op import Op
from cnnc.ops.reduce import Reduce
from cnnc_onnx.emit import ELEMENT, Emitter, Ref, Tensor, in_f32, rules

_SAME = {
    ops.Relu: "Relu", ops.Sigmoid: "Sigmoid", ops.Tanh: "Tanh", ops.Abs: "Abs", ops.Exp: "Exp", ops.Log: "Log",
    ops.Sqrt: "Sqrt", ops.Neg: "Neg", ops.Sub: "Sub", ops.Div: "Div", ops.MatMul: "MatMul", ops.Maximum: "Max",
    ops.Minimum: "Min",
}  # fmt: skip
_MERGE = {ops.Add: "Add", ops.Mul: "Mul"}
_REDUCE = {
    ops.ReduceMean: "ReduceMean", ops.ReduceSum: "ReduceSum", ops.ReduceMax: "ReduceMax", ops.ReduceMin: "ReduceMin",
}  # fmt: skip


@rules(*_SAME)
def same(op: Op, e: Emitter, *xs: Ref) -> Tensor:
    """Ops that ONNX has just so."""
    return e(_SAME[type(op)], *xs)


@rules(ops.Dropout)
def dropout(op: ops.Dropout, e: Emitter, x: Ref) -> Tensor:
    return x


@rules(ops.LeakyRelu)
def leaky_relu(op: ops.LeakyRelu, e: Emitter, x: Ref) -> Tensor:
    return e("LeakyRelu", x, alpha=op.slope)


@rules(ops.Prelu)
def prelu(op: ops.Prelu, e: Emitter, x: Ref, weight: Ref) -> Tensor:
    return e("PRelu", x, e.channels(weight, x.type.rank))


@rules(ops.Step)
def step(op: ops.Step, e: Emitter, x: Ref) -> Tensor:
    return e("Cast", e("GreaterOrEqual", x, e.number(0)), to=ELEMENT[x.type.dtype])


@rules(ops.Elu)
def elu(op: ops.Elu, e: Emitter, x: Ref) -> Tensor:
    return e("Elu", x, alpha=op.alpha)


@rules(ops.Selu)
def selu(op: ops.Selu, e: Emitter, x: Ref) -> Tensor:
    return e("Selu", x)  # the default alpha and gamma are the op's


@rules(ops.Gelu)
def gelu(op: ops.Gelu, e: Emitter, x: Ref) -> Tensor:
    return e("Gelu", x, approximate=op.approx) if e.opset >= 20 else _gelu(op, e, x)


@in_f32
def _gelu(op: ops.Gelu, e: Emitter, x: Ref) -> Tensor:
    if op.approx == "none":
        inner = e("Erf", e("Mul", x, e.number(math.sqrt(0.5))))
    else:
        cube = e("Mul", e("Mul", x, x), x)
        inner = e("Add", x, e("Mul", cube, e.number(0.044715)))
        inner = e("Tanh", e("Mul", inner, e.number(math.sqrt(2 / math.pi))))
    return e("Mul", e("Mul", x, e.number(0.5)), e("Add", inner, e.number(1)))


@rules(ops.Silu)
@in_f32
def silu(op: ops.Silu, e: Emitter, x: Ref) -> Tensor:
    return e("Mul", x, e("Sigmoid", x))


@rules(ops.HardSigmoid)
def hard_sigmoid(op: ops.HardSigmoid, e: Emitter, x: Ref) -> Tensor:
    return e("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@rules(ops.HardSwish)
@in_f32
def hard_swish(op: ops.HardSwish, e: Emitter, x: Ref) -> Tensor:
    return e("Mul", x, e("HardSigmoid", x, alpha=1 / 6, beta=0.5))  # `HardSwish` itself is there from opset 14 on


@rules(ops.Clip)
def clip(op: ops.Clip, e: Emitter, x: Ref) -> Tensor:
    return e("Clip", x, e.number(op.low), e.number(op.high))


@rules(ops.Softmax)
def softmax(op: ops.Softmax, e: Emitter, x: Ref) -> Tensor:
    return e("Softmax", x, axis=op.axis)


@rules(ops.LogSoftmax)
def log_softmax(op: ops.LogSoftmax, e: Emitter, x: Ref) -> Tensor:
    return e("LogSoftmax", x, axis=op.axis)


@rules(ops.Add, ops.Mul)
def merge(op: ops.Add | ops.Mul, e: Emitter, *xs: Ref) -> Tensor:
    """ONNX has sums and products of two operands."""
    return e(_MERGE[type(op)], *xs) if len(xs) == 2 else _fold(op, e, *xs)


@in_f32
def _fold(op: ops.Add | ops.Mul, e: Emitter, x: Ref, *others: Ref) -> Tensor:
    result: Tensor = x
    for other in others:
        result = e(_MERGE[type(op)], result, other)
    return result


@rules(ops.Linear)
def linear(op: ops.Linear, e: Emitter, x: Ref, weight: Ref, bias: Ref | None = None) -> Tensor:
    return e("Gemm", x, weight, bias, transB=1)


@rules(ops.Rbf)
@in_f32
def rbf(op: ops.Rbf, e: Emitter, x: Ref, weight: Ref) -> Tensor:
    difference = e("Sub", e("Unsqueeze", x, e.ints(1)), weight)  # [N, 1, F] - [c, F]
    return e.reduce("ReduceSumSquare", difference, [2], keep=False)


@rules(ops.Scale)
@in_f32
def scale(op: ops.Scale, e: Emitter, x: Ref, weight: Ref, bias: Ref | None = None) -> Tensor:
    return e.affine(x, weight, bias, x.type.rank)


@rules(*_REDUCE)
def reduction(op: Reduce, e: Emitter, x: Ref) -> Tensor:
    return e.reduce(_REDUCE[type(op)], x, op.axes, keep=op.keep)
