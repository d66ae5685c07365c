"""Convolutions computed row by row, one after the other: bit for bit what each gives by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import sym, te, tirx

import cnnc
from cnnc.profiling import profile
from cnnc_tvm import conv_depthwise, conv_direct, conv_direct_plan
from cnnc_tvm.conv_rows import Plan, choose, newly_reached, plan, takes, write
from cnnc_tvm.conv_shape import AMX, DOT, ConvShape, Machine
from cnnc_tvm.lower import lower
from cnnc_tvm.rules import CPU
from cnnc_tvm.runtime import TvmProgram
from conftest import Cli
from conv_kernels import blocked, execute, filled, unblocked
from numerics import Array, assert_agree, random_inputs, random_weights

AVX2 = Machine(lanes=8, registers=16)
AVX512 = Machine(lanes=16, registers=32, cores=2)
ANALYZER = sym.Analyzer()
PADS = (1, 1, 1, 1)


def pointwise(channels: int, filters: int, image: tuple[int, int], batch: Any = 1) -> ConvShape:
    return ConvShape(batch, channels, filters, image, (1, 1))


def depthwise(
    channels: int, image: tuple[int, int], kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = PADS, batch: Any = 1, dilation: int = 1, width: int = 1,
) -> ConvShape:  # fmt: skip
    return ConvShape(
        batch, channels, channels, image, kernel, stride, (dilation, dilation), pads, groups=channels // width
    )


def block(
    channels: int, inner: int, filters: int, window: ConvShape, *, before: bool = True, after: bool = True
) -> list[ConvShape]:
    """A depthwise convolution with pointwise ones around it."""
    first = [pointwise(channels, inner, window.image, window.batch)] if before else []
    last = [pointwise(inner, filters, window.out, window.batch)] if after else []
    return [*first, window, *last]


def relu(bias: Any, lanes: int) -> Any:
    zero = tirx.const(0.0, "float32")
    return lambda value, n, block, lane, i, j: tirx.max(value + bias[block * lanes + lane], zero)


def check(shapes: Sequence[ConvShape], plan: Plan, batch: int) -> None:
    """Both ways on the same numbers, with a bias and a ReLU after each."""
    rng, lanes = np.random.default_rng(0), plan.stages[0].lanes
    x = blocked(rng.standard_normal((batch, shapes[0].channels, *shapes[0].image), np.float32), lanes)
    sizes = [(s.filters, s.channels // s.groups, *s.kernel) for s in shapes]
    weights = [rng.standard_normal(size, np.float32) for size in sizes]
    biases = [filled(rng.standard_normal(s.filters, np.float32), lanes) for s in shapes]
    packed = [
        conv_direct.pack(w, stage) if isinstance(stage, conv_direct_plan.Plan) else conv_depthwise.pack(w, stage)
        for w, stage in zip(weights, plan.stages, strict=True)
    ]
    count = len(shapes)

    def together(x: Any, *buffers: Any) -> None:
        finishes = [relu(bias, lanes) for bias in buffers[count : 2 * count]]
        write(shapes, plan, finishes, x, buffers[:count], buffers[-1])

    got = execute(together, [x, *packed, *biases], _size(shapes[-1], lanes), shapes[0].batch)
    for shape, stage, w, bias in zip(shapes, plan.stages, packed, biases, strict=True):
        alone = partial(_alone, shape, stage)
        x = execute(alone, [x, w, bias], _size(shape, lanes), shape.batch)
    np.testing.assert_array_equal(unblocked(got, shapes[-1].filters), unblocked(x, shapes[-1].filters))


def _alone(shape: ConvShape, stage: Any, x: Any, w: Any, bias: Any, out: Any) -> None:
    kernel: Any = conv_direct if isinstance(stage, conv_direct_plan.Plan) else conv_depthwise
    kernel.write(shape, stage, relu(bias, stage.lanes), x, w, out)


def _size(shape: ConvShape, lanes: int) -> tuple[int, ...]:
    return (-(-shape.filters // lanes), *shape.out, lanes)


@pytest.mark.parametrize("machine", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize(
    "shapes",
    [
        block(24, 40, 20, depthwise(40, (9, 11))),
        block(16, 48, 24, depthwise(48, (10, 13), stride=(2, 2))),
        block(8, 24, 8, depthwise(24, (8, 8), (5, 5), pads=(2, 2, 2, 2)), after=False),
        block(0, 36, 9, depthwise(36, (7, 9), (3, 5), (2, 1), (0, 2, 1, 2)), before=False),
        block(40, 100, 33, depthwise(100, (2, 3), (5, 5), pads=(2, 2, 2, 2))),
        block(16, 32, 16, depthwise(32, (9, 9), pads=(2, 2, 2, 2), dilation=2)),
        block(16, 16, 8, depthwise(16, (9, 4), stride=(3, 3), pads=(0, 0, 0, 0), width=4)),
        block(16, 16, 8, depthwise(16, (9, 5), (1, 3), (2, 1), (0, 1, 0, 1))),
        block(16, 16, 8, depthwise(16, (5, 6), (1, 1), (1, 1), (0, 0, 1, 0))),
    ],
    ids=str,
)
def test_is_the_same(shapes: list[ConvShape], machine: Machine) -> None:
    assert takes(shapes, machine.lanes)
    check(shapes, plan(shapes, machine), 1)


@settings(max_examples=12)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)), stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4), image=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 40), inner=st.integers(1, 40), filters=st.integers(1, 40), chunk=st.integers(1, 9),
    ends=st.sampled_from([(True, True), (True, False), (False, True)]), batch=st.integers(1, 2),
)  # fmt: skip
def test_any_sizes_and_rows_of_a_task(
    kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int, int, int], image: tuple[int, int],
    channels: int, inner: int, filters: int, chunk: int, ends: tuple[bool, bool], batch: int,
) -> None:  # fmt: skip
    high, wide = (image[0] + pads[0] + pads[2], image[1] + pads[1] + pads[3])
    kernel = (min(kernel[0], high), min(kernel[1], wide))
    inner = max(inner, 2)  # depthwise in one group would be an ordinary convolution
    window = depthwise(inner, image, kernel, stride, pads, batch)
    shapes = block(channels, inner, filters, window, before=ends[0], after=ends[1])
    own = plan(shapes, AVX512)
    check(shapes, replace(own, chunk=min(chunk, window.out[0])), batch)


@pytest.mark.parametrize(
    "shape",
    [
        depthwise(8, (9, 5)), depthwise(8, (10, 5), stride=(2, 1)), depthwise(8, (9, 5), (5, 1), pads=(2, 0, 2, 0)),
        depthwise(8, (11, 5), (1, 1), (3, 1), (0, 0, 0, 0)), depthwise(8, (12, 5), dilation=2, pads=(2, 2, 2, 2)),
        depthwise(8, (2, 5), (5, 1), pads=(4, 0, 4, 0)),
    ],
    ids=str,
)  # fmt: skip
def test_a_task_computes_each_row_that_it_needs_once(shape: ConvShape) -> None:
    height, top, stride, dilation = shape.image[0], shape.pads[0], shape.stride[0], shape.dilation[0]
    for first in range(shape.out[0]):
        made: list[int] = []
        for i in range(first, shape.out[0]):
            made.extend(range(*(int(ANALYZER.simplify(row)) for row in newly_reached(shape, i, first))))
            needed = {i * stride - top + r * dilation for r in range(shape.kernel[0])} & {*range(height)}
            held = made[-min(shape.span[0], height) :]
            assert needed <= {*held}
        assert made == sorted({*made})
        assert len(made) <= (shape.out[0] - first) * min(stride, shape.span[0]) + max(0, shape.span[0] - stride)


def test_a_task_needs_nothing_of_another(tmp_path: Path) -> None:
    """Two threads have a task each: in one, the ring would still hold the rows of the task before."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_conv_rows import AVX512, block, check, depthwise, plan
