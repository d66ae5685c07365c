"""How long the numpy target takes for ResNet-50, beside PyTorch's eager mode on the same weights.

    python benchmarks/numpy_vs_torch.py [--batch 1] [--threads 2] [--rounds 15]

Each system has a process of its own; they take turns, so that both see the same machine, and the ratio is the median of
those of the turns. torchvision's ResNet-50 is the network of models/resnet50.cnn, parameter for parameter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODEL = Path(__file__).parent.parent / "models" / "resnet50.cnn"
PAUSE = 0.3
"""Seconds before each turn: the other's threads wait actively for a while before they sleep."""
RUNS = 3
"""Runs in a turn, of which the fastest counts."""

Run = Callable[[], np.ndarray]


def numpy_run(image: np.ndarray) -> Run:
    import cnnc

    program = cnnc.compile(cnnc.load(MODEL), target="numpy", weights=0)
    return lambda: program(image=image)["logits"]


def torch_run(image: np.ndarray) -> Run:
    import torch

    library = torch.library.Library("torchvision", "DEF")  # torchvision's own kernels are not installed with it
    library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import torchvision

    import cnnc
    from cnnc import weights

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module = torchvision.models.resnet50().eval()
    arrays = {name: torch.from_numpy(x) for name, x in weights.init(cnnc.load(MODEL), 0).items()}
    module.load_state_dict(arrays)  # the names are the same, or this raises
    x = torch.from_numpy(image)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(x).numpy()

    return run


def work(system: str, batch: int) -> None:
    """For each line that comes in, run and answer with the seconds taken; first the result goes to standard output."""
    image = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
    run = {"numpy": numpy_run, "torch": torch_run}[system](image)
    print(" ".join(f"{x:.9g}" for x in run()[0]), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(min(times), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", choices=("numpy", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.batch)
        return
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    systems = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work", name, "--batch", str(options.batch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads,
        )
        for name in ("numpy", "torch")
    }  # fmt: skip

    def answer(system: str) -> str:
        stdout = systems[system].stdout
        assert stdout is not None
        return stdout.readline() or sys.exit(f"{system} failed")

    def turn(system: str) -> float:
        time.sleep(PAUSE)
        stdin = systems[system].stdin
        assert stdin is not None
        stdin.write("go\n")
        stdin.flush()
        return float(answer(system))

    a, b = (np.array(answer(system).split(), float) for system in systems)
    times = [(turn("numpy"), turn("torch")) for _ in range(options.rounds)]
    for process in systems.values():
        process.communicate()
    print(f"ResNet-50, batch {options.batch}, {options.threads} threads, {options.rounds} turns")
    for i, system in enumerate(systems):
        print(f"{system}: {statistics.median(x[i] for x in times) * 1e3:.1f} ms")
    ratios = sorted(x / y for x, y in times)
    print(f"numpy / torch: {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"the results differ by at most {np.abs(a - b).max() / np.abs(b).max():.1e} of the largest")


if __name__ == "__main__":
    main()
