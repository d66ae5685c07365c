"""Where torchvision has a network, ours has the same weights by the same names and gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cnnc
from cnnc.driver import elaborate, finish, open_module
from cnnc.frontend.model import parse_value
from networks import MODELS, assert_alive
from numerics import NETWORK_TOLERANCE, Array
from torchvision_models import network, state

SMALL = (64, 96)


@dataclass(frozen=True)
class Pair:
    """A network of torchvision, and the file and model of ours."""

    name: str
    ours: str
    size: tuple[int, int] = SMALL
    options: dict[str, Any] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    taps: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Our outputs that torchvision's network gives in training alone: the head, and the module it hangs on."""
    gain: float = 1
    """A factor for the kernels of a network whose clipped and gated values would otherwise amplify every rounding."""


INCEPTION = {"transform_input": False, "aux_logits": True, "init_weights": False}
VGGS = {11: "a", 13: "b", 16: "d", 19: "e"}
PAIRS = [
    Pair("alexnet", "alexnet_torchvision", (224, 224)),
    *(Pair(f"vgg{n}", f"vgg_{x}") for n, x in VGGS.items()),
    *(Pair(f"vgg{n}_bn", f"vgg_{x}", args={"norm": "bn"}) for n, x in VGGS.items()),
    Pair("googlenet", "googlenet_torchvision", (224, 224), INCEPTION,
         taps={"aux1": ("aux1", "inception4a"), "aux2": ("aux2", "inception4d")}),
    Pair("inception_v3", "inception_v3", (299, 299), INCEPTION, taps={"AuxLogits": ("AuxLogits", "Mixed_6e")}),
    *(Pair(f"resnet{n}", f"resnet{n}") for n in (18, 34, 50, 101, 152)),
    Pair("resnext50_32x4d", "resnext50"),
    Pair("densenet121", "densenet121"),
    Pair("squeezenet1_0", "squeezenet"),
    Pair("shufflenet_v2_x1_0", "shufflenet_v2"),
    Pair("mobilenet_v2", "mobilenet_v2", gain=0.8),
    Pair("mobilenet_v3_small", "mobilenet_v3:MobileNetV3Small"),
    Pair("mobilenet_v3_large", "mobilenet_v3", gain=0.9),
    Pair("efficientnet_b0", "efficientnet_b0"),
    Pair("fcn_resnet50", "fcn_resnet50", options={"weights_backbone": None, "aux_loss": True}),
]  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Our graph with torchvision's weights, a batch of three and what torchvision makes of it."""

    graph: cnnc.Graph
    weights: dict[str, Array]
    image: Array
    expected: dict[str, Array]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair.name)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """One network at a time."""
    pair: Pair = request.param
    module = network(pair.name, pair.gain, **pair.options)
    file, _, model = pair.ours.partition(":")
    path = MODELS / f"{file}.cnn"
    args = {name: parse_value(text, open_module(path)) for name, text in pair.args.items()}
    dims = dict(zip("HW", pair.size, strict=True))
    graph = finish(elaborate(path, model or None, args), dims=dims)
    image = torch.randn(3, 3, *pair.size, generator=torch.Generator().manual_seed(1))
    expected = outputs_of(module, image, pair, list(graph.outputs))
    for output in expected.values():
        assert_alive(output)
    return Loaded(graph, state(module), image.numpy(), expected)


@torch.no_grad()
def outputs_of(module: nn.Module, image: torch.Tensor, pair: Pair, names: list[str]) -> dict[str, Array]:
    """What torchvision's network gives, by the names of our outputs, auxiliary heads included."""
    inner: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: inner.update({name: output})

    for head, place in pair.taps.values():
        module.get_submodule(place).register_forward_hook(keep(head))
    result = module(image)
    found = result if isinstance(result, dict) else {names[0]: result}
    heads = {name: module.get_submodule(head)(inner[head]) for name, (head, _) in pair.taps.items()}
    return {name: tensor.numpy() for name, tensor in {**found, **heads}.items()}


def test_weights_have_the_same_names_and_shapes(loaded: Loaded) -> None:
    theirs = {name: array.shape for name, array in loaded.weights.items()}
    assert {name: param.type.shape for name, param in loaded.graph.params.items()} == theirs


@pytest.mark.parametrize("target", ["numpy", "torch"])
def test_outputs_are_the_same(loaded: Loaded, target: str) -> None:
    program = cnnc.compile(loaded.graph, target, loaded.weights)
    for n in (1, 3):
        outputs = program(image=loaded.image[:n])
        assert outputs.keys() == loaded.expected.keys()
        for name, expected in loaded.expected.items():
            bound = NETWORK_TOLERANCE * np.abs(expected[:n]).max()
            np.testing.assert_allclose(outputs[name], expected[:n], rtol=0, atol=bound, err_msg=f"{name}, batch {n}")


def test_detector_has_the_same_weights_and_pyramid() -> None:
    """torchvision's detector cuts and resizes images itself; what is compared is its trunk with the feature pyramid."""
    module = network("fasterrcnn_resnet50_fpn", weights_backbone=None)
    weights, path = state(module), MODELS / "faster_rcnn_fpn.cnn"
    theirs = {name: array.shape for name, array in weights.items()}
    assert {name: param.type.shape for name, param in cnnc.load(path).params.items()} == theirs
    image = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = list(module.get_submodule("backbone")(image).values())
    levels = ["p2", "p3", "p4", "p5", "p6"]
    graph = cnnc.load(path, outputs=levels, dims={"h": 1, "w": 2})
    program = cnnc.compile(graph, "numpy", {name: weights[name] for name in graph.params})
    outputs = program(image=image.numpy())
    for name, level in zip(levels, expected, strict=True):
        assert_alive(level.numpy())
        bound = NETWORK_TOLERANCE * level.abs().max().item()
        np.testing.assert_allclose(outputs[name], level.numpy(), rtol=0, atol=bound, err_msg=name)
