"""Every op on the targets `cpu` and `cuda`, against the reference. Where there is no GPU, kernels run emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnc import ops
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import TensorType
from cnnc_tvm import CpuTarget, CudaTarget
from cuda_emulator import runnable
from numerics import assert_node_agrees, random_inputs, random_weights, single

IMAGE = "f32[N, 4, 9, 11]"
WIDE = "f32[N, 32, 7, 9]"

CASES: list[tuple[Any, ...]] = [
    (ops.Conv(32, 3, pad=1), WIDE),
    (ops.Conv(24, (3, 5), stride=(2, 1), pad=(1, 0, 2, 3)), IMAGE),
    (ops.Conv(16, 3, pad="same_upper", stride=2, bias=False), IMAGE),
    (ops.Conv(16, 3, dilation=2, pad=2), IMAGE),
    (ops.Conv(40, 1), IMAGE),
    (ops.Conv(3, 3), IMAGE),
    (ops.Conv(4, 3, pad=1, groups=4, stride=2), IMAGE),
    (ops.Conv(64, 3, pad=1, groups=2), WIDE),
    (ops.Conv(32, 3, groups=8), WIDE),
    (ops.Conv(16, 3, pad=1), "f32[N, 3, H, W]"),
    (ops.Conv(16, 3, pad="same_lower", stride=2), "f32[N, 3, H, 9]"),
    (ops.Deconv(16, 4, stride=2, pad=1), IMAGE),
    (ops.Deconv(6, 3, stride=(3, 2), pad=(0, 1), out_pad=(2, 1), groups=2), IMAGE),
    (ops.Deconv(16, 3, stride=4, dilation=2), IMAGE),
    (ops.Deconv(5, (2, 3), dilation=(1, 2), bias=False), IMAGE),
    (ops.Deconv(32, 2, stride=2, groups=2), WIDE),
    (ops.Local(5, 3, stride=2, pad=1), IMAGE),
    (ops.Local(2, (1, 3), bias=False), IMAGE),
    (ops.Linear(10), "f32[N, 50]"),
    (ops.Linear(64, bias=False), "f32[N, 33]"),
    (ops.Rbf(10), "f32[N, 21]"),
    (ops.MatMul(), "f32[N, 3, 5, 7]", "f32[3, 7, 4]"),
    (ops.MatMul(), "f32[N, 1, 5, 7]", "f32[N, 2, 7, 1]"),
    (ops.Scale(), IMAGE),
    (ops.Scale(bias=False), "f32[N, 6]"),
    (ops.Relu(), IMAGE),
    (ops.LeakyRelu(0.1), IMAGE),
    (ops.Prelu(), IMAGE),
    (ops.Sigmoid(), IMAGE),
    (ops.Tanh(), IMAGE),
    (ops.Step(), IMAGE),
    (ops.Elu(0.7), IMAGE),
    (ops.Selu(), IMAGE),
    (ops.Gelu(), IMAGE),
    (ops.Gelu("tanh"), IMAGE),
    (ops.Silu(), IMAGE),
    (ops.HardSigmoid(), IMAGE),
    (ops.HardSwish(), IMAGE),
    (ops.Clip(-0.5, 0.7), IMAGE),
    (ops.Abs(), IMAGE),
    (ops.Exp(), IMAGE),
    (ops.Log(), IMAGE),
    (ops.Sqrt(), IMAGE),
    (ops.Neg(), "f32[N, 7]"),
    (ops.Dropout(), IMAGE),
    (ops.Softmax(), "f32[N, 10]"),
    (ops.Softmax(axis=2), IMAGE),
    (ops.LogSoftmax(), IMAGE),
    (ops.Add(), IMAGE, IMAGE, "f32[4, 1, 11]"),
    (ops.Sub(), IMAGE, IMAGE),
    (ops.Mul(), IMAGE, "f32[N, 4, 1, 1]"),
    (ops.Div(), "f32[1, 4, 9, 1]", IMAGE),
    (ops.Maximum(), IMAGE, IMAGE, IMAGE),
    (ops.Minimum(), IMAGE, "f32[11]"),
    (ops.BatchNorm(), IMAGE),
    (ops.BatchNorm(eps=0.1), "f32[N, 6]"),
    (ops.Lrn(5, alpha=0.5, k=2.0), IMAGE),
    (ops.Lrn(2, alpha=0.5), IMAGE),
    (ops.Lrn(3, alpha=0.5, within=True), IMAGE),
    (ops.LayerNorm(), IMAGE),
    (ops.LayerNorm(axis=2, affine=False), IMAGE),
    (ops.GroupNorm(2), IMAGE),
    (ops.InstanceNorm(affine=False), "f32[N, 4, H, W]"),
    (ops.Normalize([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]), IMAGE),
    (ops.Normalize([0.5], [2.0]), IMAGE),
    (ops.MaxPool(3, 2, pad=1), IMAGE),
    (ops.MaxPool((2, 3), 2, ceil=True), IMAGE),
    (ops.MaxPool(2, 1, dilation=2, pad=1), "f32[N, 4, H, W]"),
    (ops.AvgPool(3, 2, pad=1), IMAGE),
    (ops.AvgPool(2, ceil=True), IMAGE),
    (ops.AvgPool(3, 2, pad=1, ceil=True, count_include_pad=False), IMAGE),
    (ops.L2Pool(2, pad=(0, 1)), IMAGE),
    (ops.AdaptiveAvgPool((4, 3)), IMAGE),
    (ops.AdaptiveAvgPool(3), "f32[N, 4, H, W]"),
    (ops.GlobalAvgPool(), IMAGE),
    (ops.GlobalMaxPool(), "f32[N, 4, H, W]"),
    (ops.Unpool(2), "f32[N, 4, 4, 5]", IMAGE),
    (ops.Unpool(3, 2), "f32[N, 4, 4, 5]", IMAGE),
    (ops.Concat(), IMAGE, "f32[N, 3, 9, 11]", "f32[N, 1, 9, 11]"),
    (ops.Concat(axis=2), "f32[N, 2, H, 3]", "f32[N, 2, 4, 3]"),
    (ops.Slice(1, -2, step=3, axis=3), IMAGE),
    (ops.Take([3, 0, 0, 2]), IMAGE),
    (ops.Pad((1, 0, 2, 3), value=1.5), IMAGE),
    (ops.Flatten(), IMAGE),
    (ops.Flatten(axis=2), IMAGE),
    (ops.Reshape([11, -1]), IMAGE),
    (ops.Transpose([0, 2, 3, 1]), IMAGE),
    (ops.Cast("f16"), IMAGE),
    (ops.ChannelShuffle(2), "f32[N, 6, 3, 3]"),
    (ops.PixelShuffle(2), "f32[N, 8, 3, 5]"),
    (ops.Upsample((2, 3)), IMAGE),
    (ops.Upsample(2, mode="bilinear"), IMAGE),
    (ops.Upsample(3, mode="bilinear", align_corners=True), "f32[N, 2, H, W]"),
    (ops.Resize((5, 20)), IMAGE),
    (ops.Resize((5, 20), mode="bilinear"), IMAGE),
    (ops.Resize(mode="bilinear"), IMAGE, "f32[N, 1, H, W]"),
    (ops.Crop((1, 2)), IMAGE, "f32[N, 1, 5, 6]"),
    (ops.ReduceMean([2, 3]), IMAGE),
    (ops.ReduceSum([1], keep=True), IMAGE),
    (ops.ReduceMax([3, 1]), IMAGE),
    (ops.ReduceMin([2]), "f32[N, 4, H, W]"),
    (ops.RoiPool((3, 2), scale=0.5), IMAGE, "f32[N, 4, 5]"),
    (ops.RoiAlign((3, 2), scale=0.5), IMAGE, "f32[N, 4, 4]"),
    (ops.RoiAlign(2, samples=3, aligned=True), IMAGE, "f32[N, 4, 4]"),
]  # fmt: skip
SPECIAL = (
    ops.Clip, ops.GlobalMaxPool, ops.Maximum, ops.MaxPool, ops.Minimum, ops.ReduceMax, ops.ReduceMin, ops.Relu,
)  # fmt: skip
"""Ops whose inputs hold NaN and infinities as well."""
GRAPHS = [single(op, *map(TensorType.parse, types)) for op, *types in CASES]
WEIGHTS = [random_weights(graph, seed) for seed, graph in enumerate(GRAPHS)]
TARGETS = {
    "cpu": lambda g, w: CpuTarget().compile(g, w),
    "cuda": lambda g, w: runnable(CudaTarget().compile(g, w), checked=True),
}


def joined() -> tuple[Graph, dict[str, Any]]:
    """All cases as one graph, so that each target compiles once: inputs and outputs are prefixed with the case."""
    inputs: list[Input] = []
    outputs = {}
    weights = {}
    for i, graph in enumerate(GRAPHS):
        own = [Input(f"c{i}_{x.name}", x.type) for x in graph.inputs]
        inputs += own
        (node,) = graph.nodes
        outputs[f"c{i}"] = Node.make(node.op, *own, name=f"c{i}")
        weights |= {f"c{i}{name.removeprefix('node')}": array for name, array in WEIGHTS[i].items()}
    return Graph("Cases", tuple(inputs), outputs), weights


def case_inputs(i: int, n: int) -> dict[str, Any]:
    inputs = random_inputs(GRAPHS[i], seed=i, N=n, H=7, W=10)
    if isinstance(CASES[i][0], SPECIAL):
        inputs["x0"].flat[[3, 40, 77]] = np.nan, np.inf, -np.inf
    if isinstance(CASES[i][0], ops.RoiPool | ops.RoiAlign):
        corners = np.random.default_rng(i).uniform(-2, 12, (n, 4, 2)).astype(np.float32)
        extent = np.random.default_rng(i + 1).uniform(0, 14, (n, 4, 2)).astype(np.float32)
        inputs["x1"][..., :4] = np.concatenate([corners, corners + extent], -1)
    return inputs


@pytest.fixture(scope="module", params=TARGETS)
def outputs(request: pytest.FixtureRequest) -> dict[int, Any]:
    """What the target gives for all cases, by the size of the batch."""
    program = TARGETS[request.param](*joined())
    return {
        n: program(**{f"c{i}_{name}": x for i in range(len(CASES)) for name, x in case_inputs(i, n).items()})
        for n in (1, 3)
    }


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("i", range(len(CASES)), ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_op(i: int, n: int, outputs: dict[int, Any]) -> None:
    assert_node_agrees(GRAPHS[i], WEIGHTS[i], case_inputs(i, n), {"y": outputs[n][f"c{i}"]}, winograd=True)


@pytest.mark.parametrize("target", TARGETS)
def test_everything_reduced_to_one_number(target: str) -> None:
    """There is no loop over results then."""
    x = Input("x", TensorType.parse("f32[N, 4, H, 3]"))
    how = (ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin)
    made = {cls.name: Node.make(cls([0, 1, 2, 3]), x, name=cls.name) for cls in how}
    outputs = {**made, "after": Node.make(ops.Add(), x, made["reduce_max"], name="after")}
    array = np.random.default_rng(0).standard_normal((2, 4, 5, 3), np.float32)
    found = TARGETS[target](Graph("Numbers", (x,), outputs), {})(x=array)
    for name, reduced in zip(made, (np.mean, np.sum, np.max, np.min), strict=True):
        assert found[name].shape == ()
        np.testing.assert_allclose(found[name], reduced(array.astype(np.float64)), rtol=1e-5)
    np.testing.assert_array_equal(found["after"], array + array.max())
