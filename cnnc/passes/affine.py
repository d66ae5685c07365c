"""Affines per channel, y = s[c]*x + t[c], and the layers whose weights take one up.

An affine is a `bn`, a `scale`, or arithmetic with a constant that has one number for all channels or one for each.
Its s and t, and the weights made with them, are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from cnnc import ops
from cnnc.ir.graph import Node, Param, Value
from cnnc.ir.types import DType, TensorType
from cnnc.passes.engine import Refusal, Sweep

if TYPE_CHECKING:
    from cnnc.passes.engine import Array

Layer: TypeAlias = ops.Conv | ops.Deconv | ops.Linear
SMALL = 2.0**-100
"""Where all numbers are smaller than this, some that matter may have few bits in f32, or none. Among larger ones they
do not: trained weights that have decayed to almost nothing are common."""
AFFINES = (ops.BatchNorm, ops.Scale, ops.Mul, ops.Add, ops.Sub, ops.Div)
"""Ops that can be an affine per channel."""


def operand(node: Value) -> Value | None:
    """x of a node that is an affine of x per channel; None for other nodes."""
    if not isinstance(node, Node):
        return None
    match node.op:
        case ops.BatchNorm() | ops.Scale():
            return node.inputs[0]
        case ops.Mul() | ops.Add() | ops.Sub() | ops.Div() if len(node.inputs) == 2:
            x, y = node.inputs
            if x.type == node.type and _per_channel(y, node.type):
                return x
            if y.type == node.type and _per_channel(x, node.type) and not isinstance(node.op, ops.Div):
                return y
    return None


def affine(node: Node, sweep: Sweep) -> tuple[Array, Array]:
    """s and t of an affine, in float64, [C] each. They need not be finite."""
    import numpy as np

    match node.op:
        case ops.BatchNorm(eps=eps):
            scale = sweep.array(node, "weight") / np.sqrt(sweep.array(node, "running_var") + eps)
            return scale, sweep.array(node, "bias") - scale * sweep.array(node, "running_mean")
        case ops.Scale(bias=bias):
            scale = sweep.array(node, "weight")
            return scale, sweep.array(node, "bias") if bias else np.zeros_like(scale)
    x, y = node.inputs
    first = operand(node) is x
    number = _numbers(y if first else x, node.type)
    one, zero = np.ones_like(number), np.zeros_like(number)
    match node.op:
        case ops.Mul():
            return number, zero
        case ops.Div():
            return one / number, zero
        case ops.Add():
            return one, number
        case ops.Sub():
            return (one, -number) if first else (-one, number)
    raise TypeError(node.op.name)


def has_offset(node: Node) -> bool:
    """Whether an affine adds anything, by what it is and not by its numbers: other weights give the same graph."""
    return node.op.bias if isinstance(node.op, ops.Scale) else not isinstance(node.op, ops.Mul | ops.Div)


@lru_cache(maxsize=2**10)
def biased(layer: Layer) -> Layer:
    """The layer with a bias. Equal layers get one object: a network repeats its layers."""
    return replace(layer, bias=True)


def check_changeable(layer: Node, sweep: Sweep) -> None:
    """Refusal unless the weights of a layer are its own, and in f32."""
    if not all(map(sweep.owned, layer.params.values())):
        raise Refusal(f"the weights of `{layer.name}` are shared")
    if layer.type.dtype is not DType.F32:
        raise Refusal(f"scaled weights would be rounded to {layer.type.dtype} again")


def bias_of(layer: Node, sweep: Sweep) -> Array:
    """The bias of a layer in float64; [0] where it has none."""
    import numpy as np

    return sweep.array(layer, "bias") if "bias" in layer.params else np.zeros(1)


def scaled(layer: Node, factor: Array, sweep: Sweep) -> Array:
    """The weights of a layer times `factor`, which has their rank, as they are stored in f32.

    The products are computed in float64 a few at a time: a network has more weights than fit in a cache. Refusal where
    all are too small for f32.
    """
    import numpy as np

    weight = sweep.weights[layer.params["weight"].name]
    product = np.multiply(weight, factor, out=np.empty_like(weight), casting="same_kind")
    if product.min() > -SMALL and product.max() < SMALL and weight.any() and np.any(factor):
        raise Refusal(f"the new weights of `{layer.name}` would be too small for f32")
    return product


def per_output(values: Array, layer: Node) -> Array:
    """`values`, one for each output channel of a conv, deconv or linear, shaped to multiply its weights."""
    if isinstance(layer.op, ops.Deconv):
        return _second(values, layer.op.groups, layer)
    return _first(values, layer)


def per_input(values: Array, layer: Node) -> Array:
    """`values`, one for each input channel of a conv, deconv or linear, shaped to multiply its weights."""
    if isinstance(layer.op, ops.Deconv):
        return _first(values, layer)
    return _second(values, layer.op.groups if isinstance(layer.op, ops.Conv) else 1, layer)


def refit(op: Layer, layer: Node, inputs: tuple[Value, ...], weight: Array, bias: Array, sweep: Sweep) -> Node:
    """`layer` as `op` on `inputs`, with these weights, and with this bias if `op` has one.

    Refusal where they are not finite in f32.
    """
    check_finite(layer, weight, bias)
    like = layer.params["weight"]
    params = {"weight": sweep.param(like.name, weight, like)}
    if op.bias:
        params["bias"] = sweep.param(bias_name(layer), bias, like)
    return Node(op, inputs, params, layer.name, layer.origin)


def check_finite(node: Node, *arrays: Array) -> None:
    """Refusal unless what is to be new parameters in the place of a node's is finite in f32, and not all too small."""
    import numpy as np

    for array in arrays:
        stored = np.asarray(array, np.float32)
        if array.dtype == np.float64 and 0 < np.abs(array).max() < SMALL:
            raise Refusal(f"the new weights of `{node.name}` would be too small for f32")
        total = np.add.reduce(stored, axis=None)  # a finite one is quicker to find, and has finite terms alone
        if not np.isfinite(total) and not np.isfinite(stored).all():
            raise Refusal(f"the new weights of `{node.name}` would not be finite")


