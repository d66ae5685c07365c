"""Images whose rows and columns only the running program knows: the kernels of `cpu` for them, at sizes that fill no
tile, just one, and several with some columns left."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import te

import cnnc
from cnnc_tvm import conv_depthwise, conv_direct_plan, conv_winograd_plan, kernels_cpu
from cnnc_tvm.builder import untuned
from cnnc_tvm.conv_shape import ConvShape, Machine
from guarded_memory import guarded
from numerics import assert_agree, random_inputs, random_weights
from random_checks import compiled

DIRECT = (
    "conv(48, 3, pad=1) -> relu", "conv(40, 3, s=2, pad=1)", "conv(33, [5, 3], s=[1, 2], pad=[0, 4, 1, 3])",
    "conv(24, 3, dilation=3, pad=3)", "conv(32, 3, pad=1, groups=2)", "conv(3, 3, pad=1)", "conv(16, 1, pad=1)",
    "conv(40, 1) -> relu -> add { conv(40, 1) | id } -> relu", "conv(16, 1, s=2)", "conv(24, 3, pad=1, groups=8)",
    "add { conv(32, 1) | avgpool(3, s=1, pad=1) }", "add { conv(32, 5, pad=2) | avgpool(3, s=1, pad=1) } -> relu",
    'conv(24, 3, s=2, pad="same_upper")', "conv(32, 3, pad=1) -> conv(48, 3, pad=1, groups=4)",
)  # fmt: skip
"""Convolutions of x: f32[N, 32, H, W]; the sums are written over their other operand."""
OTHERS = (
    "conv(32, 3, pad=1, groups=32)", "conv(32, 5, s=2, pad=[0, 3, 2, 1], groups=32) -> relu",
    "conv(32, [3, 1], groups=32)", "conv(32, 3, pad=1, groups=8)", "maxpool(3, s=2, pad=1)", "avgpool(3, s=1, pad=1)",
    "gap", "gmp", "lrn(5)", "concat { conv(16, 1) | maxpool(3, s=1, pad=1) } -> conv(24, 1)",
    "conv(16, 3, s=2, pad=1) -> deconv(16, 4, s=2, pad=1)", "slice(16, 32) -> conv(16, 3, pad=1)",
    "deconv(24, 3, groups=8)", "deconv(3, 2, s=2)", "maxpool(3, s=2, ceil=true)", "maxpool(2, s=1, dilation=2)",
    'maxpool(3, s=2, pad="same_upper")', "slice(3, 29) -> relu",
)  # fmt: skip
"""Depthwise ones, pooling, and what joins and cuts."""
SIZES = {
    "H, W": ((4, 3), (7, 7), (14, 30), (4, 61)), "H, 30": ((4, 30),), "9, W": ((9, 4), (9, 33)),
}  # fmt: skip
PROGRAMS = [*((image, "cpu") for image in SIZES), ("H, W", "narrow")]


def check(layers: tuple[str, ...], image: str, target: str, channels: int = 32, dtype: str = "f32") -> None:
    lines = "\n".join(f"y{i} = x -> {layer}" for i, layer in enumerate(layers))
    outputs = ", ".join(f"y{i}" for i in range(len(layers)))
    graph = cnnc.load(f"model M {{ input x: {dtype}[N, {channels}, {image}] output {outputs} {lines} }}")
    weights = random_weights(graph)
    program = guarded(compiled(graph, target, weights))
    for sizes in SIZES[image]:
        dims = {name: size for name, size in zip("HW", sizes, strict=True) if name in image}
        inputs = random_inputs(graph, N=2, **dims)
        assert_agree(graph, weights, inputs, program(**inputs), winograd=True)


@pytest.mark.parametrize(("image", "target"), PROGRAMS)
def test_direct_convolution(image: str, target: str) -> None:
    check(DIRECT, image, target)


@pytest.mark.parametrize(("image", "target"), PROGRAMS)
def test_depthwise_convolution_and_pooling(image: str, target: str) -> None:
    check(OTHERS, image, target)


@pytest.mark.parametrize("image", SIZES)
def test_images_of_few_channels(image: str) -> None:
    """They lie plainly."""
    check(("conv(16, 7, s=2, pad=3) -> relu", "conv(2, 3)", "conv(20, 1)", "maxpool(2)"), image, "cpu", channels=3)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bits(dtype: str) -> None:
    layers = ("conv(24, 3, pad=1) -> relu", "conv(32, 1)", "conv(24, 3, groups=4)", "deconv(24, 3, groups=8)", "gap")
    check(layers, "H, 30", "cpu", dtype=dtype)


def test_a_single_place() -> None:
    """And a window that is larger than the image."""
    graph = cnnc.load(
        "model M { input x: f32[N, 32, H, W] output a, b, c, d\n a = x -> conv(32, 7, pad=3)\n"
        "b = x -> conv(32, 1)\n c = x -> conv(32, 5, pad=2, groups=32)\n d = x -> maxpool(3, pad=1) }"
    )
    weights, inputs = random_weights(graph), random_inputs(graph, N=3, H=1, W=1)
    assert_agree(graph, weights, inputs, guarded(compiled(graph, "cpu", weights))(**inputs))


@pytest.mark.parametrize("image", SIZES)
def test_winograd(image: str) -> None:
    check(("conv(96, 3, pad=1) -> relu -> conv(64, 3, pad=1)", "conv(70, 3, pad=2) -> tanh"), image, "cpu", channels=64)


SERVER = Machine(lanes=16, registers=32, cores=2)


def plans(channels: int, kernel: int = 3, groups: int = 1, machine: Machine = SERVER) -> list[type[Any]]:
    n, h, w = (te.var(name, "int32") for name in "nhw")
    shape = ConvShape(n, channels, channels, (h, w), (kernel, kernel), pads=(kernel // 2,) * 4, groups=groups, area=h)
    return list(map(type, kernels_cpu.best_plans(shape, machine, untuned, plain=False)))


def test_small_images_have_too_few_tiles_for_winograd() -> None:
    plan = conv_winograd_plan.Plan(4, 16, 16, 1, 14, 2)
    shapes = [ConvShape(1, 64, 64, (size, size), (3, 3), pads=(1, 1, 1, 1)) for size in (7, 8, 9, 56)]
    assert [conv_winograd_plan.few(shape, plan) for shape in shapes] == [True, True, False, False]


def test_the_kernels() -> None:
    assert plans(64) == plans(512) == [conv_direct_plan.Plan, conv_winograd_plan.Plan]
    assert plans(64, machine=Machine(lanes=16, registers=32, winograd=False)) == [conv_direct_plan.Plan]
    assert plans(64, kernel=1) == plans(64, kernel=5) == plans(64, groups=4) == [conv_direct_plan.Plan]
    assert plans(64, groups=64) == [conv_depthwise.Plan]
    assert plans(72, groups=3) == []


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_known_width_is_made_use_of(kernel: int) -> None:
    shape = ConvShape(1, 64, 64, (te.var("h", "int32"), 28), (kernel, kernel), pads=(kernel // 2,) * 4)
    assert conv_direct_plan.choose_for_any(shape, SERVER).columns == 14
