"""Writing a graph as functions of TVM's tensor expressions (TE) and a plan that calls them.

A rule describes a node's result element by element, as a `Tensor` that exists only as an expression until it is
*stored*: `Builder.store` makes it the result of a function of its own, whose plan step writes it to memory. So the
results of several nodes can become one function (a convolution and the activation after it), and one node several
functions (a softmax). A function has one loop nest with at most one reduction, or is `written` out as statements; equal
functions are built once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import tvm_ffi
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from cnnc.ir.dim import Dim, Floor, Min
from cnnc.ir.graph import Param
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc_tvm.plan import Step

if TYPE_CHECKING:
    from cnnc.target import Array

Expr: TypeAlias = Any
"""A scalar expression of TVM, or a Python number."""

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
    - written: statements in the order they are to run.
    """

    kind: str
    lanes: int = 1
    tile: int = 1

    @property
    def reduces(self) -> bool:
        return self.kind not in ("points", "moves")


POINTS, MOVES, SUMS, WINDOWS, WRITTEN = map(Loops, ("points", "moves", "sums", "windows", "written"))


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

    def __getitem__(self, index: Expr | tuple[Expr, ...]) -> Expr:
        return self.element(*index) if isinstance(index, tuple) else self.element(index)

    @property
    def reduces(self) -> bool:
        """Whether its expression holds a reduction."""
        return self.loops is not None and self.loops.reduces


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


