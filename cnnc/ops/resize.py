"""Resampling and cropping of images.

What is said of rows holds for columns. A place before the first row or after the last reads that row, and
i * (H - 1) / (h - 1) is 0 where h is 1.
"""

from __future__ import annotations

from cnnc.ir.attrs import AttrError, Bool, Choice, Optional, Pair, PairKind, attr
from cnnc.ir.op import Op, OpError, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import images

_MODE = Choice(("nearest", "bilinear"))


@register
class Upsample(Op):
    """x resampled to `scale` times its rows and columns.

    Row i reads row floor(i / scale) of x if `nearest`, a mix of the rows around (i + 1/2) / scale - 1/2 if `bilinear`,
    or with `align_corners` around i * (H - 1) / (H*scale - 1).
    Shapes: x [N, C, H, W] -> [N, C, H*scale, W*scale]. Source: torch.nn.functional.interpolate.
    """

    name = "upsample"
    scale: Pair = attr(PairKind(), "scale")
    mode: str = attr(_MODE, "mode", default="nearest")
    align_corners: bool = attr(Bool(), "align_corners", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_corners(self)

    def infer(self, x: TensorType) -> TensorType:
        n, c, h, w = images(x, self.name)
        return x.with_shape((n, c, h * self.scale[0], w * self.scale[1]))


@register
class Resize(Op):
    """x resampled to `size`, or to the rows and columns of a second operand.

    Row i of h reads row floor(i * H / h) of x if `nearest`, a mix of the rows around (i + 1/2) * H / h - 1/2 if
    `bilinear`, or with `align_corners` around i * (H - 1) / (h - 1).
    Shapes: x [N, C, H, W] (, like [N', C', h, w]) -> [N, C, h, w]. Source: torch.nn.functional.interpolate.
    """

    name = "resize"
    size: Pair | None = attr(Optional(PairKind()), "size", default=None)
    mode: str = attr(_MODE, "mode", default="nearest")
    align_corners: bool = attr(Bool(), "align_corners", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_corners(self)

    def infer(self, x: TensorType, like: TensorType | None = None) -> TensorType:
        n, c, _, _ = images(x, self.name)
        if like is not None and self.size is None:
            _, _, h, w = images(like, self.name, operand=1)
        elif like is None and self.size is not None:
            h, w = self.size
        else:
            given = "neither" if like is None else "both"
            raise OpError("E0302", f"`resize` takes a size or a second operand to be as large as, not {given}")
        return x.with_shape((n, c, h, w))


@register
class Crop(Op):
    """The part of x that starts `offset` rows and columns in and is as large as a second operand.

    Shapes: x [N, C, H, W], like [N', C', h, w], offset + (h, w) at most (H, W) -> [N, C, h, w].
    Source: Long, Shelhamer & Darrell 2015.
    """

    name = "crop"
    offset: Pair = attr(PairKind(0), "offset")

    def infer(self, x: TensorType, like: TensorType) -> TensorType:
        n, c, h, w = images(x, self.name)
        _, _, rows, columns = images(like, self.name, operand=1)
        ways = (("rows", h, rows, self.offset[0]), ("columns", w, columns, self.offset[1]))
        for axis, (way, size, wanted, offset) in enumerate(ways, start=2):
            spare = size - offset - wanted
            if isinstance(spare, int) and spare < 0:
                raise OpError(
                    "E0318",
                    f"`crop` takes {wanted} {way} after the first {offset}, but there are {size}",
                    axis=axis,
                    help=f"the offset can be at most {size - wanted}" if spare + offset >= 0 else None,
                )
        return x.with_shape((n, c, rows, columns))


def _check_corners(op: Upsample | Resize) -> None:
    if op.align_corners and op.mode == "nearest":
        raise AttrError(f'`align_corners` of `{op.name}` goes with mode="bilinear"')
