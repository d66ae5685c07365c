"""Convolutions as matrix products of weights and windows (im2col), depthwise ones as sums of shifted images."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array


def padded(x: Array, pads: tuple[int, int, int, int], value: float = 0.0) -> Array:
    """x [N, C, H, W] with rows and columns of `value` around it (top, left, bottom, right); x itself without any."""
    if not any(pads):
        return x
    top, left, bottom, right = pads
    n, c, h, w = x.shape
    y = np.full((n, c, top + h + bottom, left + w + right), value, x.dtype)
    y[:, :, top : top + h, left : left + w] = x
    return y


def shifted(x: Array, p: int, q: int, stride: tuple[int, int], size: tuple[int, int]) -> Array:
    """The value at row p, column q of each of `size` windows of x [..., H, W]: a view."""
    return x[..., p : p + (size[0] - 1) * stride[0] + 1 : stride[0], q : q + (size[1] - 1) * stride[1] + 1 : stride[1]]


def columns(
    x: Array, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], size: tuple[int, int]
) -> Array:
    """The `size` windows of x [..., C, H, W] as columns of a matrix [..., C*kh*kw, H'*W']."""
    *batch, channels, _, _ = x.shape
    y = np.empty((*batch, channels, *kernel, *size), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            y[..., p, q, :, :] = shifted(x, p * dilation[0], q * dilation[1], stride, size)
    return y.reshape(*batch, channels * kernel[0] * kernel[1], size[0] * size[1])


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Convolution of x [N, C, H, W] with weight [O, C/groups, kh, kw] and bias [O]: [N, O, H', W']."""
    x = padded(x, pads)
    outputs, depth, kh, kw = weight.shape
    h = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    w = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.empty((len(x), outputs, h, w), x.dtype) if out is None else out
    matrix = weight.reshape(groups, outputs // groups, depth * kh * kw)
    for image, result in zip(x, y, strict=True):  # one image at a time keeps the windows small
        if depth == 1 and groups > 1:
            depthwise(image, weight, stride, dilation, result)
            continue
        pointwise = (kh, kw) == stride == (1, 1)
        windows = image if pointwise else columns(image, (kh, kw), stride, dilation, (h, w))
        windows = windows.reshape(groups, depth * kh * kw, h * w)
        np.matmul(matrix, windows, out=result.reshape(groups, outputs // groups, h * w))
    if bias is not None:
        y += bias[:, None, None]
    return y


def depthwise(x: Array, weight: Array, stride: tuple[int, int], dilation: tuple[int, int], out: Array) -> None:
    """Each channel of an image x [C, H, W] convolved with its own m kernels of weight [C*m, 1, kh, kw], to `out`."""
    channels, (_, h, w) = len(x), out.shape
    _, _, kh, kw = weight.shape
    kernels = weight.reshape(channels, -1, kh, kw, 1, 1)
    y = out.reshape(channels, -1, h, w)
    product = np.empty_like(y)
    y[...] = 0
    for p in range(kh):
        for q in range(kw):
            window = shifted(x[:, None], p * dilation[0], q * dilation[1], stride, (h, w))
            y += np.multiply(window, kernels[:, :, p, q], out=product)


def deconv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    out_pad: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Array:
    """Transposed convolution of x [N, C, H, W] with weight [C, O/groups, kh, kw] and bias [O]: [N, O, H', W']."""
    n, channels, h, w = x.shape
    _, depth, kh, kw = weight.shape
    matrix = weight.reshape(groups, channels // groups, depth * kh * kw).swapaxes(1, 2)
    stamps = np.matmul(matrix, x.reshape(n, groups, channels // groups, h * w))
    stamps = stamps.reshape(n, groups * depth, kh, kw, h, w)
    rows = (h - 1) * stride[0] + dilation[0] * (kh - 1) + 1 + out_pad[0]
    cols = (w - 1) * stride[1] + dilation[1] * (kw - 1) + 1 + out_pad[1]
    y = np.zeros((n, groups * depth, rows, cols), x.dtype)
    for p in range(kh):
        for q in range(kw):
            place = shifted(y, p * dilation[0], q * dilation[1], stride, (h, w))
            place += stamps[:, :, p, q]
    top, left, bottom, right = pads
    y = y[:, :, top : rows - bottom, left : cols - right]
    if bias is not None:
        y += bias[:, None, None]
    return y


def local(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Array:
    """x [N, C, H, W] with a kernel for each place, weight [O, H', W', C, kh, kw], bias [O, H', W']: [N, O, H', W']."""
    outputs, h, w, channels, kh, kw = weight.shape
    windows = columns(padded(x, pads), (kh, kw), stride, (1, 1), (h, w))
    kernels = weight.reshape(outputs, h * w, channels * kh * kw)
    y = np.matmul(kernels.transpose(1, 0, 2), np.ascontiguousarray(windows.transpose(2, 1, 0)))  # a product a place
    y = y.transpose(2, 1, 0).reshape(len(x), outputs, h, w)
    return y if bias is None else y + bias