shapes = block(16, 40, 16, depthwise(40, (8, 9)))
own = plan(shapes, AVX512)
assert own.chunk == 4
check(shapes, own, 1)
"""
    environment = os.environ | {"TVM_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


def test_batch_known_when_it_runs() -> None:
    n = te.var("n", "int32")
    shapes = block(16, 40, 16, depthwise(40, (6, 7), batch=n))
    check(shapes, plan(shapes, AVX512), 3)


def test_what_is_taken() -> None:
    before, window, after = block(16, 64, 32, depthwise(64, (8, 8)))
    assert takes([before, window], 16)
    assert takes([before, window, after], 16)
    assert takes([window, after], 16)
    assert not takes([window, pointwise(64, 64, (8, 8))], 16)  # which may be the first of others
    assert not takes([before, pointwise(64, 32, (8, 8))], 16)
    assert not takes([window, window], 16)
    assert not takes([before, window, after, window], 16)
    assert not takes([replace(before, stride=(2, 2)), window], 16)
    assert not takes([before, replace(window, groups=2)], 16)
    assert not takes([before, replace(window, groups=4)], 16)  # of which each fills a vector: computed directly


INVERTED = {
    "112": (16, 96, 24, 112, 2), "56": (24, 144, 24, 56, 1), "28": (32, 192, 32, 28, 1), "14": (64, 384, 64, 14, 1),
    "7": (160, 960, 160, 7, 1),
}  # fmt: skip
"""Of MobileNetV2, by the size of their images."""


def inverted(size: str, batch: Any) -> list[ConvShape]:
    channels, inner, filters, image, stride = INVERTED[size]
    return block(channels, inner, filters, depthwise(inner, (image, image), stride=(stride, stride), batch=batch))


@pytest.mark.parametrize(
    ("batch", "together"),
    [(1, "112 56"), (8, "112 56 28 14"), (te.var("n", "int32"), "112 56 28")],
    ids=["1", "8", "n"],
)
def test_chosen_where_the_images_between_do_not_fit_the_caches_but_the_weights_do(batch: Any, together: str) -> None:
    assert [size for size in INVERTED if choose(inverted(size, batch), AVX512)] == together.split()


def test_not_chosen_where_rows_are_short_or_computed_twice() -> None:
    """Of images that do not fit the caches."""
    long = block(16, 96, 24, depthwise(96, (16000, 3)))
    assert choose(long, AVX512) is None
    assert choose(block(16, 96, 24, depthwise(96, (16000, 4))), AVX512)
    many = replace(AVX512, cores=8, l2=2**17)
    assert plan(inverted("56", 1), many).chunk == 7
    assert choose(block(8, 48, 8, depthwise(48, (56, 112))), many) is None
    assert choose(block(8, 48, 8, depthwise(48, (448, 14))), many)


def test_no_core_has_more_rows_than_it_must() -> None:
    assert plan(inverted("56", 1), AVX512).chunk == 28
    assert plan(inverted("56", 8), AVX512).chunk == 56
    assert plan(inverted("56", 3), AVX512).chunk == 28
    assert plan(inverted("56", 1), replace(AVX512, cores=16)).chunk == 4


# programs


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are joined too."""
    monkeypatch.setattr("cnnc_tvm.conv_rows._MANY", 0)


