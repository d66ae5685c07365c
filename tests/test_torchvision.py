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
from cnnc_numpy.evaluator import evaluate
from networks import MODELS, assert_alive
from numerics import NETWORK_TOLERANCE, Array
from torchvision_models import compiled_ops, network, state, torchvision

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


def test_detector_gives_the_same() -> None:
    """In float64: in float32 some of the thousands of boxes are so close that roundings would exchange them.

    torchvision's detector also normalises and resizes images before and picks boxes of each class afterwards, which is
    left out, and drops boxes that are cut to less than a thousandth of a pixel, which are skipped in ours.
    """
    keep, sizes = 100, [(64, 128)] * 2
    module: Any = network("fasterrcnn_resnet50_fpn", gain=0.5, weights_backbone=None).double()
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator
    module.rpn.anchor_generator = anchors(tuple((32 * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5)  # not on meta
    module.rpn._post_nms_top_n = {"testing": keep}
    image = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad(), compiled_ops():
        levels = module.backbone(image)
        rois, _ = module.rpn(torchvision.models.detection.image_list.ImageList(image, sizes), levels)
        features = module.roi_heads.box_head(module.roi_heads.box_roi_pool(levels, rois, sizes))
        scores, boxes = module.roi_heads.box_predictor(features)
    expected = {"rois": torch.cat(rois), "scores": scores.softmax(1), "boxes": boxes}
    weights = state(module)
    graph = cnnc.load(MODELS / "faster_rcnn_fpn.cnn", dims={"h": 1, "w": 2}, outputs=list(expected), keep=keep)
    assert {name: x.type.shape for name, x in graph.params.items()} == {name: x.shape for name, x in weights.items()}
    outputs = evaluate(graph, weights, {"image": image.numpy()})
    large = (outputs["rois"][..., 2:4] - outputs["rois"][..., :2] >= 1e-3).all(-1)
    assert large.sum(1).min() > keep / 2
    for name, tensor in expected.items():
        got = outputs[name].reshape(2, keep, -1)[..., : tensor.shape[1]]
        for ours, theirs, rows in zip(got, tensor.numpy().reshape(2, keep, -1), large, strict=True):
            assert_alive(theirs)
            np.testing.assert_allclose(ours[rows], theirs[: rows.sum()], rtol=1e-9, atol=1e-9, err_msg=name)
