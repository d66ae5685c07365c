"""Kernels of the target `cpu` are measured in processes of their own, here or by a tracker, and compiled as tuned."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

import cnnc
from cnnc import driver
from cnnc.diagnostics import CnncError
from cnnc.target import target
from cnnc.tuned import Entry, Store, made_store
from cnnc.tuning import Bench, Farm, KernelError, Tunable
from cnnc_tvm import bench_cpu, candidates, kernels_cpu
from cnnc_tvm.build_cpu import build, machine
from cnnc_tvm.candidates import Choices, Convolution, about, data, plans, surroundings
from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.ffi import cores
from cnnc_tvm.peak import _written
from cnnc_tvm.places import Here

MODEL = "model Net { input x: f32[N, 32, 12, 12] output y y = x -> conv(48, 3, pad=1) -> relu -> conv(16, 1) -> relu }"
SMALL = Machine(lanes=8, registers=16, cores=2, winograd=True)
SHAPES = {
    "3x3": Convolution(ConvShape(1, 32, 48, (12, 12), (3, 3), pads=(1, 1, 1, 1)), False),
    "1x1": Convolution(ConvShape(2, 20, 24, (6, 6), (1, 1)), False),
    "first": Convolution(ConvShape(1, 3, 16, (13, 13), (5, 5), (2, 2)), True),
    "grouped": Convolution(ConvShape(1, 32, 32, (7, 7), (3, 3), groups=2), False),
    "depthwise": Convolution(ConvShape(1, 24, 24, (9, 9), (3, 3), pads=(1, 1, 1, 1), groups=24), False),
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CNNC_CACHE", str(tmp_path / "cache"))
    return made_store()


# Candidates


@pytest.mark.parametrize("convolution", SHAPES.values(), ids=SHAPES)
def test_the_first_plan_is_the_one_chosen_and_each_is_another(convolution):
    found = plans(convolution, SMALL)
    assert found[0] == kernels_cpu.choose(convolution.shape, SMALL, plain=convolution.plain)
    assert len(set(found)) == len(found) > 3
    assert len({json.dumps(data(plan)) for plan in found}) == len(found)


def test_tiles_differ_among_the_first():
    first = [data(plan) for plan in plans(SHAPES["3x3"], SMALL)[:10]]
    assert len({(plan["kind"], plan.get("m"), plan["rows"], plan["columns"]) for plan in first}) > 3


def test_entries_are_about_all_that_decides():
    convolution, other = SHAPES["3x3"], SHAPES["1x1"]
    around = surroundings(SMALL, "x86-64-v3")
    found = [
        about(convolution, around), about(other, around), about(replace(convolution, plain=True), around),
        about(replace(convolution, shape=replace(convolution.shape, batch=2)), around),
        about(convolution, surroundings(replace(SMALL, cores=1), "x86-64-v3")),
        about(convolution, surroundings(replace(SMALL, winograd=False), "x86-64-v3")),
        about(convolution, surroundings(SMALL, "native")), about(convolution, {**around, "generators": ["changed"]}),
    ]  # fmt: skip
    assert len({json.dumps(x) for x in found}) == len(found)


# Compiling


def tune(store: Store, batch: int, number: int) -> dict[str, Any]:
    """Keep, for the first convolution at a batch, the plan at a position; what the store has it about."""
    here = machine("native", winograd=True)
    convolution = Convolution(replace(SHAPES["3x3"].shape, batch=batch), False)
    where = about(convolution, surroundings(here, "native"))
    store.write(where, Entry(10, data(plans(convolution, here)[number]), 2.0, 1.0))
    return dict(where)


def packed(model: str | Path = MODEL, **options: str) -> set[str]:
    """The arrangement of the first weights in the program, which names the plan."""
    graph = cnnc.load(model, dims={"N": int(options.pop("batch"))} if "batch" in options else None)
    return {name for name in cnnc.compile(graph, "cpu", cache=False, **options).weights if name.startswith("0.weight:")}


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine code is made."""
    monkeypatch.setattr("cnnc_tvm.build_cpu.build", lambda functions, mcpu: (b"", str))


