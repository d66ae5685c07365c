"""What the optimiser makes of well-known networks: the graphs as goldens, the counts of docs/optimiser.md."""

from __future__ import annotations

from pathlib import Path

import pytest

import cnnc
from cnnc.driver import network_of
from cnnc.ir.text import to_text
from cnnc.passes import LEVELS, Network, optimise
from conftest import Golden
from networks import MODELS

PAGE = Path(__file__).parents[1] / "docs" / "optimiser.md"
NETWORKS = (
    "lenet5", "alexnet", "vgg_d", "googlenet", "inception_v3", "resnet18", "resnet50", "resnet152", "densenet121",
    "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0",
)  # fmt: skip


def network(name: str) -> Network:
    return network_of(cnnc.load(MODELS / f"{name}.cnn"))


@pytest.mark.parametrize("name", ["resnet50", "googlenet", "mobilenet_v2"])
def test_the_optimised_graph(name: str, golden: Golden) -> None:
    golden(f"optimised/{name}.ir", to_text(optimise(network(name), LEVELS[2]).network.graph))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_has_the_counts(name: str) -> None:
    written = network(name)
    counts = [len(written.graph.nodes)]
    counts += [len(optimise(written, LEVELS[level]).network.graph.nodes) for level in (1, 2, 3)]
    row = f"| {name} | {' | '.join(map(str, counts))} |"
    assert row in PAGE.read_text("utf-8").splitlines(), f"docs/optimiser.md should have the row {row}"
