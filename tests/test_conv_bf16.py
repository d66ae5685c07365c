"""The kernels of convolution in bf16, alone and in programs, against the reference: by the processor's own instructions
where it has them, else by their emulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.types import DType, TensorType
from cnnc_tvm import INSTRUCTIONS, CpuTarget, build_cpu, conv_bf16, instructions, kernels_cpu
from cnnc_tvm.builder import untuned
from cnnc_tvm.conv_bf16 import Plan, choose, pack, write
from cnnc_tvm.conv_shape import AMX, DOT, ConvShape, Machine
from conv_kernels import blocked, filled, run
from numerics import assert_agree, assert_node_agrees, random_inputs, random_weights, single
from x86_emulator import available, emulated, native

MACHINES = {engine: Machine(lanes=16, registers=32, cores=2, pairs=engine) for engine in (AMX, DOT)}
COUNTED = {AMX: ("amx_bf16", "tdpbf16ps"), DOT: ("avx512_bf16", "vdpbf16ps")}
ENGINES = pytest.mark.parametrize("engine", [AMX, DOT])
runs = pytest.mark.skipif(not available(), reason="needs AVX-512 and a C compiler")

SAME = (1, 1, 1, 1)
SHAPES = [
    ConvShape(2, 32, 48, (5, 31), (3, 3), pads=SAME),
    ConvShape(1, 20, 40, (13, 17), (3, 3), (2, 2), pads=(0, 1, 1, 0)),
    ConvShape(1, 70, 16, (7, 7), (3, 3), pads=SAME),
    ConvShape(1, 16, 24, (11, 20), (5, 3), (1, 2), (2, 3), (4, 3, 2, 5)),
    ConvShape(1, 17, 19, (1, 1), (3, 3), pads=SAME),
    ConvShape(1, 33, 17, (6, 5), (7, 7), (3, 2), pads=(3, 3, 3, 3)),
    ConvShape(1, 16, 16, (1, 40), (1, 9), pads=(0, 8, 0, 3)),
    ConvShape(1, 16, 32, (4, 30), (3, 3), dilation=(12, 12), pads=(12, 12, 12, 12)),
    ConvShape(2, 40, 80, (7, 8), (1, 1)),
    ConvShape(1, 32, 32, (7, 9), (1, 1), (2, 2)),
    ConvShape(1, 16, 16, (3, 4), (1, 1), (3, 2), pads=(1, 0, 0, 2)),
    ConvShape(1, 48, 100, (4, 4), (1, 1)),
]


def target(engine: str) -> Any:
    """A processor that has what this one needs to have, and the instructions of the engine."""
    more = ["+amx-tile", "+amx-bf16"] if engine == AMX else []
    options = build_cpu._LLVM_OPTIONS
    return tvm.target.Target({"kind": "llvm", "mcpu": "cooperlake", "mattr": more, "cl-opt": options})


def ran(engine: str, emulation: Any) -> bool:
    """Whether the instructions were met."""
    flag, name = COUNTED[engine]
    return native(flag) or emulation.count(name) > 0


def check(shape: ConvShape, plan: Plan, batch: int | None = None) -> None:
    op = ops.Conv(shape.filters, shape.kernel, stride=shape.stride, pad=shape.pads, dilation=shape.dilation)
    graph = single(op, TensorType((batch or shape.batch, shape.channels, *shape.image), DType.BF16))
    weights, inputs = random_weights(graph), random_inputs(graph)
    kernel, bias = weights["node.weight"], weights["node.bias"].astype(np.float32)
    image = blocked(inputs["x0"].astype(np.float32), 16)
    if beside := -shape.channels % 16:  # what a slice has there may be anything
        image[:, -1, :, :, -beside:] = np.nan

    def emit(x: Any, w: Any, b: Any, out: Any) -> None:
        write(shape, plan, lambda value, n, block, lane, i, j: value + b[block * 16 + lane], x, w, out)

    instructions.tiles_granted()  # where there are any, they are asked for
    with emulated() as emulation:
        packed = pack(kernel).view(np.uint16)
        y = run(emit, shape, 16, image, packed, filled(bias, 16), target(plan.engine))
    assert ran(plan.engine, emulation)
    assert_node_agrees(graph, weights, inputs, {"y": y.astype(kernel.dtype)})


@runs
@ENGINES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(shape: ConvShape, engine: str) -> None:
    check(shape, choose(shape, MACHINES[engine]))


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    """Small ones whose windows fit the padded image."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    image, kernel, stride, dilation = pair(1, 9), pair(1, 4), pair(1, 3), pair(1, 3)
    (top, left), (bottom, right) = pair(0, 3), pair(0, 3)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    bottom, right = max(bottom, span[0] - image[0] - top), max(right, span[1] - image[1] - left)
    channels, filters = pair(16, 50)
    return ConvShape(1, channels, filters, image, kernel, stride, dilation, (top, left, bottom, right))


@runs
@ENGINES
@pytest.mark.slow
@settings(max_examples=15)
@given(shape=shapes())
def test_any_shape_agrees(shape: ConvShape, engine: str) -> None:
    check(shape, choose(shape, MACHINES[engine]))