@dataclass
class Builder:
    """Collects the functions, the tensors and the steps of one graph."""

    weights: Mapping[str, Array]
    functions: dict[str, Function] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    node: str = ""
    """The node being lowered, which the steps are written down for."""
    label: str = ""
    """What functions made now are named after."""
    types: list[TensorType] = field(default_factory=list)
    """Of the stored tensors, which have numbers."""
    constant_names: dict[int, str] = field(default_factory=dict)
    views: dict[int, int] = field(default_factory=dict)
    """Tensors that are others with another shape."""
    joined: dict[int, int] = field(default_factory=dict)
    """Tensors whose steps have no function but join their arguments, along these axes."""
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._symbols: dict[str, Any] = {}
        self._ids: dict[Any, int] = {}  # of the placeholders
        self._made: set[int] = set()  # by steps
        self._by_hash: dict[tuple[int, Loops], list[Function]] = {}
        self._constants: dict[str, Tensor] = {}

    # Stored tensors

    def _stored(self, type: TensorType) -> Tensor:
        number = len(self.types)
        self.types.append(type)
        placeholder = te.placeholder(self.shape(type.shape), STORED[type.dtype], f"t{number}")
        self._ids[placeholder.op] = number
        return Tensor(type, lambda *i: loaded(placeholder(*i), type.dtype), placeholder)

    def number(self, x: Tensor) -> int:
        """The position of a stored tensor among the plan's."""
        return self._ids[x.te.op]

    def input(self, type: TensorType) -> Tensor:
        return self._stored(type)

    def param(self, param: Param) -> Tensor:
        """A parameter as it is."""
        return self.constant(param.name, lambda: self.weights[param.name])

    def packed(self, param: Tensor, layout: str, pack: Callable[[Array], Array]) -> Tensor:
        """A parameter rearranged while compiling; `layout` tells the arrangements of one parameter apart."""
        name = self.constant_names[self.number(param)]
        return self.constant(f"{name}:{layout}", lambda: pack(self.weights[name]))

    def constant(self, name: str, make: Callable[[], Array]) -> Tensor:
        if name not in self._constants:
            array = make()
            x = self._stored(TensorType(array.shape, _dtype(array)))
            self.constant_names[self.number(x)] = name
            self._constants[name] = x
            self.constants[name] = array
        return self._constants[name]

    def view(self, x: Tensor, type: TensorType) -> Tensor:
        """The memory of the stored tensor x seen with another shape."""
        y = self._stored(type)
        self.views[self.number(y)] = self.number(x)
        return y

    def readable(self, x: Tensor) -> Tensor:
        """The tensor to be read many times: where it lies, or stored."""
        return x if x.within else self.store(x)

    def store(self, x: Tensor) -> Tensor:
        """The tensor in memory: made by a function and a step of its own, unless it is there already."""
        if x.loops is None:
            return x
        result = x.te if x.type.dtype is DType.F32 else None
        if result is None:
            result = te.compute(
                self.shape(x.type.shape), lambda *i: stored(x.element(*i), x.type.dtype), x.label or self.label
            )
        operands = _placeholders(result)
        body = te.create_prim_func([*operands, result])
        y = self._stored(x.type)
        args = (*(self._ids[i.op] for i in operands), self.number(y))
        self._step(body, x.loops, x.label or self.label, x.node or self.node, args)
        return y

    def written(self, type: TensorType, write: Callable[..., None], *operands: Tensor) -> Tensor:
        """A tensor in memory, made by the statements that `write(*buffers)` emits; the last buffer is the result's."""
        y = self._stored(type)
        args = tuple(map(self.number, (*operands, y)))
        with IRBuilder() as made, T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            types = [self.types[i] for i in args]
            buffers = [T.buffer(self.shape(x.shape), STORED[x.dtype], layout=None) for x in types]
            write(*(T.arg(f"x{i}", buffer) for i, buffer in enumerate(buffers)))
        self._step(made.get(), WRITTEN, self.label, self.node, args)
        return y

    def is_made(self, x: Tensor) -> bool:
        """Whether a step makes the tensor, or will when it is stored."""
        return x.loops is not None or self.number(x) in self._made

    def join(self, type: TensorType, axis: int, xs: Iterable[Tensor]) -> Tensor:
        """The tensors one after the other along an axis where their sizes are known, in memory.

        What makes them writes them there where it can; others are copied (see `placing`).
        """
        parts = [self.number(self.store(x)) for x in xs]
        y = self._stored(type)
        self.joined[self.number(y)] = axis
        self._made.add(self.number(y))
        self.steps.append(Step("", self.node, (*parts, self.number(y)), ()))
        return y

    def copy(self, number: int) -> Step:
        """A step that copies a stored tensor, not among `steps`."""
        type = self.types[number]
        x = next(x for x, i in self._ids.items() if i == number).output(0)
        self.label = "copy"
        self.store(Tensor(type, lambda *i: loaded(x(*i), type.dtype), loops=POINTS))
        return self.steps.pop()

    def _step(self, body: Any, loops: Loops, label: str, node: str, args: tuple[int, ...]) -> None:
        """A step that calls this function on these tensors, and on the symbols that it uses."""
        used = {str(var.name) for var in tirx.analysis.undefined_vars(body.body, list(body.params))}
        names = {name for i in args for name in self.types[i].symbols} | (used & self._symbols.keys())
        dims = tuple(sorted(names))
        params = [*body.params, *map(self._symbol, dims)]
        body = tirx.PrimFunc(params, body.body, body.ret_type, body.attrs)
        self._made.add(args[-1])
        self.steps.append(Step(self._function(body, loops, label), node, args, dims))

    def _function(self, body: Any, loops: Loops, label: str) -> str:
        """The name of the function with this body: an equal one's, if there is one."""
        same = self._by_hash.setdefault((tvm_ffi.structural_hash(body), loops), [])
        for function in same:
            if tvm_ffi.structural_equal(function.body, body):
                return function.name
        name = f"{label}_{len(self.functions)}"
        same.append(Function(name, body, loops))
        self.functions[name] = same[-1]
        return name

    # Expressions

    def _symbol(self, name: str) -> Expr:
        return self._symbols.setdefault(name, te.var(name, "int32"))

    def size(self, dim: Dim) -> Expr:
        """A dim as an expression."""
        if isinstance(dim, int):
            return dim
        total: Expr = 0
        for atoms, factor in dim.terms:
            term: Expr = factor
            for atom in atoms:
                term = term * self._atom(atom)
            total = total + term
        return total

    def _atom(self, atom: str | Floor | Min) -> Expr:
        if isinstance(atom, str):
            return self._symbol(atom)
        if isinstance(atom, Floor):
            return tirx.floordiv(self.size(atom.of), atom.by)
        return te.min(self.size(atom.left), self.size(atom.right))

    def shape(self, dims: Iterable[Dim]) -> tuple[Expr, ...]:
        return tuple(map(self.size, dims))

    def points(self, type: TensorType, element: Callable[..., Expr], *of: Tensor) -> Tensor:
        """The tensor of elements `element(*index)`, which read `of` at that index and are scheduled like `of`."""
        loops = POINTS
        for x in of:
            if x.loops and (x.reduces or loops == POINTS):
                loops = x.loops
        return Tensor(type, element, loops=loops)

    def moves(self, type: TensorType, element: Callable[..., Expr]) -> Tensor:
        """The tensor of elements `element(*index)`, which read their operands at any index."""
        return Tensor(type, element, loops=MOVES)

    def reduce(
        self, type: TensorType, over: Iterable[Dim], element: Callable[..., Expr],
        how: Reduction = SUM, loops: Loops = SUMS,
    ) -> Tensor:  # fmt: skip
        """The tensor of the sums (or as `how` says) of `element(*index, *k)` for k over ranges of these sizes.

        Ranges of size 1 make no loop; their index is 0.
        """
        sizes = [self.size(dim) for dim in over]
        axes = {i: te.reduce_axis((0, size), f"k{i}") for i, size in enumerate(sizes) if not _is_one(size)}
        index = [axes[i].var if i in axes else 0 for i in range(len(sizes))]
        if not axes:
            return self.moves(type, lambda *i: element(*i, *index))
        whole = list(axes.values())
        result = te.compute(
            self.shape(type.shape), lambda *i: how.combine(element(*i, *index), axis=whole), f"{self.label}_reduced"
        )
        return Tensor(TensorType(type.shape), result, result, loops)


