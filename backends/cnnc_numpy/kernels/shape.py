"""Moving, cutting, joining and reinterpreting values. Those that can return a view of their operand do."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array
from cnnc_numpy.kernels.conv import padded


def concat(*xs: Array, axis: int = 1) -> Array:
    return np.concatenate(xs, axis)


def slice_axis(x: Array, *, start: int, stop: int, step: int = 1, axis: int = 1) -> Array:
    """x[start:stop:step] along `axis`."""
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def take(x: Array, *, indices: tuple[int, ...], axis: int = 1) -> Array:
    """The entries of `axis` at these positions."""
    return x.take(indices, axis)


def pad(x: Array, *, pads: tuple[int, int, int, int], value: float = 0.0) -> Array:
    """x [N, C, H, W] with rows and columns of `value` around it: top, left, bottom, right."""
    return padded(x, pads, value)


def flatten(x: Array, *, axis: int = 1) -> Array:
    """The axes from `axis` on as one."""
    return x.reshape(*x.shape[:axis], -1)


def reshape(x: Array, *, dims: tuple[int, ...]) -> Array:
    """x with the axes after the first in a new shape."""
    return x.reshape(len(x), *dims)


def transpose(x: Array, *, axes: tuple[int, ...]) -> Array:
    """The axes in another order."""
    return x.transpose(axes)


def cast(x: Array, *, dtype: str) -> Array:
    """x in another element type."""
    return x.astype(dtype)


def constant(*, values: tuple[float, ...], shape: tuple[int, ...] = (), dtype: str = "float32") -> Array:
    """These values, row by row."""
    return np.array(values, dtype).reshape(shape)


def channel_shuffle(x: Array, *, groups: int) -> Array:
    """The channels of x [N, C, H, W] dealt out across groups."""
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).swapaxes(1, 2).reshape(x.shape)


def pixel_shuffle(x: Array, *, scale: int) -> Array:
    """Channels become places: [N, C, H, W] to [N, C/scale^2, H*scale, W*scale]."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c // scale**2, scale, scale, h, w)
    return parts.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // scale**2, h * scale, w * scale)


def crop(x: Array, like: Array, *, offset: tuple[int, int]) -> Array:
    """As many rows and columns of x [N, C, H, W] as `like` has, from `offset` on."""
    top, left = offset
    return x[:, :, top : top + like.shape[2], left : left + like.shape[3]]
