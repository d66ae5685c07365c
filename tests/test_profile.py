"""`cnnc profile`: steps are timed one by one, and times, work and bytes are counted for the right layers and lines."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cnnc
from cnnc import analysis, driver
from cnnc.ir.dim import evaluate
from cnnc.profiling import Peaks, Profile, StepTimes, profile
from cnnc.target import ports, target
from conftest import Cli, Golden

pytest.importorskip("tvm")
from cnnc_tvm import peak
from cnnc_tvm.build_cpu import build

MODEL = """
def double(c) = conv(c, 3, pad=1, bias=false) -> bn -> relu -> conv(c, 3, pad=1)
model Two {
  input x: f32[N, 2, 8, 8]
  output y
  y = x -> first: double(4) -> maxpool(2)
    -> second: double(6) -> gap -> flatten -> fc: linear(3) -> softmax
}
"""
X = np.random.default_rng(0).random((3, 2, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def measured() -> Profile:
    return profile(cnnc.load(MODEL), 0, {"x": X}, runs=3, cache=False)


def test_the_layers_do_the_work_of_the_graph(measured):
    macs = evaluate(analysis.macs(cnnc.load(MODEL)), {"N": 3})
    assert sum(layer.macs for layer in measured.layers) == macs
    assert [x.node.name for x in measured.layers if x.macs] == ["first.0", "first.3", "second.0", "second.3", "fc"]
    assert all(x.functions and x.seconds > 0 for x in measured.layers)


def test_bytes_are_those_of_operands_and_results(measured):
    first = measured.layers[0]
    image, result, weights = 3 * 2 * 8 * 8, 3 * 4 * 8 * 8, 4 * 2 * 3 * 3 + 4
    assert (
        4 * (image + result + weights) <= first.bytes <= 4 * (image + 4 * result + 16 * weights)
    )  # channels in blocks
    assert first.bandwidth == first.bytes / first.seconds


def test_what_is_stored_between_the_parts_of_a_fused_node_is_its_work():
    """An expression so long is computed in several steps."""
    text = "model M { input x: f32[N, 2, 8, 8]  output y  y = x -> first: local(16, 3, pad=1)" + " -> gelu" * 7 + " }"
    (layer,) = profile(cnnc.load(text), 0, {"x": X}, runs=1, cache=False).layers
    assert layer.node.name == "first"
    assert len(layer.functions) > 1


def test_a_slow_step_is_the_one_that_takes_long():
    program = cnnc.compile(cnnc.load(MODEL), "cpu")
    want = program(x=X)["y"]
    calls = program._frame.calls
    fast = calls[1]
    calls[1] = lambda: (time.sleep(0.05), fast())
    steps = program.timed(3, lambda: None, x=X)
    assert [i for i, step in enumerate(steps) if min(step.seconds) >= 0.05] == [1]
    assert [(step.function, step.nodes) for step in steps] == [(x.function, x.nodes) for x in program.plan.steps]
    assert [len(step.seconds) for step in steps] == [3] * len(steps)
    assert (program(x=X)["y"] == want).all()


def test_each_run_begins_with_the_inputs():
    """This program writes its result over its input."""
    program = cnnc.compile(cnnc.load("model M { input x: f32[N, 4] output y y = x -> exp }"), "cpu", 1)
    x = np.ones((2, 4), np.float32)
    want = program(x=x)["y"]
    seen = []
    read, calls = program._frame.outputs["y"], program._frame.calls
    first = calls[0]
    calls[0] = lambda: (seen.append(read().tolist()), first())
    program.timed(2, lambda: None, x=x)
    assert read().tolist() == want.tolist() != x.tolist()
    assert seen == [x.tolist()] * 3


def test_something_is_done_before_each_run():
    program = cnnc.compile(cnnc.load(MODEL), "cpu")
    done = []
    calls = program._frame_for({"N": 3}).calls
    first = calls[0]
    calls[0] = lambda: (done.append("run"), first())
    program.timed(2, lambda: done.append("between"), x=X)
    assert done == ["run", "between", "run", "between", "run"]


def test_the_peaks():
    meter = target("cpu").meter()
    meter.sample()
    peaks = meter.peaks()
    assert peaks.flops > 1e9
    assert peaks.bandwidth > 1e8


@pytest.mark.parametrize("lanes", peak.LANES)
def test_all_products_of_a_peak_are_computed_when_it_runs(lanes: int):
    """LLVM left out one of twelve, whose numbers it knew, so that the peak was an eleventh too high."""
    function = peak._products(lanes, 1)
    code = build({function.name: function}, "native")[1]()
    found = len(re.findall(rf"= (?:tail )?call <{lanes} x float> @llvm\.fmuladd", code))
    assert found > 0
    assert found % peak.SUMS == 0


def test_the_peak_is_the_median_of_the_samples(monkeypatch: pytest.MonkeyPatch):
    """Which are of a slow clock here for most of the time."""
    meter = target("cpu").meter()
    times = iter([[1.0], [4.0, 4.0], [2.0, 8.0], [1.0, 9.0, 9.5]])
    monkeypatch.setattr("cnnc_tvm.peak._seconds", lambda call, lasting: next(times))
    for _ in range(3):
        meter.sample()
    found = meter.peaks()
    assert found.flops * 4 == meter._flops
    assert found.bandwidth * 9 == 2 * 4 * 2**25


TIMES = {"first.0": (3, 1, 2), "first.3": (4, 4, 4), "second.0": (1, 1, 1), "fc": (1, 5, 9)}


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of two steps a layer, whose times are known, on a machine of 10 GFLOP/s and 1 GB/s."""

    def timed(runs: int, between: object, **inputs: object) -> Sequence[StepTimes]:
        return [
            StepTimes(f"f{i}", (node,), 1000, tuple(x / 2e6 for x in times))
            for node, times in TIMES.items()
            for i in (0, 1)
        ]

    def compile(graph: cnnc.Graph, *settings: object, **options: object) -> object:
        return SimpleNamespace(timed=timed, inputs=ports(graph)[0])

    monkeypatch.setattr(driver, "compile", compile)
    meter = SimpleNamespace(sample=None, peaks=lambda: Peaks(1e10, 1e9))
    monkeypatch.setattr("cnnc.profiling.target", lambda name: SimpleNamespace(meter=lambda: meter))


