"""`cnnc verify` of every network of models/, or of those named: a row of a table each, as it is done.

    python tests/tools/verify_models.py --batch 1 lenet5 resnet50 > verify.md

Every target that works here is compared with the float64 reference of the network as written, with the optimiser off
and on; and each pass alone, on `numpy`. Sizes and arguments are those of tests/test_agreement.py. The exit status is 1
if any comparison was wrong.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import cnnc
from networks import MODELS
from test_agreement import ARGS, SIZES

COMMAND = [sys.executable, "-m", "cnnc", "verify", "--json"]
SEEDS = {"mlp:Perceptron": 3}
"""Other seeds than 0, where the answer would be the same for all inputs."""
HEADER = """\
| network | dims and arguments | right | wrong | not supported | max error / bound | CPU, s |
| --- | --- | --- | --- | --- | --- | --- |"""


def row(name: str, batch: int) -> tuple[str, bool]:
    """The row of a network, which ends in the error if there was one, and whether all in it is right."""
    file, _, model = name.partition(":")
    path, given = MODELS / f"{file}.cnn", ARGS.get(name, {})
    left = cnnc.load(path, model or None, dims=SIZES[name], **given).symbols  # a batch of images, or of regions
    dims = ",".join(f"{key}={value}" for key, value in {**dict.fromkeys(left, batch), **SIZES[name]}.items())
    arguments = [f"{key}={value}" for key, value in given.items()]
    command = [*COMMAND, f"{path}" + (f":{model}" if model else ""), "--dim", dims]
    command += ["--seed", str(SEEDS.get(name, 0)), *(word for each in arguments for word in ("--set", each))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(done.stdout)
    settings: list[dict[str, Any]] = found.get("settings", [])
    run = [x for x in settings if x["outputs"]]
    wrong = sum(not x["ok"] for x in settings)
    worst = (f"{target} {max(map(_worst, of)):.2f}" for target, of in groupby(run, lambda x: str(x["target"])))
    cells = [
        name, " ".join([dims, *arguments]), f"{len(run) - wrong}", f"{wrong}", f"{len(settings) - len(run)}",
        ", ".join(worst), f"{seconds:.0f}", *(f"{x['code']}: {x['message']}" for x in found["diagnostics"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |", done.returncode == 0


def _worst(setting: dict[str, Any]) -> float:
    """The largest part of its bound that an output of a setting is off by."""
    parts = [(x["error"], x["bound"]) for x in setting["outputs"].values()]
    return max(0 if error == 0 else error / bound if error and bound else float("inf") for error, bound in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a network as in tests/test_agreement.py [all]")
    parser.add_argument("--batch", type=int, default=2)
    given = parser.parse_args()
    print(HEADER, flush=True)
    right = True
    for name in given.names or SIZES:
        text, ok = row(name, given.batch)
        print(text, flush=True)
        right &= ok
    return int(not right)


if __name__ == "__main__":
    raise SystemExit(main())
