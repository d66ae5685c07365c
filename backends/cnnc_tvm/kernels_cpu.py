"""Which kernel computes a convolution on a CPU: chosen from its shape and the machine, never by measuring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from tvm.script.ir_builder import tirx as T

from cnnc import ops
from cnnc.ir.types import DType, TensorType
from cnnc_tvm import conv_depthwise, conv_direct, conv_winograd, conv_winograd_plan
from cnnc_tvm.builder import Builder, Tuned
from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.tensor import KERNEL, Kernel, Tensor

if TYPE_CHECKING:
    from cnnc.target import Array

Plan: TypeAlias = conv_direct.Plan | conv_winograd_plan.Plan | conv_depthwise.Plan
"""The sizes a kernel is generated with; its class says by which generator."""

FEW, MANY = 1, 8
"""The batches that kernels for a batch of any size are chosen for."""
_MANY_FROM = 4
"""The first size that is taken for many."""
_AS_GOOD = 1.05
"""What a kernel may take of the time of the best for few, and of the best for many, to be the only one."""


def convolution(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor) -> Tensor | None:
    """The convolution by a kernel; None where there is none for its shape, or where images are stored plainly."""
    shape = _shape(b, op, x.type)
    if b.machine is None or shape is None or b.memory(out) is None:
        return None
    plain = b.memory(x.type) is None
    plans = best_plans(shape, b.machine, b.tuned, plain=plain)
    if not plans:
        return None
    image, first = (b.plain(x), 0) if plain else b.image(x)
    packed = [b.packed(weight, each.layout, partial(_pack, each, shape)) for each in plans]
    operands = tuple(dict.fromkeys(packed))
    heart = b.heart(out)

    def write(finish: Any, x: Any, *buffers: Any) -> None:
        *weights, y = buffers
        x = _From(x, first) if first else x
        few, *many = [(each, weights[operands.index(w)]) for each, w in zip(plans, packed, strict=True)]
        if not many:
            _write(*few, shape, finish, x, y)
            return
        with T.If(shape.batch < _MANY_FROM):
            with T.Then():
                _write(*few, shape, finish, x, y)
            with T.Else():
                _write(*many[0], shape, finish, x, y)

    kernel = Kernel(heart, (image, *operands), write)
    return Tensor(TensorType(out.shape), lambda *i: heart(*i), loops=KERNEL, kernel=kernel)


def best_plans(shape: ConvShape, machine: Machine, tuned: Tuned, *, plain: bool) -> list[Plan]:
    """The plan, none if there is none; two, for few images and for many, where only the running program knows the batch
    and one would be slow for either."""
    shapes = [shape] if isinstance(shape.batch, int) else [replace(shape, batch=batch) for batch in (FEW, MANY)]
    own = [plan for each in shapes if (plan := choose(each, machine, plain=plain))]
    best = [tuned(each, plain) or plan for each, plan in zip(shapes, own, strict=False)]
    if len(best) == 2 and best == own and (shared := _shared(shapes, own, machine, plain)):
        return [shared]
    return list(dict.fromkeys(best))


def _shared(shapes: list[ConvShape], plans: list[Plan], machine: Machine, plain: bool) -> Plan | None:
    """A plan that is about as good for each of two shapes as its own, if there is one."""
    few, many = plans
    if few == many or isinstance(few, conv_depthwise.Plan):  # which makes enough tasks of a single image
        return few
    model: Any
    if isinstance(few, conv_direct.Plan) and isinstance(many, conv_direct.Plan):
        model, others = conv_direct, list[Plan](conv_direct.plans(shapes[1], machine, plain=plain))
    elif isinstance(few, conv_winograd_plan.Plan) and isinstance(many, conv_winograd_plan.Plan):
        model, others = conv_winograd_plan, list[Plan](conv_winograd_plan.plans(shapes[1], machine))
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


def _shape(b: Builder, op: ops.Conv, x: TensorType) -> ConvShape | None:
    """The shape of a convolution of f32 images whose sizes are numbers, but for the batch."""
    n, c, h, w = x.shape
    if x.dtype is not DType.F32 or not (isinstance(c, int) and isinstance(h, int) and isinstance(w, int)):
        return None
    top, left, bottom, right = (pad if isinstance(pad, int) else 0 for pad in op.pads(x))
    return ConvShape(
        b.size(n), c, op.channels, (h, w), op.kernel, op.stride, op.dilation, (top, left, bottom, right), op.groups
    )


def choose(shape: ConvShape, machine: Machine, *, plain: bool) -> Plan | None:
    """The plan for a shape whose batch is known, on images that lie plainly or in blocks of channels, by models of what
    they cost."""
    groups, lanes = shape.groups, machine.lanes
    if groups > 1 and (plain or shape.channels // groups % lanes or shape.filters // groups % lanes):
        return conv_depthwise.choose(shape, machine) if conv_depthwise.takes(shape, lanes) and not plain else None
    transformed = conv_winograd_plan.choose(shape, machine) if machine.winograd and not plain else None
    return transformed or conv_direct.choose(shape, machine, plain=plain)


def _pack(plan: Plan, shape: ConvShape, weight: Array) -> Array:
    match plan:
        case conv_direct.Plan():
            return conv_direct.pack(weight, plan, shape.groups)
        case conv_winograd_plan.Plan():
            return conv_winograd.pack(weight, plan)
        case conv_depthwise.Plan():
            return conv_depthwise.pack(weight, plan)


def _write(plan: Plan, w: Any, shape: ConvShape, finish: Any, x: Any, y: Any) -> None:
    match plan:
        case conv_direct.Plan():
            conv_direct.write(shape, plan, finish, x, w, y)
        case conv_winograd_plan.Plan():
            conv_winograd.write(shape, plan, finish, x, w, y)
        case conv_depthwise.Plan():
            conv_depthwise.write(shape, plan, finish, x, w, y)
