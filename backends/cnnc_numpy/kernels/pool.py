"""Pooling over windows, over grids and over whole maps; max-unpooling."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array
from cnnc_numpy.kernels.conv import columns, padded, shifted


def pool_size(
    x: Array, span: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int, int, int], ceil: bool
) -> tuple[int, int]:
    """Rows and columns of windows; with `ceil` a last window may reach past the padding, but not start in it."""
    sizes = []
    for size, k, s, first, last in zip(x.shape[2:], span, stride, pads[:2], pads[2:], strict=True):
        room = size + first + last - k
        sizes.append(min(-(-room // s) + 1, -(-(size + first) // s)) if ceil else room // s + 1)
    return sizes[0], sizes[1]


def pool_padded(
    x: Array,
    span: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
    size: tuple[int, int],
    value: float,
) -> Array:
    """x padded with `value`, far enough for the last of `size` windows."""
    top, left, bottom, right = pads
    bottom = max(bottom, (size[0] - 1) * stride[0] + span[0] - top - x.shape[2])
    right = max(right, (size[1] - 1) * stride[1] + span[1] - left - x.shape[3])
    return padded(x, (top, left, bottom, right), value)


def max_pool(
    x: Array,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    ceil: bool = False,
) -> Array:
    """The maximum of each window of x [N, C, H, W]; the padding counts as -Inf."""
    span = dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1
    size = pool_size(x, span, stride, pads, ceil)
    x = pool_padded(x, span, stride, pads, size, -np.inf)
    y = shifted(x, 0, 0, stride, size).copy()
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            np.maximum(y, shifted(x, p * dilation[0], q * dilation[1], stride, size), out=y)
    return y


def sum_pool(x: Array, kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]) -> Array:
    """The sum of each of `size` windows of x [N, C, H, W]."""
    y = np.zeros((*x.shape[:2], *size), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            y += shifted(x, p, q, stride, size)
    return y


def avg_pool(
    x: Array,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ceil: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window of x [N, C, H, W] over its places in x and, with `count_include_pad`, in the padding."""
    size = pool_size(x, kernel, stride, pads, ceil)
    y = sum_pool(pool_padded(x, kernel, stride, pads, size, 0.0), kernel, stride, size)
    counts = []
    for axis in (0, 1):
        first = np.arange(size[axis]) * stride[axis] - pads[axis]
        low, high = 0, x.shape[2 + axis]
        if count_include_pad:
            low, high = -pads[axis], high + pads[2 + axis]
        counts.append(np.minimum(first + kernel[axis], high) - np.maximum(first, low))
    y /= np.outer(*counts).astype(x.dtype)
    return y


def l2_pool(
    x: Array,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ceil: bool = False,
) -> Array:
    """The square root of the sum of squares of each window of x [N, C, H, W]."""
    size = pool_size(x, kernel, stride, pads, ceil)
    return np.sqrt(sum_pool(pool_padded(x * x, kernel, stride, pads, size, 0.0), kernel, stride, size))


def adaptive_avg_pool(x: Array, *, size: tuple[int, int]) -> Array:
    """Means of x [N, C, H, W] over a grid of `size` windows that cover it."""
    for axis, count in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        bounds = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        parts = [x.take(range(first, last), axis).mean(axis, keepdims=True) for first, last in bounds]
        x = np.concatenate(parts, axis)
    return x


def global_avg_pool(x: Array) -> Array:
    """The mean of each map: [N, C, H, W] to [N, C, 1, 1]."""
    return x.mean((2, 3), keepdims=True)


def global_max_pool(x: Array) -> Array:
    """The maximum of each map: [N, C, H, W] to [N, C, 1, 1]."""
    return x.max((2, 3), keepdims=True)


def unpool(x: Array, source: Array, *, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """x's values at the (first) maxima of the windows of `source`, zero elsewhere; values at one place add up."""
    n, c, h, w = x.shape
    windows = columns(source[:, :, None], kernel, stride, (1, 1), (h, w))
    place = windows.argmax(2).reshape(n, c, h, w)
    y = np.zeros_like(source)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            part = shifted(y, p, q, stride, (h, w))
            part += np.where(place == p * kernel[1] + q, x, 0)
    return y
