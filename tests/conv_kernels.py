"""Running a kernel of convolution alone, on tensors in blocks of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import codegen

from cnnc_tvm.conv_shape import ConvShape
from guarded_memory import guarded_memory
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


def filled(bias: Array, lanes: int) -> Array:
    """bias [K] and up to a multiple of lanes ones, which no result may show."""
    full = np.ones(-(-len(bias) // lanes) * lanes, bias.dtype)
    full[: len(bias)] = bias
    return full


Write = Callable[[Any, Any, Any, Any], None]
"""Emits a kernel for x, the packed weights, what the epilogue reads and the result."""


def run(
    write: Write, shape: ConvShape, lanes: int, x: Array, weight: Array, other: Array, target: Any = None
) -> Array:  # fmt: skip
    """The result [N, K, H', W'] of the kernel on these arrays, as it reads them, compiled for this processor or for a
    target of TVM's."""
    out = (-(-shape.filters // lanes), *shape.out, lanes)
    batch = () if other.ndim == 1 else (shape.batch,)
    shapes: list[Any] = [(shape.batch, *x.shape[1:]), weight.shape, (*batch, *other.shape[len(batch) :])]
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        dtypes = ["float32", weight.dtype.name, "float32", "float32"]
        sizes = (*shapes, (shape.batch, *out))
        buffers = [T.buffer(size, dtype, layout=None) for size, dtype in zip(sizes, dtypes, strict=True)]
        write(*(T.arg(f"x{i}", buffer) for i, buffer in enumerate(buffers)))
    function = made.get()
    dims = () if isinstance(shape.batch, int) else (len(x),)
    if dims:
        function = tirx.PrimFunc([*function.params, shape.batch], function.body, function.ret_type, function.attrs)
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True, "tirx.disable_assert": True}):
        target = target or tvm.target.Target({"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu())})
        compiled = tvm.tirx.build(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target)["main"]
    result = np.full((len(x), *out), np.nan, np.float32)
    arrays = [_guarded(array) for array in (x, weight, other, result)]
    compiled(*map(tvm_ffi.from_dlpack, arrays), *dims)
    return unblocked(arrays[-1], shape.filters)


def _guarded(array: Array) -> Array:
    """A copy past whose end nothing may be read: that ends the process."""
    memory = guarded_memory(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory
