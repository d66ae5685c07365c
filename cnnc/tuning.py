"""Searching for faster kernels by measuring: `cnnc tune`.

A target lists, for each kernel of a network, the plans it could make it with, its own choice first. They are tried a
few at a time against the fastest so far (the *incumbent*): runs take turns, for the machine may be busy, and what
counts is the median of the ratios of times that were measured one after the other. Those that fall behind are dropped
early. The one that is left must be faster by more than noise, and once more in a second trial, in another process,
where it must give the same result. Each step is written to the store at once: a search that is stopped can go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from statistics import median
from threading import Event
from typing import TYPE_CHECKING, Final, Protocol, cast

from cnnc import driver
from cnnc.diagnostics import error
from cnnc.ir.bind import bind
from cnnc.ir.dim import symbols
from cnnc.target import target
from cnnc.tuned import About, Entry, Plan, Store

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph

TARGET: Final = "cpu"
AT_ONCE: Final = 6
"""Plans that are compiled and compared in a trial."""
WORTH: Final = 0.97
"""What a plan must take of the incumbent's time: less would be noise."""
ROUNDS: Final = (2, 4, 8)
"""Turns of each plan, after which the slower half is dropped, and those that are behind the incumbent."""
SURE: Final = 15
"""Turns of each plan where it is decided."""


@dataclass(frozen=True)
class Task:
    """A kernel whose plan is to be found."""

    name: str
    """What it computes, for people."""
    layers: tuple[str, ...]
    """The nodes of the graph that it computes."""
    work: int
    """Multiply-accumulates of all these."""
    about: About
    """All that decides which plan is fastest."""
    plans: Sequence[Plan]
    """Those there are, the target's own choice first, then by what it expects of them."""


class KernelError(Exception):
    """The kernel of a plan was not compiled, crashed, or took too long. Nothing more can be measured in its trial."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


class Trial(Protocol):
    """Kernels that are loaded where they are measured, by their position."""

    def seconds(self, number: int) -> float:
        """The time of a run, the least of a few. KernelError where it fails."""
        ...

    def agrees(self, number: int) -> bool:
        """Whether its result is that of the first, up to rounding. KernelError where it fails."""
        ...


class Bench(Protocol):
    """The kernels of a network, and where they are measured."""

    @property
    def tasks(self) -> Sequence[Task]:
        """In order of the network."""
        ...

    @property
    def places(self) -> int:
        """How many trials can go on at a time."""
        ...

    def trial(self, task: Task, plans: Sequence[Plan]) -> AbstractContextManager[Trial]:
        """The kernels of these plans, loaded in a process of their own. KernelError where one cannot be made."""
        ...


class Tunable(Protocol):
    """What a target offers beside compiling, if its kernels can be tuned."""

    def bench(self, graph: Graph, options: Mapping[str, str], farm: Farm | None) -> AbstractContextManager[Bench]: ...


@dataclass(frozen=True, slots=True)
class Farm:
    """Machines that measure: those that a tracker of TVM's knows by a key."""

    host: str
    port: int
    key: str


@dataclass
class Found:
    """What is known of a task; `entry` is None as long as nothing is."""

    task: Task
    entry: Entry | None
    batches: int = 0
    """Those tried by this search."""

    @property
    def ratio(self) -> float:
        """The time of the fastest kernel over that of the target's choice."""
        return self.entry.after / self.entry.before if self.entry else 1.0

    def is_done(self, most: int) -> bool:
        return self.entry is not None and self.entry.tried >= min(most, len(self.task.plans))

    @property
    def urgency(self) -> tuple[bool, float]:
        """The larger, the sooner: first those of which nothing is known, then by the time they take in all, and less
        the more often they have been tried."""
        if self.entry is None:
            return True, self.task.work
        return False, self.entry.after * len(self.task.layers) / (1 + self.batches)


@dataclass(frozen=True)
class Outcome:
    """What is known of all tasks, in order of the network, and whether the search was interrupted."""

    found: Sequence[Found]
    interrupted: bool


def tune(
    graph: Graph, *, budget: float, trials: int = 64, optimise: int = 2, passes: str = "", farm: Farm | None = None,
    options: Mapping[str, str] | None = None, store: Store, tell: Callable[[Sequence[Found], float], None],
) -> Outcome:  # fmt: skip
    """Search for `budget` seconds, or until of each kernel `trials` plans have been tried, for the target `cpu`.

    A symbolic batch is taken for 1. Trials that have begun are finished; Ctrl-C ends them. `tell` is called each second
    with what is known and the seconds that are left.
    CnncErrors as of `cnnc.compile`, and E0610 where nothing can be measured.
    """
    texts = driver.target_options(TARGET, options or {})
    batch = {name: 1 for x in graph.inputs if x.type.rank for name in symbols(x.type.shape[0])}
    network = driver.optimise(bind(graph, batch), 0, level=optimise, passes=passes).network
    with cast(Tunable, target(TARGET)).bench(network.graph, texts, farm) as bench:
        return Search(bench, store, trials, tell).run(time.monotonic() + budget)