def bias_name(node: Node) -> str:
    """The name of the bias of a node with weights, or the one it would have."""
    like: Param = node.params["weight"]
    return node.params["bias"].name if "bias" in node.params else f"{like.name.removesuffix('weight')}bias"


def _per_channel(x: Value, of: TensorType) -> bool:
    """Whether x is a constant that has one number for each channel of the result, or for all."""
    if not isinstance(x, Node) or not isinstance(x.op, ops.Constant) or of.rank < 2:
        return False
    shape = (*[1] * (of.rank - len(x.op.shape)), *x.op.shape)
    return isinstance(of.shape[1], int) and all(size == 1 for axis, size in enumerate(shape) if axis != 1)


def _numbers(x: Value, of: TensorType) -> Array:
    """The numbers of such a constant, [C], as they are stored in f32."""
    import numpy as np

    assert isinstance(x, Node)
    assert isinstance(x.op, ops.Constant)
    assert isinstance(of.shape[1], int)
    stored: Array = np.asarray(x.op.values, np.float32).astype(np.float64)
    return np.broadcast_to(stored, (of.shape[1],))


def _first(values: Array, layer: Node) -> Array:
    """`values` along axis 0 of weights."""
    return values.reshape(-1, *[1] * (layer.params["weight"].type.rank - 1))


def _second(values: Array, groups: int, layer: Node) -> Array:
    """`values` along axis 1 of weights, of which each of the groups along axis 0 has a part."""
    shape = [size for size in layer.params["weight"].type.shape if isinstance(size, int)]
    per_group = values.reshape(groups, 1, -1).repeat(shape[0] // groups, axis=1)
    return per_group.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
