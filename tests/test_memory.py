"""The plan of memory: results are run on the memory it gives them, and every value must be there when it is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnc
from cnnc import analysis, memory, ops
from cnnc.diagnostics import CnncError
from cnnc.ir import bind
from cnnc.ir.dim import parse_dim
from cnnc.ir.types import TensorType
from cnnc.memory import ALIGNMENT, Arena, Arrangement, Block, Step, arrange, pack

NETWORKS = Path(__file__).parents[1] / "models"
ROW = ALIGNMENT // 4
"""Elements of a row of the values here, which takes one unit of the arena."""


@dataclass
class Program:
    """Steps on values with numbers, each of so many rows; joined along axis 0."""

    rows: dict[int, int] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    views: dict[int, int] = field(default_factory=dict)
    steps: list[Step[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def new(self, rows: int) -> int:
        self.rows[len(self.rows)] = rows
        return len(self.rows) - 1

    def type(self, x: int) -> TensorType:
        return TensorType((self.rows[x], 4, ROW // 4)) if x in self.views else TensorType((self.rows[x], ROW))

    def arrangement(self) -> Arrangement[int]:
        return arrange({x: self.type(x) for x in self.rows}, self.inputs, self.views, self.steps, self.kept)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Chains, branches, sums over operands, views, joins of anything, and any values kept."""
    p = Program()
    p.inputs = [p.new(draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 2)))]
    p.weights = [p.new(2)]
    for _ in range(draw(st.integers(1, 12))):
        xs = draw(st.lists(st.sampled_from(list(p.rows)[-6:]), min_size=1, max_size=3))
        made = [x for x in xs if x not in p.weights]
        kind = draw(st.sampled_from(["any", "over", "over", "join", "join", "view"]))
        if kind == "view" and made:
            p.views[p.new(p.rows[made[0]])] = made[0]
        elif kind == "join":
            p.steps.append(Step(p.new(sum(p.rows[x] for x in xs)), tuple(xs), axis=0))
        else:
            like = [x for x in xs if p.rows[x] == p.rows[xs[0]]]
            rows = p.rows[xs[0]] if kind == "over" else draw(st.integers(1, 4))
            p.steps.append(Step(p.new(rows), tuple(xs), tuple(like) if kind == "over" else ()))
    p.kept = draw(st.lists(st.sampled_from(sorted(p.rows)), max_size=2, unique=True))
    return p


def rows_of(p: Program, plan: Arrangement[int], offsets: dict[int, int], x: int) -> range:
    """The rows of the arena that a value is in."""
    place = plan.places[x]
    first = offsets[place.block] // ALIGNMENT + place.start
    return range(first, first + p.rows[x])


