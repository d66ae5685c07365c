"""Which kernel computes a convolution on a CPU: chosen from its shape and the machine, never by measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tvm.script.ir_builder import tirx as T

from cnnc import ops
from cnnc.ir.types import DType, TensorType
from cnnc_tvm import (
    conv_bf16,
    conv_depthwise,
    conv_direct,
    conv_direct_plan,
    conv_rows,
    conv_winograd,
    conv_winograd_plan,
)
from cnnc_tvm.builder import Builder, Tuned, untuned
from cnnc_tvm.conv_shape import AMX, ConvShape, Machine, as_they_are
from cnnc_tvm.conv_transposed import Phase, phases
from cnnc_tvm.tensor import KERNEL, Expr, Kernel, Rows, Tensor

if TYPE_CHECKING:
    from cnnc.target import Array

Plan: TypeAlias = conv_direct_plan.Plan | conv_winograd_plan.Plan | conv_depthwise.Plan | conv_bf16.Plan
"""The sizes a kernel is generated with; its class says by which generator."""

FEW, MANY = 1, 8
"""The batches that kernels for a batch of any size are chosen for."""
_MANY_FROM = 4
"""The first size that is taken for many."""
_AS_GOOD = 1.05
"""What a kernel may take of the time of the best for few, and of the best for many, to be the only one."""


def convolution(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor) -> Tensor | None:
    """The convolution of a readable image by a kernel; None where there is none for its shape, or where images are
    stored plainly."""
    shape = _shape(b, op, x)
    return _computed(b, out, x, weight, [_Part(shape)]) if shape else None


def joined(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor) -> Tensor | None:
    """The convolution with those that make its image, row by row (see `conv_rows`); None where that is not faster."""
    before, shape = x.kernel.rows if x.kernel else None, _shape(b, op, x)
    if before is None or shape is None or not shape.known or b.machine is None or b.memory(out) is None:
        return None
    if weight.type.dtype is DType.BF16 and b.machine.pairs == AMX:  # whose own kernels are faster
        return None
    rows = Rows(
        before.image, before.first, (*before.shapes, shape), (*before.weights, weight), (*before.between, x)
    )  # fmt: skip
    plan = conv_rows.choose(rows.shapes, b.machine) if conv_rows.takes(rows.shapes, b.lanes) else None
    if plan is None:
        return None
    stages = zip(rows.shapes, plan.stages, rows.weights, strict=True)
    packed = [_Part(shape).packed(b, weight, stage) for shape, stage, weight in stages]
    read = chain.from_iterable(map(b.epilogue_reads, rows.between))
    operands = list({t.te.op: t for t in (rows.image, *packed, *map(b.operand, read))}.values())
    heart = b.heart(out)

    def write(finish: Any, *buffers: Any) -> None:
        *arrays, y = buffers
        where = {t.te.op: buffer for t, buffer in zip(operands, arrays, strict=True)}
        finishes = [*(b.epilogue(each, where) for each in rows.between), finish]
        image = _From(where[rows.image.te.op], rows.first)
        conv_rows.write(rows.shapes, plan, finishes, image, [where[w.te.op] for w in packed], y)

    kernel = Kernel(heart, tuple(operands), write, rows)
    return Tensor(TensorType(out.shape), lambda *i: heart(*i), loops=KERNEL, kernel=kernel)


def _shape(b: Builder, op: ops.Conv, x: Tensor) -> ConvShape | None:
    """None where only the running program knows the padding."""
    n, c, h, w = x.type.shape
    pads = op.pads(x.type)
    match c, pads:
        case int(), (int() as top, int() as left, int() as bottom, int() as right):
            pads, image = (top, left, bottom, right), (b.size(h), b.size(w))
            shape = ConvShape(b.size(n), c, op.channels, image, op.kernel, op.stride, op.dilation, pads, op.groups)
            long = shape.single and not isinstance(w, int)
            return replace(shape, area=b.size(h * w)) if long else shape
    return None


def transposed(b: Builder, op: ops.Deconv, out: TensorType, x: Tensor, weight: Tensor) -> Tensor | None:
    """The transposed convolution by kernels of convolution, or None, likewise."""
    (n, c, h, w), (_, _, *size) = x.type.shape, out.shape
    if not (isinstance(c, int) and isinstance(h, int) and isinstance(w, int)):
        return None
    if op.groups > 1 or op.dilation != (1, 1):
        return None
    rows, columns = (int(dim) for dim in size if isinstance(dim, int))
    found = phases(op, b.size(n), c, (h, w), (rows, columns))
    return _computed(b, out, x, weight, [_Part(each.shape, each) for each in found])


@dataclass(frozen=True)
class _Part:
    """A convolution that computes the result, or its places of one phase."""

    shape: ConvShape
    phase: Phase | None = None

    @property
    def sparse(self) -> bool:
        """Whether its results lie apart, so that only direct convolution can write them."""
        return self.phase is not None and self.phase.stride != (1, 1)

    def packed(self, b: Builder, weight: Tensor, plan: Plan) -> Tensor:
        """The weights as a kernel reads them."""
        layout = plan.layout if self.phase is None else f"{plan.layout} of {self.phase.kernel}"
        return b.packed(weight, layout, lambda w: self._pack(plan, w))

    def _pack(self, plan: Plan, weight: Array) -> Array:
        weight = self.phase.weights(weight) if self.phase else weight
        if isinstance(plan, conv_bf16.Plan):
            return conv_bf16.pack(weight)
        weight = weight.astype(np.float32, copy=False)
        match plan:
            case conv_direct_plan.Plan():
                return conv_direct.pack(weight, plan, self.shape.groups)
            case conv_winograd_plan.Plan():
                return conv_winograd.pack(weight, plan)
            case conv_depthwise.Plan():
                return conv_depthwise.pack(weight, plan)

    def write(self, plan: Plan, w: Any, finish: Any, x: Any, y: Any) -> None:
        match plan:
            case conv_direct_plan.Plan():
                placed = self.phase.place if self.phase and self.sparse else as_they_are
                conv_direct.write(self.shape, plan, finish, x, w, y, placed)
            case conv_winograd_plan.Plan():
                conv_winograd.write(self.shape, plan, finish, x, w, y)
            case conv_depthwise.Plan():
                conv_depthwise.write(self.shape, plan, finish, x, w, y)
            case conv_bf16.Plan():
                conv_bf16.write(self.shape, plan, finish, x, w, y)


def _computed(b: Builder, out: TensorType, x: Tensor, weight: Tensor, parts: Sequence[_Part]) -> Tensor | None:
    if b.machine is None or not parts:
        return None
    plain, few_channels = b.memory(x.type) is None, b.memory(out) is None
    if few_channels and (plain or not _one_block(out, b.lanes) or parts[0].shape.groups > 1):
        return None
    machine = b.machine if weight.type.dtype is DType.BF16 else replace(b.machine, pairs="")
    direct = replace(machine, winograd=False, pairs="")
    plans = [
        best_plans(part.shape, direct, untuned, plain=plain)
        if few_channels or part.sparse  # which only that can write; tuned plans may be others
        else best_plans(part.shape, machine, b.tuned, plain=plain)
        for part in parts
    ]
    if not all(plans):
        return None
    if any(isinstance(plan, conv_bf16.Plan) and plan.engine == AMX for plan in chain(*plans)):
        b.instructions |= {"amx_bf16", "amx_tile"}
    image, first = (b.plain(as_f32(b, x)), 0) if plain else b.image(x)
    packed = [[part.packed(b, weight, plan) for plan in own] for part, own in zip(parts, plans, strict=True)]
    operands = tuple(dict.fromkeys(chain.from_iterable(packed)))
    heart = b.heart(out)

    def write(finish: Any, x: Any, *buffers: Any) -> None:
        *weights, y = buffers
        x = _From(x, first) if first else x
        where = dict(zip(operands, weights, strict=True))
        for part, own, arrays in zip(parts, plans, packed, strict=True):
            few, *many = [(plan, where[w]) for plan, w in zip(own, arrays, strict=True)]
            if not many:
                part.write(*few, finish, x, y)
                continue
            with T.If(_few(part.shape, own)):
                with T.Then():
                    part.write(*few, finish, x, y)
                with T.Else():
                    part.write(*many[0], finish, x, y)

    single = len(parts) == 1 and parts[0].phase is None and parts[0].shape.known and not (plain or few_channels)
    by_rows = single and not any(isinstance(plan, conv_bf16.Plan) for plan in plans[0])
    rows = Rows(image, first, (parts[0].shape,), (weight,)) if by_rows else None
    kernel = Kernel(heart, (image, *operands), write, rows)
    y = Tensor(TensorType(out.shape), lambda *i: heart(*i), loops=KERNEL, kernel=kernel)
    return b.unrounded(y) if few_channels and out.dtype is not DType.F32 else y


def as_f32(b: Builder, x: Tensor) -> Tensor:
    """x in memory as f32: a scalar read many times should not be converted each time."""
    if x.type.dtype is DType.F32:
        return b.readable(x)
    return b.store(b.points(TensorType(x.type.shape), lambda *i: x[i], x))


def _one_block(out: TensorType, lanes: int) -> bool:
    """Whether images have so few channels that they are stored plainly, no more than in a block."""
    c = out.shape[1]
    return isinstance(c, int) and 2 * c < lanes


def best_plans(shape: ConvShape, machine: Machine, tuned: Tuned, *, plain: bool) -> list[Plan]:
    """The plan, none if there is none; two, for few images and for many, or for small ones and for large ones, where
    only the running program knows and one would be slow for either."""
    if not shape.known:
        return _for_any(shape, machine, plain)
    shapes = [shape] if isinstance(shape.batch, int) else [replace(shape, batch=batch) for batch in (FEW, MANY)]
    own = [plan for each in shapes if (plan := choose(each, machine, plain=plain))]
    best = [_measured(plan, tuned, each, plain) or plan for each, plan in zip(shapes, own, strict=False)]
    if len(best) == 2 and best == own and (shared := _shared(shapes, own, machine, plain)):
        return [shared]
    return list(dict.fromkeys(best))


def _measured(plan: Plan, tuned: Tuned, shape: ConvShape, plain: bool) -> Plan | None:
    """The plan that is to be taken instead: those of bf16 are not measured."""
    return None if isinstance(plan, conv_bf16.Plan) else tuned(shape, plain)


def _shared(shapes: list[ConvShape], plans: list[Plan], machine: Machine, plain: bool) -> Plan | None:
    """A plan that is about as good for each of two shapes as its own, if there is one."""
    few, many = plans
    if few == many or isinstance(few, conv_depthwise.Plan):  # which makes enough tasks of a single image
        return few
    model: Any
    if isinstance(few, conv_direct_plan.Plan) and isinstance(many, conv_direct_plan.Plan):
        model, others = conv_direct_plan, list[Plan](conv_direct_plan.plans(shapes[1], machine, plain=plain))
    elif isinstance(few, conv_winograd_plan.Plan) and isinstance(many, conv_winograd_plan.Plan):
        model, others = conv_winograd_plan, list[Plan](conv_winograd_plan.plans(shapes[1], machine))
    elif isinstance(few, conv_bf16.Plan) and isinstance(many, conv_bf16.Plan):
        model, others = conv_bf16, list[Plan](conv_bf16.plans(shapes[1], machine))
    else:
        return None
    least = [model.cycles(shape, machine, plan) for shape, plan in zip(shapes, plans, strict=True)]

    def worst(plan: Plan) -> float:
        return float(max(model.cycles(shape, machine, plan) / best for shape, best in zip(shapes, least, strict=True)))

    both = min(others, key=worst)
    return both if worst(both) <= _AS_GOOD else None


@dataclass(frozen=True)
class _From:
    """A buffer of blocks from one of them on."""

    buffer: Any
    first: int

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        n, block, *place = index
        return self.buffer[n, block + self.first, *place]


def _for_any(shape: ConvShape, machine: Machine, plain: bool) -> list[Plan]:
    """The plans for images whose sizes only the running program knows, for small ones first."""
    if not _direct(shape, machine.lanes, plain):
        plan = choose(shape, machine, plain=plain)
        return [plan] if plan else []
    plans: list[Plan] = [conv_direct_plan.choose_for_any(shape, machine, plain=plain)]
    if machine.winograd and not plain and (transformed := conv_winograd_plan.choose_for_any(shape, machine)):
        plans.append(transformed)
    return plans


def _few(shape: ConvShape, plans: Sequence[Plan]) -> Expr:
    """Whether the first of two plans is to be taken."""
    large = plans[1]
    if isinstance(large, conv_winograd_plan.Plan) and not shape.known:
        return conv_winograd_plan.few(shape, large)
    return shape.batch < _MANY_FROM


def _direct(shape: ConvShape, lanes: int, plain: bool) -> bool:
    """Whether direct convolution can compute it: groups must be whole blocks of channels."""
    per_group = (shape.channels // shape.groups, shape.filters // shape.groups)
    return shape.groups == 1 or not (plain or any(size % lanes for size in per_group))


def choose(shape: ConvShape, machine: Machine, *, plain: bool) -> Plan | None:
    """The plan for a shape whose batch is known, on images that lie plainly or in blocks of channels, by models of what
    they cost."""
    if not _direct(shape, machine.lanes, plain):
        takes = conv_depthwise.takes(shape, machine.lanes) and not plain
        return conv_depthwise.choose(shape, machine) if takes else None
    if machine.winograd and not plain and (transformed := conv_winograd_plan.choose(shape, machine)):
        best: Plan = transformed
        least = conv_winograd_plan.cycles(shape, machine, transformed)
    else:
        best = direct = conv_direct_plan.choose(shape, machine, plain=plain)
        least = conv_direct_plan.cycles(shape, machine, direct)
    if machine.pairs and not plain and conv_bf16.takes(shape):
        pairs = conv_bf16.choose(shape, machine)
        if conv_bf16.cycles(shape, machine, pairs) < least:
            return pairs
    return best
