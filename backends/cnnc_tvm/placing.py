"""Where the tensors of a program lie, and what that asks of its functions.

A function may have to write over an operand, or to work on parts of larger tensors. That is done when it is scheduled,
and its loops do not change: loads and stores get another buffer and other indices. So no two parameters that are used
name the same bytes, as TVM promises to LLVM and nvcc.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any

import tvm
import tvm_ffi
from tvm import te, tirx

from cnnc import memory
from cnnc_tvm.builder import Builder
from cnnc_tvm.plan import Part, Plan, Step, part_names
from cnnc_tvm.plan import Tensor as PlanTensor
from cnnc_tvm.prefetch import prefetched
from cnnc_tvm.tensor import Function, Tensor


def place(b: Builder, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> tuple[dict[str, Function], Plan]:
    """The functions and the plan of what was built, for these stored tensors."""
    taken, given = ({name: b.number(x) for name, x in side.items()} for side in (inputs, outputs))
    over = {name: overwritable(f) for name, f in b.functions.items()}
    made = []
    for step in b.steps:
        *operands, result = step.args
        free = tuple(operands[i] for i in over.get(step.function, ()))
        made.append(memory.Step(result, tuple(operands), free, b.joined.get(result)))
    arrangement = memory.arrange(dict(enumerate(b.types)), taken.values(), b.views, made, given.values())
    placer = _Placer(b, arrangement)
    calls = [placer.calls(step, planned) for step, planned in zip(list(b.steps), made, strict=True)]
    tensors = tuple(map(placer.tensor, range(len(b.types))))
    done = [0, *accumulate(map(len, calls))]  # calls until after a step: what joins has none, or some copies
    begin = [0, *(count + 1 for count in done)]
    end = [*done, done[-1] + 1]
    blocks = (replace(x, first=begin[x.first], last=end[x.last]) for x in arrangement.blocks.values())
    steps = tuple(chain.from_iterable(calls))
    return placer.functions, Plan(tensors, tuple(blocks), steps, taken, given, sizes=b.sizes)


class _Placer:
    """Makes each step of an arrangement a call of a function that finds its arguments where they are."""

    def __init__(self, b: Builder, arrangement: memory.Arrangement[int]) -> None:
        self.b, self.arrangement = b, arrangement
        self.places = dict(arrangement.places)
        self.blocks = {x: i for i, x in enumerate(arrangement.blocks)}
        self.functions: dict[str, Function] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def calls(self, step: Step, planned: memory.Step[int]) -> list[Step]:
        """What is called for a step: for one that joins, copies of the operands that are not there yet."""
        if planned.axis is None:
            return [self._call(step)]
        copies = []
        for x, place in self.arrangement.copied(planned):
            copy = replace(self.b.copy(x), nodes=step.nodes)
            self.places[copy.args[-1]] = place
            copies.append(self._call(copy))
        return copies

    def _call(self, step: Step) -> Step:
        result = self.arrangement.over.get(step.args[-1])
        over = None if result is None else step.args.index(result)
        parts = tuple((i, part.axis) for i, x in enumerate(step.args) if (part := self.tensor(x).part))
        label = step.function.rpartition("_")[0]
        name = self._names.setdefault((step.function, over, parts), f"{label}_{len(self._names)}")
        self.functions[name] = replace(self.b.functions[step.function], name=name, over=over, parts=parts)
        numbers = (name for i, _ in parts for name in part_names(i))
        return replace(step, function=name, dims=(*step.dims, *numbers))

    def tensor(self, x: int) -> PlanTensor:
        """The tensor of this number and where it is."""
        type = self.b.types[x]
        if (place := self.places.get(x)) is None:
            while x in self.b.views:
                x = self.b.views[x]
            return PlanTensor(type, self.b.constant_names[x])
        if place.axis is None:
            return PlanTensor(type, self.blocks[place.block])
        size = self.b.types[place.block].shape[place.axis]
        assert isinstance(size, int)
        return PlanTensor(type, self.blocks[place.block], Part(place.axis, place.start, size))


def overwritable(function: Function) -> tuple[int, ...]:
    """Positions of operands whose elements are read only by the statement that writes the result's at their place."""
    if function.loops.kind == "written":
        return ()
    body = function.body
    *operands, result = (x for x in body.params if isinstance(x.ty, tirx.BufferType))
    reads: Counter[Any] = Counter()
    same: Counter[Any] = Counter()

    def visit(store: Any) -> None:
        def read(load: Any) -> None:
            if store.buffer.same_as(result) and _equal(load.indices, store.indices):
                same[load.source] += 1

        tvm_ffi.structural_walk(store.value, (tvm.ir.TensorLoad, read))

    tvm_ffi.structural_walk(body.body, (tvm.ir.TensorLoad, lambda load: reads.update([load.source])))
    reads.subtract(prefetched(body.body))
    tvm_ffi.structural_walk(body.body, (tirx.BufferStore, visit))
    if reads[result] and (function.loops.kind == "kernel" or reads[result] != same[result]):
        return ()
    return tuple(i for i, x in enumerate(operands) if reads[x] == same[x])


def _equal(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(map(tvm_ffi.structural_equal, left, right))


def placed(function: Function, body: Any) -> Any:
    """The scheduled body of a function, made to work where the function says its arguments lie.

    An operand that the result is written over stays a parameter, but is not used. For each part of a larger tensor two
    numbers are parameters more: the size of the whole along the axis, and where the part starts.
    """
    buffers = [x for x in body.params if isinstance(x.ty, tirx.BufferType)]
    moved: dict[Any, tuple[Any, int, Any]] = {}  # the buffer instead, an axis, what to add to its index
    numbers: list[Any] = []
    for i, axis in function.parts:
        size, start = (te.var(name, "int32") for name in part_names(i))
        numbers += [size, start]
        shape = [size if k == axis else extent for k, extent in enumerate(buffers[i].ty.shape)]
        whole = tirx.decl_buffer(shape, buffers[i].ty.dtype, buffers[i].name, data_alignment=64)
        moved[buffers[i]] = (whole, axis, start)
    params = [moved[x][0] if x in moved else x for x in body.params]
    if function.over is not None:
        moved[buffers[function.over]] = moved.get(buffers[-1], (buffers[-1], 0, 0))

    def load(x: Any) -> Any:
        if x.source not in moved:
            return x
        buffer, axis, start = moved[x.source]
        return tirx.BufferLoad(buffer, _shifted(x.indices, axis, start))

    def store(x: Any) -> Any:
        if x.buffer not in moved:
            return x
        buffer, axis, start = moved[x.buffer]
        return tirx.BufferStore(buffer, x.value, _shifted(x.indices, axis, start))

    def region(x: Any) -> Any:
        if x.source not in moved:
            return x
        buffer, axis, start = moved[x.source]
        first = _shifted([r.min for r in x.region], axis, start)
        ranges = [tvm.ir.Range.from_min_extent(low, r.extent) for low, r in zip(first, x.region, strict=True)]
        return tirx.BufferRegion(buffer, ranges)

    if not moved:
        return body
    callbacks = [(tvm.ir.TensorLoad, load), (tirx.BufferStore, store), (tvm.ir.TensorRegion, region)]
    return tirx.PrimFunc([*params, *numbers], tvm_ffi.structural_map(body.body, callbacks), body.ret_type, body.attrs)


def _shifted(indices: Any, axis: int, start: Any) -> list[Any]:
    return [i + start if k == axis else i for k, i in enumerate(indices)]
