"""The emulator runs kernels as a GPU would, and finds what is wrong with them: each fault here is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import s_tir, te

import cnnc
from cnnc.ir.types import DType
from cnnc_tvm import CudaTarget
from cnnc_tvm.plan import Kernel, Step
from cuda_emulator import EmulatedDevice, KernelError, emulated, in_any_order
from numerics import Array, assert_agree, random_inputs, random_weights

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """What a kernel does with its input `x` and its result `y`, of so many numbers."""

    body: str
    inputs: int = 64
    results: int = 64
    grid: Sizes = (1, 1, 1)
    block: Sizes = (64, 1, 1)

    def but(self, old: str, new: str) -> Case:
        assert old in self.body
        return replace(self, body=self.body.replace(old, new))


TRANSPOSE = Case(
    """
      __shared__ float tile[16][17];
      int i = threadIdx.y, j = threadIdx.x, row = blockIdx.y * 16, column = blockIdx.x * 16;
      tile[i][j] = x[(row + i) * 64 + column + j];
      __syncthreads();
      y[(column + i) * 32 + row + j] = tile[j][i];
    """,
    32 * 64, 64 * 32, (4, 2, 1), (16, 16, 1),
)  # fmt: skip
SUM = Case(
    """
      __shared__ float sums[128];
      sums[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
      for (int half = 64; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
      }
      if (threadIdx.x == 0) y[blockIdx.x] = sums[0];
    """,
    3 * 128, 3, (3, 1, 1), (128, 1, 1),
)  # fmt: skip
SHUFFLES: dict[str, Callable[[int], int]] = {
    "__shfl_sync(all, v, 5, 16)": lambda i: i // 16 * 16 + 5,
    "__shfl_xor_sync(all, v, 3)": lambda i: i ^ 3,
    "__shfl_down_sync(all, v, 2, 8)": lambda i: i + 2 if i % 8 < 6 else i,
    "__shfl_up_sync(all, v, 4, 32)": lambda i: i - 4 if i % 32 >= 4 else i,
}
"""Which lane's value each gives."""
CASES = {
    "transpose": TRANSPOSE,
    "sum": SUM,
    "dynamic_sum": SUM.but(
        "__shared__ float sums[128];",
        "extern __shared__ __align__(16) unsigned char memory[]; float* sums = (float*)memory;",
    ),
    "vectors": Case(
        """
          float4 a = *(float4*)(x + threadIdx.x * 4);
          float2 b = make_float2(a.x + a.y, a.z);
          *(float4*)(y + threadIdx.x * 4) = make_float4(b.x, b.y, a.w, 1.0f);
        """,
        256, 256,
    ),
    "halves": Case("half2 a = ((half2*)x)[threadIdx.x]; ((half2*)y)[threadIdx.x] = make_half2(a.y * a.x, a.y);"),
    "lanes": Case("y[threadIdx.x] = __activemask() == 0xff;", 40, 40, block=(40, 1, 1)),
    "maximum": Case("y[threadIdx.x] = max(x[0], x[1]) + min(x[1], x[0]);"),
    "who_is_last": Case("y[0] = blockIdx.x * 64 + threadIdx.x;", 1, 1, (64, 1, 1)),
    **{
        f"shuffle{i}": Case(  # twice, as what a lane gives must stay until all have read it
            f"unsigned all = ~0u; float v = x[threadIdx.x]; v = {shuffle}; v = {shuffle}; y[threadIdx.x] = v;"
        )
        for i, shuffle in enumerate(SHUFFLES)
    },
}  # fmt: skip
FAULTS = {
    "no_barrier": (
        TRANSPOSE.but("__syncthreads();", ""),
        r"reads byte \d+ of shared memory `tile`, which was never written",
    ),
    "one_barrier": (
        SUM.but("__syncthreads();", "if (half == 64) __syncthreads();"),
        r"of shared memory `sums`, which (thread \(\d+, 0, 0\)|other threads) (reads|writes) with no barrier .* race",
    ),
    "same_place": (Case("y[threadIdx.x / 2] = 1;"), r"writes byte \d+ of argument 1, which thread .* race"),
    "same_place_by_blocks": (
        Case("y[threadIdx.x] = 1;", grid=(2, 1, 1)),
        r"writes byte \d+ of argument 1, which another block writes .* race",
    ),
    "read_of_other_block": (
        Case("y[threadIdx.x + blockIdx.x * 64] = blockIdx.x ? y[threadIdx.x] : 1;", results=128, grid=(2, 1, 1)),
        "reads byte .* of argument 1, which (another block writes .* race|was never written)",
    ),
    "write_after_others_read": (
        Case(
            "__shared__ float s; if (threadIdx.x == 0) s = 1; __syncthreads();"
            "float v = __shfl_sync(~0u, s, 0); if (threadIdx.x == 0) s = v; y[threadIdx.x] = v;",
            results=2, block=(2, 1, 1),
        ),
        r"thread \(0, 0, 0\) writes byte 0 of shared memory `s`, which (thread \(1|other threads).* race",
    ),
    "ended": (
        Case("if (threadIdx.x < 60)\n__syncthreads();\ny[threadIdx.x] = 0;"),
        r"divergent barrier: thread \(0, 0, 0\) waits at the barrier of line 2, but thread \(60, 0, 0\) has ended",
    ),
    "elsewhere": (
        Case("if (threadIdx.x < 60) {\n__syncthreads();\n} else {\n__syncthreads();\n} y[threadIdx.x] = 0;"),
        r"divergent barrier: thread \(0, 0, 0\) .* line 2, but thread \(60, 0, 0\) .* line 4",
    ),
    "part_of_a_warp": (
        Case("y[threadIdx.x] = threadIdx.x < 60 ? __shfl_sync(~0u, 1.0f, 0) : 0;"),
        r"divergent barrier: thread \(\d+, 0, 0\) waits for its warp, but thread \(\d+, 0, 0\) has ended",
    ),
    "read_after": (
        Case("y[threadIdx.x] = x[threadIdx.x + 1];"),
        r"thread \(63, 0, 0\) reads 4 bytes out of bounds, 0 bytes after the end of argument 0",
    ),
    "read_before": (
        Case("y[threadIdx.x] = x[(int)threadIdx.x - 1];"),
        r"thread \(0, 0, 0\) reads 4 bytes out of bounds, 4 bytes before argument 0",
    ),
    "read_across": (
        Case("float4 a = *(float4*)(x + threadIdx.x * 4); *(float4*)(y + threadIdx.x * 4) = a;", 254, 256),
        r"thread \(63, 0, 0\) reads .* bytes out of bounds",
    ),
    "read_afar": (Case("y[threadIdx.x] = x[(1 << 28) + threadIdx.x];"), "reads 4 bytes out of bounds"),
    "write_after": (
        Case("y[threadIdx.x] = 0; if (threadIdx.x == 9) y[64] = 1;"),
        r"thread \(9, 0, 0\) writes 4 bytes out of bounds, 0 bytes after the end of argument 1",
    ),
    "write_after_shared": (
        Case("__shared__ float s[64]; s[threadIdx.x + 1] = 1; y[threadIdx.x] = 0;"),
        r"thread \(63, 0, 0\) writes 4 bytes out of bounds, 0 bytes after the end of shared memory `s`",
    ),
    "unwritten_shared": (
        Case("__shared__ float s[64]; int i = threadIdx.x; if (i) s[i] = 1; __syncthreads(); y[i] = s[i];"),
        r"thread \(0, 0, 0\) reads byte 0 of shared memory `s`, which was never written",
    ),
    "written_by_last_block": (
        Case(
            "__shared__ float s; if (threadIdx.x + blockIdx.x == 0) s = 1; __syncthreads();"
            "y[threadIdx.x + blockIdx.x * 64] = s;",
            results=640, grid=(10, 1, 1),
        ),
        "reads byte 0 of shared memory `s`, which was never written",
    ),
    "unwritten_result": (
        Case("y[threadIdx.x] += x[threadIdx.x];"),
        r"thread \(\d+, 0, 0\) reads byte \d+ of argument 1, which was never written",
    ),
    "part_of_result": (Case("if (threadIdx.x != 7) y[threadIdx.x] = 0;"), "byte 28 of a result was never written"),
}  # fmt: skip
"""Kernels, and what is said of them."""

ALL = CASES | {name: case for name, (case, _) in FAULTS.items()}
SOURCE = "".join(
    f'extern "C" __global__ void {name}_kernel(float* x, float* y)\n#line 1\n{{{case.body}\n}}\n'
    for name, case in ALL.items()
)


def run(name: str, x: Array, checked: bool = True, seed: int = 0, dynamic_shared: int = 0) -> Array:
    case = ALL[name]
    device = EmulatedDevice(SOURCE, {name: Kernel((0, 1), case.grid, case.block)}, checked, seed, dynamic_shared)
    return launched(device, name, x, result=case.results)


def launched(device: EmulatedDevice, name: str, *inputs: Array, result: int) -> Array:
    """What a kernel of the device makes of the inputs: so many f32."""
    args = [*map(device.constant, inputs), device.memory(result * 4)]
    device.call(Step(name, (), tuple(range(len(args))), ()), args, {})()
    return device.reader(args[-1], (result,), DType.F32)()


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)


