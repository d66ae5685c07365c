"""Choosing among scored boxes: which are the best, and which of them overlap no better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc.ir.dim import Dim, minimum
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.scalar import bound, choose, f32
from cnnc_tvm.team import Team, Variable, by_teams, when
from cnnc_tvm.tensor import Expr, Tensor

NONE = 1 << 30
"""The position where there is no box."""
_INDEX, _KEY = "int32", "uint32"


def key(score: Expr) -> Expr:
    """An integer that is larger for a better score and never 0, as the bits of an f32. NaN is as good as infinity."""

    def plain(v: Expr) -> Expr:  # one zero, and no NaN
        return choose(te.isnan(v), f32(float("inf")), choose(v == f32(0), f32(0), v))

    def ordered(v: Expr) -> Expr:  # the bits of negative numbers are in reverse order
        bits = tirx.reinterpret(_KEY, v)
        return tirx.reinterpret("float32", choose(v < f32(0), ~bits, bits | _key(1 << 31)))

    return bound(score, lambda v: bound(plain(v), ordered))


def best(b: Builder, threads: int, keys: Tensor, count: int) -> Tensor:
    """The largest `count` of each row of keys [N, K], largest first, of equal ones the first: [N, 2, count or more].

    It holds keys, then positions, as `position` reads them: NONE where there are fewer than `count`.

    Key number `count` is found bit by bit, by counting those that are as large; those from it on are gathered and
    sorted (a bitonic sort). That is 34 K + count (log count)^2 / 4 steps, shared out to the threads.
    """
    n, length = keys.type.shape
    rounds = (count - 1).bit_length()
    size, wanted = b.size(length), b.size(minimum(length, count))

    def write(team: Team, image: Expr, keys: Any, best: Any) -> None:
        def put(place: Expr, key: Expr, position: Expr) -> None:
            T.buffer_store(best, key, [image, 0, place])
            T.buffer_store(best, position, [image, 1, place])

        def at(i: Expr) -> Expr:
            return keys[image, i]

        least = _number(team, at, size, wanted)
        _gather(team, at, size, wanted, least, put)
        with team.each(wanted, 1 << rounds) as place:
            put(place, f32(0), f32(0))
        team.sync()
        _sort(team, rounds, lambda place: (best[image, 0, place], best[image, 1, place]), put)

    return by_teams(b, threads, TensorType((n, 2, 1 << rounds)), write, keys)


def position(chosen: Expr) -> Expr:
    """A position as `best` and `apart` store it: in bits that make an ordinary number of f32, NONE as 0."""
    return tirx.reinterpret(_INDEX, chosen) ^ NONE


def _stored(position: Expr) -> Expr:
    return tirx.reinterpret("float32", position ^ NONE)


def _number(team: Team, at: Callable[[Expr], Expr], size: Expr, wanted: Expr) -> Expr:
    """The key that is number `wanted` from the largest: the largest that so many reach, built from the first bit on."""
    found = Variable(_key(0))
    with T.serial(32) as bit:
        candidate = T.bind(found.get() | (_key(1 << 31) >> bit.astype(_KEY)))
        reached = Variable(0)
        with team.each(0, size) as i:
            reached.set(reached.get() + (_key_of(at(i)) >= candidate).astype(_INDEX))
        _, total = team.sums(reached.get())
        with when(total >= wanted):
            found.set(candidate)
    return T.bind(found.get())


def _gather(
    team: Team, at: Callable[[Expr], Expr], size: Expr, wanted: Expr, least: Expr, put: Callable[..., None]
) -> None:
    """Put the keys above `least` and then as many of those equal to it, the first, as make `wanted`."""
    run = T.bind(tirx.floordiv(size + team.threads - 1, team.threads))  # of neighbours, for each thread
    start = T.bind(te.min(team.me * run, size))
    stop = T.bind(te.min(start + run, size))
    above, equal = Variable(0), Variable(0)
    with T.serial(start, stop) as i:
        above.set(above.get() + (_key_of(at(i)) > least).astype(_INDEX))
        equal.set(equal.get() + _key_of(at(i)).equal(least).astype(_INDEX))
    before, all_above = team.sums(above.get())
    above.set(before)
    before, _ = team.sums(equal.get())
    equal.set(all_above + before)
    with T.serial(start, stop) as i:
        key = T.bind(_key_of(at(i)))
        for place, belongs in (above, key > least), (equal, key.equal(least)):
            with when(tirx.all(belongs, place.get() < wanted)):
                put(place.get(), at(i), _stored(i))
                place.set(place.get() + 1)


def _sort(team: Team, rounds: int, get: Callable[..., Expr], put: Callable[..., None]) -> None:
    """Sort 2^rounds keys, largest first and of equal ones the first position (Batcher's bitonic sort)."""
    if not rounds:
        return
    one = tirx.const(1, _INDEX)
    with T.serial(rounds) as turn, T.serial(turn + 1) as step:
        distance = T.bind(one << (turn - step))
        with team.each(0, 1 << (rounds - 1)) as pair:
            left = T.bind(2 * pair - (pair & (distance - 1)))
            right = T.bind(left + distance)
            (key, i), (other, j) = (tuple(map(T.bind, get(place))) for place in (left, right))
            less, same = _key_of(key) < _key_of(other), _key_of(key).equal(_key_of(other))
            after = tirx.any(less, tirx.all(same, position(i) > position(j))).astype(_INDEX)
            backwards = (left >> (turn + 1)) & 1
            with when(after != backwards):
                put(left, other, j)
                put(right, key, i)
        team.sync()


def apart(b: Builder, threads: int, boxes: Tensor, count: Dim, keep: int, iou: float) -> Tensor:
    """Which of the first `count` boxes of [N, 4 or more, K] overlap no chosen one before them by more than `iou`.

    The result has the positions of at most `keep`, then NONE, as `position` reads them: [N, keep or more].
    That is K keep steps, shared out to the threads.
    """
    n, _, length = boxes.type.shape
    assert isinstance(length, int)
    width, end = max(length, keep), b.size(count)
    none = f32(0)

    def write(team: Team, image: Expr, boxes: Any, chosen: Any) -> None:
        def mark(place: Expr, value: Expr) -> None:
            T.buffer_store(chosen, value, [image, place])

        def corners(i: Expr) -> list[Expr]:
            return [T.bind(boxes[image, corner, i]) for corner in range(4)]

        # The positions chosen fill the front, behind the place looked at; a later place has none once its box is out.
        with team.each(0, width) as i:
            mark(i, choose(i < end, _stored(i), none))
        team.sync()
        looked, found = Variable(0), Variable(0)
        with T.While(tirx.all(looked.get() < end, found.get() < keep)):
            this = T.bind(looked.get())
            with when(position(chosen[image, this]) != NONE):
                team.sync()  # the others have read the places before this one
                with when(team.me == 0):
                    mark(found.get(), _stored(this))
                found.set(found.get() + 1)
                box = corners(this)
                with team.each(this + 1, end) as i, when(_overlap(box, corners(i)) > f32(iou)):
                    mark(i, none)
                team.sync()
            looked.set(this + 1)
        team.sync()
        with team.each(found.get(), keep) as i:
            mark(i, none)

    return by_teams(b, threads, TensorType((n, width)), write, boxes)


def _overlap(box: list[Expr], other: list[Expr]) -> Expr:
    """The area that two boxes have in common, divided by that of the two together; NaN, or none, without an area."""
    x1, y1, x2, y2 = zip(box, other, strict=True)
    common = _extent(te.max(*x1), te.min(*x2)) * _extent(te.max(*y1), te.min(*y2))
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return common / (areas[0] + areas[1] - common)


def _extent(start: Expr, stop: Expr) -> Expr:
    return te.max(stop - start, f32(0))


def _key(value: int) -> Expr:
    return tirx.const(value, _KEY)


def _key_of(bits: Expr) -> Expr:
    return tirx.reinterpret(_KEY, bits)
