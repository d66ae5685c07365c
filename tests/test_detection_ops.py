"""The ops of detectors: the reference against torchvision, and the targets against the reference.

Coordinates are quarters of a pixel and scores quarters, so that ties are many, areas are exact in float32 and an
overlap lies on its threshold in every precision or in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc import ops
from cnnc.ir.dim import Sym
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc_numpy.evaluator import evaluate
from numerics import Array, assert_node_agrees, single
from torchvision_models import compiled_ops, nms, torchvision

N, H, W = map(Sym.of, "NHW")
A, HEIGHT, WIDTH = 3, 7, 6
COUNT = A * HEIGHT * WIDTH
"""Boxes in an image: `A` for each place of a map."""
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
TARGETS = ("numpy", "torch", "onnx", "cpu")


def f32(*shape: int | Sym) -> TensorType:
    return TensorType(shape)


def quarters(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    return (rng.integers(int(4 * low), int(4 * high), shape) / 4).astype(np.float32)


def boxes(rng: np.random.Generator, n: int, count: int = COUNT, most: float = 24) -> Array:
    """Boxes inside and outside an image; some have no area, or their corners the wrong way round."""
    first = quarters(rng, -8, 32, n, count, 2)
    return np.concatenate([first, first + quarters(rng, -2, most, n, count, 2)], axis=2)


def scores(rng: np.random.Generator, *shape: int) -> Array:
    """Scores with ties, infinities and NaN."""
    found = quarters(rng, -2, 2, *shape)
    found.flat[:: found.size // 3] = np.inf
    found.flat[1 :: found.size // 3] = -np.inf
    found.flat[2 :: found.size // 4] = np.nan
    return found


def scored(rng: np.random.Generator, n: int, count: int) -> Array:
    return np.concatenate([boxes(rng, n, count), scores(rng, n, count, 1)], axis=2)


def broken(x: Array) -> Array:
    """With a box that has a NaN and one that is infinite in every image."""
    x[:, 3, 1], x[:, 4, 2] = np.nan, np.inf
    return x


def inputs(op: Op, n: int, seed: int) -> tuple[Array, ...]:
    """Operands for an op, for `n` images."""
    rng = np.random.default_rng(seed)
    match op:
        case ops.Anchors():
            return (np.zeros((n, 2, HEIGHT, WIDTH), np.float32),)
        case ops.Decode():  # some deltas beyond log(1000/16)
            return boxes(rng, n), rng.normal(scale=3, size=(n, 4 * A, HEIGHT, WIDTH)).astype(np.float32)
        case ops.ClipBoxes():
            return broken(boxes(rng, n)), np.zeros((n, 3, 29, 23), np.float32)
        case ops.Nms():
            return broken(boxes(rng, n)), scores(rng, n, A, HEIGHT, WIDTH)
        case ops.Top():
            return tuple(scored(rng, n, count) for count in (7, 5, 9))
        case _:
            sizes = [(int(480 * scale), int(640 * scale)) for scale in SCALES]
            levels = [rng.standard_normal((n, 2, *size)).astype(np.float32) for size in sizes]
            rois = boxes(rng, n, 12, most=600)
            rois[0, 0], rois[-1, 1] = (3, 5, 227, 229), (0, 0, 112, 112)  # the first of their levels
            rois[0, 2] = 0, 0, 112, 112 - 2**-17  # as good as the first of its level
            return np.maximum(rois, 0), *levels


def graph(op: Op, *operands: Array, dtype: DType = DType.F32, symbolic: bool = True) -> cnnc.Graph:
    """The op on operands of these shapes, the batch of any size, and the maps too where `symbolic`."""
    sizes: Mapping[int, Any] = {HEIGHT: H, WIDTH: W, COUNT: H * W * A, 29: 4 * H + 1, 23: W + 17} if symbolic else {}
    return single(op, *(TensorType((N, *(sizes.get(x, x) for x in array.shape[1:])), dtype) for array in operands))


CASES: list[Op] = [
    ops.Anchors([32, 33], [0.5, 1, 2], [16, 8]),
    ops.Decode(),
    ops.ClipBoxes(),
    ops.Nms(pre=COUNT, keep=COUNT, iou=0.25),
    ops.Nms(pre=40, keep=7, iou=0.5),
    ops.Nms(pre=1000, keep=COUNT + 4, iou=0.25),
    ops.Nms(pre=9, keep=20, iou=0),
    ops.Nms(pre=20, keep=20, iou=1.5),
    ops.Top(4),
    ops.Top(21),
    ops.Top(30),
    ops.RoiAlignPyramid([3, 2], SCALES),
    ops.RoiAlignPyramid(2, SCALES[1:3], samples=3),
    ops.RoiAlignPyramid(2, SCALES[:1]),
]


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize("op", CASES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_targets_agree_with_the_reference(target: str, op: Op, symbolic: bool) -> None:
    check(target, op, symbolic=symbolic)


@pytest.mark.parametrize("opset", ["13", "16", "18", "21"])
@pytest.mark.parametrize("op", CASES, ids=str)
def test_older_opsets(op: Op, opset: str) -> None:
    check("onnx", op, opset=opset)


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("numpy", DType.F16), *((target, dtype) for target in ("torch", "onnx") for dtype in (DType.F16, DType.BF16))],
)
@pytest.mark.parametrize("op", CASES, ids=str)
def test_low_precision(target: str, op: Op, dtype: DType) -> None:
    check(target, op, dtype)


def check(target: str, op: Op, dtype: DType = DType.F32, symbolic: bool = True, **options: str) -> None:
    operands = used(op, inputs(op, 3, seed=0))
    network = graph(op, *operands, dtype=dtype, symbolic=symbolic)
    program = cnnc.compile(network, target, {}, **options)
    for n in (1, 3):
        given = {f"x{i}": x[:n].astype(numpy_dtype(dtype)) for i, x in enumerate(operands)}
        assert_node_agrees(network, {}, given, program(**given))


def used(op: Op, operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """A pyramid's operands without the levels that the op has no scales for."""
    if not isinstance(op, ops.RoiAlignPyramid):
        return operands
    rois, *levels = operands
    return rois, *(levels[SCALES.index(scale)] for scale in op.scales)


