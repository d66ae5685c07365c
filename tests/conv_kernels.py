"""Running a kernel of convolution alone, on tensors in blocks of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    images = (0,) if other.ndim == 1 else (0, 2)
    return unblocked(execute(write, [x, weight, other], out, shape.batch, images, target), shape.filters)


def execute(
    write: Callable[..., None], arrays: Sequence[Array], out: Sequence[int], batch: Any, images: Sequence[int] = (0,),
    target: Any = None,
) -> Array:  # fmt: skip
    """The result [N, *out] of the statements that `write` emits for buffers of these arrays and of the result.

    The arrays at the positions `images` have N of them. `batch` is N, or a variable that stands for it while the
    statements are compiled.
    """
    n = len(arrays[0])
    shapes = [(batch, *x.shape[1:]) if i in images else x.shape for i, x in enumerate(arrays)]
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        types = [*zip(shapes, (x.dtype.name for x in arrays), strict=True), ((batch, *out), "float32")]
        buffers = [T.buffer(size, dtype, layout=None) for size, dtype in types]
        write(*(T.arg(f"x{i}", buffer) for i, buffer in enumerate(buffers)))
    function = made.get()
    dims = () if isinstance(batch, int) else (n,)
    if dims:
        function = tirx.PrimFunc([*function.params, batch], function.body, function.ret_type, function.attrs)
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True, "tirx.disable_assert": True}):
        target = target or tvm.target.Target({"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu())})
        compiled = tvm.tirx.build(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target)["main"]
    guarded = [_guarded(array) for array in (*arrays, np.full((n, *out), np.nan, np.float32))]
    compiled(*map(tvm_ffi.from_dlpack, guarded), *dims)
    return guarded[-1]


def _guarded(array: Array) -> Array:
    """A copy past whose end nothing may be read: that ends the process."""
    memory = guarded_memory(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory
