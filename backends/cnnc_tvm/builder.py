"""Writing a graph as functions of TVM's tensor expressions (TE) and a plan that calls them.

A rule describes a node's result element by element, as a `Tensor` that exists only as an expression until it is
*stored*: `Builder.store` makes it the result of a function of its own, whose plan step writes it to memory. So the
results of several nodes can become one function (a convolution and the activation after it), and one node several
functions (a softmax). A function has one loop nest with at most one reduction, or is `written` out as statements; equal
functions are built once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import tvm_ffi
from tvm import ir, sym, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from cnnc.ir.dim import Dim
from cnnc.ir.graph import Param
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc_tvm.conv_shape import ConvShape, Finish, Machine
from cnnc_tvm.plan import Step
from cnnc_tvm.reads import is_load, loads, mentions, placeholders
from cnnc_tvm.sizes import Sizes
from cnnc_tvm.tensor import (
    KERNEL,
    MOVES,
    POINTS,
    STORED,
    SUM,
    SUMS,
    WRITTEN,
    Expr,
    Function,
    Kernel,
    Loops,
    Reduction,
    Tensor,
    loaded,
    stored,
)

if TYPE_CHECKING:
    from cnnc.target import Array

Tuned: TypeAlias = Callable[[ConvShape, bool], Any]
"""The plan that was measured to be the fastest for a convolution of images that lie plainly, or in blocks; or None."""


def untuned(shape: ConvShape, plain: bool) -> None:
    """Nothing was measured."""


@dataclass
class Builder(Sizes):
    """Collects the functions, the tensors and the steps of one graph."""

    weights: Mapping[str, Array]
    machine: Machine | None = None
    """A processor whose vectors images are stored for, in blocks of channels; None to store them plainly."""
    tuned: Tuned = untuned
    """What was found to compute a convolution fastest (see `candidates`)."""
    instructions: set[str] = field(default_factory=set)
    """What kernels need that LLVM does not choose by itself, by Linux's names."""
    reserved: frozenset[str] = frozenset()
    """The symbols of the graph, whose names nothing else takes."""
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
        super().__init__(self.reserved)
        self.lanes = self.machine.lanes if self.machine else 0
        self._analyzer = sym.Analyzer()
        self._plain: dict[int, Tensor] = {}  # copies of tensors in blocks
        self._blocks: dict[int, Tensor] = {}  # and the other way round
        self._full: set[Any] = set()  # placeholders that may be read up to the end of the last block
        self._ids: dict[Any, int] = {}  # of the placeholders
        self._made: set[int] = set()  # by steps
        self._by_hash: dict[tuple[int, Loops, tuple[str, ...]], list[Function]] = {}
        self._constants: dict[str, Tensor] = {}

    # Stored tensors

    def _stored(self, type: TensorType) -> Tensor:
        number = len(self.types)
        self.types.append(type.bind(self.sizes))
        placeholder = te.placeholder(self.shape(type.shape), STORED[type.dtype], f"t{number}")
        self._ids[placeholder.op] = number
        return Tensor(type, lambda *i: loaded(placeholder(*i), type.dtype), placeholder)

    def _stored_in_blocks(self, type: TensorType, memory: TensorType) -> Tensor:
        """A tensor [N, C, H, W] whose memory is [N, ceil(C / lanes), H, W, lanes]; the lanes past C hold zeros."""
        blocks = self._stored(memory)
        return replace(self._reading_blocks(type, blocks.te), blocks=blocks)

    def _reading_blocks(self, type: TensorType, blocks: Any) -> Tensor:
        """Images that lie in a tensor of blocks."""
        self._full.add(blocks.op)

        def element(n: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
            block, lane = (self._simple(of(c, self.lanes)) for of in (tirx.floordiv, tirx.floormod))
            return blocks(n, block, i, j, lane)

        return Tensor(type, element)

    def _simple(self, index: Expr) -> Expr:
        return index if isinstance(index, int) else self._analyzer.simplify(index)

    def memory(self, type: TensorType) -> TensorType | None:
        """The blocks of images that are stored in blocks.

        They are of f32, which kernels compute in, whatever the type the elements were rounded to. Of one place they
        would lie as they do plainly.
        """
        if not self.lanes or type.rank != 4:
            return None
        n, c, h, w = type.shape
        if not isinstance(c, int) or 2 * c < self.lanes or (h, w) == (1, 1):
            return None
        return TensorType((n, -(-c // self.lanes), h, w, self.lanes))

    def image(self, x: Tensor) -> tuple[Tensor, int]:
        """A stored tensor of blocks that holds images which `memory` has in blocks, and the first of theirs.

        Lanes past the last channel hold zeros, or what else is stored in the last block.
        """
        return (x.blocks, x.first) if x.within and x.blocks is not None else (self.in_blocks(x), 0)

    def in_blocks(self, x: Tensor) -> Tensor:
        """The stored tensor [N, ceil(C / lanes), H, W, lanes] of images that `memory` has in blocks."""
        x = self.store(x)
        if x.blocks is None:
            number, memory = self.number(x), self.memory(x.type)
            if number not in self._blocks:
                self._blocks[number] = self._store(replace(x, loops=MOVES, te=None, label="blocks"), memory)
            x = self._blocks[number]
        assert x.blocks is not None
        return x.blocks

    def plain(self, x: Tensor) -> Tensor:
        """The tensor in memory, one row after the other."""
        if x.loops is not None:
            x = self.store(x) if x.reduces else self._store(x, None)
        if x.blocks is None:
            return x
        number = self.number(x)
        if number not in self._plain:
            self._plain[number] = self._store(replace(x, loops=MOVES, blocks=None, label="plain"), None)
        return self._plain[number]

    def number(self, x: Tensor) -> int:
        """The position of a stored tensor among the plan's."""
        return self._ids[(x.blocks or x).te.op]

    def input(self, type: TensorType) -> Tensor:
        return self._stored(type)

    def param(self, param: Param) -> Tensor:
        """A parameter as it is; where images lie in blocks those per channel are in f32, since each place reads them,
        and may be read up to the end of the last block."""
        if not self.lanes or param.type.rank != 1:
            return self.constant(param.name, lambda: self.weights[param.name])
        full = self.constant(f"{param.name}:full", lambda: _filled(_as_f32(self.weights[param.name]), self.lanes))
        self._full.add(full.te.op)
        return replace(full, type=param.type)

    def derived(self, what: str, make: Callable[..., Array], *params: Tensor) -> Tensor:
        """A parameter per channel made of others, which `param` gave, while compiling; `what` tells those apart that
        are made of the same. `make` gets and gives arrays of f32; what it makes of zeros lies past the last channel."""
        names = [self.constant_names[self.number(x)] for x in params]
        made = self.constant(f"{'+'.join(names)}:{what}", lambda: make(*(_as_f32(self.constants[x]) for x in names)))
        if self.lanes:
            self._full.add(made.te.op)
        return replace(made, type=TensorType(params[0].type.shape))

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
        """The tensor x in memory, one row after the other, seen with another shape."""
        x, y = self.plain(x), self._stored(type)
        self.views[self.number(y)] = self.number(x)
        return y

    def readable(self, x: Tensor) -> Tensor:
        """The tensor to be read many times: where it lies, or stored."""
        return x if x.within else self.store(x)

    def store(self, x: Tensor) -> Tensor:
        """The tensor in memory: made by a function and a step of its own, unless it is there already."""
        return x if x.loops is None else self._store(x, self.memory(x.type))

    def store_plainly(self, x: Tensor) -> Tensor:
        """The tensor in memory, one row after the other, by the function that computes it: for loops along rows. It is
        stored as f32, to be rounded where it is read."""
        y = self._store(replace(x, type=TensorType(x.type.shape)), None)
        return y if x.type.dtype is DType.F32 else self.unrounded(y)

    def unrounded(self, x: Tensor) -> Tensor:
        """x stored as f32, to be rounded where it is read: for kernels that write what has not been."""
        y = self.store(x)
        return self.points(y.type, lambda *i: y[i], y)

    def _store(self, x: Tensor, memory: TensorType | None) -> Tensor:
        """The tensor in memory, in these blocks if they are given."""
        assert x.loops is not None
        label, node = x.label or self.label, x.node or self.node
        y = self._stored(x.type) if memory is None else self._stored_in_blocks(x.type, memory)
        if x.kernel is not None:
            operands, body = self._kernel_body(x.kernel, x, y)
            loops = KERNEL
        else:
            result = x.te if memory is None and x.type.dtype is DType.F32 else None
            if result is None and memory is None:
                shape = self.shape(x.type.shape)
                result = te.compute(shape, lambda *i: stored(x.element(*i), x.type.dtype), label)
            elif memory is not None:
                shape = self.shape(memory.shape)
                result = te.compute(shape, lambda *i: self.at_lane(x, *i), label)
            operands = placeholders(result)
            body = te.create_prim_func([*operands, result])
            loops = replace(x.loops, blocked=memory is not None)
        between = x.kernel.rows.between if x.kernel and x.kernel.rows else ()
        nodes = (*(each.node for each in between), node)
        self._step(body, loops, label, nodes, (*(self._ids[i.op] for i in operands), self.number(y)))
        return y

    def at_lane(self, x: Tensor, n: Expr, block: Expr, i: Expr, j: Expr, lane: Expr) -> Expr:
        """The element of images at a lane of a block of channels; 0 past the last channel."""
        channels = x.type.shape[1]
        assert isinstance(channels, int)
        if isinstance(lane, tirx.Var):
            self._analyzer.bind(lane, ir.Range(0, self.lanes), allow_override=True)
        c = block * self.lanes + lane
        value = stored(x.element(n, c, i, j), DType.F32)
        if channels % self.lanes == 0:
            return value
        # What lies in blocks at the place of the lane itself may be read past the last channel, without a branch.
        nothing = tirx.const(0.0, "float32")
        if any(
            source.op not in self._full or not (i.same_as(lane) or i.same_as(c))
            for source, *index in loads(value)
            for i in index
            if mentions(i, lane)
        ):
            return tirx.if_then_else(c < channels, value, nothing)
        return tirx.Select(c < channels, value, nothing)

    def _kernel_body(self, kernel: Kernel, x: Tensor, y: Tensor) -> tuple[list[Any], Any]:
        """The placeholders that a kernel reads, those of what becomes of its elements as well, and its function."""
        first = [operand.te for operand in kernel.operands]
        known, blocked = {t.op for t in first}, y.blocks is not None
        operands = [*first, *(source for source in self.epilogue_reads(x, blocked=blocked) if source.op not in known)]

        def statements(*buffers: Any) -> None:
            where = {source.op: buffer for source, buffer in zip(operands, buffers, strict=False)}
            kernel.write(self.epilogue(x, where, blocked=blocked), *buffers[: len(first)], buffers[-1])

        types = [self.types[i] for i in (*(self._ids[t.op] for t in operands), self.number(y))]
        return operands, self._statements(types, statements)

    def epilogue_reads(self, x: Tensor, *, blocked: bool = True) -> list[Any]:
        """The placeholders that are read by what becomes of a kernel's elements in x."""
        assert x.kernel is not None
        rank = x.type.rank + blocked
        value = self._finished(x, tuple(tirx.Var(f"i{axis}", "int32") for axis in range(rank)), blocked)
        return list({source.op: source for source, *_ in loads(value) if source.op != x.kernel.heart.op}.values())

    def epilogue(self, x: Tensor, where: Mapping[Any, Any], *, blocked: bool = True) -> Finish:
        """What becomes of a kernel's elements in x, for the buffers where placeholders lie."""
        assert x.kernel is not None
        heart = x.kernel.heart.op

        def finish(value: Expr, *index: Expr) -> Expr:
            def read(call: Any) -> Any:
                if not is_load(call):
                    return call
                source, *place = call.args
                return value if source.op == heart else where[source.op][tuple(place)]

            return tvm_ffi.structural_map(self._finished(x, index, blocked), (ir.Call, read))

        return finish

    def _finished(self, x: Tensor, index: tuple[Expr, ...], blocked: bool) -> Expr:
        """An element of x as it is stored, in blocks or plainly."""
        if not blocked:
            return stored(x.element(*index), x.type.dtype)
        n, block, lane, i, j = index
        return self.at_lane(x, n, block, i, j, lane)

    def operand(self, source: Any) -> Tensor:
        """The stored tensor of a placeholder."""
        return Tensor(self.types[self._ids[source.op]], source, source)

    def heart(self, type: TensorType) -> Any:
        """A placeholder for a value that a kernel computes."""
        heart = te.placeholder(self.shape(type.shape), "float32", "heart")
        self._full.add(heart.op)
        return heart

    def written(self, type: TensorType, write: Callable[..., None], *operands: Tensor) -> Tensor:
        """A tensor in memory, made by the statements that `write(*buffers)` emits; the last buffer is the result's."""
        numbers = [self.number(self.plain(x)) for x in operands]
        y = self._stored(type)
        args = (*numbers, self.number(y))
        statements = self._statements([self.types[i] for i in args], write)
        self._step(statements, WRITTEN, self.label, (self.node,), args)
        return y

    def _statements(self, types: Iterable[TensorType], write: Callable[..., None]) -> Any:
        """A function on buffers of these types, of the statements that `write(*buffers)` emits."""
        with IRBuilder() as made, T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            buffers = [T.buffer(self.shape(x.shape), STORED[x.dtype], layout=None) for x in types]
            write(*(T.arg(f"x{i}", buffer) for i, buffer in enumerate(buffers)))
        return made.get()

    def is_made(self, x: Tensor) -> bool:
        """Whether a step makes the tensor, or will when it is stored."""
        return x.loops is not None or self.number(x) in self._made

    def join(self, type: TensorType, axis: int, xs: Iterable[Tensor]) -> Tensor | None:
        """The tensors one after the other along an axis where their sizes are known, in memory.

        What makes them writes them there where it can; others are copied (see `placing`). None where they would have to
        begin within blocks.
        """
        xs = list(xs)
        memory = self.memory(type)
        if memory is None:
            parts = [self.number(self.plain(x)) for x in xs]
            y = self._stored(type)
        else:
            sizes = [size for x in xs[:-1] if isinstance(size := x.type.shape[1], int)]
            within = axis == 1 and any(size % self.lanes for size in sizes)
            if within or any(self.memory(x.type) is None for x in xs):
                return None
            parts = [self.number(self.in_blocks(x)) for x in xs]
            y = self._stored_in_blocks(type, memory)
        self.joined[self.number(y)] = axis
        self._made.add(self.number(y))
        self.steps.append(Step("", (self.node,), (*parts, self.number(y)), ()))
        return y

    def copy(self, number: int) -> Step:
        """A step that copies a stored tensor, not among `steps`."""
        type = self.types[number]
        x = next(x for x, i in self._ids.items() if i == number).output(0)
        self.label = "copy"
        self.store(Tensor(type, lambda *i: loaded(x(*i), type.dtype), loops=POINTS))
        return self.steps.pop()

    def _step(self, body: Any, loops: Loops, label: str, nodes: tuple[str, ...], args: tuple[int, ...]) -> None:
        """A step that calls this function on these tensors, and on the symbols that it uses."""
        used = list(tirx.analysis.undefined_vars(body.body, list(body.params)))
        shapes = [size for x in body.params if isinstance(x.ty, tirx.BufferType) for size in x.ty.shape]
        tvm_ffi.structural_walk(shapes, (tirx.Var, used.append))
        dims = tuple(sorted({str(var.name) for var in used} & self.variables.keys()))
        params = [*body.params, *map(self.variable, dims)]
        body = tirx.PrimFunc(params, body.body, body.ret_type, body.attrs)
        self._made.add(args[-1])
        self.steps.append(Step(self._function(body, loops, label, dims), nodes, args, dims))

    def _function(self, body: Any, loops: Loops, label: str, dims: tuple[str, ...]) -> str:
        """The name of the function with this body and these dims, by whose names a kernel is launched: an equal one's,
        if there is one."""
        same = self._by_hash.setdefault((tvm_ffi.structural_hash(body), loops, dims), [])
        for function in same:
            if tvm_ffi.structural_equal(function.body, body):
                return function.name
        name = f"{label}_{len(self.functions)}"
        same.append(Function(name, body, loops))
        self.functions[name] = same[-1]
        return name

    # Expressions

    def points(self, type: TensorType, element: Callable[..., Expr], *of: Tensor) -> Tensor:
        """The tensor of elements `element(*index)`, which read `of` at that index and are scheduled like `of`."""
        loops, kernel = POINTS, None
        for x in of:
            if x.loops and (x.reduces or loops == POINTS):
                loops, kernel = x.loops, x.kernel
        return Tensor(type, element, loops=loops, kernel=kernel)

    def moves(self, type: TensorType, element: Callable[..., Expr]) -> Tensor:
        """The tensor of elements `element(*index)`, which read their operands at any index."""
        return Tensor(type, element, loops=MOVES)

    def reduce(
        self, type: TensorType, over: Iterable[Dim], element: Callable[..., Expr],
        how: Reduction = SUM, loops: Loops = SUMS, blocked: bool = True,
    ) -> Tensor:  # fmt: skip
        """The tensor of the sums (or as `how` says) of `element(*index, *k)` for k over ranges of these sizes.

        Ranges of size 1 make no loop; their index is 0. Images are computed in blocks of channels, unless `blocked` is
        false.
        """
        sizes = [self.size(dim) for dim in over]
        axes = {i: te.reduce_axis((0, size), f"k{i}") for i, size in enumerate(sizes) if not _is_one(size)}
        index = [axes[i].var if i in axes else 0 for i in range(len(sizes))]
        if not axes:
            return self.moves(type, lambda *i: element(*i, *index))
        whole = list(axes.values())
        memory, label = self.memory(TensorType(type.shape)) if blocked else None, f"{self.label}_reduced"
        if memory is None:
            result = te.compute(self.shape(type.shape), lambda *i: how.combine(element(*i, *index), axis=whole), label)
            return Tensor(TensorType(type.shape), result, result, loops)
        parts = Tensor(type, lambda n, c, i, j: element(n, c, i, j, *index))
        result = te.compute(
            self.shape(memory.shape), lambda *i: how.combine(self.at_lane(parts, *i), axis=whole), label
        )
        return replace(self._reading_blocks(TensorType(type.shape), result), loops=loops)


def _is_one(size: Expr) -> bool:
    return isinstance(size, int) and size == 1


def _as_f32(array: Array) -> Array:
    return array.astype(np.float32, copy=False)


def _filled(array: Array, lanes: int) -> Array:
    """An array with zeros after it, up to a multiple of `lanes`."""
    return np.pad(array, (0, -len(array) % lanes))


def _dtype(array: Array) -> DType:
    return next(dtype for dtype in DType if numpy_dtype(dtype) == array.dtype)
