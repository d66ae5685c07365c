"""Transposed convolution as convolutions: one for each place within the stride.

Output row i = s*q + a is reached by the kernel rows r = r0, r0 + s, ... with r0 = (a + top) mod s, from the input rows
q + (a + top) div s, and on upwards. So the rows of one a, for q = 0, 1, ..., are a convolution of stride 1 whose kernel
is every s-th row of the kernel, the last one first; columns likewise. No product is with a zero that was put between.
Source: Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from cnnc import ops
from cnnc_tvm.conv_shape import ConvShape
from cnnc_tvm.tensor import Expr

if TYPE_CHECKING:
    from cnnc.target import Array


_MOST = 9
"""Convolutions that a transposed one becomes: each is code of its own."""


@dataclass(frozen=True)
class Phase:
    """The places of the result that lie at `start` within each `stride`, and the convolution that gives them."""

    shape: ConvShape
    start: tuple[int, int]
    stride: tuple[int, int]
    kernel: tuple[range, range]
    """The rows and the columns of the kernel, in the order in which they are those of the convolution's."""

    def place(self, i: Expr, j: Expr) -> tuple[Expr, Expr]:
        """The place in the result of one of the convolution's."""
        return i * self.stride[0] + self.start[0], j * self.stride[1] + self.start[1]

    def weights(self, weight: Array) -> Array:
        """Weights [C, K, R, S] of the transposed convolution as those [K, C, ...] of this one."""
        rows, columns = self.kernel
        return np.ascontiguousarray(weight[:, :, rows][:, :, :, columns].swapaxes(0, 1))


def phases(op: ops.Deconv, batch: Expr, channels: int, image: tuple[int, int], out: tuple[int, int]) -> list[Phase]:
    """The convolutions that `op`, of one group and not dilated, is of an image of this size; none where there would be
    too many, and where the kernel is smaller than the stride, so that nothing reaches some places."""
    if prod(op.stride) > _MOST or any(k < s for k, s in zip(op.kernel, op.stride, strict=True)):
        return []
    top_left = op.pads[:2]
    axes = [list(_along(*sizes)) for sizes in zip(image, out, op.kernel, op.stride, top_left, strict=True)]
    found = []
    for (a, rows, top, bottom), (b, columns, left, right) in product(*axes):
        shape = ConvShape(
            batch, channels, op.channels, image, (len(rows), len(columns)), pads=(top, left, bottom, right)
        )
        found.append(Phase(shape, (a, b), op.stride, (rows, columns)))
    return found


def _along(size: int, out: int, kernel: int, stride: int, pad: int) -> Iterator[tuple[int, range, int, int]]:
    """Along an axis, for each place within the stride: it, its part of the kernel, and what to pad the image by before
    and after, which is negative where the image reaches farther than the result."""
    for a in range(min(stride, out)):
        taps = range((a + pad) % stride, kernel, stride)
        before = len(taps) - 1 - (a + pad) // stride
        places = -(-(out - a) // stride)
        yield a, taps[::-1], before, places - 1 + len(taps) - size - before
