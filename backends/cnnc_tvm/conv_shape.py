"""What the kernels of convolution are generated from: the shape of a convolution, and the processor it is to run on.

In memory a tensor of images lies in blocks of channels, [N, ceil(C / lanes), H, W, lanes]: a vector holds the channels
of one place. The lanes past the last channel hold zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cnnc.ir.types import DType
from cnnc_tvm.tensor import Expr, parts

Finish: TypeAlias = Callable[..., Expr]
"""The epilogue of an element: `finish(value, n, block, lane, i, j)` of the sum at a lane of a block of channels.

It is applied to whole vectors, past the last channel as well: what it reads must lie there. Of a result that is stored
plainly it is `finish(value, n, channel, i, j)`, applied to each channel by itself.
"""


Placed: TypeAlias = Callable[[Expr, Expr], tuple[Expr, Expr]]
"""Where in the tensor that is written the result of a row and a column lies."""


def as_they_are(i: Expr, j: Expr) -> tuple[Expr, Expr]:
    return i, j


@dataclass(frozen=True)
class ConvShape:
    """The sizes of a convolution. Height comes before width; `pads` are (top, left, bottom, right).

    The batch, and rows and columns of the image, are expressions where only the running program knows them.
    """

    batch: Expr
    channels: int
    filters: int
    image: tuple[Expr, Expr]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    area: Expr = None
    """Places of an image of unknown columns whose windows are single places, as one symbol: TVM fails on i // W of
    i < 30*W."""

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns from the first element of a window to its last."""
        (r, s), (dh, dw) = self.kernel, self.dilation
        return (r - 1) * dh + 1, (s - 1) * dw + 1

    @property
    def known(self) -> bool:
        """Whether the sizes of the image are known."""
        return all(isinstance(size, int) for size in self.image)

    @property
    def single(self) -> bool:
        """Whether windows are single places next to each other."""
        return self.kernel == self.stride == (1, 1) and not any(self.pads)

    @property
    def out(self) -> tuple[Expr, Expr]:
        """Rows and columns of the result."""
        (h, w), (top, left, bottom, right), (p, q) = self.image, self.pads, self.span
        rows, columns = h + top + bottom - p, w + left + right - q
        return parts(rows + 1, self.stride[0]), parts(columns + 1, self.stride[1])


AMX, DOT = "amx", "dot"
"""Instructions that add products of pairs of bf16: of tiles, or of vectors."""


@dataclass(frozen=True)
class Machine:
    """What a kernel's tile sizes depend on."""

    lanes: int
    """Floats in a vector: 16 with AVX-512, 8 with AVX2."""
    registers: int
    """Vectors that the registers hold: 32 with AVX-512, 16 with AVX2."""
    cores: int = 1
    l1: int = 32 * 1024
    """Bytes of a core's first cache for data."""
    l2: int = 1024 * 1024
    """Bytes of a core's second cache."""
    winograd: bool = True
    """Whether convolutions may be computed by Winograd's algorithm, which rounds more."""
    linear: DType = DType.F32
    """What the weights of fully connected layers in f32 are stored as."""
    pairs: str = ""
    """The instructions for convolutions of bf16, AMX or DOT; none where those of f32 are as fast."""
