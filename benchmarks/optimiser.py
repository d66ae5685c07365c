"""How long the optimiser takes: all passes on ResNet-152, and whether the time is linear in the length of a network.

    python benchmarks/optimiser.py --rounds 9

Processor time of `-O3`, verification after each pass included, in its one thread: NumPy starts others, which count as
busy while they wait for work. The chains repeat conv, bn, relu and an identity. Each is optimised twice in a process of
its own, so that the first time is what a command takes and the second what a program takes that optimises often; the
short and the long one alternate, and ratios are of neighbours in time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cnnc
from cnnc import ops
from cnnc.driver import network_of
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.types import TensorType
from cnnc.passes import LEVELS, Network, optimise

LAYERS = (ops.Conv(2, 3, pad=1), ops.BatchNorm(), ops.Relu(), ops.MaxPool(1))


def chain(length: int) -> Network:
    """A network of so many nodes, one after the other."""
    x = Input("x", TensorType((1, 2, 4, 4)))
    last: Value = x
    for i in range(length):
        last = Node.make(LAYERS[i % len(LAYERS)], last, name=str(i))
    return network_of(Graph("Chain", (x,), {"y": last}))


def seconds(network: Network) -> float:
    start = time.thread_time()
    optimise(network, LEVELS[3])
    return time.thread_time() - start


def in_a_process(length: int) -> list[float]:
    """The seconds of the first and of the second time."""
    command = [sys.executable, __file__, "--chain", str(length)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--chain", type=int, help="print the seconds of a chain of this length alone, twice")
    given = parser.parse_args()
    if given.chain:
        network = chain(given.chain)
        print(seconds(network), seconds(network))
        return
    rounds = given.rounds
    resnet = network_of(cnnc.load(Path(__file__).parents[1] / "models" / "resnet152.cnn"))
    times = [seconds(resnet) for _ in range(rounds)]
    print(f"resnet152, all passes: median {statistics.median(times):.3f} s, best {min(times):.3f} s")
    pairs = [(in_a_process(1_000), in_a_process(10_000)) for _ in range(rounds)]
    for i, which in enumerate(("first", "second")):
        short, long = zip(*((a[i], b[i]) for a, b in pairs), strict=True)
        ratios = [b / a for a, b in zip(short, long, strict=True)]
        print(f"{which} time: chain of 1,000 best {min(short):.3f} s, of 10,000 best {min(long):.3f} s; ", end="")
        print(f"ratio: median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