def reference(op: Op, *operands: Array) -> Array:
    return evaluate(graph(op, *operands), {}, {f"x{i}": x for i, x in enumerate(operands)})["y"]


def wide(x: Array) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64))


@given(
    st.lists(st.integers(8, 600), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.3, 0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=3, unique=True),
    st.tuples(st.integers(1, 32), st.integers(1, 32)),
)
def test_anchors_are_torchvisions(sizes: list[int], ratios: list[float], stride: tuple[int, int]) -> None:
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator((tuple(sizes),), (tuple(ratios),))
    (expected,) = generator.grid_anchors([[HEIGHT, WIDTH]], [list(stride)])
    got = reference(ops.Anchors(sizes, ratios, stride), np.zeros((2, 1, HEIGHT, WIDTH), np.float32))
    np.testing.assert_array_equal(got, np.stack([expected.numpy()] * 2))


@given(st.integers(0, 2**32))
def test_boxes_are_decoded_as_torchvision_does(seed: int) -> None:
    anchors, deltas = inputs(ops.Decode(), 2, seed)
    rows = torchvision.models.detection.rpn.permute_and_flatten(wide(deltas), 2, A, 4, HEIGHT, WIDTH)
    coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    expected = coder.decode_single(rows.flatten(0, 1), wide(anchors).flatten(0, 1)).view(2, -1, 4)
    np.testing.assert_allclose(reference(ops.Decode(), anchors, deltas), expected.numpy(), rtol=1e-11, atol=1e-11)


@given(st.integers(0, 2**32))
def test_boxes_are_cut_as_torchvision_does(seed: int) -> None:
    x, image = inputs(ops.ClipBoxes(), 2, seed)
    expected = torchvision.ops.clip_boxes_to_image(wide(x), image.shape[2:])
    np.testing.assert_array_equal(reference(ops.ClipBoxes(), x, image), expected.numpy())


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, COUNT + 5), st.integers(1, COUNT + 5), st.sampled_from([0, 0.25, 0.5, 2]))
def test_boxes_are_suppressed_as_by_torchvision(seed: int, pre: int, keep: int, iou: float) -> None:
    op = ops.Nms(pre, keep, iou)
    x, score = inputs(op, 2, seed)
    score[score == np.inf] = 2  # torchvision sorts NaN before infinity
    expected = np.zeros((2, keep, 5))
    for n, (image, flat) in enumerate(zip(wide(x), wide(score.transpose(0, 2, 3, 1)).flatten(1), strict=True)):
        best = flat.sort(descending=True, stable=True).indices[:pre]
        best = best[nms(image[best], flat[best], iou)][:keep]
        expected[n, : len(best)] = torch.cat([image[best], flat[best, None]], 1).numpy()
    np.testing.assert_array_equal(reference(op, x, score), expected)


@given(st.integers(0, 2**32), st.integers(1, 25))
def test_the_best_of_several_lists(seed: int, k: int) -> None:
    lists = inputs(ops.Top(k), 2, seed)
    expected = np.zeros((2, k, 5))
    for n in range(2):
        rows = [row for x in lists for row in x[n]]
        rows.sort(key=lambda row: -np.inf if np.isnan(row[4]) else -row[4])
        expected[n, : len(rows)] = rows[:k]
    np.testing.assert_array_equal(reference(ops.Top(k), *lists), expected)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(2, 4))
def test_levels_are_those_of_torchvision(seed: int, count: int) -> None:
    op = ops.RoiAlignPyramid((3, 2), SCALES[:count])
    rois, *levels = used(op, inputs(op, 2, seed))
    rois = np.minimum(rois, np.array([640, 480, 640, 480], np.float32))  # torchvision's Python reads on outside
    pooler = torchvision.ops.MultiScaleRoIAlign(list("0123"), (3, 2), 2)
    pooler.scales, pooler.map_levels = op.scales, torchvision.ops.poolers.initLevelMapper(2, 1 + count)
    with compiled_ops():
        expected = pooler({str(i): wide(x) for i, x in enumerate(levels)}, list(wide(rois)), [])
    np.testing.assert_allclose(reference(op, rois, *levels), expected.numpy(), rtol=1e-11, atol=1e-11)
