"""Which kernel computes a convolution on a CPU: chosen from its shape and the machine, never by measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from cnnc import ops
from cnnc.ir.types import DType, TensorType
from cnnc_tvm import conv_depthwise, conv_direct, conv_winograd, conv_winograd_plan
from cnnc_tvm.builder import Builder
from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.tensor import KERNEL, Kernel, Tensor

if TYPE_CHECKING:
    from cnnc.target import Array

Plan: TypeAlias = conv_direct.Plan | conv_winograd_plan.Plan | conv_depthwise.Plan
"""The sizes a kernel is generated with; its class says by which generator."""


def convolution(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor) -> Tensor | None:
    """The convolution by a kernel; None where there is none for its shape, or where images are stored plainly."""
    shape = _shape(b, op, x.type)
    if b.machine is None or shape is None or b.memory(out) is None:
        return None
    plain = b.memory(x.type) is None
    plan = b.tuned(shape, plain) or choose(shape, b.machine, plain=plain)
    if plan is None:
        return None
    image, first = (b.plain(x), 0) if plain else b.image(x)
    packed = b.packed(weight, f"{plan}", lambda w: _pack(plan, shape, w))
    heart = b.heart(out)

    def write(finish: Any, x: Any, w: Any, y: Any) -> None:
        _write(plan, shape, finish, _From(x, first) if first else x, w, y)

    kernel = Kernel(heart, (image, packed), write)
    return Tensor(TensorType(out.shape), lambda *i: heart(*i), loops=KERNEL, kernel=kernel)


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
    """The plan for a shape, on images that lie plainly or in blocks of channels, by models of what they cost."""
    groups, lanes = shape.groups, machine.lanes
    if groups == shape.channels == shape.filters and not plain:
        return conv_depthwise.choose(shape, machine)
    if groups > 1 and (plain or shape.channels // groups % lanes or shape.filters // groups % lanes):
        return None
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


def _write(plan: Plan, shape: ConvShape, finish: Any, x: Any, w: Any, y: Any) -> None:
    match plan:
        case conv_direct.Plan():
            conv_direct.write(shape, plan, finish, x, w, y)
        case conv_winograd_plan.Plan():
            conv_winograd.write(shape, plan, finish, x, w, y)
        case conv_depthwise.Plan():
            conv_depthwise.write(shape, plan, finish, x, w, y)
