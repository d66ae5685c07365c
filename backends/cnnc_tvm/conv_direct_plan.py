"""The sizes that a direct convolution is generated with: those of which a simple model of its cycles gives the fewest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.tensor import Expr

NEAR = 0.6
"""The share of a second cache that weights may take which are to stay in it."""
_USUAL, _LONG = (7, 14, 28, 56, 112), (1024,)
"""Columns that images have for which plans are made before these are known, and of all their rows in one."""


@dataclass(frozen=True)
class Plan:
    """The sizes a kernel is generated with."""

    lanes: int
    """Filters in a block."""
    rows: int
    """Rows of a tile, 1 or 2."""
    columns: int
    """Columns of a tile."""
    blocks: int
    """Blocks of filters of a tile."""
    chunk: int
    """Rows that a thread computes for one tile's filters at a time."""
    weights_once: bool
    """Whether a thread goes through the images before it takes other filters, else through the filters first."""
    depth: int
    """Channels in a block of the input: `lanes`, or 1 where it is not in blocks but plain [N, C, H, W]."""
    image: tuple[int, int] | None
    """Rows and columns of the image as it is walked: others than its own where no window reaches across rows. None
    where only the running program knows them: images whose windows are single places are one long row then."""

    @property
    def layout(self) -> str:
        """Names the arrangement that `pack` makes."""
        return f"direct {self.lanes} {self.blocks} {self.depth}"


def choose(shape: ConvShape, machine: Machine, *, plain: bool = False) -> Plan:
    """The plan that takes the fewest cycles by a simple model; `plain` says that the input is not in blocks."""
    return min(plans(shape, machine, plain=plain), key=lambda plan: cycles(shape, machine, plan))


