"""Where values lie in memory: whose memory they share, how long it is needed, and where in one arena it lies.

`arrange` decides what needs no sizes: which results are written over operands that nothing reads any more, and which
operands of concatenations are written straight into their part of the result. That leaves blocks of memory with
lifetimes; `pack` gives each a place in one arena once the sizes are known.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from cnnc.ir.types import TensorType

ALIGNMENT = 64
"""Of every block, in bytes: a line of a cache and a vector of AVX-512. Generated code relies on it."""

V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Step(Generic[V]):
    """The making of `result` from `operands`."""

    result: V
    operands: tuple[V, ...]
    over: tuple[V, ...] = ()
    """Operands whose elements are read only where the element of the result at their place is written."""
    axis: int | None = None
    """Along which the result is the operands joined, whose sizes there are known; None for anything else."""


@dataclass(frozen=True, slots=True)
class Place(Generic[V]):
    """The memory a value lies in: the block of `block`, whole or, along `axis`, from `start` on."""

    block: V
    axis: int | None = None
    start: int = 0

    def index(self, type: TensorType) -> tuple[slice, ...]:
        """What picks a value of this type out of an array of the block's shape."""
        if self.axis is None:
            return ()
        return (*[slice(None)] * self.axis, slice(self.start, self.start + _size(type, self.axis)))


@dataclass(frozen=True, slots=True)
class Block:
    """Memory of the size of `type`, needed from step `first` to step `last`, counted from 1; inputs are there at 0."""

    type: TensorType
    first: int
    last: int


@dataclass(frozen=True)
class Arrangement(Generic[V]):
    """Where values lie, and the blocks they lie in.

    `over` has the operand that a result is written over, `joined` the operands of a concatenation that are in their
    parts of the result already, by position; the others are copied there.
    """

    places: Mapping[V, Place[V]]
    blocks: Mapping[V, Block]
    over: Mapping[V, V]
    joined: Mapping[V, frozenset[int]]
    types: Mapping[V, TensorType]

    def copied(self, step: Step[V]) -> Iterator[tuple[V, Place[V]]]:
        """The operands of a concatenation that must be copied into the result, and where to."""
        assert step.axis is not None
        whole = self.places[step.result]
        start = whole.start
        for i, x in enumerate(step.operands):
            if i not in self.joined.get(step.result, ()):
                yield x, Place(whole.block, step.axis, start)
            start += _size(self.types[x], step.axis)


def arrange(
    types: Mapping[V, TensorType],
    inputs: Iterable[V],
    views: Mapping[V, V],
    steps: Sequence[Step[V]],
    kept: Iterable[V],
) -> Arrangement[V]:
    """An arrangement of `inputs`, which may be overwritten, and of what the steps make, run in this order.

    A view, of the value that `views` names, is the same memory with another shape; `kept` values are read, each in one
    piece, after the last step. Values that are neither made nor inputs, such as weights, lie elsewhere.
    """
    arranger = _Arranger(types, views, steps, tuple(kept))
    for x in inputs:
        arranger.own(x, 0)
    for i, step in enumerate(steps):
        arranger.own(step.result, i + 1)
    for i, step in enumerate(steps):
        arranger.share(step, i + 1)
    blocks = {x: Block(types[x], first, arranger.last(x)) for x, first in arranger.first.items()}
    return Arrangement(arranger.places, blocks, arranger.over, arranger.joined, types)


def _size(type: TensorType, axis: int) -> int:
    size = type.shape[axis]
    assert isinstance(size, int)
    return size


