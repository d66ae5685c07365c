"""How much of the processor's peak each kernel of convolution reaches, alone, on shapes of well-known networks.

    python benchmarks/conv_kernels.py [--threads 1] [--seconds 2] [WORD ...]

Words choose the rows that contain one of them. Bias and ReLU are fused. Weights are taken in turn from copies that do
not fit the second cache together, as in a network. The peak is measured between the kernel's runs. GFLOP/s are those of
the fastest and the median run, the share that of the median.
Rows F2 and F4 are Winograd's F(2x2, 3x3) and F(4x4, 3x3), where they are chosen; operations are counted as direct ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

COPIES = 24_000_000
"""Bytes of weights in all, at most."""

Case = tuple[Any, Any, Callable[[Any, Any, Any, Any], None], int]
"""Shapes of input and weights, what emits the statements for these, bias and result, and floating-point operations."""


def shapes() -> dict[str, Any]:
    from cnnc_tvm.conv_shape import ConvShape

    found = {"3 to 64 @224 7x7/2": ConvShape(1, 3, 64, (224, 224), (7, 7), (2, 2), pads=(3, 3, 3, 3))}
    for c, size in (64, 56), (128, 28), (256, 14), (512, 7), (256, 56), (512, 28), (512, 14):
        found[f"{c} @{size} 3x3"] = ConvShape(1, c, c, (size, size), (3, 3), pads=(1, 1, 1, 1))
    for c, size in (128, 56), (256, 28), (512, 14):
        found[f"{c} @{size} 3x3/2"] = ConvShape(1, c, c, (size, size), (3, 3), (2, 2), pads=(1, 1, 1, 1))
    for c, k, size in (
        (64, 64, 56), (64, 256, 56), (256, 64, 56), (256, 128, 56), (128, 512, 28), (512, 128, 28), (512, 256, 28),
        (256, 1024, 14), (1024, 256, 14), (1024, 512, 14), (512, 2048, 7), (2048, 512, 7),
    ):  # fmt: skip
        found[f"{c} to {k} @{size} 1x1"] = ConvShape(1, c, k, (size, size), (1, 1))
    for c, size in (256, 56), (512, 28), (1024, 14):
        found[f"{c} to {2 * c} @{size} 1x1/2"] = ConvShape(1, c, 2 * c, (size, size), (1, 1), (2, 2))
    for c, size, kernel, stride in (32, 112, 3, 1), (144, 56, 3, 1), (96, 112, 3, 2), (576, 14, 3, 1), (960, 7, 5, 1):
        pads = (kernel // 2,) * 4
        sizes = (size, size), (kernel, kernel), (stride, stride), (1, 1)
        name = f"{c} @{size} {kernel}x{kernel}" + (f"/{stride}" if stride > 1 else "")
        found[f"{name} depthwise"] = ConvShape(1, c, c, *sizes, pads, c)
    return found


def case(shape: Any, machine: Any, winograd: Any) -> Case:
    """The kernel that computes the shape directly, or by this plan of Winograd's convolution."""
    from tvm import tirx

    from cnnc_tvm import conv_depthwise, conv_direct, conv_direct_plan, conv_winograd

    lanes, flops = machine.lanes, 2 * shape.filters * prod(shape.out) * prod(shape.kernel)
    weight = np.zeros((shape.filters, shape.channels // shape.groups, *shape.kernel), np.float32)

    def write(kernel: Any, plan: Any) -> Callable[[Any, Any, Any, Any], None]:
        def finish(b: Any) -> Any:
            zero = tirx.const(0, "float32")
            return lambda value, n, block, lane, i, j: tirx.max(value + b[block * lanes + lane], zero)

        return lambda x, w, b, out: kernel.write(shape, plan, finish(b), x, w, out)

    blocked = (shape.batch, -(-shape.channels // lanes), *shape.image, lanes)
    if shape.groups > 1:
        depthwise = conv_depthwise.choose(shape, machine)
        return blocked, conv_depthwise.pack(weight, depthwise).shape, write(conv_depthwise, depthwise), flops
    if winograd:
        packed = conv_winograd.pack(weight, winograd).shape
        return blocked, packed, write(conv_winograd, winograd), flops * shape.channels
    plain = shape.channels < lanes // 2
    plan = conv_direct_plan.choose(shape, machine, plain=plain)
    x = (shape.batch, shape.channels, *shape.image) if plain else blocked
    return x, conv_direct.pack(weight, plan).shape, write(conv_direct, plan), flops * shape.channels


def compiled(write: Callable[..., None], *sizes: Sequence[int]) -> Any:
    """The function of buffers of these sizes that the statements make."""
    import tvm
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        write(*(T.arg(f"x{i}", T.buffer(size, "float32", layout=None)) for i, size in enumerate(sizes)))
    target = tvm.target.Target({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True, "tirx.disable_assert": True}):
        return tvm.tirx.build(tvm.IRModule({"main": made.get()}), target)["main"]


def tensor(size: Sequence[int]) -> Any:
    import tvm

    return tvm.runtime.tensor(np.random.default_rng(0).standard_normal(size, np.float32))


def seconds(run: Callable[..., object], *args: Any) -> float:
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def measure(shape: Any, machine: Any, winograd: Any, limit: float) -> tuple[int, list[float], float]:
    """Floating-point operations, seconds of each run, and the peak in the same time, in operations a second."""
    from cnnc_tvm.peak import Peak

    x, w, write, flops = case(shape, machine, winograd)
    blocks = -(-shape.filters // machine.lanes)
    sizes = x, w, (blocks * machine.lanes,), (shape.batch, blocks, *shape.out, machine.lanes)
    function = compiled(write, *sizes)
    image, _, *rest = map(tensor, sizes)
    weights = [tensor(w) for _ in range(max(1, min(8, COPIES // (4 * prod(w)))))]
    times: list[float] = []
    meter = Peak((machine.lanes,))
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        meter.sample()
        times += [seconds(function, image, weight, *rest) for weight in weights]
    return flops, times, meter.flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--lanes", type=int, default=16, choices=(8, 16), help="of a vector: AVX2 has 8, AVX-512 16")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(args.threads)  # read when TVM starts its threads

    from cnnc_tvm.conv_shape import Machine
    from cnnc_tvm.conv_winograd_plan import choose

    machine = Machine(args.lanes, 2 * args.lanes, args.threads)
    print(f"{args.threads} thread(s)                     ms   GFLOP/s  median    peak   share")
    rows = [(name, shape, None) for name, shape in shapes().items()]
    rows += [(f"{name} F{plan.m}", shape, plan) for name, shape, _ in rows if (plan := choose(shape, machine))]
    for name, shape, winograd in rows:
        if not args.words or any(word in name for word in args.words):
            flops, times, peak = measure(shape, machine, winograd, args.seconds)
            best, middle = (flops / t / 1e9 for t in (min(times), statistics.median(times)))
            share = middle * 1e9 / peak
            line = f"{name:24} {min(times) * 1e3:8.3f} {best:9.1f} {middle:7.1f} {peak / 1e9:7.1f} {share:7.1%}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
