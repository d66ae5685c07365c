"""Running a kernel of convolution alone, on tensors in blocks of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_shape import ConvShape
from numerics import Array


def blocked(x: Array, lanes: int) -> Array:
    """x [N, C, H, W] as [N, ceil(C / lanes), H, W, lanes]."""
    n, c, h, w = x.shape
    full = np.zeros((n, -(-c // lanes) * lanes, h, w), x.dtype)
    full[:, :c] = x
    return np.ascontiguousarray(full.reshape(n, -1, lanes, h, w).transpose(0, 1, 3, 4, 2))


def unblocked(x: Array, channels: int) -> Array:
    """Blocks of channels as [N, C, H, W]; the lanes past the last channel must hold zeros."""
    n, blocks, h, w, lanes = x.shape
    full = x.transpose(0, 1, 4, 2, 3).reshape(n, blocks * lanes, h, w)
    assert not full[:, channels:].any()
    return full[:, :channels]


Write = Callable[[Any, Any, Any, Any], None]
"""Emits a kernel for x, the packed weights, the bias (a multiple of lanes) and the result."""


def run(write: Write, shape: ConvShape, lanes: int, x: Array, weight: Array, bias: Array) -> Array:
    """The result [N, K, H', W'] of the kernel on x as it is read, the packed weights and the bias [K]."""
    shapes: list[Any] = [(shape.batch, *x.shape[1:]), weight.shape]
    blocks = -(-shape.filters // lanes)
    shapes += [(blocks * lanes,), (shape.batch, blocks, *shape.out, lanes)]
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        write(*(T.arg(f"x{i}", T.buffer(size, "float32", layout=None)) for i, size in enumerate(shapes)))
    function = made.get()
    dims = () if isinstance(shape.batch, int) else (len(x),)
    if dims:
        function = tirx.PrimFunc([*function.params, shape.batch], function.body, function.ret_type, function.attrs)
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True, "tirx.disable_assert": True}):
        target = tvm.target.Target("llvm")
        compiled = tvm.tirx.build(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target)["main"]
    full = np.zeros(blocks * lanes, np.float32)
    full[: len(bias)] = bias
    result = np.full((len(x), *shapes[-1][1:]), np.nan, np.float32)
    tensors = [tvm.runtime.tensor(array) for array in (x, weight, full, result)]
    compiled(*tensors, *dims)
    return unblocked(tensors[-1].numpy(), shape.filters)