def choose_for_any(shape: ConvShape, machine: Machine, *, plain: bool = False) -> Plan:
    """The plan for images whose sizes only the running program knows: for those of usual widths."""
    all_blocks = blocks_of(shape, machine.lanes)
    depth = shape.channels // shape.groups * prod(shape.kernel)
    width = shape.out[1]
    known = isinstance(width, int)
    widths = (width,) if known else _LONG if shape.single else _USUAL
    edges = 2 if shape.pads[1] or shape.pads[3] else 0
    """Columns that have tiles of their own."""

    def cycles(columns: int, blocks: int) -> float:
        """Those for a place and a channel, on the average of the widths."""
        total, late = 0.0, _late(4 * machine.lanes * blocks * depth, machine)
        for width in widths:
            inside = width - edges
            some = [(columns, -(-inside // columns)), (1, edges)] if inside >= columns else [(1, width)]
            for (b, q), (m, p) in product(_parts(all_blocks, blocks), _parts(width, columns) if known else some):
                total += p * q * _step(m, b, late) / width
        return total

    tiles = [(c, b) for b in range(1, min(4, all_blocks) + 1) for c in range(1, (machine.registers - 1 - b) // b + 1)]
    columns, blocks = min(tiles, key=lambda tile: cycles(*tile))
    once = 4 * shape.filters * depth > machine.l2 / 2
    return Plan(machine.lanes, 1, columns, blocks, 1, once, 1 if plain else machine.lanes, None)


def choose_row(shape: ConvShape, machine: Machine) -> Plan:
    """The plan that takes the fewest cycles for rows that are computed one by one, of an image in blocks."""
    width, all_blocks = shape.out[1], blocks_of(shape, machine.lanes)

    def cycles(columns: int, blocks: int) -> float:
        return sum(
            p * q * _step(m, b, 0) for m, p in _parts(width, columns) for b, q in _parts(all_blocks, blocks)
        )

    tiles = [(columns, blocks) for rows, columns, blocks in _tiles(shape, machine) if rows == 1]
    columns, blocks = min(tiles, key=lambda tile: cycles(*tile))
    return Plan(machine.lanes, 1, columns, blocks, 1, False, machine.lanes, shape.image)


def plans(shape: ConvShape, machine: Machine, *, plain: bool = False) -> Iterator[Plan]:
    """All plans there are."""
    depth = 1 if plain else machine.lanes
    for image in _walks(shape):
        height = walked(shape, image).out[0]
        for rows, columns, blocks in _tiles(walked(shape, image), machine):
            count = -(-height // rows)
            for chunk in {-(-count // chunks) * rows for chunks in range(1, count + 1)}:
                for once in (False, True):
                    yield Plan(machine.lanes, rows, columns, blocks, chunk, once, depth, image)


def _walks(shape: ConvShape) -> Iterator[tuple[int, int]]:
    """The sizes the image may be walked with: any of its area if windows are single places next to each other."""
    height, width = shape.image
    if not shape.single:
        yield shape.image
    else:
        yield from ((rows, height * width // rows) for rows in range(1, 17) if height * width % rows == 0)


def walked(shape: ConvShape, image: tuple[Expr, Expr]) -> ConvShape:
    """The convolution of an image of other rows and columns."""
    return replace(shape, image=image)


def _tiles(shape: ConvShape, machine: Machine) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and blocks of the tiles whose sums, weights and one broadcast input fit the registers."""
    height, width = shape.out
    for blocks in range(1, min(4, blocks_of(shape, machine.lanes)) + 1):
        most = (machine.registers - 1 - blocks) // blocks
        for rows in range(1, min(2, height) + 1):
            if most >= rows * min(width, 3):
                yield rows, -(-width // -(-width // (most // rows))), blocks


def blocks_of(shape: ConvShape, lanes: int) -> int:
    """Blocks of filters of a group."""
    return -(-shape.filters // shape.groups // lanes)


def cycles(shape: ConvShape, machine: Machine, plan: Plan) -> float:
    """Those for all images, whose number is known: for the tiles, by the share of the cores, and for L2."""
    shape = walked(shape, plan.image or shape.image)
    (height, width), channels, blocks = shape.out, shape.channels // shape.groups, blocks_of(shape, plan.lanes)
    depth = channels * prod(shape.kernel)
    filters = 4 * plan.lanes * plan.blocks * depth
    passes = shape.groups * -(-blocks // plan.blocks)
    chunks = -(-height // plan.chunk)
    late = _late(filters, machine)
    steps = sum(
        n * p * q * _step(rows * columns, b, late)
        for rows, n in _parts(height, plan.rows)
        for columns, p in _parts(width, plan.columns)
        for b, q in _parts(blocks, plan.blocks)
    )
    images = int(shape.batch)
    tasks = images * chunks * passes
    used = prod(min(1, k / stride) for k, stride in zip(shape.kernel, shape.stride, strict=True))
    high = (plan.chunk - 1) * shape.stride[0] + shape.span[0]
    seen = 4 * channels * shape.image[1] * high * used  # by a task
    near = seen * (images * chunks if plan.weights_once else 1) < machine.l2 / 2
    inputs = seen * images * chunks * (shape.groups if near else passes)
    again = 1 if plan.weights_once or filters * passes < machine.l2 / 2 else images * chunks
    share = -(-tasks // machine.cores) / tasks
    waiting = (inputs + filters * passes * (again + 1)) / 8 + 500 * tasks  # weights come from farther away at first
    return float(images * shape.groups * depth * steps * share + waiting / machine.cores)


def _late(filters: int, machine: Machine) -> float:
    """Cycles that the first cache waits for a vector of a tile's filters, which have so many bytes."""
    return machine.lanes / 16 * (1 if filters < NEAR * machine.l2 else 6)


def _parts(size: int, part: int) -> list[tuple[int, int]]:
    """The sizes of the parts and how many of each: full ones, and what is left."""
    return [(part, size // part), (size % part, 1 if size % part else 0)]


def _step(places: int, blocks: int, late: float) -> float:
    """The cycles a tile takes for a channel: two products, two loads and four instructions each; sums wait for 4."""
    products, loads = places * blocks, places + blocks
    return max(products / 2, loads / 1.8, (products + loads + 1) / 4, 4) + late * blocks
