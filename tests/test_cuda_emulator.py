"""The emulator runs kernels as a GPU would, and finds what is wrong with them: each fault here is planted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cnnc_tvm.plan import Kernel, Step
from cuda_emulator import EmulatedDevice, KernelError
from numerics import Array

SIGNATURE = 'extern "C" __global__ void k_kernel(float* __restrict__ x, float* __restrict__ y)'
Body = str
"""What kernel `k` does with its input `x` and its result `y`."""

TRANSPOSE = """
  __shared__ float tile[16][17];
  int i = threadIdx.y, j = threadIdx.x, row = blockIdx.y * 16, column = blockIdx.x * 16;
  tile[i][j] = x[(row + i) * 64 + column + j];
  __syncthreads();
  y[(column + i) * 32 + row + j] = tile[j][i];
"""
"""Of 32 rows and 64 columns."""

TREE_SUM = """
  __shared__ float sums[128];
  sums[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
  for (int half = 64; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) y[blockIdx.x] = sums[0];
"""
"""Of each 128 numbers."""


def run(
    body: Body, x: Array, size: int, grid: tuple[int, int, int] = (1, 1, 1), block: tuple[int, int, int] = (64, 1, 1),
    checked: bool = True, seed: int = 0, signature: str = SIGNATURE, dynamic_shared: int = 0,
) -> Array:  # fmt: skip
    """What a kernel writes into `size` numbers."""
    source = f"{signature} {{\n{body}\n}}"
    device = EmulatedDevice(source, {"k": Kernel((0, 1), grid, block)}, checked, seed, dynamic_shared)
    args = [device.memory(x.nbytes), device.memory(size * x.itemsize)]
    device.write(args[0], x)
    device.call(Step("k", "", (0, 1), ()), args, {})()
    y = np.empty(size, x.dtype)
    device.read(args[1], y)
    return y


def numbers(size: int) -> Array:
    return np.random.default_rng(0).integers(-9, 9, size).astype(np.float32)


@pytest.fixture(params=[False, True], ids=["fast", "checked"])
def checked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_transpose_through_shared_memory(checked: bool) -> None:
    x = numbers(32 * 64)
    y = run(TRANSPOSE, x, x.size, (4, 2, 1), (16, 16, 1), checked)
    np.testing.assert_array_equal(y.reshape(64, 32), x.reshape(32, 64).T)


def test_sum_of_a_block(checked: bool) -> None:
    x = numbers(3 * 128)
    y = run(TREE_SUM, x, 3, (3, 1, 1), (128, 1, 1), checked)
    np.testing.assert_array_equal(y, x.reshape(3, 128).sum(1))


def test_dynamic_shared_memory(checked: bool) -> None:
    body = TREE_SUM.replace("__shared__ float sums[128];", "extern __shared__ __align__(16) unsigned char bytes[];"
                            "float* sums = (float*)bytes;")  # fmt: skip
    x = numbers(3 * 128)
    y = run(body, x, 3, (3, 1, 1), (128, 1, 1), checked, dynamic_shared=512)
    np.testing.assert_array_equal(y, x.reshape(3, 128).sum(1))
    with pytest.raises(KernelError, match=r"4 bytes out of bounds, .* of shared memory `bytes`"):
        run(body, x, 3, (3, 1, 1), (128, 1, 1), dynamic_shared=508)


def test_vectors(checked: bool) -> None:
    body = """
      int i = threadIdx.x * 4;
      float4 a = *(float4*)(x + i);
      float2 b = make_float2(a.x + a.y, a.z);
      *(float4*)(y + i) = make_float4(b.x, b.y, a.w, 1.0f);
    """
    x = numbers(256)
    a = x.reshape(-1, 4)
    y = run(body, x, 256, checked=checked)
    np.testing.assert_array_equal(y.reshape(-1, 4), np.stack([a[:, 0] + a[:, 1], a[:, 2], a[:, 3], np.ones(64)], 1))


def test_halves(checked: bool) -> None:
    body = """
      half2 a = *(half2*)(x + threadIdx.x * 2);
      a.x = a.x * __float2half_rn(0.5f) + a.y;
      *(half2*)(y + threadIdx.x * 2) = a;
    """
    x = numbers(128).astype(np.float16)
    y = run(body, x, 128, checked=checked, signature=SIGNATURE.replace("float*", "half*")).reshape(-1, 2)
    a = x.reshape(-1, 2)
    np.testing.assert_array_equal(y, np.stack([a[:, 0] * np.float16(0.5) + a[:, 1], a[:, 1]], 1))


@pytest.mark.parametrize(
    ("shuffle", "lane"),
    [
        ("__shfl_sync(m, v, 5, 16)", lambda i: i // 16 * 16 + 5),
        ("__shfl_xor_sync(m, v, 3)", lambda i: i ^ 3),
        ("__shfl_down_sync(m, v, 2, 8)", lambda i: i + 2 if i % 8 < 6 else i),
        ("__shfl_up_sync(m, v, 4, 32)", lambda i: i - 4 if i % 32 >= 4 else i),
    ],
)
def test_shuffles(shuffle: str, lane: Callable[[int], int], checked: bool) -> None:
    """Twice, so that what is given must not be overwritten before all have read it."""
    again = shuffle.replace("v", "w")
    body = f"""
      unsigned m = __activemask();
      float v = x[threadIdx.x], w = {shuffle};
      y[threadIdx.x] = {again};
    """
    x = np.arange(64, dtype=np.float32)
    for seed in range(5):
        assert run(body, x, 64, checked=checked, seed=seed).tolist() == [lane(lane(i)) for i in range(64)]


def test_a_warp_is_as_large_as_its_block(checked: bool) -> None:
    body = "y[threadIdx.x] = __activemask() == 0xff;"
    assert run(body, numbers(40), 40, block=(40, 1, 1), checked=checked).tolist() == [0.0] * 32 + [1.0] * 8


def test_the_maximum_of_a_number_and_nan_is_the_number() -> None:
    body = "y[threadIdx.x] = max(x[0], x[1]) + min(x[1], x[0]);"
    assert run(body, np.array([np.nan, 2], np.float32), 64).tolist() == [4.0] * 64


def test_orders_vary() -> None:
    """The last thread and the last block to write is another each time; memory keeps what was written last."""
    body = "y[0] = blockIdx.x * 64 + threadIdx.x;"
    last = {run(body, numbers(1), 1, (64, 1, 1), checked=False, seed=seed).item() for seed in range(20)}
    assert len({x // 64 for x in last}) > 10
    assert len({x % 64 for x in last}) > 10


FAULTS = {
    "missing barrier": (
        TRANSPOSE.replace("__syncthreads();", ""),
        r"reads byte \d+ of shared memory `tile`, which was never written",
    ),
    "missing barrier in a loop": (
        TREE_SUM.replace("    __syncthreads();", "    if (half == 64) __syncthreads();"),
        r"of shared memory `sums`, which (thread \(\d+, 0, 0\)|other threads) (reads|writes) with no barrier .* race",
    ),
    "threads that write the same": ("y[threadIdx.x / 2] = 1;", r"writes byte \d+ of argument 1, which thread .* race"),
    "blocks that write the same": ("y[threadIdx.x] = 1;", r"byte \d+ of argument 1, which another block .* race"),
    "blocks where one reads what the other writes": (
        "y[threadIdx.x + blockIdx.x * 64] = blockIdx.x ? y[threadIdx.x] : 1;",
        "reads byte .* of argument 1, which (another block writes .* race|was never written)",
    ),
    "some threads have ended": (
        "if (threadIdx.x < 60) __syncthreads(); y[threadIdx.x] = 0;",
        r"divergent barrier: thread \(\d+, 0, 0\) waits at the barrier of line 2, but thread \(60, 0, 0\) has ended",
    ),
    "some threads wait elsewhere": (
        "if (threadIdx.x < 60) {\n__syncthreads();\n} else {\n__syncthreads();\n} y[threadIdx.x] = 0;",
        r"divergent barrier: thread \(0, 0, 0\) .* line 3, but thread \(60, 0, 0\) .* line 5",
    ),
    "some of a warp give": (
        "y[threadIdx.x] = 0; if (threadIdx.x < 60) y[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);",
        r"divergent .* waits for its warp, but thread \(\d+, 0, 0\) has ended",
    ),
    "read past the end": (
        "y[threadIdx.x] = x[threadIdx.x + 1];",
        r"thread \(63, 0, 0\) reads 4 bytes out of bounds, 0 bytes after the end of argument 0",
    ),
    "read before the beginning": (
        "y[threadIdx.x] = x[(int)threadIdx.x - 1];",
        r"thread \(0, 0, 0\) reads 4 bytes out of bounds, 4 bytes before argument 0",
    ),
    "read across the end": (
        "float2 a = *(float2*)(x + threadIdx.x); y[threadIdx.x] = a.x + a.y;",
        "reads . bytes out of bounds",
    ),
    "read far outside": ("y[threadIdx.x] = x[(1 << 28) + threadIdx.x];", "reads 4 bytes out of bounds"),
    "write past the end": (
        "y[threadIdx.x] = 0; if (threadIdx.x == 9) y[64] = 1;",
        r"thread \(9, 0, 0\) writes 4 bytes out of bounds, 0 bytes after the end of argument 1",
    ),
    "shared memory past the end": (
        "__shared__ float s[64]; s[threadIdx.x + 1] = 1; __syncthreads(); y[threadIdx.x] = s[threadIdx.x];",
        "writes 4 bytes out of bounds, 0 bytes after the end of shared memory `s`",
    ),
    "read of unwritten shared memory": (
        "__shared__ float s[64]; int i = threadIdx.x; if (i) s[i] = 1; __syncthreads(); y[i] = s[i];",
        r"thread \(0, 0, 0\) reads byte 0 of shared memory `s`, which was never written",
    ),
    "read of the result": (
        "y[threadIdx.x] += x[threadIdx.x];",
        r"thread \((\d+), 0, 0\) reads byte \d+ of argument 1, which was never written",
    ),
    "part of the result": ("if (threadIdx.x != 7) y[threadIdx.x] = 0;", "byte 28 of a result was never written"),
}  # fmt: skip
"""Kernels, of as many blocks and threads as `fault_sizes` gives, and what is said of them."""


def fault_sizes(body: Body) -> tuple[int, int, tuple[int, int, int], tuple[int, int, int]]:
    if "tile" in body:
        return 2048, 2048, (4, 2, 1), (16, 16, 1)
    if "sums" in body:
        return 256, 2, (2, 1, 1), (128, 1, 1)
    return 64, 64, (1, 1, 1), (64, 1, 1)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    body, message = FAULTS[name]
    x, y, grid, block = fault_sizes(body)
    if "blocks" in name:
        y, grid = (128, (2, 1, 1)) if "one reads" in name else (64, (2, 1, 1))
    with pytest.raises(KernelError, match=message):
        run(body, numbers(x), y, grid, block)
