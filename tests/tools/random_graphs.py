"""Many random networks through the checks of tests/random_checks.py and tests/relations.py.

    python tests/tools/random_graphs.py --count 20000

Each network is checked in every form, by every pass, by the metamorphic relations and on the targets given. A failure
is shrunk and printed as IR text and `.cnn` text, and the run goes on with the next batch; the exit status is 1 if there
was any. The last lines say what was drawn: the share of networks that show something, and each op and pass at work.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))

import growing
import random_checks
import relations
from strategies import Case, cases

BATCH = 50
"""Networks from one seed: a failure ends its batch, and Hypothesis varies within one what it has drawn before."""
REWRITES = (relations.groups_split, relations.channels_permuted, relations.identities_inserted)


def run(count: int, first_seed: int, targets: list[str]) -> tuple[int, int, Counter[str]]:
    """Check `count` networks; how many were checked and failed, and how often ops and other things were in them."""
    checked = failed = 0
    seen: Counter[str] = Counter()

    def check(case: Case) -> None:
        nonlocal checked
        checked += 1
        seen.update({node.op.name for node in case.graph.nodes})
        seen["networks that show something"] += case.shows(case.inputs)
        random_checks.forms(case)
        seen.update(f"pass {name}" for name in random_checks.passes_preserve(case))
        for target in targets:
            random_checks.nodes_agree(case, target)
            random_checks.whole_agrees(case, target)
            relations.batches_join(case, target)
            for rewrite in REWRITES:
                relations.keeps(rewrite, case, target)

    start = time.monotonic()
    for batch in range(-(-count // BATCH)):
        limits = settings(
            max_examples=min(BATCH, count - batch * BATCH), deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip
        try:
            seed(first_seed + batch)(limits(given(cases())(check)))()
        except Exception:
            failed += 1
            traceback.print_exc(limit=-3)
        print(f"{checked} networks, {failed} batches failed, {time.monotonic() - start:.0f} s", flush=True)
    return checked, failed, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default="numpy,torch,onnx", help="comma-separated")
    given_args = parser.parse_args()
    checked, failed, seen = run(given_args.count, given_args.seed, given_args.targets.split(","))
    print(f"{checked} networks on {given_args.targets}: {failed} batches failed")
    print(f"{len(growing.refused)} networks refused by an op")
    print("seen: " + ", ".join(f"{name} {count}" for name, count in seen.most_common()))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
