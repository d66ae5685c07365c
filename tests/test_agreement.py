"""Every network of models/, compiled once for each target with a batch of any size, agrees with the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

import cnnc
from cnnc.ir.graph import Graph
from cnnc.target import Program
from cnnc_numpy.evaluator import evaluate
from cnnc_tvm import KERNELS
from cnnc_tvm.runtime import TvmProgram
from cuda_emulator import emulated
from networks import MODELS, assert_alive
from numerics import Array, assert_agree, random_inputs, random_weights

FATBIN = bytes.fromhex("50ed55ba")
"""How nvcc's containers of machine code begin."""

TARGETS = ("numpy", "torch", "onnx", "cpu")

SMALL = {"H": 64, "W": 96}
"""Rows and columns for networks that take images of any size: small, and not square."""
TINY = {"H": 32, "W": 64}
"""The same for the VGGs, of much arithmetic."""

SIZES: Mapping[str, Mapping[str, int]] = {
    "mlp": {}, "lecun1989": {}, "lenet5": {}, "lenet5:LeNet5_1998": {}, "nin": {}, "alexnet": {}, "zfnet": {},
    "alexnet_torchvision": {}, "overfeat": {}, "vgg_a": TINY, "vgg_a_lrn": TINY, "vgg_b": TINY, "vgg_c": TINY,
    "vgg_d": TINY, "vgg_e": TINY, "googlenet": {}, "googlenet_torchvision": {}, "inception_v3": {},
    "resnet18": SMALL, "resnet34": SMALL, "resnet50": SMALL, "resnet101": SMALL, "resnet152": SMALL,
    "resnext50": SMALL, "densenet121": SMALL, "squeezenet": SMALL, "shufflenet_v2": SMALL, "mobilenet_v1": SMALL,
    "mobilenet_v2": SMALL, "mobilenet_v3": SMALL, "mobilenet_v3:MobileNetV3Small": SMALL, "efficientnet_b0": SMALL,
    "autoencoder": {}, "dcgan": {}, "twohead": SMALL, "unet": {"h": 11, "w": 12}, "fcn_resnet50": SMALL,
    "frrn": {"h": 3, "w": 4}, "hourglass": {"h": 1, "w": 2},
}  # fmt: skip
"""The models, and dims that make them small."""

GAINS = {"mobilenet_v2": 0.8, "mobilenet_v3": 0.9, "twohead": 0.7}
"""Factors for the kernels of networks whose clipped and gated values would otherwise amplify every rounding, or whose
softmax would be one class for certain."""


SIBLINGS = {"vgg_a_lrn", "vgg_b", "vgg_c", "vgg_e", "resnet34", "resnet101", "resnet152", "overfeat", "unet", "frrn"}
"""Large networks made of the same layers as a smaller or better known one."""


EMULATED = {
    "mlp", "lecun1989", "lenet5", "lenet5:LeNet5_1998", "nin", "resnet18", "resnet50", "densenet121", "squeezenet",
    "shufflenet_v2", "mobilenet_v2", "mobilenet_v3", "autoencoder", "dcgan", "twohead",
}  # fmt: skip
"""The networks whose CUDA kernels are run as well as compiled, on the CPU: those of little arithmetic."""


@dataclass(frozen=True)
class Case:
    """A network with weights, a batch of three and what the reference makes of it."""

    name: str
    graph: Graph
    weights: Mapping[str, Array]
    inputs: Mapping[str, Array]
    reference: Mapping[str, Array]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SIBLINGS else ()) for name in SIZES]
)
def case(request: pytest.FixtureRequest) -> Case:
    """One model at a time: all its targets, then the next."""
    file, _, model = request.param.partition(":")
    graph = cnnc.load(MODELS / f"{file}.cnn", model or None, dims=SIZES[request.param])
    gain = np.float32(GAINS.get(request.param, 1))
    weights = {name: gain * array if array.ndim > 1 else array for name, array in random_weights(graph).items()}
    inputs = random_inputs(graph, seed=1, N=3)
    reference = evaluate(graph, weights, inputs)
    for output in reference.values():
        assert_alive(output)
    return Case(request.param, graph, weights, inputs, reference)


@pytest.mark.parametrize("target", TARGETS)
def test_agrees_with_the_reference_at_any_batch(case: Case, target: str) -> None:
    assert_agrees(case, cnnc.compile(case.graph, target, case.weights))


def test_compiles_for_cuda(case: Case) -> None:
    """By nvcc for a real architecture; a GPU is not here, so the kernels of the smaller networks run emulated."""
    program = cnnc.compile(case.graph, "cuda", case.weights, arch="sm_90")
    assert isinstance(program, TvmProgram)
    assert all(f" {name}_kernel(" in program.source() for name in program.plan.kernels)
    if case.name in EMULATED:
        assert program.files()[KERNELS].startswith(FATBIN)
        assert_agrees(case, emulated(program))


def assert_agrees(case: Case, program: Program) -> None:
    three, one = (program(**{name: array[:n] for name, array in case.inputs.items()}) for n in (3, 1))
    outputs = {name: np.concatenate([three[name], one[name]]) for name in three}
    reference = {name: np.concatenate([array, array[:1]]) for name, array in case.reference.items()}
    assert_agree(case.graph, case.weights, case.inputs, outputs, reference=reference)
