"""How long `cnnc check resnet152` takes, start of the process included, beside an interpreter that does nothing.

    python benchmarks/startup.py [--rounds 20]

The two take turns. The bytecode is compiled before the first turn, as it is in an installation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

CHECK = [sys.executable, "-m", "cnnc", "check", "resnet152"]
NOTHING = [sys.executable, "-c", "pass"]


def seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        environment["PYTHONPYCACHEPREFIX"] = folder
        for command in (CHECK, NOTHING):
            seconds(command, environment)
        turns = [(seconds(CHECK, environment), seconds(NOTHING, environment)) for _ in range(rounds)]
    for name, times in zip(("cnnc check resnet152", "python -c pass"), zip(*turns, strict=True), strict=True):
        print(f"{name:22}  median {statistics.median(times):.3f} s  best {min(times):.3f} s  worst {max(times):.3f} s")


if __name__ == "__main__":
    main()