def test_programs_are_made_as_tuned(store, unbuilt):
    default = packed()
    tune(store, batch=1, number=-1)
    tuned = packed()  # for few images
    assert tuned != default
    assert packed(batch="1") < tuned  # there is another plan for many
    assert not packed(batch="2") & packed(batch="1")
    assert packed(tuned="off") == default
    assert packed(linear="bf16") == tuned  # which matters to no convolution


def test_a_plan_that_there_is_not_is_left_aside(store, unbuilt):
    default, where = packed(), tune(store, batch=1, number=-1)
    store.write(where, Entry(10, {"kind": "direct", "rows": 1_000_000}, 2.0, 1.0))
    with pytest.warns(UserWarning, match="E0409"):
        assert packed() == default


def test_a_program_that_was_kept_is_not_used_after_tuning(store):
    graph = cnnc.load(MODEL)
    first = cnnc.compile(graph, "cpu").made_from
    assert cnnc.compile(graph, "cpu").made_from == first
    tune(store, batch=1, number=-1)
    again = cnnc.compile(graph, "cpu")
    assert again.made_from != first
    assert cnnc.compile(graph, "cpu", tuned="off").made_from not in (first, again.made_from)


def test_tuned_is_on_or_off(store):
    with pytest.raises(CnncError, match="E0902"):
        cnnc.compile(cnnc.load(MODEL), "cpu", tuned="no")