def compiled(text: str, weights: dict[str, Array] | None = None) -> tuple[cnnc.Graph, dict[str, Array], TvmProgram]:
    graph = cnnc.load(text)
    weights = weights or random_weights(graph)
    program = cnnc.compile(graph, "cpu", weights, cache=False, bf16="off")  # as on processors that lack these kernels
    assert isinstance(program, TvmProgram)
    return graph, weights, program


BLOCK = "conv(40, 1) -> bn -> clip(0, 6) -> conv(40, 3, pad=1, groups=40) -> bn -> {act} -> conv(24, 1) -> bn"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (f"x -> add {{ {BLOCK.format(act='relu')} | id }}", [3]),
        (f"x -> {BLOCK.format(act='hard_swish')} -> silu", [3]),
        (f"x -> {BLOCK.format(act='leaky_relu(0.1)')} -> prelu -> {BLOCK.format(act='prelu')}", [3, 3]),
        ("x -> conv(40, 1) -> conv(40, 3, s=2, pad=1, groups=40) -> relu -> mul { id | gap -> sigmoid }", [2]),
        ("x -> conv(24, 3, pad=1, groups=24) -> relu -> conv(24, 1)", []),
        (f"x -> conv(48, 1) -> add {{ slice(16, 48) -> {BLOCK.format(act='relu')} | slice(0, 24) }}", [3]),
        ("x -> add { conv(40, 3, pad=1) | conv(40, 1) } -> relu -> conv(40, 3, pad=1, groups=40) -> conv(24, 1)", [3]),
        ("x -> conv(1, 1) -> conv(40, 1) -> conv(40, 3, pad=1, groups=40)", []),  # of images that lie plainly
        ("x -> deconv(24, 1) -> conv(24, 3, pad=1, groups=24)", []),
        ("x -> conv(40, 3, pad=1) -> conv(40, 3, pad=1, groups=40) -> conv(8, 1)", [2]),
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_programs_agree(text: str, joined: list[int], dtype: str) -> None:
    graph, weights, program = compiled(f"model M {{ input x: {dtype}[N, 24, 8, 9] output y y = {text} }}")
    assert [len(step.nodes) for step in program.plan.steps if len(step.nodes) > 1] == joined
    for batch in (1, 3):
        inputs = random_inputs(graph, N=batch)
        assert_agree(graph, weights, inputs, program(**inputs))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("engine", "joined"), [("", [3]), (DOT, [2]), (AMX, [])])
