"""The arithmetic of sliding windows, shared by convolution and pooling: padding and output sizes."""

from __future__ import annotations

from cnnc.ir.attrs import AttrError, Padding, Pair
from cnnc.ir.dim import Dim, ceildiv, floordiv, minimum
from cnnc.ir.op import OpError
from cnnc.ir.types import TensorType

Pads = tuple[Dim, Dim, Dim, Dim]
"""Rows above, columns left, rows below, columns right."""


def extent(kernel: Pair, dilation: Pair) -> Pair:
    """Rows and columns a dilated kernel spans: d*(k - 1) + 1."""
    return dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1


def static_padding(pad: Padding, span: Pair, stride: Pair) -> Padding:
    """`half`, and `same_*` at stride 1, as numbers: they do not depend on the input's size."""
    if pad == "half":
        for size in span:
            if size % 2 == 0:
                raise AttrError(f"half needs an odd kernel, not one that spans {size}: write the padding out")
        return (span[0] // 2, span[1] // 2, span[0] // 2, span[1] // 2)
    if isinstance(pad, str) and stride == (1, 1):
        small, large = ((s - 1) // 2 for s in span), (s // 2 for s in span)
        first, last = (small, large) if pad == "same_upper" else (large, small)
        return (*first, *last)  # type: ignore[return-value]
    return pad


def padding(pad: Padding, h: Dim, w: Dim, span: Pair, stride: Pair) -> Pads:
    """The padding in numbers for an input of h rows and w columns; `same_*` gives ceil(size / stride) windows."""
    if not isinstance(pad, str):
        return pad
    before, after = [], []
    for size, k, s in zip((h, w), span, stride, strict=True):
        total = -minimum(-((ceildiv(size, s) - 1) * s + k - size), 0)
        small, large = floordiv(total, 2), ceildiv(total, 2)
        first, last = (small, large) if pad == "same_upper" else (large, small)
        before.append(first)
        after.append(last)
    return before[0], before[1], after[0], after[1]


def windows(
    x: TensorType, op: str, pad: Padding, span: Pair, stride: Pair, *, ceil: bool = False, operand: int = 0
) -> tuple[Dim, Dim]:
    """Rows and columns of windows: floor((size + padding - span) / stride) + 1, rounded up with `ceil`.

    With `ceil` a window that would start in the padding after the input is dropped, as PyTorch and ONNX do.
    """
    if isinstance(pad, str):  # same_upper, same_lower
        return ceildiv(x.shape[2], stride[0]), ceildiv(x.shape[3], stride[1])
    out: list[Dim] = []
    for axis, (first, last) in enumerate(((pad[0], pad[2]), (pad[1], pad[3]))):
        size, k, s = x.shape[2 + axis], span[axis], stride[axis]
        room = size + first + last - k
        if isinstance(room, int) and room < 0:
            way = ("height", "width")[axis]
            raise OpError(
                "E0310",
                f"kernel of `{op}` spans {k}, but the padded {way} is {size} + {first} + {last} = {room + k}",
                operand=operand,
                axis=2 + axis,
                help=f"use a kernel that spans at most {room + k}, more padding, or a larger input",
            )
        if not ceil:
            out.append(floordiv(room, s) + 1)
        elif k - last >= s:  # no window can start in the padding after the input
            out.append(ceildiv(room, s) + 1)
        else:
            out.append(ceildiv(size + first, s))
    return out[0], out[1]
