"""Every network of models/, compiled once for each target with a batch of any size, agrees with the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import cnnc
from cnnc.diagnostics import CnncError
from cnnc.driver import open_module
from cnnc.frontend.model import choose
from cnnc.ir.graph import Graph
from cnnc.target import Program
from cnnc_numpy.evaluator import evaluate
from cnnc_tvm import KERNELS
from cnnc_tvm.runtime import TvmProgram
from cuda_emulator import gpu_is_there, runnable
from networks import MODELS, assert_alive
from numerics import Array, assert_agree, random_inputs, random_weights

FATBIN = bytes.fromhex("50ed55ba")
"""How nvcc's containers of machine code begin."""

TARGETS = ("numpy", "torch", "onnx", "cpu")

SMALL = {"H": 64, "W": 96}
"""Rows and columns for networks that take images of any size: small, and not square."""
TINY = {"H": 32, "W": 64}
"""The same for those of much arithmetic."""

SIZES: Mapping[str, Mapping[str, int]] = {
    "mlp": {}, "mlp:Perceptron": {}, "lecun1989": {}, "lenet5": {}, "lenet5:LeNet5_1998": {}, "nin": {}, "alexnet": {},
    "zfnet": {}, "alexnet_torchvision": {}, "overfeat": {}, "overfeat:OverFeatAccurate": {}, "vgg_a": TINY,
    "vgg_a_lrn": TINY, "vgg_b": TINY, "vgg_c": TINY, "vgg_d": TINY, "vgg_e": TINY, "googlenet": {},
    "googlenet_torchvision": SMALL, "inception_v3": {}, "resnet18": SMALL, "resnet34": SMALL, "resnet50": SMALL,
    "resnet101": SMALL, "resnet152": SMALL, "resnext50": SMALL, "densenet121": SMALL, "squeezenet": SMALL,
    "shufflenet_v2": SMALL, "mobilenet_v1": SMALL, "mobilenet_v2": SMALL, "mobilenet_v3": SMALL,
    "mobilenet_v3:MobileNetV3Small": SMALL, "efficientnet_b0": SMALL, "autoencoder": {}, "dcgan": {},
    "dcgan:Generator": {}, "dcgan:Discriminator": {}, "twohead": SMALL, "unet": {"h": 11, "w": 12},
    "fcn_resnet50": TINY, "frrn": {"h": 1, "w": 2}, "hourglass": {"h": 1, "w": 2}, "fcn:FCN32s": SMALL,
    "fcn:FCN16s": SMALL, "fcn": SMALL, "deconvnet": {}, "yolo1": {}, "deepface": {}, "deepface:Siamese": {}, "rcnn": {},
    "rcnn:FastRCNN": {"H": 96, "W": 128, "R": 5}, "faster_rcnn": {"h": 2, "w": 3}, "faster_rcnn_fpn": {"h": 1, "w": 2},
}  # fmt: skip
"""The models, and dims that make them small."""

ARGS: Mapping[str, Mapping[str, Any]] = {
    "fcn:FCN32s": {"c": 4, "hidden": 32}, "fcn:FCN16s": {"c": 4, "hidden": 32}, "fcn": {"c": 4, "hidden": 32},
    "deconvnet": {"c": 4, "hidden": 32}, "yolo1": {"grid": 2},
    "faster_rcnn": {"keep": 4}, "faster_rcnn_fpn": {"keep": 8},
}  # fmt: skip
"""Arguments for models whose images cannot be small: fewer channels, or a coarser grid.

Detectors keep few regions: rounding may exchange two whose scores are all but equal, or decide whether an overlap is
beyond its limit. Of those considered here, in float64, scores are 2e-4 and 4e-5 apart where float32 is off by 2e-7 and
6e-7; overlaps are 0.3 and 0.004 from the limit where corners are off by 3e-4 pixels.
"""

SAME = {"resnet": "resnet50", "vgg": "vgg_d", "fcn:FCN8s": "fcn"}
"""Models that another file has under its usual name."""

GAINS = {
    "mlp:Perceptron": -1, "mobilenet_v2": 0.8, "mobilenet_v3": 0.9, "twohead": 0.7, "faster_rcnn": 0.6,
    "faster_rcnn_fpn": 0.6,
}  # fmt: skip
"""Factors for the kernels of networks whose clipped and gated values would otherwise amplify every rounding, or whose
softmax would be one class for certain; and for a perceptron whose threshold all samples would pass."""


SIBLINGS = {
    "vgg_a", "vgg_a_lrn", "vgg_b", "vgg_c", "vgg_e", "resnet34", "resnet101", "resnet152", "resnext50", "overfeat",
    "overfeat:OverFeatAccurate", "unet", "frrn", "zfnet", "alexnet_torchvision", "googlenet_torchvision",
    "inception_v3", "mobilenet_v3", "fcn:FCN32s", "fcn:FCN16s", "fcn_resnet50", "deepface:Siamese", "rcnn",
    "faster_rcnn",
}  # fmt: skip
"""Large networks made of the same layers as a smaller or better known one: they are the `sweep`."""

