"""Values as the rules see them, and functions as the schedules do: the words that a graph is lowered in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import tvm_ffi
from tvm import te, tirx

from cnnc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from cnnc_tvm.conv_shape import ConvShape

Expr: TypeAlias = Any
"""A scalar expression of TVM, or a Python number."""

# None of the numbers below is negative. What a floor is for others TVM writes out, and again for each floor in a floor.


def quotient(a: Expr, by: Expr) -> Expr:
    """a // by."""
    return a // by if isinstance(by, int) else tirx.truncdiv(a, by)


def remainder(a: Expr, by: Expr) -> Expr:
    """a % by."""
    return a % by if isinstance(by, int) else tirx.truncmod(a, by)


def parts(size: Expr, of: int) -> Expr:
    """How many parts `of` a size it has, the last of which may be smaller."""
    return -(-size // of) if isinstance(size, int) else tirx.truncdiv(size + (of - 1), of)


STORED = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "uint16"}
"""The type of TVM that elements are stored as. It has a bf16, but lowers few expressions of it; the bits are simple."""


@dataclass(frozen=True, slots=True)
class Loops:
    """What a function's loops are like, which decides its schedule. `kind` is one of

    - points: each element by itself, from elements at its own place;
    - moves: each element by itself, from elsewhere;
    - sums: a reduction for each element;
    - windows: a reduction over a small window, neighbours in the last axis reading neighbours;
    - lanes: a convolution or matrix product with its output channels in blocks of `lanes` (the last axis of the
      reduction), computed for `tile` neighbours in the axis before at a time;
    - kernel: statements in the order they are to run, which read an operand of the result's shape, if it is not an
      operand of the kernel itself, only where they write the result;
    - written: statements in the order they are to run.

    With `blocked` the result is stored in blocks of channels: its last axis is the channels of a block.
    """

    kind: str
    lanes: int = 1
    tile: int = 1
    blocked: bool = False

    @property
    def reduces(self) -> bool:
        return self.kind not in ("points", "moves")


POINTS, MOVES, SUMS, WINDOWS, KERNEL, WRITTEN = map(
    Loops, ("points", "moves", "sums", "windows", "kernel", "written")
)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value as rules see it. Indexing reads an element, as f32 whatever the type it is stored in.

    An element that is not stored is computed where it is read: a rule reads each once, or `scalar.bound`s it.
    """

    type: TensorType
    element: Callable[..., Expr]
    te: Any = None
    """The tensor of TE, where it is stored or a reduction."""
    loops: Loops | None = None
    """How its expression must be scheduled if it is stored; None if it is stored already."""
    label: str = ""
    """What the function that stores it is named after; and the node its step is written down for."""
    node: str = ""
    within: bool = False
    """Whether each element lies in a stored tensor as it is, at another index: to store it would be to copy it."""
    blocks: Tensor | None = None
    """The stored tensor [N, ceil(C / lanes), H, W, lanes] that holds it in blocks of channels."""
    first: int = 0
    """The first of these blocks, where it is a slice of what is stored."""
    kernel: Kernel | None = None
    """What computes the heart of its expression, if that is no loop nest."""

    def __getitem__(self, index: Expr | tuple[Expr, ...]) -> Expr:
        return self.element(*index) if isinstance(index, tuple) else self.element(index)

    @property
    def reduces(self) -> bool:
        """Whether its expression holds a reduction."""
        return self.loops is not None and self.loops.reduces


@dataclass(frozen=True, eq=False)
class Kernel:
    """A value computed by statements that take in what becomes of each element."""

    heart: Any
    """The placeholder of the value's shape that stands for it in expressions."""
    operands: tuple[Tensor, ...]
    """The stored tensors it reads."""
    write: Callable[..., None]
    """`write(finish, *buffers)` emits the statements; the last buffer is the result's. `finish(value, *index)` is what
    to store for the value at an index of the result; where that lies in blocks, `finish(value, n, block, lane, i, j)`
    for the value at channel `lane` of a block."""
    rows: Rows | None = None
    """What it computes, if a further convolution may take it in."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Convolutions one after the other, whose rows may be computed as a further one needs them (see `conv_rows`)."""

    image: Tensor
    """The stored tensor of blocks that the first one reads, from block `first` on."""
    first: int
    shapes: tuple[ConvShape, ...]
    weights: tuple[Tensor, ...]
    between: tuple[Tensor, ...] = ()
    """The results of all but the last, expressions of their hearts."""