@runs
@ENGINES
def test_any_plan(engine: str) -> None:
    """Chunks that do not divide the rows, panels that do not divide the filters, and every number of places."""
    shape = ConvShape(1, 16, 80, (5, 6), (3, 3), pads=SAME)
    for chunk, panels in (2, 1), (1, 2), (5, 3):
        check(shape, replace(choose(shape, MACHINES[engine]), chunk=chunk, panels=panels))
    if engine == DOT:
        for places in (1, 7, 13):
            check(shape, replace(choose(shape, MACHINES[engine]), places=places))


@runs
@ENGINES
def test_batch_known_when_it_runs(engine: str) -> None:
    shape = ConvShape(te.var("n", "int32"), 16, 32, (5, 6), (3, 3), pads=SAME)
    for batch in (1, 3):
        check(shape, choose(replace(shape, batch=batch), MACHINES[engine]), batch)


@pytest.fixture(params=[AMX, DOT])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Programs are compiled for a processor with these instructions, and run here."""
    engine = str(request.param)
    monkeypatch.setattr(build_cpu, "_target", lambda mcpu: target(engine))
    monkeypatch.setattr(build_cpu, "machine", lambda mcpu, **options: MACHINES[engine])
    if not native(COUNTED[engine][0]):
        monkeypatch.setattr(instructions, "check", lambda statement: None)
    return engine


LAYERS = (
    "conv(40, 5, s=2, pad=2) -> bn -> relu", "conv(40, 3, pad=1) -> bn -> silu", "conv(48, 1) -> sigmoid",
    "add { conv(48, 3, pad=1) -> bn | id } -> relu", "conv(64, 3, s=2, pad=1)", "deconv(32, 4, s=2, pad=1)",
    "concat { conv(24, 1) | conv(40, 3, pad=1) -> clip(0, 6) }", "conv(5, 3, pad=1) -> tanh", "conv(16, 1)",
    "concat { conv(32, 1) | conv(32, 3, pad=1) } -> relu", "slice(16, 64) -> conv(32, 3)", "deconv(32, 3, s=1, pad=1)",
    "conv(32, 3, pad=2, dilation=2) -> maxpool(2)", "conv(32, 2) -> gap -> conv(32, 1)",
)  # fmt: skip
"""Those around kernels of bf16 have others: images of few channels, what is between the places of a stride."""


@runs
def test_programs_agree(engine: str) -> None:
    layers = "\n".join(f"y{i + 1} = y{i} -> {layer}" for i, layer in enumerate(LAYERS))
    outputs = ", ".join(f"y{i + 1}" for i in range(len(LAYERS)))
    graph = cnnc.load(f"model M {{ input y0: bf16[N, 3, 17, 22] output {outputs} {layers} }}")
    weights = random_weights(graph)
    program = CpuTarget().compile(graph, weights)
    for batch in (1, 4):
        inputs = random_inputs(graph, N=batch)
        with emulated() as emulation:
            outputs = program(**inputs)
        assert ran(engine, emulation)
        assert_agree(graph, weights, inputs, outputs)


def test_which_convolutions_of_bf16_have_them() -> None:
    """Where they are slower than Winograd's algorithm in f32, those of vectors are not taken."""
    of_3, of_1 = (ConvShape(1, 64, 64, (56, 56), (k, k), pads=(k // 2,) * 4) for k in (3, 1))

    def kind(shape: ConvShape, engine: str) -> type:
        (plan,) = kernels_cpu.best_plans(shape, MACHINES[engine], untuned, plain=False)
        return type(plan)

    assert kind(of_3, AMX) is kind(of_1, AMX) is kind(of_1, DOT) is conv_bf16.Plan
    assert kind(of_3, DOT) is not conv_bf16.Plan
    assert kind(replace(of_3, groups=4), AMX) is not conv_bf16.Plan
    assert kind(replace(of_3, channels=3), AMX) is not conv_bf16.Plan


@pytest.mark.parametrize(
    ("mcpu", "pairs"), [("sapphirerapids", AMX), ("znver4", DOT), ("cooperlake", ""), ("x86-64-v4", "")]
)
def test_which_processors_have_them(mcpu: str, pairs: str) -> None:
    assert build_cpu.machine(mcpu, winograd=True).pairs == pairs


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_a_program_says_that_it_needs_them(dtype: str) -> None:
    """And one of f32 runs where they are hidden."""
    graph = cnnc.load(f"model M {{ input x: {dtype}[N, 32, 9, 9] output y y = x -> conv(32, 3) }}")
    program = CpuTarget().compile(graph, random_weights(graph), mcpu="sapphirerapids")
    needs = program.files()[INSTRUCTIONS].decode()
    assert ("amx_tile" in needs) == ("amx_bf16" in needs) == (dtype == "bf16")


@pytest.mark.skipif(native("amx_tile"), reason="the system grants it here")
def test_a_system_that_refuses_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "lacking", lambda needs: [])
    with pytest.raises(CnncError, match=r"E0626.*does not grant AMX"):
        instructions.check(instructions.stated(["amx_tile"]))


def test_they_can_be_left_out() -> None:
    graph = cnnc.load("model M { input x: bf16[N, 32, 9, 9] output y y = x -> conv(32, 3) }")
    program = CpuTarget().compile(graph, random_weights(graph), mcpu="sapphirerapids", bf16="off")
    assert "amx" not in program.files()[INSTRUCTIONS].decode()