def run(p: Program, plan: Arrangement[int]) -> None:
    """Run the steps on an arena, where a row holds what was last written to it; a value that is not what it was when it
    was made is an error."""
    arena = packed(plan.blocks.values())
    offsets = dict(zip(plan.blocks, arena.offsets, strict=True))
    held: list[object] = [None] * (arena.size // ALIGNMENT)
    values = {x: [(x, row) for row in range(p.rows[x])] for x in p.rows}  # what a value is, row by row

    def write(x: int, rows: list[tuple[int, int]]) -> None:
        for at, row in zip(rows_of(p, plan, offsets, x), rows, strict=True):
            held[at] = row

    def check(x: int) -> None:
        if x in plan.places:
            assert [held[at] for at in rows_of(p, plan, offsets, x)] == values[x], f"value {x}"

    def show(x: int) -> None:
        for view, of in p.views.items():
            if of == x:
                values[view] = values[x]
                show(view)

    for x in p.inputs:
        write(x, values[x])
        show(x)
    for step in p.steps:
        for x in step.operands:
            check(x)
        if step.axis is None:
            write(step.result, values[step.result])
        else:
            start = 0
            for i, x in enumerate(step.operands):
                if i not in plan.joined.get(step.result, ()):
                    first = rows_of(p, plan, offsets, step.result).start + start
                    held[first : first + p.rows[x]] = values[x]
                start += p.rows[x]
            values[step.result] = [row for x in step.operands for row in values[x]]
        check(step.result)
        show(step.result)
    for x in p.kept:
        check(x)


@given(programs())
def test_every_value_is_there_when_it_is_read(p: Program) -> None:
    run(p, p.arrangement())


@given(programs())
def test_a_plan_in_place_never_needs_more_at_one_time(p: Program) -> None:
    made = {step.result for step in p.steps} | set(p.inputs)
    last = {x: i + 1 for i, step in enumerate(p.steps) for x in step.operands} | dict.fromkeys(p.kept, len(p.steps) + 1)
    first = dict.fromkeys(p.inputs, 0) | {step.result: i + 1 for i, step in enumerate(p.steps)}

    def reads(x: int) -> Iterator[int]:
        yield last.get(x, first.get(x, 0))
        for view, of in p.views.items():
            if of == x:
                yield from reads(view)

    apart = [Block(p.type(x), first[x], max(first[x], *reads(x))) for x in made]
    assert most_live(tuple(p.arrangement().blocks.values())) <= most_live(apart)


@given(programs())
def test_what_is_kept_or_viewed_or_given_lies_in_one_piece(p: Program) -> None:
    plan = p.arrangement()
    for x in {*p.kept, *p.views, *p.views.values(), *p.inputs} & plan.places.keys():
        assert plan.places[x].axis is None
    for result, operand in plan.over.items():
        assert plan.places[result] == plan.places[operand]
    assert not plan.places.keys() & set(p.weights)


def packed(blocks: Collection[Block], **dims: int) -> Arena:
    return pack(tuple(blocks), (x.type.bytes_at(dims) for x in blocks))


def most_live(blocks: tuple[Block, ...] | list[Block]) -> int:
    steps = range(max((x.last for x in blocks), default=0) + 1)
    return max(sum(-(-x.type.bytes_at({}) // 64) * 64 for x in blocks if x.first <= i <= x.last) for i in steps)


BLOCKS = st.lists(
    st.builds(
        lambda size, first, steps: Block(TensorType((size,)), first, first + steps),
        st.integers(1, 500), st.integers(0, 20), st.integers(0, 8),
    ),
    max_size=25,
)  # fmt: skip


@given(BLOCKS)
def test_blocks_needed_at_one_time_do_not_overlap(blocks: list[Block]) -> None:
    arena = packed(blocks)
    ends = [start + x.type.bytes_at({}) for start, x in zip(arena.offsets, blocks, strict=True)]
    assert all(start >= 0 and start % ALIGNMENT == 0 for start in arena.offsets)
    assert max(ends, default=0) <= arena.size
    for i, j in combinations(range(len(blocks)), 2):
        if blocks[i].first <= blocks[j].last and blocks[j].first <= blocks[i].last:
            assert ends[i] <= arena.offsets[j] or ends[j] <= arena.offsets[i]
    assert arena.size >= most_live(blocks)


def test_symbolic_sizes_are_packed_when_they_are_known() -> None:
    size = TensorType.parse("f32[N, 16]")
    plan = arrange({0: size, 1: size, 2: size}, [0], {}, [Step(1, (0,)), Step(2, (1,))], [2])
    blocks = tuple(plan.blocks.values())
    assert [packed(blocks, N=n).size for n in (1, 2, 5)] == [128, 256, 640]


def test_a_tensor_may_have_a_size_of_too_many_terms_to_write_out() -> None:
    sides = [parse_dim(f"{x}//2 + {x}//3 + {x}//5 + {x}//7 + {x}") for x in "NHW"]
    size = TensorType((*sides, 4))
    with pytest.raises(CnncError, match="E0506"):
        _ = size.bytes
    plan = arrange({0: size, 1: size}, [0], {}, [Step(1, (0,))], [1])
    assert packed(plan.blocks.values(), N=2, H=6, W=7).size == 2 * (1 + 2) * (3 + 2 + 1 + 6) * (3 + 2 + 1 + 1 + 7) * 16


def test_a_large_program_is_packed_with_little_search() -> None:
    """The placed blocks that are looked at are those needed at the same time."""
    seen = 0
    meeting = memory._Intervals.meeting

    def counted(self: memory._Intervals, first: int, last: int) -> list[tuple[int, int]]:
        nonlocal seen
        found = meeting(self, first, last)
        seen += len(found)
        return found

    blocks = [Block(TensorType((1 + i * 7919 % 1009, 16)), i, i + 1 + i % 3) for i in range(2000)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory._Intervals, "meeting", counted)
        packed(blocks)
    assert seen < 2 * 10 * len(blocks)


INCEPTION = """
model M {
  input x: f32[N, 8, 4, 4]
  output y
  y = x -> r: relu -> concat {
      c1: conv(8, 1) -> r1: relu
    | c2: conv(4, 1) -> c3: conv(16, 3, pad=1)
    | id
    | pool: maxpool(3, s=1, pad=1) } -> t: tanh
}
"""


def test_the_plan_of_an_inception_block() -> None:
    """What makes an arm writes it into the result; the relu lies in the input's memory, so its arm is copied."""
    plan = analysis.memory_plan(cnnc.load(INCEPTION))
    assert {x.name: (place.block.name, place.axis, place.start) for x, place in plan.places.items()} == {
        "x": ("x", None, 0), "r": ("x", None, 0), "c1": ("6", 1, 0), "r1": ("6", 1, 0), "c2": ("c2", None, 0),
        "c3": ("6", 1, 8), "pool": ("6", 1, 32), "6": ("6", None, 0), "t": ("6", None, 0),
    }  # fmt: skip
    assert {x.name: (str(block.type), block.first, block.last) for x, block in plan.blocks.items()} == {
        "x": ("f32[N, 8, 4, 4]", 0, 7),
        "c2": ("f32[N, 4, 4, 4]", 4, 5),
        "6": ("f32[N, 40, 4, 4]", 2, 9),
    }
    assert {x.name: over.name for x, over in plan.over.items()} == {"r": "x", "r1": "c1", "t": "6"}
    assert {x.name: set(parts) for x, parts in plan.joined.items()} == {"6": {0, 1, 3}}


NESTED = """
def dense(g) = concat { id | relu -> conv(g, 3, pad=1) }
model M { input x: f32[N, 8, 4, 4]  output y  y = x -> conv(8, 1) -> dense(8) -> dense(8) -> dense(8) -> conv(4, 1) }
"""


def test_nested_concatenations_are_one_block() -> None:
    """The maps of a dense block are written once: the last concatenation holds all before it."""
    graph = cnnc.load(NESTED)
    plan = analysis.memory_plan(graph)
    joins = [x for x in graph.nodes if isinstance(x.op, ops.Concat)]
    assert {plan.places[x].block for x in joins} == {joins[-1]}
    assert [plan.places[x.inputs[1]].start for x in joins] == [8, 16, 24]
    assert all(plan.joined[x] == {0, 1} for x in joins)


def test_a_part_that_would_raise_the_peak_is_copied() -> None:
    """The first arm is there long before the second; the whole result would be, too, at the widest place between."""
    arms = "id | conv(WIDTH, 1) -> conv(1, 1) -> conv(8, 1)"
    text = f"model M {{ input x: f32[1, 3, 8, 8]  output y  y = x -> conv(8, 1) -> concat {{ {arms} }} }}"
    narrow, wide = (analysis.memory_plan(cnnc.load(text.replace("WIDTH", str(width)))) for width in (8, 64))
    assert list(map(set, narrow.joined.values())) == [{0, 1}]
    assert list(map(set, wide.joined.values())) == []


@pytest.mark.parametrize(("name", "before", "planned"), [
    ("resnet50", 9_633_792, 7_225_344), ("googlenet", 6_422_528, 4_816_896), ("mobilenet_v2", 9_633_792, 6_021_120),
])  # fmt: skip
def test_networks(name: str, before: int, planned: int) -> None:
    """Of resnet50: x and the wide result of a block, which the sum and its relu are written over."""
    graph = cnnc.load(NETWORKS / f"{name}.cnn")
    n = parse_dim("N")
    assert (analysis.peak_bytes(graph), analysis.planned_bytes(graph)) == (before * n, planned * n)


def test_sizes_that_do_not_scale_alike_must_be_bound() -> None:
    graph = cnnc.load("model M { input x: f32[N, 3, H, 8]  output y  y = x -> maxpool(2) -> relu }")
    assert analysis.planned_bytes(graph) is None
    assert analysis.planned_bytes(bind(graph, {"H": 8})) == (3 * 64 + 3 * 16) * 4 * parse_dim("N")


def test_an_operand_that_is_read_at_other_places_too_is_not_overwritten() -> None:
    """x and a view of it, or x twice: of the other nothing is known."""
    size = TensorType((4, ROW))
    types = dict.fromkeys(range(4), size)
    for operands, over in (((1,), {3: 1}), ((1, 2), {}), ((1, 1), {})):
        plan = arrange(types, [0], {2: 1}, [Step(1, (0,)), Step(3, operands, (1,))], [3])
        assert plan.over == over
