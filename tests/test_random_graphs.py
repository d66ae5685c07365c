"""Random networks: every form, pass and target keeps their value. `tools/random_graphs.py` runs the same for longer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import growing
import random_checks
import relations
from cnnc import ops
from cnnc.ir.dim import evaluate
from cnnc.ir.graph import Node
from cnnc.ir.op import registry
from cnnc.ir.types import DType
from cnnc.passes import PASSES, Network, Note, Pipeline
from strategies import HOMOGENEOUS, OPS, UNDRAWN, Case, cases

TARGETS = ("numpy", "torch", "onnx")

LAYERS = (ops.Conv, ops.BatchNorm, ops.Relu, ops.Add, ops.Neg)
WINDOWS = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
"""What Winograd's algorithm computes."""


def transformed(node: Node) -> bool:
    """Whether `narrow` computes it by Winograd's algorithm: of fewer channels it has no blocks."""
    if not isinstance(node.op, ops.Conv) or node.op.kernel != WINDOWS["kernel"]:
        return False
    return min(evaluate(x.type.shape[1], {}) for x in (node, *node.inputs)) >= 2

ROUNDED_TWICE = (ops.Deconv, ops.InstanceNorm, ops.Softmax, ops.LogSoftmax, ops.Add)
"""Ops that PyTorch, or an expression of several of its calls, rounds more than once in f16 and bf16."""
LOW = [
    ("numpy", DType.F16), ("onnx", DType.F16), ("onnx", DType.BF16), ("torch", DType.F16), ("torch", DType.BF16),
    ("narrow", DType.F16), ("narrow", DType.BF16),
]  # fmt: skip


@settings(max_examples=60)
@given(cases())
def test_forms(case: Case) -> None:
    random_checks.forms(case)


@settings(max_examples=60)
@given(cases())
def test_passes_preserve_the_value(case: Case) -> None:
    random_checks.passes_preserve(case)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25)
@given(case=cases())
def test_each_node_agrees(target: str, case: Case) -> None:
    random_checks.nodes_agree(case, target)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25)
@given(case=cases())
def test_the_whole_agrees(target: str, case: Case) -> None:
    random_checks.whole_agrees(case, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "narrow", "cuda"])
@settings(max_examples=5)
@given(case=cases())
def test_native_code_agrees(target: str, case: Case) -> None:
    random_checks.nodes_agree(case, target)
    random_checks.whole_agrees(case, target)


@pytest.mark.slow
@settings(max_examples=5)
@given(case=cases(LAYERS, WINDOWS).filter(lambda case: any(map(transformed, case.graph.nodes))))
def test_winograd_agrees(case: Case) -> None:
    random_checks.nodes_agree(case, "narrow")
    random_checks.whole_agrees(case, "narrow")


@pytest.mark.parametrize(("target", "dtype"), LOW)
def test_the_whole_agrees_in_16_bits(target: str, dtype: DType) -> None:
    """Without boxes: rounded scores are often equal, and the first of these are best, whichever they were."""
    left_out = (*growing.BOXES, *(ROUNDED_TWICE if target == "torch" else ()))
    drawn = [cls for cls in OPS if cls not in left_out]

    @settings(max_examples=15)
    @given(cases(drawn, dtype=dtype))
    def check(case: Case) -> None:
        random_checks.whole_agrees(case, target)

    check()


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases())
def test_samples_of_a_batch_are_independent(target: str, case: Case) -> None:
    relations.batches_join(case, target)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases(HOMOGENEOUS, {"bias": False}), power=st.integers(-8, 8))
def test_powers_of_two_pass_through(target: str, case: Case, power: int) -> None:
    relations.scales(case, target, power)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases(LAYERS).filter(lambda case: any(map(relations.grouped, case.graph.nodes))))
def test_groups_are_convolutions_of_their_own(target: str, case: Case) -> None:
    relations.keeps(relations.groups_split, case, target)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases().filter(lambda case: any(map(relations.permuted, case.graph.nodes))))
def test_the_order_of_channels_does_not_matter(target: str, case: Case) -> None:
    relations.keeps(relations.channels_permuted, case, target)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases())
def test_identities_between_the_nodes(target: str, case: Case) -> None:
    relations.keeps(relations.identities_inserted, case, target)


@dataclass
class Drawn:
    """What is in a fixed sample of networks."""

    count: int = 0
    refused: list[str] = field(default_factory=list)
    shown: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Many small runs, since Hypothesis varies within one what it has drawn before."""
    found = Drawn()

    def draw(case: Case) -> None:
        found.count += 1
        nodes = case.graph.nodes
        found.ops.update({node.op.name for node in nodes})
        params = [param for node in nodes for param in node.params.values()]
        kinds = {
            "shared weights": len(params) > len(set(params)), "symbolic sizes": len(case.sizes) > 1,
            "branches": any(len(users) > 1 for users in case.graph.users.values()),
            "two inputs": len(case.graph.inputs) > 1, "two outputs": len(case.graph.outputs) > 1,
            "one pixel": any(node.type.shape[2:] == (1, 1) for node in nodes),
            "groups": any(map(relations.grouped, nodes)), **{f"batch of {n}": case.sizes["N"] == n for n in (1, 2, 3)},
        }  # fmt: skip
        found.kinds.update(name for name, present in kinds.items() if present)
        found.shown += case.shows(case.inputs)
        notes: list[Note] = []
        for each in PASSES.values():
            each.run(Network(case.graph, case.weights), notes)
        found.passes.update({note.passed for note in notes if note.applied})

    limits = settings(max_examples=30, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    before = len(growing.refused)
    for run in range(30):
        seed(run)(limits(given(cases())(draw)))()
    found.refused = growing.refused[before:]
    return found


def test_generated_networks_are_valid_and_show_something(drawn: Drawn) -> None:
    """At most 1% of what is drawn is refused by an op; at least 98% of the rest depend on their inputs."""
    assert drawn.count > 800
    assert len(drawn.refused) <= 0.01 * (drawn.count + len(drawn.refused)), drawn.refused
    assert drawn.shown >= 0.98 * drawn.count


def test_every_op_is_drawn(drawn: Drawn) -> None:
    assert drawn.ops.keys() == registry().keys() - {cls.name for cls in UNDRAWN}


def test_networks_of_every_kind_are_drawn(drawn: Drawn) -> None:
    """Each kind of network is at least one in fifty."""
    assert len(drawn.kinds) == 10
    assert min(drawn.kinds.values()) >= 0.02 * drawn.count, drawn.kinds


def test_every_pass_finds_something(drawn: Drawn) -> None:
    """Each pass by itself changes at least one network of some hundreds, but for one of those of 16 bits."""
    assert drawn.passes.keys() == PASSES.keys() - {"round_once"}


def test_networks_that_round_once_are_drawn() -> None:
    found: list[bool] = []

    @seed(0)
    @settings(max_examples=100, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(cases(dtype=DType.BF16))
    def draw(case: Case) -> None:
        result = Pipeline((PASSES["fuse_epilogue"], PASSES["round_once"])).run(Network(case.graph, case.weights))
        found.append(any(note.passed == "round_once" for note in result.notes))

    draw()
    assert sum(found) >= 0.1 * len(found)
