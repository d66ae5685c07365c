"""`cnnc tune`: what is kept is faster for certain, nothing is measured twice, and what fails ends its trial alone."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnnc import tuned
from cnnc.diagnostics import CnncError
from cnnc.tuned import Entry, Plan, Store
from cnnc.tuning import AT_ONCE, KernelError, Outcome, Search, Task

ENOUGH = 10.0


def task(name: str = "one", times: Sequence[float] = (1.0,), work: int = 1) -> Task:
    """Plans that take these times."""
    return Task(name, ("layer",), work, {"kernel": name}, [{"plan": i, "time": t} for i, t in enumerate(times)])


class FakeBench:
    """Measures plans by the time they hold, as much slower in each turn as `busy` says; `measured` has those tried."""

    def __init__(self, *tasks: Task, busy: Callable[[int], float] = lambda turn: 1.0, places: int = 1) -> None:
        self.tasks, self.places, self.busy = tasks, places, busy
        self.measured: list[tuple[str, list[int]]] = []
        self.open: list[str] = []
        self.most_open = 0

    @contextmanager
    def trial(self, task: Task, plans: Sequence[Plan]) -> Iterator[FakeTrial]:
        assert task.name not in self.open
        self.open.append(task.name)
        self.most_open = max(self.most_open, len(self.open))
        self.measured.append((task.name, [plan["plan"] for plan in plans]))
        try:
            yield FakeTrial(self, plans)
        finally:
            self.open.remove(task.name)


class FakeTrial:
    def __init__(self, bench: FakeBench, plans: Sequence[Plan]) -> None:
        self.bench, self.plans, self.turn = bench, plans, 0

    def seconds(self, number: int) -> float:
        plan = self.plans[number]
        if plan["time"] < 0:
            raise KernelError(number, "it crashed")
        self.turn += number == 0
        before = sum(plan["plan"] in plans for _, plans in self.bench.measured[:-1])
        return float(plan.get("again" if before else "time", plan["time"]) * self.bench.busy(self.turn))

    def agrees(self, number: int) -> bool:
        return not self.plans[number].get("wrong")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def search(bench: FakeBench, store: Store, most: int = 64, seconds: float = ENOUGH, **more: Any) -> Outcome:
    more.setdefault("tell", lambda found, left: None)
    return Search(bench, store, most, **more).run(time.monotonic() + seconds)


# Searching


@pytest.mark.parametrize("fastest", [1, 5, 6, 7, 19])
def test_the_fastest_plan_is_found(fastest: int, store: Store) -> None:
    times = [1.0 + i / 100 for i in range(20)]
    times[fastest] = 0.5
    (found,) = search(FakeBench(task(times=times)), store).found
    assert found.entry == Entry(20, found.task.plans[fastest], 1.0, 0.5)
    assert store.read(found.task.about) == found.entry


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.2), (1.0, 0.98), (1.0,)])
def test_what_is_not_faster_by_more_than_noise_is_not_kept(times: Sequence[float], store: Store) -> None:
    (found,) = search(FakeBench(task(times=times)), store).found
    assert found.entry == Entry(len(times), None, 1.0, 1.0)


def test_a_busy_machine_misleads_nobody(store: Store) -> None:
    """Each turn is up to a hundred times as slow as others: only times of one turn are compared."""
    bench = FakeBench(task(times=(1.0, 1.01, 0.9, 1.02)), busy=lambda turn: 1 + 99 * (turn * 7 % 5 == 0))
    (found,) = search(bench, store).found
    assert found.entry is not None
    assert found.entry.plan == found.task.plans[2]
    assert found.ratio == pytest.approx(0.9)


def test_what_is_faster_once_only_is_not_kept(store: Store) -> None:
    one = task(times=(1.0, 0.5))
    lucky = Task(one.name, one.layers, 1, one.about, [one.plans[0], {**one.plans[1], "again": 1.0}])
    bench = FakeBench(lucky)
    (found,) = search(bench, store).found
    assert found.entry == Entry(2, None, 1.0, 1.0)
    assert len(bench.measured) == 2  # so there was a second trial


def test_what_computes_something_else_is_not_kept(store: Store) -> None:
    one = task(times=(1.0, 0.5))
    wrong = Task(one.name, one.layers, 1, one.about, [one.plans[0], {**one.plans[1], "wrong": True}])
    (found,) = search(FakeBench(wrong), store).found
    assert found.entry == Entry(2, None, 1.0, 1.0)


def test_a_better_plan_must_beat_the_one_before_it(store: Store) -> None:
    times = [1.0] * (2 * AT_ONCE + 1)
    times[1], times[-2], times[-1] = 0.5, 0.49, 0.4
    one = task(times=times)
    lucky = [*one.plans[:-1], {**one.plans[-1], "again": 0.6}]
    (found,) = search(FakeBench(Task(one.name, one.layers, 1, one.about, lucky)), store).found
    assert found.entry is not None
    assert found.entry.plan == lucky[1]


def test_plans_that_fail_are_left_out(store: Store) -> None:
    (found,) = search(FakeBench(task(times=(1.0, -1, 0.5, -1))), store).found
    assert found.entry == Entry(4, found.task.plans[2], 1.0, 0.5)


def test_a_kernel_that_cannot_run_at_all_is_an_error(store: Store) -> None:
    with pytest.raises(CnncError) as e:
        search(FakeBench(task(times=(-1, 1.0))), store)
    assert e.value.diagnostics[0].code == "E0610"
    assert "it crashed" in str(e.value)


def test_tasks_come_by_their_work_and_then_by_their_time(store: Store) -> None:
    many = 1 + 3 * AT_ONCE
    tasks = task("light", [3.0] * many, work=1), task("heavy", [1.0] * many, work=9)
    bench = FakeBench(*tasks)
    search(bench, store)
    assert [name for name, _ in bench.measured[:4]] == ["heavy", "light", "light", "light"]


def test_nothing_is_measured_twice(store: Store) -> None:
    times = [1.0] * 30
    times[20] = 0.5

    def stopping(left: int) -> Callable[..., None]:
        def tell(found: Any, seconds: float) -> None:
            if sum(x.batches for x in found) >= left:
                raise KeyboardInterrupt

        return tell

    first = FakeBench(task(times=times))
    outcome = search(first, store, tell=stopping(2))
    assert outcome.interrupted
    entry = outcome.found[0].entry
    assert entry is not None
    assert 1 < entry.tried < 30
    second = FakeBench(task(times=times))
    (found,) = search(second, store).found
    assert found.entry == Entry(30, found.task.plans[20], 1.0, 0.5)
    again = [plan for _, plans in second.measured for plan in plans if 0 < plan < entry.tried]
    assert not again
    third = FakeBench(task(times=times))
    search(third, store)
    assert not third.measured


def test_no_more_are_tried_than_asked_for(store: Store) -> None:
    bench = FakeBench(task(times=[1.0] * 30))
    (found,) = search(bench, store, most=4).found
    assert found.entry is not None
    assert found.entry.tried == 4
    assert {plan for _, plans in bench.measured for plan in plans} == {0, 1, 2, 3}


def test_without_time_nothing_begins(store: Store) -> None:
    bench = FakeBench(task(times=(1.0, 0.5)))
    (found,) = search(bench, store, seconds=-1).found
    assert (found.entry, bench.measured) == (None, [])


def test_a_farm_measures_different_kernels_at_a_time(store: Store) -> None:
    together = threading.Barrier(2, timeout=10)

    class Slow(FakeBench):
        @contextmanager
        def trial(self, task: Task, plans: Sequence[Plan]) -> Iterator[FakeTrial]:
            with super().trial(task, plans) as trial:
                together.wait()
                yield trial

    bench = Slow(task("a", [1.0] * 3), task("b", [1.0] * 3), places=2)
    outcome = search(bench, store)
    assert bench.most_open == 2
    assert all(x.is_done(64) for x in outcome.found)


# The store

ABOUT = {"kernel": "conv", "processor": "fast"}
ENTRY = Entry(3, {"rows": 2}, 2.0, 1.0)


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "not text": lambda path: path.write_bytes(b"\xff\xfe"),
    "nested": lambda path: path.write_text("[" * 40_000),
    "large": lambda path: path.write_text(" " * 200_000),
    "a list": lambda path: path.write_text("[]"),
    "of another version": damaged(lambda data: data.update(format=2)),
    "of another kernel": damaged(lambda data: data["about"].update(processor="slow")),
    "without a time": damaged(lambda data: data.pop("before")),
    "slower": damaged(lambda data: data.update(after=3.0)),
    "a plan of text": damaged(lambda data: data.update(plan="rows")),
    "none tried": damaged(lambda data: data.update(tried=0)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}  # fmt: skip


def test_an_entry_comes_back(store: Store) -> None:
    assert store.read(ABOUT) is None
    store.write(ABOUT, ENTRY)
    assert store.read(dict(reversed(ABOUT.items()))) == ENTRY
    assert store.read({**ABOUT, "processor": "slow"}) is None


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_left_aside(damage: Callable[[Path], object], store: Store) -> None:
    store.write(ABOUT, ENTRY)
    (path,) = store.folder.iterdir()
    damage(path)
    with pytest.warns(UserWarning, match="E0409"):
        assert store.read(ABOUT) is None


def test_the_digest_is_of_the_plans_alone(store: Store) -> None:
    empty = store.digest()
    store.write(ABOUT, Entry(3, None, 1.0, 1.0))
    for name, text in ("torn", '{"plan": {'), ("list", "[]"), ("deep", "[" * 40_000):
        (store.folder / f"{name}.json").write_text(text)
    assert store.digest() == empty
    store.write(ABOUT, ENTRY)
    first = store.digest()
    store.write({**ABOUT, "processor": "slow"}, ENTRY)
    assert len({empty, first, store.digest()}) == 3


def test_nobody_else_can_enter_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNC_CACHE", str(tmp_path / "new" / "cache"))
    assert tuned.store() is None
    made = tuned.made_store()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made.folder, made.folder.parent)] == [0o700, 0o700]
    assert tuned.store() == made
    made.folder.chmod(0o777)
    assert tuned.store() is None
    with pytest.raises(CnncError, match="E0409"):
        tuned.made_store()


def test_a_folder_that_cannot_be_entered_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As of another user; the superuser of a test enters any."""
    monkeypatch.setenv("CNNC_CACHE", str(tmp_path))

    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert tuned.store() is None


def test_without_a_cache_there_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNC_CACHE", "off")
    assert tuned.store() is None
