"""Which kernels convolutions of the target `cpu` have, and programs that have two of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tvm import te

import cnnc
from cnnc_tvm import conv_direct_plan, conv_winograd_plan, kernels_cpu
from cnnc_tvm.builder import untuned
from cnnc_tvm.conv_shape import ConvShape, Machine
from numerics import assert_agree, assert_node_agrees, random_inputs, random_weights

SERVER = Machine(lanes=16, registers=32, cores=2)


def plans(channels: int, size: int, batch: Any, kernel: int = 3) -> list[kernels_cpu.Plan]:
    pads = (kernel // 2,) * 4
    shape = ConvShape(batch, channels, channels, (size, size), (kernel, kernel), pads=pads)
    return kernels_cpu.best_plans(shape, SERVER, untuned, plain=False)


def test_a_batch_of_any_size_has_a_kernel_for_few_images_and_one_for_many() -> None:
    few, many = plans(512, 7, te.var("n", "int32"))
    assert isinstance(few, conv_direct_plan.Plan)
    assert isinstance(many, conv_winograd_plan.Plan)
    assert [few] == plans(512, 7, kernels_cpu.FEW)
    assert [many] == plans(512, 7, kernels_cpu.MANY)


@pytest.mark.parametrize(("channels", "size", "kernel"), [(64, 56, 3), (256, 28, 1)])
def test_one_kernel_is_enough_where_it_is_good_for_both(channels: int, size: int, kernel: int) -> None:
    assert len(plans(channels, size, te.var("n", "int32"), kernel)) == 1


def test_what_was_tuned_goes_before_what_is_expected() -> None:
    shape = ConvShape(te.var("n", "int32"), 64, 64, (56, 56), (1, 1))
    (own,) = kernels_cpu.best_plans(shape, SERVER, untuned, plain=False)
    assert isinstance(own, conv_direct_plan.Plan)
    other = replace(own, weights_once=not own.weights_once)
    assert kernels_cpu.best_plans(shape, SERVER, lambda shape, plain: other, plain=False) == [other]


def test_both_kernels_agree() -> None:
    graph = cnnc.load("model M { input x: f32[N, 512, 7, 7] output y y = x -> conv(512, 3, pad=1) }")
    weights = random_weights(graph)
    program = cnnc.compile(graph, "cpu", weights)
    for batch in (1, 3, 4, 9):
        inputs = random_inputs(graph, N=batch)
        assert_node_agrees(graph, weights, inputs, program(**inputs), winograd=True)


LAYERS = (
    "conv(40, 7, s=2, pad=3)", "conv(40, 3, pad=1) -> bn -> relu", "conv(40, 3, pad=1, groups=40) -> bn -> clip(0, 6)",
    "conv(48, 1) -> silu", "conv(48, 3, s=2, pad=1, groups=12) -> relu", "deconv(32, 4, s=2, pad=1)",
    "add { conv(32, 3, pad=1) -> bn | id } -> relu", "conv(5, 3, pad=1) -> tanh", "conv(24, 1)", "conv(7, 3, pad=1)",
)  # fmt: skip
"""Of a network that has each kind of kernel: of images that lie plainly, of few channels, of Winograd, in groups."""


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_kernels_of_16_bit_types_agree(dtype: str) -> None:
    layers = "\n".join(f"y{i + 1} = y{i} -> {layer}" for i, layer in enumerate(LAYERS))
    outputs = ", ".join(f"y{i + 1}" for i in range(len(LAYERS)))
    graph = cnnc.load(f"model M {{ input y0: {dtype}[N, 3, 40, 44] output {outputs} {layers} }}")
    weights = random_weights(graph)
    program = cnnc.compile(graph, "cpu", weights)
    for batch in (1, 4):
        inputs = random_inputs(graph, N=batch)
        assert_agree(graph, weights, inputs, program(**inputs))