class _Arranger(Generic[V]):
    """Gives each value a block of its own and then merges blocks, step by step."""

    def __init__(
        self, types: Mapping[V, TensorType], views: Mapping[V, V], steps: Sequence[Step[V]], kept: Iterable[V]
    ) -> None:
        self.types = types
        self.views: dict[V, list[V]] = {}
        for view, of in views.items():
            self.views.setdefault(of, []).append(view)
        self.reads = {x: i + 1 for i, step in enumerate(steps) for x in step.operands}  # the last of each
        self.reads.update(dict.fromkeys(kept, len(steps) + 1))
        self.in_one_piece = {*kept, *views.values()}
        self.places: dict[V, Place[V]] = {}
        self.members: dict[V, list[V]] = {}  # of each block
        self.first: dict[V, int] = {}
        self.over: dict[V, V] = {}
        self.joined: dict[V, frozenset[int]] = {}
        self.live = [0] * (len(steps) + 3)  # bytes that each step needs more than the one before

    def own(self, x: V, first: int) -> None:
        """Put x and its views into a block of their own."""
        self.first[x] = first
        self.members[x] = members = [x]
        for y in members:  # it grows
            self.places[y] = Place(x)
            members += self.views.get(y, ())
        self._count(self.live, x, 1)

    def last(self, block: V) -> int:
        """The last step that reads anything in a block, or makes it."""
        return max(self.first[block], *(self.reads.get(x, 0) for x in self.members[block]))

    def share(self, step: Step[V], now: int) -> None:
        """Put the result over an operand, or operands into the result, where that is possible."""
        if step.axis is not None:
            self._join(step, step.axis)
            return
        read = [self.places[x].block for x in step.operands if x in self.places]
        for x in step.over:
            if (block := self._whole(x)) is None or self.types[x] != self.types[step.result]:
                continue
            if read.count(block) == 1 and self.last(block) == now:
                self._count(self.live, step.result, -1)
                self._count(self.live, block, -1)
                self._move(step.result, Place(block))
                self._count(self.live, block, 1)
                self.over[step.result] = x
                return

    def _join(self, step: Step[V], axis: int) -> None:
        """Put operands into their parts of the result, if that does not raise the peak: they make it live longer."""
        parts: dict[V, Place[V]] = {}
        found: set[int] = set()
        start = 0
        for i, x in enumerate(step.operands):
            block = self._whole(x)
            if block is not None and block not in parts and self._can_be_part(block, axis):
                parts[block] = Place(step.result, axis, start)
                found.add(i)
            start += _size(self.types[x], axis)
        live = self.live.copy()
        first = min([self.first[step.result], *(self.first[x] for x in parts)])
        last = max(map(self.last, [step.result, *parts]))
        for block in (step.result, *parts):
            self._count(live, block, -1)
        self._add(live, self._bytes(step.result), first, last)
        if max(accumulate(live)) <= max(accumulate(self.live)):
            self.live = live
            for block, place in parts.items():
                self._move(block, place)
            self.first[step.result] = first
            self.joined[step.result] = frozenset(found)

    def _whole(self, x: V) -> V | None:
        """The block that x fills, if it does."""
        place = self.places.get(x)
        return place.block if place and place.axis is None and self.types[x] == self.types[place.block] else None

    def _can_be_part(self, block: V, axis: int) -> bool:
        """Whether nothing in a block minds to lie in pieces, an image here and an image there."""
        return self.first[block] > 0 and all(
            x not in self.in_one_piece and self.places[x].axis in (None, axis) for x in self.members[block]
        )

    def _move(self, block: V, to: Place[V]) -> None:
        """Put what is in a block into another, which is needed from the earlier of both on."""
        for x in self.members[block]:
            place = self.places[x]
            self.places[x] = Place(to.block, to.axis, to.start + place.start) if to.axis is not None else to
        self.members[to.block] += self.members.pop(block)
        del self.first[block]

    def _count(self, live: list[int], block: V, sign: int) -> None:
        self._add(live, sign * self._bytes(block), self.first[block], self.last(block))

    def _add(self, live: list[int], size: int, first: int, last: int) -> None:
        live[first] += size
        live[last + 1] -= size

    def _bytes(self, block: V) -> int:
        """The size of a block, symbols taken as 64: any choice is correct."""
        type = self.types[block]
        return type.bytes_at(dict.fromkeys(type.symbols, 64))


@dataclass(frozen=True, slots=True)
class Arena:
    """The offsets of blocks in one piece of memory of `size` bytes."""

    offsets: tuple[int, ...]
    size: int


def pack(blocks: Sequence[Block], bytes: Iterable[int]) -> Arena:
    """Offsets such that blocks of these sizes do not overlap if they are needed at one time.

    The time taken goes with the number of pairs that are.

    Blocks are placed in order of their bytes times steps, each into the smallest gap that it fits in; where that leaves
    gaps at the peak, in order of their bytes as well, and the smaller arena is taken. Source: Pisarchyk & Lee,
    "Efficient memory management for deep neural net inference", 2020, greedy by size.
    """
    sizes = [-(-size // ALIGNMENT) * ALIGNMENT for size in bytes]
    needed = [0] * (max((block.last for block in blocks), default=0) + 2)
    for block, size in zip(blocks, sizes, strict=True):
        needed[block.first] += size
        needed[block.last + 1] -= size
    order = sorted(range(len(blocks)), key=lambda i: -sizes[i] * (blocks[i].last + 1 - blocks[i].first))
    arena = _packed(blocks, sizes, order)
    if arena.size == max(accumulate(needed)):
        return arena
    order = sorted(range(len(blocks)), key=lambda i: (-sizes[i], blocks[i].first))
    return min(arena, _packed(blocks, sizes, order), key=lambda arena: arena.size)


def _packed(blocks: Sequence[Block], sizes: Sequence[int], order: Iterable[int]) -> Arena:
    placed = _Intervals(max((block.last for block in blocks), default=0) + 1)
    offsets = [0] * len(blocks)
    for i in order:
        block, size = blocks[i], sizes[i]
        best, room, end = -1, 0, 0
        for start, stop in sorted(placed.meeting(block.first, block.last)):
            gap = start - end
            if gap >= size and (best < 0 or gap < room):
                best, room = end, gap
            end = max(end, stop)
        offsets[i] = end if best < 0 else best
        placed.add(block.first, block.last, (offsets[i], offsets[i] + size))
    return Arena(tuple(offsets), max(map(sum, zip(offsets, sizes, strict=True)), default=0))


class _Intervals:
    """Ranges of memory by the steps they are needed at: in a segment tree to find those of a step, and by first step to
    find those that begin later."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._tree: list[list[tuple[int, int]]] = [[] for _ in range(2 * steps)]
        self._begins: list[tuple[int, tuple[int, int]]] = []  # of all, with their first steps

    def add(self, first: int, last: int, memory: tuple[int, int]) -> None:
        insort(self._begins, (first, memory))
        low, high = first + self._steps, last + self._steps + 1
        while low < high:
            if low % 2:
                self._tree[low].append(memory)
                low += 1
            if high % 2:
                high -= 1
                self._tree[high].append(memory)
            low, high = low // 2, high // 2

    def meeting(self, first: int, last: int) -> list[tuple[int, int]]:
        """The memory needed at any step from `first` to `last`."""
        low, high = (bisect_left(self._begins, (step + 1,)) for step in (first, last))
        found = [memory for _, memory in self._begins[low:high]]
        node = first + self._steps
        while node:
            if self._tree[node]:
                found += self._tree[node]
            node >>= 1
        return found
