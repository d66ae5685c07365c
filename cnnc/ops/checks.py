"""What many ops ask of their operands: a rank, a known size, an axis in range, dims that agree."""

from __future__ import annotations

from cnnc.ir.dim import Dim
from cnnc.ir.op import OpError
from cnnc.ir.types import TensorType

_OF_IMAGES = ("batch sizes", "channels", "heights", "widths")


def images(x: TensorType, op: str, operand: int = 0) -> tuple[Dim, Dim, Dim, Dim]:
    """The sizes N, C, H, W of an operand that must be a batch of images."""
    if x.rank != 4:
        raise OpError("E0301", f"`{op}` works on [N, C, H, W], not on {x}", operand=operand)
    n, c, h, w = x.shape
    return n, c, h, w


def channels(x: TensorType, op: str) -> int:
    """The number of channels, axis 1, of an operand that must have them, and a known number of them."""
    if x.rank < 2:
        raise OpError("E0301", f"`{op}` works on [N, C, ...], not on {x}")
    c = x.shape[1]
    if not isinstance(c, int):
        raise OpError(
            "E0305",
            f"`{op}` needs a known number of channels, not {c}",
            axis=1,
            help="declare it, as in `image: f32[N, 3, H, W]`",
        )
    return c


def known(x: TensorType, axis: int, op: str, why: str) -> int:
    """The size of an axis that must not be symbolic; `why` completes "`op` needs a known size ..."."""
    size = x.shape[axis]
    if not isinstance(size, int):
        raise OpError(
            "E0306",
            f"`{op}` needs a known size {why}, but dimension {axis} of {x} is {size}",
            axis=axis,
            help="give the input a fixed size, or bind it: `--dim H=224,W=224`",
        )
    return size


def check_axis(x: TensorType, axis: int, op: str, attribute: str = "axis") -> None:
    """OpError unless x has this axis, counted from 0."""
    if axis >= x.rank:
        axes = ("no axes", "axis 0 only")[x.rank] if x.rank < 2 else f"axes 0 to {x.rank - 1}"
        raise OpError("E0315", f"`{attribute}` of `{op}` is {axis}, but {x} has {axes}")


def check_same(op: str, rank: int, axis: int, left: Dim, right: Dim, operand: int, nouns: str = "operands") -> None:
    """OpError unless two operands of this rank agree on an axis; `operand` is the position of the right one."""
    if left != right:
        raise differ(op, rank, axis, left, right, operand=operand, axis_there=axis, nouns=nouns)


def differ(
    op: str, rank: int, axis: int, left: Dim, right: Dim, *, operand: int, axis_there: int, nouns: str = "operands"
) -> OpError:
    """The error for dims that should agree: E0312 for channels, E0313 for others; `axis_there` is the operand's own."""
    code = "E0312" if axis == 1 else "E0313"
    what = _OF_IMAGES[axis] if rank == 4 or axis < 2 <= rank else f"sizes of dimension {axis}"
    hint = None
    if code == "E0313" and not (isinstance(left, int) and isinstance(right, int)):
        hint = (
            "they agree for some sizes only: declare an input size that divides evenly, such as `32*h=224`,"
            " or cut one to the other with `crop`"
        )
    message = f"{nouns} of `{op}` have different {what}: {left} and {right}"
    return OpError(code, message, operand=operand, axis=axis_there, help=hint)


def check_groups(op: str, channels: int, groups: int) -> None:
    """OpError unless the groups have equally many channels."""
    if channels % groups:
        raise OpError("E0311", f"`groups` of `{op}` is {groups}, which does not divide {channels} channels", axis=1)
