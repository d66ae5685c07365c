"""The files of models/: their facts hold, and their graphs can be printed, read back and given weights."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import cnnc
from cnnc import analysis
from cnnc import weights as weight_files
from cnnc.diagnostics import render
from cnnc.driver import check_file, open_module
from cnnc.frontend.model import parse_value
from cnnc.ir.json import from_json, to_json
from cnnc.ir.text import from_text, structurally_equal, to_text
from cnnc.ir.verify import verify
from cnnc_numpy.evaluator import evaluate
from networks import MODELS

FILES = sorted(MODELS.glob("*.cnn"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

VGGS = [("a", 11), ("b", 13), ("c", 16), ("d", 16), ("e", 19)]
PUBLISHED = [
    ("lenet5", "LeNet5", "params == 61_706"),
    ("lenet5", "LeNet5_1998", "params(to=f6) == 60_000"),
    ("alexnet", "AlexNet", "params == 60_965_224"),
    ("alexnet_torchvision", "AlexNetTorchvision", "params == 61_100_840"),
    ("vgg_a", "VGG_A", "params == 132_863_336"),
    ("vgg_b", "VGG_B", "params == 133_047_848"),
    ("vgg_c", "VGG_C", "params == 133_638_952"),
    ("vgg_d", "VGG_D", "params == 138_357_544"),
    ("vgg_e", "VGG_E", "params == 143_667_240"),
    ("vgg_e", "VGG_E", "memory(weights) > 500MB"),
    ("googlenet", "GoogLeNet", "params(to=logits) == 6_998_552"),
    ("googlenet", "GoogLeNet", "macs(to=logits, N=1) == 1_582_671_872"),
    ("googlenet_torchvision", "GoogLeNetTorchvision", "params(to=logits) == 6_624_904"),
    ("resnet18", "ResNet18", "params == 11_689_512"),
    ("resnet34", "ResNet34", "params == 21_797_672"),
    ("resnet50", "ResNet50", "params == 25_557_032"),
    ("resnet50", "ResNet50", "macs(N=1) == 4_089_184_256"),
    ("resnet101", "ResNet101", "params == 44_549_160"),
    ("resnet152", "ResNet152", "params == 60_192_808"),
    ("yolo1", "YOLOv1", "shape(cells) == [N, 7, 7, 30]"),
    *((f"vgg_{x}", f"VGG_{x.upper()}", f"count(conv, linear) == {n}") for x, n in VGGS),
]
"""Figures of the literature that a `check` block must hold."""


@every_file
def test_all_facts_hold(path: Path) -> None:
    report = check_file(path, facts=True)
    assert not report.diagnostics, "\n".join(map(render, report.diagnostics))
    broken = [f"{fact.model}: {fact.text}, not {fact.actual}" for fact in report.facts if not fact.holds]
    assert not broken
    assert {fact.model.partition("(")[0] for fact in report.facts} == {model.graph.name for model in report.models}


@pytest.mark.parametrize(("file", "model", "fact"), PUBLISHED)
def test_published_figures_are_claimed(file: str, model: str, fact: str) -> None:
    facts = check_file(MODELS / f"{file}.cnn", facts=True).facts
    assert [found.holds for found in facts if (found.model, found.text) == (model, fact)] == [True]


@every_file
def test_models_and_inputs_are_documented(path: Path) -> None:
    for model in check_file(path).models:
        assert model.graph.doc
        if "perceptron" not in model.graph.doc:  # its inputs are no pictures
            assert all(x.doc for x in model.graph.inputs), model.graph.name


@every_file
def test_graph_reads_back_equal(path: Path) -> None:
    for model in check_file(path).models:
        symbolic, bound = model.graph, cnnc.load(path, model.graph.name)
        assert bound.symbols <= {"N", "R"}, "every dim but the batch has a default"
        verify(symbolic)
        assert structurally_equal(from_text(to_text(symbolic)), symbolic)
        assert structurally_equal(from_json(json.loads(json.dumps(to_json(bound)))), bound)


@every_file
def test_weights_start(path: Path) -> None:
    graph = cnnc.load(path)
    if analysis.params(graph) > 30_000_000:
        pytest.skip("large, and of layers that other models have")
    weights = weight_files.init(graph, seed=1)
    wanted = {x.name: x.type.shape for x in graph.params.values()}
    assert {name: array.shape for name, array in weights.items()} == wanted
    assert all(np.isfinite(array).all() for array in weights.values())
    assert all(weights[x.name].std() > 0 for x in graph.params.values() if len(x.type.shape) > 1)


@pytest.mark.parametrize(("norm", "params"), [("id", 132_863_336), ("bn", 132_868_840)])
def test_block_as_argument(norm: str, params: int) -> None:
    path = MODELS / "vgg_a.cnn"
    assert analysis.params(cnnc.load(path, norm=parse_value(norm, open_module(path)))) == params


CORNERS = np.array(list(product([0, 1], repeat=2)), np.float32)
XOR = (CORNERS.sum(1) == 1).astype(np.float64)


def test_two_layers_compute_xor() -> None:
    path = MODELS / "mlp.cnn"
    graph = cnnc.load(path, "MLP", act=parse_value("step", open_module(path)))
    weights = {  # one unit for "or", one for "and"; the output is the first without the second
        "0.weight": np.array([[1, 1], [1, 1]]), "0.bias": np.array([-0.5, -1.5]),
        "2.weight": np.array([[9, -9]]), "2.bias": np.array([-4.5]),
    }  # fmt: skip
    y = evaluate(graph, weights, {"x": CORNERS})["y"]
    np.testing.assert_array_equal(y[:, 0] > 0.5, XOR == 1)


def test_one_layer_does_not() -> None:
    graph = cnnc.load(MODELS / "mlp.cnn", "Perceptron")
    computed = set()
    for w0, w1, b in product([-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2], np.arange(-4.5, 5)):
        weights = {"fc.weight": np.array([[w0, w1]]), "fc.bias": np.array([b])}
        computed.add(tuple(evaluate(graph, weights, {"x": CORNERS})["y"][:, 0]))
    assert len(computed) == 14, "all functions of two bits but two"
    assert tuple(XOR) not in computed
    assert tuple(1 - XOR) not in computed
