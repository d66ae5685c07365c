"""Mechanical faults, one at a time, in the functions of some files: how many of them do the tests find?

    python tests/tools/mutate.py cnnc/ops/conv.py cnnc/ops/window.py --out conv.jsonl -- tests/test_ops.py -k "not cpu"

What follows `--` is for pytest. The tests are collected once; a forked process runs them all, which must pass, and
finds the functions that each one calls. Every mutant (see `mutations.py`) is a forked process, in which the code of the
function is replaced as in tests/planting.py and the tests that call it run, the quickest first, until one fails: then
the mutant is killed, as it is when a test needs many times its processor time. What was built while tests were
collected, such as the ops in their tables of cases, was built without the fault.

`--every 5` tries one mutant in five, `--again FILE` those that survived in an earlier run. `--out` gets a line of JSON
for each mutant as it ends; the counts for each file, and the survivors, are printed at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType, FunctionType

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings
from mutations import Mutant, mutants

Calls = dict[tuple[str, str], list[tuple[float, int]]]
"""By the file and the name of a function: the seconds of each test that calls it, and its number."""

SURVIVED, KILLED = 0, 1
SLOWER = 5
"""A test of a mutant has this many times its seconds, and as many more."""


def passes(item: pytest.Item) -> bool:
    """Run a test, with its fixtures set up and taken down for it alone."""
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def calls(items: list[pytest.Item], files: set[str]) -> Calls:
    """Which tests call which functions of these files. All must pass."""
    found: Calls = {}
    for number, item in enumerate(items):
        codes: set[CodeType] = set()

        def enter(frame: FrameType, event: str, arg: object, codes: set[CodeType] = codes) -> None:
            if event == "call":
                codes.add(frame.f_code)

        start = time.process_time()
        sys.setprofile(enter)
        ok = passes(item)
        sys.setprofile(None)
        assert ok, f"{item.nodeid} fails without a mutant"
        seconds = time.process_time() - start
        for code in codes:
            if code.co_filename in files:
                found.setdefault((code.co_filename, code.co_qualname), []).append((seconds, number))
    return found


def write_calls(path: Path, items: list[pytest.Item], files: set[str]) -> int:
    """In a process of its own, which may load and keep what it likes: the calls, into a file."""
    path.write_bytes(pickle.dumps(calls(items, files)))
    return 0


def passes_in(item: pytest.Item, seconds: float) -> bool:
    """Run a test, which ends this process if it takes too long for one of so many seconds."""
    limit = int(time.process_time() + SLOWER * (seconds + 1))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    return passes(item)


def attempt(mutant: Mutant, functions: list[FunctionType], tests: list[tuple[float, pytest.Item]]) -> int:
    """In a process of its own: whether the tests, with the seconds of each, find the mutant."""
    whole = compile(mutant.mutate(), functions[0].__code__.co_filename, "exec", dont_inherit=True)
    for function in functions:
        code = code_of(whole, mutant.function)
        cells = function.__code__.co_freevars  # that of `super`, which the mutant may not have left
        function.__code__ = code if code.co_freevars else code.replace(co_freevars=cells)
    return SURVIVED if all(passes_in(item, seconds) for seconds, item in tests) else KILLED


def loaded(files: set[str]) -> dict[tuple[str, str], list[FunctionType]]:
    """The functions of these files that there are in this process."""
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename in files:
            found.setdefault((each.__code__.co_filename, each.__code__.co_qualname), []).append(each)
    return found


def code_of(whole: CodeType, name: str) -> CodeType:
    """The code of the function of this qualified name, within that of its module."""
    inner = [each for each in whole.co_consts if isinstance(each, CodeType)]
    for each in inner:
        if each.co_qualname == name:
            return each
    return code_of(next(each for each in inner if name.startswith(f"{each.co_qualname}.")), name)


def fork(work: Callable[[], int]) -> int:
    """Start a process that does this and exits with its result; its number."""
    if pid := os.fork():
        return pid
    status = 2
    try:
        status = work()
    finally:
        os._exit(status)


class Run:
    """A plugin of pytest that tries mutants in the place of running the tests."""

    def __init__(self, chosen: list[Mutant], out: Path, workers: int) -> None:
        self.chosen, self.out, self.workers = chosen, out, workers
        self.survivors: list[Mutant] = []
        self.counts: Counter[tuple[Path, str]] = Counter()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        file = {mutant.path: str(mutant.path.resolve()) for mutant in self.chosen}
        files = set(file.values())
        with TemporaryDirectory() as folder:
            path = Path(folder) / "calls"
            _, status = os.waitpid(fork(partial(write_calls, path, session.items, files)), 0)
            assert status == 0, "the tests must pass without a mutant"
            tests: Calls = pickle.loads(path.read_bytes())
        functions = loaded(files)
        running: dict[int, Mutant] = {}
        for mutant in self.chosen:
            where = file[mutant.path], mutant.function
            items = [(seconds, session.items[number]) for seconds, number in sorted(tests.get(where, []))]
            running[fork(partial(attempt, mutant, functions[where], items))] = mutant
            if len(running) == self.workers:
                self.note(running)
        while running:
            self.note(running)
        return True

    def note(self, running: dict[int, Mutant]) -> None:
        """Wait for one of the processes, and write down how it ended."""
        pid, status = os.wait()
        mutant = running.pop(pid)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (SURVIVED, KILLED), f"{mutant.key} was not tried"
        fate = "survived" if status == SURVIVED else "killed"
        self.counts[mutant.path, fate] += 1
        if fate == "survived":
            self.survivors.append(mutant)
        with self.out.open("a", encoding="utf-8") as file:
            print(json.dumps([fate, *mutant.key]), file=file)

    def report(self) -> str:
        """Counts for each file, and the survivors, as tables of Markdown."""
        lines = ["| file | mutants | killed |", "|---|---|---|"]
        for path in dict.fromkeys(path for path, _ in self.counts):
            killed = self.counts[path, "killed"]
            lines.append(f"| {path} | {killed + self.counts[path, 'survived']} | {killed} |")
        lines += ["", "| where | was | became |", "|---|---|---|"]
        lines += [f"| {m.path}:{m.line} {m.function} | `{m.before}` | `{m.after}` |" for m in self.survivors]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what to mutate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, tests = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    found = [mutant for path in options.files for mutant in mutants(path)]
    chosen = found[:: options.every]
    if options.again:
        lines = map(json.loads, options.again.read_text(encoding="utf-8").splitlines())
        survived = {tuple(key) for fate, *key in lines if fate == "survived"}
        chosen = [mutant for mutant in found if mutant.key in survived]
    print(f"{len(chosen)} mutants of {len(found)}")
    run = Run(chosen, options.out, options.workers)
    # Why a test fails, and on how small an example, is nothing to spend time on.
    settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    status = pytest.main(["-q", "-s", "--assert=plain", "--tb=no", "-p", "no:cacheprovider", *tests], [run])
    print(run.report())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
