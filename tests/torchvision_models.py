"""torchvision's own networks with random weights, as a reference that is not ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

# torchvision declares meta kernels for these when it is imported; without its compiled extension nothing defines them.
_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402


def network(name: str, gain: float = 1, **options: Any) -> nn.Module:
    """A network of torchvision by its name, ready to be evaluated, every weight and statistic random.

    Kernels start as He et al. have it, times `gain`, so that values neither vanish nor explode.
    """
    builder = torchvision.models.get_model_builder(name)
    with torch.device("meta"):  # its own initialisers take seconds
        module: nn.Module = builder(weights=None, **options)
    module.to_empty(device="cpu")
    torch.manual_seed(0)
    for layer in module.modules():
        _start(layer, gain)
    return module.eval()


def state(module: nn.Module) -> dict[str, Any]:
    """The arrays of a module's state_dict, but for the counters of training."""
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def _start(layer: nn.Module, gain: float) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight).mul_(gain)
        if layer.bias is not None:
            layer.bias.normal_(0, 0.2)
    elif isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.normal_(0, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_(0, 0.2)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """torchvision.ops.nms, which is compiled: its kernel for the CPU (csrc/ops/cpu/nms_kernel.cpp), line by line."""
    x1, y1, x2, y2 = boxes.unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    order = scores.sort(stable=True, dim=0, descending=True).indices
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    keep = []
    for at, i in enumerate(order):
        if suppressed[i]:
            continue
        keep.append(i)
        j = order[at + 1 :]
        w = (torch.minimum(x2[i], x2[j]) - torch.maximum(x1[i], x1[j])).clamp(min=0)
        h = (torch.minimum(y2[i], y2[j]) - torch.maximum(y1[i], y1[j])).clamp(min=0)
        suppressed[j] |= w * h / (areas[i] + areas[j] - w * h) > iou_threshold
    return torch.stack(keep)


@contextmanager
def compiled_ops() -> Iterator[None]:
    """Where torchvision would use its compiled extension, it uses `nms` and its own differentiable `roi_align`."""

    def roi_align(
        x: torch.Tensor, rois: torch.Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
    ) -> torch.Tensor:
        in_python = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
        result: torch.Tensor = in_python(x, rois, spatial_scale, *output_size, sampling_ratio, False)
        return result

    with mock.patch("torchvision.ops.poolers.roi_align", roi_align), mock.patch("torchvision.ops.boxes.nms", nms):
        yield