def loaded(value: Expr, dtype: DType) -> Expr:
    """An element as it is stored, as f32."""
    if dtype is DType.BF16:  # the upper half of an f32
        return tirx.reinterpret("float32", value.astype("uint32") << tirx.const(16, "uint32"))
    return value if dtype is DType.F32 else value.astype("float32")


def stored(value: Expr, dtype: DType) -> Expr:
    """An element in f32 as it is stored: the nearest of its type, of two the even one."""
    value = tirx.const(value, "float32") if isinstance(value, int | float) else value
    if dtype is DType.BF16:
        v = tirx.Var("v", "float32")
        bits = tirx.reinterpret("uint32", v)
        half = tirx.const(0x7FFF, "uint32") + ((bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32"))
        nearest = tirx.Select(te.isnan(v), bits | tirx.const(0x400000, "uint32"), bits + half)
        return tirx.Let(v, value, (nearest >> tirx.const(16, "uint32")).astype("uint16"))
    return value if dtype is DType.F32 else value.astype(STORED[dtype])


def _is_one(size: Expr) -> bool:
    return isinstance(size, int) and size == 1


def _placeholders(tensor: Any) -> list[Any]:
    """The stored tensors an expression reads, in order of first reading."""
    found: dict[Any, Any] = {}
    seen = set()

    def visit(x: Any) -> None:
        if x.op in seen:
            return
        seen.add(x.op)
        if isinstance(x.op, te.PlaceholderOp):
            found[x.op] = x
        for operand in x.op.input_tensors:
            visit(operand)

    visit(tensor)
    return list(found.values())


def _dtype(array: Array) -> DType:
    return next(dtype for dtype in DType if numpy_dtype(dtype) == array.dtype)