@pytest.fixture(params=[False, True], ids=["fast", "checked"])
def checked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_transpose_through_shared_memory(checked: bool) -> None:
    x = numbers(32, 64)
    np.testing.assert_array_equal(run("transpose", x, checked).reshape(64, 32), x.T)


def test_sum_of_a_block(checked: bool) -> None:
    x = numbers(3, 128)
    np.testing.assert_array_equal(run("sum", x, checked), x.sum(1))


def test_dynamic_shared_memory(checked: bool) -> None:
    x = numbers(3, 128)
    np.testing.assert_array_equal(run("dynamic_sum", x, checked, dynamic_shared=512), x.sum(1))


def test_too_little_dynamic_shared_memory() -> None:
    with pytest.raises(KernelError, match="4 bytes out of bounds, 0 bytes after the end of shared memory `memory`"):
        run("dynamic_sum", numbers(3, 128), dynamic_shared=508)


def test_vectors(checked: bool) -> None:
    x = numbers(64, 4)
    expected = np.stack([x[:, 0] + x[:, 1], x[:, 2], x[:, 3], np.ones(64)], 1)
    np.testing.assert_array_equal(run("vectors", x, checked).reshape(64, 4), expected)


def test_halves(checked: bool) -> None:
    x = numbers(64, 2).astype(np.float16)
    y = run("halves", x.view(np.float32), checked).view(np.float16).reshape(64, 2)
    np.testing.assert_array_equal(y, np.stack([x[:, 1] * x[:, 0], x[:, 1]], 1))


