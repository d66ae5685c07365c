"""Networks whose image sizes only the running program knows: `cpu` beside ONNX Runtime, and beside itself where the
sizes were bound while compiling.

    python benchmarks/any_size.py resnet18 resnet50 --size 224 --rounds 7

A model is compiled with its rows and columns open, whatever their defaults, and run at one size, the batch being 1,
with a thread for each core that the process may run on (`taskset` chooses these). Each system runs in a process of its
own, one after the other in each round; its time is the median of its runs, and ratios are of neighbours in time. What
they compute is compared first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import cnnc
from cnnc.driver import elaborate
from cnnc.ir import bind

MODELS = Path(__file__).parents[1] / "models"
SECONDS = 2.0
"""How long the runs of a turn take together, at least."""
SYSTEMS = ("cpu open", "onnx open", "cpu bound")
TOLERANCE = 1e-3
"""What outputs may differ by, as a part of their largest number: they are compared to be of the same network."""


def turn(model: str, system: str, size: int, out: Path) -> float:
    """The median of the seconds of a run; the outputs are written to `out`."""
    target, sizes = system.split()
    graph = bind(elaborate(MODELS / f"{model}.cnn").graph, {"N": 1})
    bound = bind(graph, dict.fromkeys(graph.symbols, size))
    program = cnnc.compile(bound if sizes == "bound" else graph, target, weights=0)
    (x,) = bound.inputs
    image = np.random.default_rng(0).standard_normal([int(str(dim)) for dim in x.type.shape], np.float32)
    np.savez(out, **program(**{x.name: image}))
    times: list[float] = []
    while sum(times) < SECONDS:
        start = time.perf_counter()
        program(**{x.name: image})
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_a_process(model: str, system: str, size: int, out: Path) -> float:
    command = [sys.executable, __file__, model, "--size", str(size), "--turn", system, "--out", str(out)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def compare(outputs: list[Path]) -> None:
    """SystemExit where two of the outputs are not of the same network."""
    first, *others = (dict(np.load(path)) for path in outputs)
    for other in others:
        for name, expected in first.items():
            if np.abs(other[name] - expected).max() > TOLERANCE * np.abs(expected).max():
                sys.exit(f"the outputs {name} differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", choices=SYSTEMS, help="print the seconds of this system alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.turn:
        print(turn(given.models[0], given.turn, given.size, given.out))
        return
    for model in given.models:
        with TemporaryDirectory() as folder:
            outputs = [Path(folder) / f"{system}.npz" for system in SYSTEMS]
            rounds = []
            for number in range(given.rounds):
                pairs = zip(SYSTEMS, outputs, strict=True)
                rounds.append([in_a_process(model, system, given.size, out) for system, out in pairs])
                if not number:
                    compare(outputs)
        medians = [statistics.median(times) * 1e3 for times in zip(*rounds, strict=True)]
        print(f"{model} {given.size}: " + ", ".join(f"{s} {t:.2f} ms" for s, t in zip(SYSTEMS, medians, strict=True)))
        for i, system in enumerate(SYSTEMS[1:], 1):
            ratios = [times[0] / times[i] for times in rounds]
            least, _, most = statistics.quantiles(ratios, n=4)
            print(f"  {SYSTEMS[0]} / {system}: {statistics.median(ratios):.2f} ({least:.2f} to {most:.2f})", flush=True)


if __name__ == "__main__":
    main()
