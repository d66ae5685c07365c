"""What `cnnc tune` chooses among, and the choices it made: plans of the kernels that compute convolutions on a CPU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from cnnc.cache import code
from cnnc.ir.types import DType
from cnnc.tuned import About, Store
from cnnc.tuned import Plan as Data
from cnnc_tvm import conv_depthwise, conv_direct_plan, conv_winograd_plan, toolchain
from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.ffi import threads
from cnnc_tvm.kernels_cpu import Plan, choose

_SIMILAR: Final = 0.05
"""What each plan with the same tile that was listed before adds to the cycles that a plan is ranked by."""
_GENERATORS: Final = (
    "conv_direct", "conv_direct_plan", "conv_depthwise", "conv_shape", "conv_winograd", "conv_winograd_plan",
    "conv_tiles", "prefetch", "tensor", "build_cpu",
)  # fmt: skip
_KINDS: Final = {
    conv_direct_plan.Plan: "direct", conv_winograd_plan.Plan: "winograd", conv_depthwise.Plan: "depthwise",
}  # fmt: skip
_TILE: Final = ("m", "rows", "columns", "blocks", "image", "phases")
"""What the loops inside depend on."""


@dataclass(frozen=True)
class Convolution:
    """A convolution, and whether its image lies plainly or in blocks of channels."""

    shape: ConvShape
    plain: bool

    @property
    def name(self) -> str:
        s = self.shape
        (h, w), (r, q), (sh, sw) = s.image, s.kernel, s.stride
        stride = "" if (sh, sw) == (1, 1) else f"/{sh}" if sh == sw else f"/{sh}x{sw}"
        groups = "" if s.groups == 1 else f" in {s.groups} groups"
        return f"{r}x{q}{stride} {s.channels} to {s.filters} at {s.batch}x{h}x{w}{groups}"


def plans(convolution: Convolution, machine: Machine) -> list[Plan]:
    """Those there are: first the one that is chosen without measuring, then those that are expected to be fast, of
    different tiles rather than of one."""
    shape, plain = convolution.shape, convolution.plain
    machine = replace(machine, pairs="")  # kernels of bf16 are not measured
    own = choose(shape, machine, plain=plain)
    if own is None:
        return []
    return list(dict.fromkeys([own, *_spread(_ranked(shape, machine, plain, own))]))


def _ranked(shape: ConvShape, machine: Machine, plain: bool, own: Plan) -> list[tuple[float, Plan]]:
    """Plans with the cycles they are expected to take, the fewest first."""
    found: list[tuple[float, Plan]]
    if isinstance(own, conv_depthwise.Plan):
        columns, chunk = own.columns, own.chunk
        found = [
            (1 + abs(p.columns - columns) / columns + abs(p.chunk - chunk) / chunk, p)
            for p in conv_depthwise.plans(shape, machine)
        ]
    else:
        direct = conv_direct_plan.plans(shape, machine, plain=plain)
        winograd = conv_winograd_plan.plans(shape, machine) if machine.winograd and not plain else ()
        found = [
            *((conv_direct_plan.cycles(shape, machine, p), p) for p in direct),
            *((conv_winograd_plan.cycles(shape, machine, p), p) for p in winograd),
        ]
    return sorted(found, key=lambda each: each[0])


def _spread(ranked: list[tuple[float, Plan]]) -> Iterator[Plan]:
    before: Counter[object] = Counter()
    spread: list[tuple[float, Plan]] = []
    for cycles, plan in ranked:
        tile = (type(plan), *(getattr(plan, name, None) for name in _TILE))
        spread.append((cycles * (1 + _SIMILAR * before[tile]), plan))
        before[tile] += 1
    return (plan for _, plan in sorted(spread, key=lambda each: each[0]))


def data(plan: Plan) -> Data:
    """A plan as the store keeps it."""
    return dict(json.loads(json.dumps({"kind": _KINDS[type(plan)], **asdict(plan)})))


def surroundings(machine: Machine, cpu: str) -> About:
    """What decides, beside the convolution, which plan is fastest; `cpu` is as the option `mcpu` has it."""
    return {
        "machine": asdict(replace(machine, linear=DType.F32, pairs="")),  # which matter to no kernel of f32
        "processor": toolchain.machine() if cpu == "native" else f"{cpu}, {threads()} threads",
        "tvm": toolchain.tvm(),
        "generators": [code(f"cnnc_tvm.{name}") for name in _GENERATORS],
    }


def about(convolution: Convolution, around: About) -> About:
    """What the store has an entry about: a convolution and its surroundings."""
    return dict(json.loads(json.dumps({**asdict(convolution), **around})))


class Choices:
    """The choices in a store, for a machine. To be given to `lower` as what was tuned."""

    def __init__(self, store: Store, machine: Machine, cpu: str) -> None:
        self._store, self._machine, self._around = store, machine, surroundings(machine, cpu)

    def __call__(self, shape: ConvShape, plain: bool) -> Plan | None:
        convolution = Convolution(shape, plain)
        where = about(convolution, self._around)
        entry = self._store.read(where)
        if entry is None or entry.plan is None:
            return None
        found = next((plan for plan in plans(convolution, self._machine) if data(plan) == entry.plan), None)
        if found is None:
            self._store.ignore(where, "its plan is not among those there are")
        return found