@pytest.mark.usefixtures("faked")
def test_the_time_of_a_layer_is_the_median_of_its_runs():
    found = profile(cnnc.load(MODEL), 0, {"x": X}, runs=3)
    assert [round(1e6 * x.seconds, 6) for x in found.layers] == [2, 4, 1, 5]
    assert found.layers[0].functions == ("f0", "f1")
    assert found.layers[0].bytes == 2000
    assert found.layers[0].flops == pytest.approx(2 * 3 * 4 * 2 * 9 * 64 / 2e-6)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("view", ["layers", "annotate"])
def test_what_is_printed(view: str, cli: Cli, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.cnn").write_text(MODEL)
    result = cli("profile", "two.cnn", "--seed", "0", *(["--annotate"] if view == "annotate" else []))
    assert result.exit_code == 0
    golden(f"profile_{view}.txt", result.stdout)


@pytest.mark.usefixtures("faked")
def test_json(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "two.cnn").write_text(MODEL)
    found = json.loads(cli("profile", tmp_path / "two.cnn", "--seed", "0", "--json").stdout)
    assert found["seconds"] == pytest.approx(12e-6)
    assert [x["name"] for x in found["layers"]] == list(TIMES)
    first = found["layers"][0]
    assert first["at"].endswith("two.cnn:2:17")
    assert first["share"] == pytest.approx(2 / 12)
    assert first["share_of_peak"] == pytest.approx(2 * first["macs"] / 2e-6 / 1e10)
    assert first["share_of_bandwidth"] == pytest.approx(2000 / 2e-6 / 1e9)


def test_a_network_that_computes_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.cnn").write_text("model M { input x: f32[N, 4] output y y = x -> dropout }")
    result = cli("profile", tmp_path / "m.cnn", "--runs", "1")
    assert result.exit_code == 0, result.stderr
    assert "M: 0.0" in result.stdout


def test_sizes_that_are_not_known_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.cnn").write_text("model M { input x: f32[N, 4, H, W] output y y = x -> relu }")
    result = cli("profile", tmp_path / "m.cnn")
    assert (result.exit_code, "`--dim" in result.stderr) == (2, True)