@pytest.mark.parametrize("i", range(len(SHUFFLES)), ids=SHUFFLES)
def test_shuffles(i: int, checked: bool) -> None:
    lane = list(SHUFFLES.values())[i]
    for seed in range(5):
        y = run(f"shuffle{i}", np.arange(64, dtype=np.float32), checked, seed)
        assert y.tolist() == [lane(lane(i)) for i in range(64)]


def test_the_last_warp_may_be_small() -> None:
    assert run("lanes", numbers(40)).tolist() == [0.0] * 32 + [1.0] * 8


def test_the_maximum_of_a_number_and_nan_is_the_number() -> None:
    assert run("maximum", np.array([np.nan, 2], np.float32)).tolist() == [4.0] * 64


def test_orders_vary() -> None:
    last = [int(run("who_is_last", numbers(1), checked=False, seed=seed).item()) for seed in range(20)]
    assert len({x // 64 for x in last}) > 10  # blocks
    assert len({x % 64 for x in last}) > 10


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    case, message = FAULTS[name]
    for seed in range(5):
        with pytest.raises(KernelError, match=message):
            run(name, numbers(case.inputs), seed=seed)


@pytest.mark.parametrize("name", ["ended", "elsewhere", "part_of_a_warp"])
def test_divergent_barriers_are_found_without_checks(name: str) -> None:
    with pytest.raises(KernelError, match="divergent barrier"):
        run(name, numbers(64), checked=False)


def test_writes_out_of_bounds_are_found_without_checks() -> None:
    with pytest.raises(KernelError, match="a kernel wrote out of bounds"):
        run("write_after", numbers(64), checked=False)


@pytest.mark.parametrize("name", ["read_after", "read_before", "unwritten_shared", "unwritten_result"])
def test_reads_of_what_is_not_there_give_nan_without_checks(name: str) -> None:
    assert np.isnan(run(name, numbers(64), checked=False)).any()


@pytest.mark.parametrize("name", ["one_barrier", "who_is_last"])
def test_races_are_found_by_orders(name: str) -> None:
    with pytest.raises(KernelError, match="y depends on the order of threads"):
        in_any_order(lambda seed: {"y": run(name, numbers(ALL[name].inputs), checked=False, seed=seed)})


def test_kernels_run_after_one_that_failed() -> None:
    x = numbers(32, 64)
    for name, inputs in (("no_barrier", x), ("ended", numbers(64))):
        with pytest.raises(KernelError):
            run(name, inputs)
        np.testing.assert_array_equal(run("transpose", x).reshape(64, 32), x.T)


NETWORK = """
model Small {
  input image: f32[N, 3, 9, 7]
  output y
  y = image -> conv(8, 3, pad=1) -> bn -> relu -> maxpool(3, s=2) -> { conv(4, 1) | conv(4, 3, pad=1) } -> concat
    -> gap -> flatten -> linear(5) -> softmax
}
"""


def test_a_network(checked: bool) -> None:
    graph = cnnc.load(NETWORK)
    weights = random_weights(graph)
    program = CudaTarget().compile(graph, weights)
    for n in (2, 1):
        inputs = random_inputs(graph, N=n)
        outputs = in_any_order(lambda seed: emulated(program, checked, seed)(**inputs))  # noqa: B023
        assert_agree(graph, weights, inputs, outputs)


def source_of(schedule: Any) -> str:
    """The CUDA C of a scheduled function, as kernel `main`."""
    limits = {"max_threads_per_block": 1024, "thread_warp_size": 32}
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80", **limits}, host="llvm")
    return str(tvm.compile(schedule.mod, target).mod.imports[0].inspect_source())


def bind(schedule: Any, **loops: Any) -> None:
    for axis, loop in loops.items():
        schedule.bind(loop, axis.replace("_", "Idx."))


@pytest.fixture(scope="module")
def matmul() -> str:
    """By tiles in shared memory, four numbers at a time."""
    a, b = te.placeholder((64, 64), name="a"), te.placeholder((64, 64), name="b")
    k = te.reduce_axis((0, 64))
    c = te.compute((64, 64), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    s = s_tir.Schedule(te.create_prim_func([a, b, c]))
    product = s.get_sblock("c")
    i, j, k = s.get_loops(product)
    block_y, y = s.split(i, [None, 8])
    block_x, x, four = s.split(j, [None, 8, 4])
    tile, k = s.split(k, [None, 16])
    s.reorder(block_y, block_x, y, x, tile, k, four)
    bind(s, block_y=block_y, block_x=block_x, thread_y=y, thread_x=x)
    result = s.cache_write(product, 0, "local")
    s.reverse_compute_at(result, x)
    s.vectorize(s.get_loops(result)[-1])
    for operand in (0, 1):
        copy = s.cache_read(product, operand, "shared")
        s.compute_at(copy, tile)
        _, y, x, some = s.split(s.fuse(*s.get_loops(copy)[-2:]), [None, 8, 8, 2 + 2 * operand])
        bind(s, thread_y=y, thread_x=x)
        s.vectorize(some)
    s.vectorize(four)
    s.decompose_reduction(product, tile)
    return source_of(s)


MATMUL = {"main": Kernel((0, 1, 2), (2, 8, 1), (8, 8, 1))}


def test_a_matmul_of_tvm(matmul: str, checked: bool) -> None:
    assert matmul.count("__shared__") == matmul.count("__syncthreads") == 2
    assert "float4" in matmul
    a, b = numbers(2, 64, 64)
    outputs = in_any_order(
        lambda seed: {"c": launched(EmulatedDevice(matmul, MATMUL, checked, seed), "main", a, b, result=64 * 64)}
    )
    np.testing.assert_array_equal(outputs["c"].reshape(64, 64), a @ b)


def test_each_barrier_of_tvm_is_needed(matmul: str) -> None:
    sync = "__syncthreads();"
    before, between, after = matmul.split(sync)
    for source in (before + between + sync + after, before + sync + between + after):
        with pytest.raises(KernelError, match=r"a race|never written"):
            launched(EmulatedDevice(source, MATMUL, checked=True), "main", *numbers(2, 64, 64), result=64 * 64)


@pytest.mark.parametrize("threads", [32, 128])
def test_a_reduction_of_tvm(threads: int, checked: bool) -> None:
    """By shuffles in a warp, and by shared memory from warp to warp."""
    x = te.placeholder((8, 256), name="x")
    k = te.reduce_axis((0, 256))
    y = te.compute((8,), lambda i: te.sum(x[i, k], axis=k), name="y")
    s = s_tir.Schedule(te.create_prim_func([x, y]))
    i, k = s.get_loops(s.get_sblock("y"))
    bind(s, block_x=i, thread_x=s.split(k, [None, threads])[1])
    source = source_of(s)
    assert "__shfl_down_sync" in source
    assert ("__shared__" in source) == (threads > 32)
    device = EmulatedDevice(source, {"main": Kernel((0, 1), (8, 1, 1), (threads, 1, 1))}, checked)
    values = numbers(8, 256)
    np.testing.assert_array_equal(launched(device, "main", values, result=8), values.sum(1))