@dataclass(frozen=True)
class Reduction:
    """How elements are combined: `te.sum`, or a maximum or minimum that keeps NaN."""

    combine: Callable[..., Expr]


def _keeps_nan(better: Callable[[Expr, Expr], Expr], worst: float) -> Callable[..., Expr]:
    def combine(a: Expr, b: Expr) -> Expr:
        v = tirx.Var("v", "float32")  # computed once, though it is read three times
        return tirx.Let(v, b, tirx.Select(tirx.any(better(v, a), te.isnan(v)), v, a))

    combined = te.comm_reducer(combine, lambda dtype: tirx.const(worst, dtype))
    return lambda value, axis: combined(value, axis=axis)


SUM = Reduction(te.sum)
MAX = Reduction(_keeps_nan(lambda a, b: a > b, float("-inf")))
MIN = Reduction(_keeps_nan(lambda a, b: a < b, float("inf")))


@dataclass(frozen=True)
class Function:
    """A function of TensorIR, not scheduled yet."""

    name: str
    body: Any
    loops: Loops
    over: int | None = None
    """The position of the operand that the result is written over."""
    parts: tuple[tuple[int, int], ...] = ()
    """The positions of the arguments that are parts of larger tensors, and the axis along which they are."""


def floated(x: Expr, of: Callable[[Expr], Expr]) -> Expr:
    """`of(x)` with what x binds bound around it all, so that no bound value binds others."""
    return tirx.Let(x.var, x.value, floated(x.body, of)) if isinstance(x, tirx.Let) else of(x)


def written_out(x: Expr) -> int:
    """How many variables x would read if each it binds were replaced by its value, as TVM does to generate code."""
    sizes: dict[Any, int] = {}
    while isinstance(x, tirx.Let):
        read: list[Any] = []
        tvm_ffi.structural_walk(x.value, (tirx.Var, read.append))
        sizes[x.var] = sum(sizes.get(var, 1) for var in read)
        x = x.body
    return sum(sizes.values())


def loaded(value: Expr, dtype: DType) -> Expr:
    """An element as it is stored, as f32."""
    if dtype is DType.BF16:  # the upper half of an f32
        return floated(
            value, lambda half: tirx.reinterpret("float32", half.astype("uint32") << tirx.const(16, "uint32"))
        )
    return value if dtype is DType.F32 else floated(value, lambda half: half.astype("float32"))


def stored(value: Expr, dtype: DType) -> Expr:
    """An element in f32 as it is stored: the nearest of its type, of two the even one."""
    value = tirx.const(value, "float32") if isinstance(value, int | float) else value
    return floated(value, lambda value: _stored(value, dtype))


def _stored(value: Expr, dtype: DType) -> Expr:
    if dtype is DType.BF16:
        v = tirx.Var("v", "float32")
        bits = tirx.reinterpret("uint32", v)
        half = tirx.const(0x7FFF, "uint32") + ((bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32"))
        nan = te.isnan(v).astype("uint32")  # a `Select` would take TVM long where v is a function
        nearest = (bits + half * (tirx.const(1, "uint32") - nan)) | (nan << tirx.const(22, "uint32"))
        return tirx.Let(v, value, (nearest >> tirx.const(16, "uint32")).astype("uint16"))
    return value if dtype is DType.F32 else value.astype(STORED[dtype])