def test_with_kernels_of_bf16(engine: str, joined: list[int]) -> None:
    """Dot products are left to a first convolution that they suit, but only those of AMX are faster than all in one."""
    graph = cnnc.load("model M { input x: bf16[1, 64, 8, 9] output y y = x -> " + BLOCK.format(act="relu") + " }")
    steps = lower(graph, random_weights(graph), CPU, replace(AVX512, pairs=engine)).plan.steps
    assert [len(step.nodes) for step in steps if len(step.nodes) > 1] == joined


@pytest.mark.usefixtures("always")
def test_a_step_tells_the_nodes_it_computes() -> None:
    text = f"a = x -> {BLOCK.format(act='relu')} y = a -> maxpool(2)"
    _, _, program = compiled(f"model M {{ input x: f32[N, 24, 8, 9] output y {text} }}")
    (step,) = (step for step in program.plan.steps if len(step.nodes) > 1)
    assert step.function.startswith("conv_clip_conv_relu_conv")
    assert step.nodes == ("0", "3", "6")


@pytest.mark.usefixtures("always")
def test_what_is_read_elsewhere_too_is_stored() -> None:
    text = "a = x -> conv(40, 1) b = a -> conv(40, 3, pad=1, groups=40) y = b -> conv(24, 1)"
    for outputs, joined in (("y", [3]), ("y, b", [2]), ("y, a", [2]), ("y, a, b", [])):
        graph, weights, program = compiled(f"model M {{ input x: f32[N, 24, 8, 9] output {outputs} {text} }}")
        assert [len(step.nodes) for step in program.plan.steps if len(step.nodes) > 1] == joined
        inputs = random_inputs(graph, N=2)
        assert_agree(graph, weights, inputs, program(**inputs))


@pytest.mark.parametrize("layer", ["conv(40, 3, groups=4)", "conv(24, 8, s=2)", "conv(40, 3, pad=1, groups=40)"])
def test_an_image_is_stored_once_where_it_is_not_taken_in(layer: str) -> None:
    """Even if no kernel computes what reads it."""
    text = f"y = x -> conv(40, 1) -> relu -> {layer}"
    _, _, program = compiled(f"model M {{ input x: f32[N, 24, 8, 9] output y {text} }}")
    made = [(step.function, step.args[:-1]) for step in program.plan.steps]
    assert len({*made}) == len(made)
    assert all(len(step.nodes) == 1 for step in program.plan.steps)


def test_bf16_is_left_to_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the kernel of a pointwise convolution makes more than is saved between it and a depthwise one."""
    monkeypatch.setattr("cnnc_tvm.conv_rows._MANY", 0)
    graph = cnnc.load(f"model M {{ input x: bf16[N, 24, 28, 28] output y y = x -> {BLOCK.format(act='relu')} }}")
    for pairs, joined in (("", 1), ("amx", 0)):
        lowered = lower(graph, random_weights(graph), CPU, replace(AVX512, pairs=pairs))
        assert sum(len(step.nodes) > 1 for step in lowered.plan.steps) == joined


@pytest.mark.usefixtures("always")
def test_a_profile_has_each_layer_once() -> None:
    graph = cnnc.load(f"model M {{ input x: f32[2, 24, 8, 9] output y y = x -> {BLOCK.format(act='relu')} }}")
    found = profile(graph, 0, random_inputs(graph), runs=1, cache=False)
    (layer,) = found.layers
    assert [node.op.name for node in (*layer.before, layer.node)] == ["fused", "fused", "conv"]
    assert len(layer.functions) == 3  # the image in blocks, the convolutions, the result as it lies plainly
    assert layer.macs == 2 * 72 * (24 * 40 + 40 * 9 + 40 * 24)


@pytest.mark.usefixtures("always")
def test_lines_of_layers_that_are_timed_with_a_later_one_are_marked(cli: Cli, tmp_path: Path) -> None:
    layers = "y = x\n-> conv(40, 1) -> relu\n-> conv(40, 3, pad=1, groups=40)\n-> conv(24, 1)\n"
    (tmp_path / "net.cnn").write_text(f"model M {{ input x: f32[2, 24, 8, 9] output y\n{layers}}}")
    lines = cli("profile", tmp_path / "net.cnn", "--runs", 1, "--no-cache", "--annotate").stdout.splitlines()[2:8]
    assert [line.partition("|")[0].split()[:1] for line in lines[:4]] == [[], [], ["↓"], ["↓"]]
    assert float(lines[4].split()[0]) > 0
