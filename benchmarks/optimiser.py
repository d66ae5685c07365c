"""How long the optimiser takes: all passes on ResNet-152, and whether the time is linear in the length of a network.

    python benchmarks/optimiser.py --rounds 9

Processor time of `-O3`, verification after each pass included. The chains repeat conv, bn, relu and an identity; the
short and the long one alternate, and the ratio is of neighbours in time.
"""

from __future__ import annotations

import argparse
import statistics
import time

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
    start = time.process_time()
    optimise(network, LEVELS[3])
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    resnet = network_of(cnnc.load("models/resnet152.cnn"))
    times = [seconds(resnet) for _ in range(rounds)]
    print(f"resnet152, all passes: median {statistics.median(times):.3f} s, best {min(times):.3f} s")
    short, long = chain(1_000), chain(10_000)
    pairs = [(seconds(short), seconds(long)) for _ in range(rounds)]
    ratios = [b / a for a, b in pairs]
    best = [min(column) for column in zip(*pairs, strict=True)]
    print(f"chain of 1,000: best {best[0]:.3f} s; of 10,000: best {best[1]:.3f} s")
    print(f"ratio: median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
