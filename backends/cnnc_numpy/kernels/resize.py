"""Resampling images to another size."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array


def resize(x: Array, *, size: tuple[int, int], mode: str = "nearest", align_corners: bool = False) -> Array:
    """x [N, C, H, W] read between its places at `size` rows and columns."""
    for axis, count in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        i = np.arange(count)
        if mode == "nearest":
            x = x.take(i * length // count, axis)
            continue
        if align_corners:
            place = i * (length - 1) / max(count - 1, 1)
        else:
            place = np.clip((i + 0.5) * length / count - 0.5, 0, length - 1)
        first = place.astype(int)
        second = np.minimum(first + 1, length - 1)
        share = (place - first).astype(x.dtype).reshape(-1, *[1] * (3 - axis))
        x = x.take(first, axis) * (1 - share) + x.take(second, axis) * share
    return x


def resize_like(x: Array, like: Array, *, mode: str = "nearest", align_corners: bool = False) -> Array:
    """x resized to the rows and columns of `like`."""
    return resize(x, size=(like.shape[2], like.shape[3]), mode=mode, align_corners=align_corners)


def upsample(x: Array, *, scale: tuple[int, int], mode: str = "nearest", align_corners: bool = False) -> Array:
    """x with `scale` times the rows and columns."""
    size = (x.shape[2] * scale[0], x.shape[3] * scale[1])
    return resize(x, size=size, mode=mode, align_corners=align_corners)
