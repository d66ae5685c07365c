"""Random networks: every form, pass and target keeps their value. `tools/random_graphs.py` runs the same for longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import random_checks
import strategies
from cnnc import ops
from strategies import HOMOGENEOUS, Case, cases

TARGETS = ("numpy", "torch", "onnx")


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
@settings(max_examples=4)
@given(cases())
def test_native_code(case: Case) -> None:
    """Fewer, as each takes some seconds to compile."""
    random_checks.nodes_agree(case, "cpu")
    random_checks.whole_agrees(case, "cpu")


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases())
def test_samples_of_a_batch_are_independent(target: str, case: Case) -> None:
    random_checks.batches_join(case, target)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases(HOMOGENEOUS, {"bias": False}), power=st.integers(-8, 8))
def test_powers_of_two_pass_through(target: str, case: Case, power: int) -> None:
    random_checks.scales(case, target, power)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases((ops.Conv, ops.BatchNorm, ops.Relu, ops.Add)))
def test_groups_are_convolutions_of_their_own(target: str, case: Case) -> None:
    random_checks.groups_split(case, target)


def test_generated_networks_are_valid_and_alive() -> None:
    """At most 1% of what is drawn is refused by an op; at least 95% of the rest depend on their inputs."""
    drawn: list[bool] = []

    @settings(max_examples=400, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(cases())
    def draw(case: Case) -> None:
        drawn.append(random_checks.alive(case))

    before = len(strategies.refused)
    draw()
    refused = strategies.refused[before:]
    assert len(drawn) > 300
    assert len(refused) <= 0.01 * (len(drawn) + len(refused)), refused
    assert sum(drawn) >= 0.95 * len(drawn)
