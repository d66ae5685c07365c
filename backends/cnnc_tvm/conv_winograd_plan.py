"""When a convolution is computed by Winograd's F(m x m, 3 x 3), and with which sizes: from a model of its cycles.

The model adds up what the busiest core multiplies, transforms and reads from beyond its second cache. It was fitted to
a processor with two fused multiply-adds a cycle and 1 MiB of L2 a core, where it is within 20% of what is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import prod

from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.tensor import Expr, parts

_FORWARD, _BACK = 8, 5
"""Cycles a position of a tile takes to be transformed, per block of channels."""
_MEMORY, _L3, _L2 = 8, 16, 24
"""Bytes a cycle that a core reads from memory (weights for the first time), from L3 and from L2."""
_JOIN = 5_000
"""Cycles until all cores have begun and ended."""
_DIRECT = 1.08
"""Cycles of direct convolution for each that its multiply-adds take."""
_WORTH = 0.8
"""What Winograd must take of direct convolution's time, for it needs more memory and rounds more."""
_CHANNELS = 16
"""With fewer, the errors of the transforms do not average out."""
_TILES = 63
"""Of a block, at most: with more, each position of a tile is in another page of memory, too many for the TLB."""
_USUAL = 16
"""Rows and columns of the result that a plan is made for before they are known: larger ones are more of its blocks."""
_SCRATCH = 16
"""How many times L2 the transformed input and the sums of a block may take."""


@dataclass(frozen=True)
class Plan:
    """How a convolution is computed by F(m x m, 3 x 3)."""

    m: int
    lanes: int
    tiles: int
    """Of a block."""
    splits: int
    """Into how many parts the filters are divided, each a task of its own for each block of tiles."""
    rows: int
    """Tiles whose sums are in registers at a time."""
    columns: int
    """Vectors of filters whose sums are in registers at a time."""
    phases: bool = False
    """Whether each block of tiles is transformed, multiplied and transformed back by all cores together, one step after
    the other, so that the weights are read once a block; otherwise a task does all of it with what is in its cache."""

    @property
    def layout(self) -> str:
        """Names the arrangement that `conv_winograd.pack` makes."""
        return f"winograd {self.m} {self.lanes} {self.columns} {self.phases}"

    @property
    def passes(self) -> list[int]:
        """How many tiles each pass over a panel of weights takes: at most `rows`, as even as can be, largest first."""
        count = -(-self.tiles // self.rows)
        size, more = divmod(self.tiles, count)
        return [size + 1] * more + [size] * (count - more)


def choose(shape: ConvShape, machine: Machine, sizes: Collection[int] = (2, 4)) -> Plan | None:
    """The fastest plan with m among `sizes`, or None where direct convolution is better or the only way.

    The batch must be known.
    """
    best = min(plans(shape, machine, sizes), key=lambda plan: cycles(shape, machine, plan), default=None)
    return best if best and cycles(shape, machine, best) < _WORTH * _direct_cycles(shape, machine) else None


def plans(shape: ConvShape, machine: Machine, sizes: Collection[int] = (2, 4)) -> Iterator[Plan]:
    """All plans with m among `sizes`; none where direct convolution is the only way."""
    if (shape.kernel, shape.stride, shape.dilation, shape.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return
    if shape.channels < _CHANNELS:
        return
    columns = min(2, -(-shape.filters // machine.lanes))
    rows = (machine.registers - 1 - columns) // columns  # and the weights, and one broadcast input
    for m in sizes:
        for tiles in range(1, min(_total(shape, m), _TILES) + 1):
            for splits in {1, machine.cores}:
                for phases in (False, True):
                    plan = Plan(m, machine.lanes, tiles, splits, rows, columns, phases)
                    if sum(_scratch(shape, plan)) <= _SCRATCH * machine.l2:
                        yield plan


def choose_for_any(shape: ConvShape, machine: Machine) -> Plan | None:
    """The plan for images whose sizes only the running program knows, where it is likely to be faster."""
    height, width = (_USUAL + span - 1 for span in shape.span)
    return choose(replace(shape, batch=1, image=(height, width), pads=(0, 0, 0, 0)), machine)


def few(shape: ConvShape, plan: Plan) -> Expr:
    """Whether images whose sizes only the running program knows have so few tiles that direct convolution is faster."""
    return 2 * shape.batch * prod(grid(shape, plan.m)) < plan.tiles


def grid(shape: ConvShape, m: int) -> tuple[Expr, Expr]:
    """Rows and columns of tiles of an image."""
    rows, columns = (parts(size, m) for size in shape.out)
    return rows, columns


def _total(shape: ConvShape, m: int) -> int:
    """Tiles of all images."""
    return int(shape.batch * prod(grid(shape, m)))


def _scratch(shape: ConvShape, plan: Plan) -> tuple[int, int]:
    """Bytes of a block's transformed input and of the sums that are held at a time."""
    vectors = (plan.m + 2) ** 2 * plan.tiles
    sums = -(-shape.filters // plan.lanes) if plan.phases else plan.columns
    return vectors * -(-shape.channels // plan.lanes) * plan.lanes * 4, vectors * sums * plan.lanes * 4


def cycles(shape: ConvShape, machine: Machine, plan: Plan) -> float:
    """Those of the busiest core."""
    square, cores, lanes = (plan.m + 2) ** 2, machine.cores, plan.lanes
    blocks, filters = -(-shape.channels // lanes), -(-shape.filters // lanes)
    groups = -(-filters // plan.columns)
    forward, back = (n * plan.tiles * square * c for n, c in ((blocks, _FORWARD), (filters, _BACK)))
    multiply = square * groups * blocks * lanes * sum(_step(rows, plan.columns) for rows in plan.passes)
    weights = square * blocks * groups * plan.columns * lanes * lanes * 4
    v, sums = _scratch(shape, plan)
    count = -(-_total(shape, plan.m) // plan.tiles)
    if plan.phases:
        tasks = square * plan.splits
        share = -(-tasks // cores) / tasks * -(-groups // plan.splits) * plan.splits / groups
        alone = forward * -(-blocks // cores) / blocks + back * -(-filters // cores) / filters
        block = alone + share * (multiply + weights / _L3) + (v + sums) / _L3 / cores
        total = count * (block + 3 * _JOIN * (cores > 1))
    else:
        part = -(-groups // plan.splits) / groups
        rate = _L2 if v + sums + weights < machine.l2 else _L3
        again = v * groups / _L2 if v + sums > machine.l2 / 2 else 0  # the weights drive it out of L2
        task = forward + part * (multiply + back + weights / rate + again)
        total = -(-count * plan.splits // cores) * task + _JOIN * (cores > 1)
    return total + weights * (1 / _MEMORY - 1 / _L3) / cores


def _step(rows: int, columns: int) -> float:
    """The cycles of a channel in a pass: two products, two loads and four instructions each, and sums wait for 4."""
    products, loads = rows * columns, rows + columns
    return max(products / 2, loads / 2, (products + loads + 12) / 4, 4)


def _direct_cycles(shape: ConvShape, machine: Machine) -> float:
    channels, filters = (-(-n // machine.lanes) * machine.lanes for n in (shape.channels, shape.filters))
    images = int(shape.batch)
    products = 9 * channels * filters
    return (products * images * prod(shape.out) / machine.lanes / 2 * _DIRECT + 4 * products / _MEMORY) / machine.cores