LARGE = {
    "alexnet", "vgg_d", "googlenet", "densenet121", "efficientnet_b0", "mobilenet_v3:MobileNetV3Small",
    "hourglass", "deconvnet", "yolo1", "deepface", "rcnn:FastRCNN", "faster_rcnn_fpn", "resnet50", "mobilenet_v2",
    "shufflenet_v2", "squeezenet", "mobilenet_v1", "fcn",
}  # fmt: skip
"""Networks whose CUDA code takes the CPU that stands in for the GPU ten seconds or more: on `cuda` they are in the
`sweep`."""

HEAVY = {"overfeat", "overfeat:OverFeatAccurate", "inception_v3", "unet"}
"""Networks of 11 to 27 billion multiply-accumulates for the four samples, as their layers allow no smaller images: a
minute or more each for that CPU. benchmarks/results has what a run by hand gave."""


@dataclass(frozen=True)
class Case:
    """A network with weights, a batch of three and what the reference makes of it."""

    name: str
    graph: Graph
    weights: Mapping[str, Array]
    inputs: Mapping[str, Array]
    reference: Mapping[str, Array]


def networks(*swept: set[str]) -> list[Any]:
    """The names of the models, those of these sets left to the sweep."""
    marked = set().union(*swept)
    return [pytest.param(name, marks=pytest.mark.sweep if name in marked else ()) for name in SIZES]


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """One model at a time: all its targets, then the next."""
    file, _, model = request.param.partition(":")
    graph = cnnc.load(MODELS / f"{file}.cnn", model or None, dims=SIZES[request.param], **ARGS.get(request.param, {}))
    gain = np.float32(GAINS.get(request.param, 1))
    weights = {name: gain * array if array.ndim > 1 else array for name, array in random_weights(graph).items()}
    inputs = random_inputs(graph, seed=1, **dict.fromkeys(graph.symbols, 3))
    if "rois" in inputs:
        inputs["rois"] = random_boxes(inputs["rois"].shape, inputs["image"].shape)
    reference = evaluate(graph, weights, inputs)
    for output in reference.values():
        assert_alive(output)
    return Case(request.param, graph, weights, inputs, reference)


def random_boxes(shape: tuple[int, ...], image: tuple[int, ...]) -> Array:
    """Regions of an image, x0, y0, x1, y1 in pixels."""
    corners = np.random.default_rng(2).uniform(size=(*shape[:-1], 2, 2)) * [image[3], image[2]]
    return np.sort(corners, axis=-2).reshape(shape).astype(np.float32)


def test_every_model_is_here() -> None:
    """SIZES names the models as the command line finds them: a file's own by the file, others by `file:Model`."""
    found = set()
    for path in MODELS.glob("*.cnn"):
        module = open_module(path)
        try:
            own = choose(module, None).name.text
        except CnncError:
            own = None
        found |= {path.stem if name == own else f"{path.stem}:{name}" for name in module.models}
    assert found == SIZES.keys() | SAME.keys()
    assert not SIZES.keys() & SAME.keys()


@pytest.mark.parametrize(("one", "other"), SAME.items())
def test_the_same_under_another_name(one: str, other: str) -> None:
    first, second = (
        cnnc.load(MODELS / f"{file}.cnn", model or None)
        for file, _, model in (name.partition(":") for name in (one, other))
    )
    assert str(first).partition("(")[2] == str(second).partition("(")[2]
    assert [(x.name, x.op, x.type) for x in first.nodes] == [(x.name, x.op, x.type) for x in second.nodes]


@pytest.mark.parametrize("case", networks(SIBLINGS), indirect=True, scope="module")
@pytest.mark.parametrize("target", TARGETS)
def test_agrees_with_the_reference_at_any_batch(case: Case, target: str) -> None:
    assert_agrees(case, cnnc.compile(case.graph, target, case.weights))


@pytest.mark.parametrize("case", networks(SIBLINGS, LARGE), indirect=True, scope="module")
def test_agrees_on_cuda(case: Case) -> None:
    """Compiled by nvcc for a real architecture; where there is no GPU the kernels run on the CPU, but for the heaviest.
    """
    program = cnnc.compile(case.graph, "cuda", case.weights, arch="sm_90")
    assert isinstance(program, TvmProgram)
    assert all(f" {name}_kernel(" in program.source() for name in program.plan.kernels)
    assert program.files()[KERNELS].startswith(FATBIN)
    if case.name not in HEAVY or gpu_is_there():
        assert_agrees(case, runnable(program))


def assert_agrees(case: Case, program: Program) -> None:
    three, one = (program(**{name: array[:n] for name, array in case.inputs.items()}) for n in (3, 1))
    outputs = {name: np.concatenate([three[name], one[name]]) for name in three}
    # An output may have several rows for a sample: one for each region.
    reference = {name: np.concatenate([array, array[: len(array) // 3]]) for name, array in case.reference.items()}
    assert_agree(case.graph, case.weights, case.inputs, outputs, reference=reference)