@pytest.mark.parametrize("convolution", ["3x3", "1x1", "first", "grouped", "depthwise"])
def test_tuned_kernels_compute_the_same(convolution, monkeypatch):
    shape, here = SHAPES[convolution].shape, machine("native", winograd=True)
    monkeypatch.setattr("cnnc_tvm.build_cpu.machine", lambda cpu, **options: replace(here, lanes=8, registers=16))
    op = f"conv({shape.filters}, {shape.kernel[0]}, s={shape.stride[0]}, pad={shape.pads[0]}, groups={shape.groups})"
    graph = cnnc.load(
        f"model M {{ input x: f32[{shape.batch}, {shape.channels}, {shape.image[0]}, {shape.image[1]}] output y"
        f" y = x -> {op} -> relu }}"
    )
    x = np.random.default_rng(0).standard_normal((shape.batch, shape.channels, *shape.image), np.float32)
    want = cnnc.compile(graph, "numpy")(x=x)["y"]
    found = plans(SHAPES[convolution], replace(here, lanes=8, registers=16))
    kinds = {data(plan)["kind"]: plan for plan in found}  # the last of each
    assert len(kinds) == (2 if convolution == "3x3" else 1)
    for plan in (found[len(found) // 2], *kinds.values()):
        monkeypatch.setattr(kernels_cpu, "choose", lambda *_, plan=plan, **more: plan)
        np.testing.assert_allclose(cnnc.compile(graph, "cpu")(x=x)["y"], want, rtol=1e-4, atol=1e-4)


# Measuring


@contextmanager
def bench_of(farm: Farm | None = None) -> Iterator[Bench]:
    network = driver.optimise(cnnc.load(MODEL, dims={"N": 1}), 0).network
    with cast(Tunable, target("cpu")).bench(network.graph, {}, farm) as bench:
        yield bench


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with bench_of() as bench:
        yield bench


def function(write: Callable[[Any], None]) -> bench_cpu.Built:
    """A kernel of these statements on a small buffer."""
    made = _written("kernel", write, (1000,))
    return bench_cpu.Built(build({"kernel": made}, "native")[0], "kernel", (np.zeros(1000, np.float32),))


def crashing(out: Any) -> None:
    with T.serial(1000) as i:
        T.buffer_store(out, 1.0, [i * 2_000_000])


def hanging(out: Any) -> None:
    with T.serial(2**30) as i, T.serial(2**30) as j:
        T.buffer_store(out, out[(i + j) % 999 + 1] * 0.5, [j % 1000])


def test_the_tasks_are_the_convolutions_of_the_network(bench):
    assert [(task.name, task.layers, task.work) for task in bench.tasks] == [
        ("3x3 32 to 48 at 1x12x12", ("0",), 32 * 48 * 9 * 144), ("1x1 48 to 16 at 1x12x12", ("2",), 48 * 16 * 144),
    ]  # fmt: skip


def test_kernels_are_timed_and_compared(bench):
    task = bench.tasks[0]
    with bench.trial(task, task.plans[:3]) as trial:
        assert all(0 < trial.seconds(i) < 1 for i in (0, 1, 2, 0))
        assert trial.agrees(2)


def children(pid: int) -> list[str]:
    """The processes that a process has begun and that run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == pid and state != "Z":
                found.append(folder.name)
    return found


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_threads_that_are_timed_have_cores_of_their_own(bench):
    task = bench.tasks[0]
    with bench.trial(task, task.plans[:1]):
        pids = children(bench._place._process.pid)
        bound = [os.sched_getaffinity(int(thread)) for pid in pids for thread in os.listdir(f"/proc/{pid}/task")]
    assert bound
    assert all(len(each) == 1 for each in bound)
    assert len(set.union(*bound)) == min(len(bound), cores())


def test_a_result_that_differs_is_seen(bench, monkeypatch):
    task, built = bench.tasks[0], bench._built

    def other(number: int, *of: Any) -> bench_cpu.Built:
        made = built(number, *of)
        image, *rest = made.args
        return replace(made, args=(image * (1 + number / 100), *rest))

    monkeypatch.setattr(bench, "_built", other)
    with bench.trial(task, task.plans[:2]) as trial:
        assert not trial.agrees(1)


@pytest.mark.parametrize(("write", "limit"), [(crashing, 60), (hanging, 1)])
def test_what_crashes_or_hangs_ends_its_trial_alone(write, limit, bench, monkeypatch):
    task, built, session = bench.tasks[1], bench._built, bench._place.session
    with monkeypatch.context() as patch:
        patch.setattr(bench, "_built", lambda number, *of: function(write) if number == 1 else built(number, *of))
        patch.setattr(bench._place, "session", lambda seconds: session(limit))
        with pytest.raises(KernelError) as e, bench.trial(task, task.plans[:2]) as trial:
            trial.seconds(1)
        assert e.value.number == 1
    with bench.trial(task, task.plans[:1]) as trial:
        assert trial.seconds(0) > 0


SERVE = """
from cnnc_tvm.ffi import import_compiler, threads
threads(); import_compiler()
from tvm.rpc.server import PopenRPCServerState
from tvm.rpc.tracker import PopenTrackerServerState
port = PopenTrackerServerState("127.0.0.1", 49152, 65535, silent=True).port
PopenRPCServerState("127.0.0.1", 49152, 65535, tracker_addr=("127.0.0.1", port), key="desk", silent=True)
print(port, flush=True)
"""


@pytest.fixture(scope="module")
def tracker() -> Iterator[tuple[str, int]]:
    """A tracker of TVM's that knows a machine, this one, as `desk`; in a process that ends: its thread would not."""
    pytest.importorskip("tornado")
    from tvm.rpc import connect_tracker

    command = [sys.executable, "-c", SERVE]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        end = time.monotonic() + 60
        while not connect_tracker("127.0.0.1", port).summary()["server_info"] and time.monotonic() < end:
            time.sleep(0.1)
        yield "127.0.0.1", port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_farm_measures(tracker):
    with bench_of(Farm(*tracker, "desk")) as bench:
        assert bench.places == 1
        task = bench.tasks[0]
        for _ in range(2):
            with bench.trial(task, task.plans[:2]) as trial:
                assert trial.seconds(1) > 0
                assert trial.agrees(1)


def test_a_farm_of_other_processors(tracker, monkeypatch):
    monkeypatch.setattr("cnnc_tvm.bench_cpu.codegen.llvm_get_system_cpu", lambda: "z80")
    monkeypatch.setattr("cnnc_tvm.build_cpu.machine", lambda cpu, **options: SMALL)
    with (
        bench_of(Farm(*tracker, "desk")) as bench,
        pytest.raises(CnncError, match=r"E0610.*and this one a `z80`"),
        bench.trial(bench.tasks[0], []),
    ):
        pass


def test_a_farm_without_such_machines(tracker):
    words = r"knows no machine by the key `phone`[^E]*rpc_server --tracker"
    with pytest.raises(CnncError, match=words), bench_of(Farm(*tracker, "phone")):
        pass


# The command


@pytest.fixture
def badly_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first convolution a place and a block of filters are computed at a time."""
    choose = kernels_cpu.choose

    def badly(shape: ConvShape, machine: Machine, *, plain: bool) -> Any:
        plan = choose(shape, machine, plain=plain)
        return replace(plan, rows=1, columns=1, blocks=1) if shape.kernel == (3, 3) else plan

    monkeypatch.setattr(kernels_cpu, "choose", badly)
    monkeypatch.setattr(candidates, "choose", badly)


@pytest.mark.slow
def test_a_bad_choice_is_mended(badly_chosen, store, tmp_path, cli):
    model = tmp_path / "net.cnn"
    model.write_text(MODEL.replace("12, 12", "28, 28"))
    words = ("tune", model, "-X", "winograd=off", "--trials", 4, "--budget", "60s", "--json")
    done = cli(*words)
    assert done.exit_code == 0, done.stderr
    first, second = json.loads(done.stdout)["net"]
    assert (first["kernel"], first["layers"], first["tried"]) == ("3x3 32 to 48 at 1x28x28", ["0"], 4)
    assert first["seconds_after"] < 0.8 * first["seconds_before"]
    assert second["tried"] == 4
    shape, here = replace(SHAPES["3x3"].shape, image=(28, 28)), machine("native", winograd=False)
    assert data(Choices(store, here, "native")(shape, False)) == first["plan"]
    start = time.monotonic()
    assert json.loads(cli(*words).stdout)["net"] == [first, second]
    assert time.monotonic() - start < 10  # nothing was measured again
    shown = cli(*words[:-1])
    assert "1 of 2 kernels faster" in shown.stdout
    assert "not finished" not in shown.stderr


@pytest.mark.slow
def test_an_interrupted_search_keeps_what_it_found(store, tmp_path):
    model = tmp_path / "net.cnn"
    model.write_text(MODEL)
    command = [sys.executable, "-m", "cnnc", "tune", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(store.folder.glob("[!.]*")) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(r" 7 of \d\d ", out)
    assert "Traceback" not in err
    assert "goes on with it" in err


def test_the_process_that_measures_ends_with_the_one_that_asked(bench):
    place = Here()
    place.session(60)
    process = place._process
    assert process is not None
    process.stdin.close()  # as if this process were killed
    assert process.wait(10) == -signal.SIGKILL


def test_what_the_command_refuses(store, tmp_path, cli, monkeypatch):
    for words, told in [
        (("--tracker", "here:9190"), "belong together"), (("--key", "desk"), "belong together"),
        (("--tracker", "here", "--key", "desk"), "HOST:PORT"), (("--budget", "soon"), "not a time"),
    ]:  # fmt: skip
        done = cli("tune", "lenet5", *words)
        assert done.exit_code == 2
        assert told in done.stderr
    monkeypatch.setenv("CNNC_CACHE", "off")
    assert "error[E0409]" in cli("tune", "lenet5").stderr


@pytest.mark.parametrize("option", ["mpcu=znver4", "winograd=maybe", "bf16=1", "tuned=maybe", "linear=f64"])
def test_options_that_there_are_not(option, store, cli):
    result = cli("tune", "lenet5", "--dim", "N=1", "-X", option, "--budget", "1s")
    assert result.exit_code == 2
    assert "error[E0902]" in result.stderr