@dataclass
class Search:
    """A search on a bench; `most` plans are tried of each kernel."""

    bench: Bench
    store: Store
    most: int
    tell: Callable[[Sequence[Found], float], None]
    _stop: Event = field(default_factory=Event)

    def run(self, end: float) -> Outcome:
        """Search until that time of `time.monotonic`."""
        found = [Found(task, self.store.read(task.about)) for task in self.bench.tasks]
        interrupted = False
        with ThreadPoolExecutor(self.bench.places) as pool:
            running: dict[Future[Entry], Found] = {}
            try:
                while True:
                    self.tell(found, max(0.0, end - time.monotonic()))
                    for each in self._next(found, running.values()) if time.monotonic() < end else ():
                        running[pool.submit(self._batch, each.task, each.entry)] = each
                    if not running:
                        break
                    for done in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                        self._keep(running.pop(done), done.result())
            except KeyboardInterrupt:
                interrupted = True
            finally:
                self._stop.set()
        return Outcome(found, interrupted)

    def _next(self, found: Iterable[Found], running: Iterable[Found]) -> Sequence[Found]:
        """What is to be tried now, where there is place for it."""
        busy = list(running)
        free = [x for x in found if not x.is_done(self.most) and x not in busy]
        return sorted(free, key=lambda x: x.urgency, reverse=True)[: self.bench.places - len(busy)]

    def _keep(self, found: Found, entry: Entry) -> None:
        found.entry = entry
        found.batches += 1
        self.store.write(found.task.about, entry)

    def _batch(self, task: Task, entry: Entry | None) -> Entry:
        """The entry after some more plans."""
        own, tried = task.plans[0], entry.tried if entry else 1
        incumbent = entry.plan if entry and entry.plan else own
        more = [plan for plan in task.plans[tried : min(self.most, tried + AT_ONCE)] if plan != incumbent]
        best, seconds = self._best(task, incumbent, more)
        entry = entry or Entry(1, None, seconds, seconds)
        after = replace(entry, tried=min(len(task.plans), self.most, tried + AT_ONCE))
        return after if best is None else self._confirmed(task, incumbent, best, after)

    def _best(self, task: Task, incumbent: Plan, plans: Sequence[Plan]) -> tuple[Plan | None, float]:
        """The fastest of the plans, None if none is worth it, and the seconds of the incumbent.

        Those that fail are left out. CnncError E0610 where the incumbent does.
        """
        left = list(plans)
        while True:
            try:
                with self.bench.trial(task, [incumbent, *left]) as trial:
                    return self._halved(trial, left)
            except KernelError as e:
                if e.number == 0:
                    raise error("E0610", f"the kernel of {task.name} cannot be measured: {e}") from e
                del left[e.number - 1]

    def _halved(self, trial: Trial, plans: Sequence[Plan]) -> tuple[Plan | None, float]:
        alive = list(range(1, 1 + len(plans)))
        seconds = median(trial.seconds(0) for _ in range(3))
        for turns in ROUNDS:
            if not alive:
                break
            ratios = self._ratios(trial, alive, 0, turns)
            ahead = sorted((i for i in alive if ratios[i] < 1), key=lambda i: ratios[i])
            alive = ahead[: -(-len(alive) // 2)]
        if alive and self._ratios(trial, alive[:1], 0, SURE)[alive[0]] < WORTH:
            return plans[alive[0] - 1], seconds
        return None, seconds

    def _confirmed(self, task: Task, incumbent: Plan, best: Plan, entry: Entry) -> Entry:
        """The entry with the better plan, or as it is where a second trial does not find the same."""
        own = task.plans[0]
        try:
            with self.bench.trial(task, [own, best, *([] if incumbent == own else [incumbent])]) as trial:
                times: dict[int, list[float]] = {i: [] for i in range(2 if incumbent == own else 3)}
                for _ in range(SURE):
                    for i, seconds in times.items():
                        seconds.append(self._seconds(trial, i))
                others = [seconds for i, seconds in times.items() if i != 1]
                if all(_ratio(times[1], other) < WORTH for other in others) and trial.agrees(1):
                    before = median(times[0])
                    return Entry(entry.tried, best, before, before * _ratio(times[1], times[0]))
        except KernelError:
            pass
        return entry

    def _ratios(self, trial: Trial, numbers: Sequence[int], other: int, turns: int) -> dict[int, float]:
        """The medians of the times of some kernels over those of another in the same turn."""
        times: dict[int, list[float]] = {i: [] for i in (other, *numbers)}
        for _ in range(turns):
            for i, seconds in times.items():
                seconds.append(self._seconds(trial, i))
        return {i: _ratio(times[i], times[other]) for i in numbers}

    def _seconds(self, trial: Trial, number: int) -> float:
        if self._stop.is_set():
            raise InterruptedError
        return trial.seconds(number)


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return median(a / b for a, b in zip(times, others, strict=True))
