"""Modules of the target `torch` can be trained: gradients, modes and statistics are where PyTorch has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnc
from cnnc import weights
from cnnc.ir.graph import Graph
from cnnc_torch import TorchTarget
from numerics import random_inputs, random_weights

NET = """
model Net {
  input image: f32[N, 1, 8, 8]
  output logits
  logits = image -> conv1: conv(8, 3, pad=1, bias=false) -> bn1: bn(eps=1e-3, momentum=0.3) -> prelu
    -> l2pool(2) -> scale -> local: local(4, 3) -> relu -> flatten -> dropout(0.25) -> fc: linear(2)
}
"""


def module() -> tuple[Graph, nn.Module]:
    graph = cnnc.load(NET)
    return graph, TorchTarget().compile(graph, weights.init(graph)).module()


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    _, net = module()
    image = torch.randn(64, 1, 8, 8)
    label = (image.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_gradient_reaches_every_trainable_parameter_and_no_other() -> None:
    graph, net = module()
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    reached = {name for name, x in net.named_parameters() if x.grad is not None and x.grad.abs().sum() > 0}
    assert reached == {name for name, x in graph.params.items() if x.trainable}
    buffers = {name for name, _ in net.named_buffers() if not name.endswith("num_batches_tracked")}
    assert buffers == {name for name, x in graph.params.items() if not x.trainable}


def test_dropout_and_batch_statistics_live_in_training_mode() -> None:
    _, net = module()
    image = torch.randn(16, 1, 8, 8)
    assert net.training
    before = net.bn1.running_mean.clone()
    assert not torch.equal(net(image), net(image))
    features = F.conv2d(image, net.conv1.weight, padding=1).mean((0, 2, 3))
    once = 0.7 * before + 0.3 * features
    torch.testing.assert_close(net.bn1.running_mean, 0.7 * once + 0.3 * features)
    assert net.bn1.eps == 1e-3
    net.eval()
    kept = net.bn1.running_mean.clone()
    assert torch.equal(net(image), net(image))
    assert torch.equal(net.bn1.running_mean, kept)


def test_training_does_not_change_the_program() -> None:
    graph = cnnc.load(NET)
    program = TorchTarget().compile(graph, random_weights(graph))
    inputs = random_inputs(graph, N=2)
    before = program(**inputs)["logits"]
    with torch.no_grad():
        for parameter in program.module().parameters():
            parameter.zero_()
    np.testing.assert_array_equal(program(**inputs)["logits"], before)


def test_the_gradient_of_an_l2_pool_is_finite_at_zero() -> None:
    graph = cnnc.load("model Pool { input x: f32[N, 1, 4, 4] output y y = x -> l2pool(2) }")
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    TorchTarget().compile(graph, {}).module()(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_low_precision_modules_keep_their_type(dtype: str) -> None:
    graph = cnnc.load(NET, dtype=dtype)
    net = TorchTarget().compile(graph, weights.init(graph)).module()
    kind = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {x.dtype for x in net.parameters()} == {kind}
    assert {x.dtype for x in type(net)().parameters()} == {kind}  # also when constructed without weights
