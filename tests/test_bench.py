"""`cnnc bench`: what is measured and compared, and what becomes of systems that cannot be."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import cnnc
from cnnc.bench.measure import Comparison, Quartiles, Settings, Timed, check_systems, compare, dtype_of, with_batch
from cnnc.bench.process import COMMAND, THREADS, Worker
from cnnc.bench.report import conclusion, duration, left_out, plot, table, to_json
from cnnc.bench.systems import PEERS, SYSTEMS
from cnnc.bench.worker import Session, peak_bytes
from cnnc.diagnostics import CnncError
from cnnc.ir.types import DType
from cnnc.target import Status
from cnnc.verification import random_case
from conftest import Cli

NET = "model Net { input x: f32[N, 3, 8, 8] output y, z y = x -> c: conv(4, 3) -> relu z = y -> gap }"
CASE = random_case(cnnc.load(NET))
QUICK = Settings("numpy", threads=1, rounds=3, turn=0.001, pause=0)
FAKE = """
import os, sys, time
from cnnc.bench import worker
answer = worker.Session.answer
def faulty(self, request):
    self.system, self.turns = request.get("system", self.system), self.turns + (request["do"] == "time")
    do, system, turns = request["do"], self.system, self.turns
{fault}
    return answer(self, request)
worker.Session.system, worker.Session.turns, worker.Session.answer = "", 0, faulty
worker.main()
"""
"""The worker with a fault put in."""


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Put a fault into all workers: statements run at each request, that may look at `do`, `system` and `turns`."""

    def put(code: str) -> None:
        command = [sys.executable, "-c", FAKE.format(fault=textwrap.indent(textwrap.dedent(code), "    "))]
        monkeypatch.setattr("cnnc.bench.process.COMMAND", command)

    return put


Fault = Callable[[str], None]


def worker(code: str, limit: float = 60, threads: int = 1) -> Worker:
    return Worker("torch", threads, limit, [sys.executable, "-c", code])


def failure(ask: Worker) -> str:
    with pytest.raises(CnncError) as e:
        ask.ask(do="time", seconds=1)
    assert e.value.diagnostics[0].code == "E0608"
    return e.value.diagnostics[0].message


# a worker that fails


def test_a_worker_that_dies_says_its_last_words() -> None:
    with worker("import sys; sys.stderr.write('at first\\nout of memory\\n'); sys.exit(3)") as dying:
        time.sleep(0.1)
        assert failure(dying) == "`torch` stopped: out of memory"


def test_a_worker_that_is_killed() -> None:
    with worker("import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)") as dying:
        assert failure(dying) == "`torch` was killed by SIGKILL"


def test_a_worker_that_hangs_has_a_time_limit_and_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid)!r}, "w").write(str(child.pid))
time.sleep(600)"""
    with worker(code, limit=1.5) as hanging:
        assert failure(hanging) == "`torch` did not answer within 1.5 s"
        child = int(pid.read_text())
        os.kill(child, 0)  # it lives
    for _ in range(100):
        if (stat := Path(f"/proc/{child}/stat")).exists() and stat.read_text().split()[2] != "Z":
            time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_half_an_answer_is_none() -> None:
    with worker("import time; input(); print('{', end='', flush=True); time.sleep(600)", limit=1) as hanging:
        assert "did not answer" in failure(hanging)
    with worker("input(); print('Segmentation fault')") as babbling:
        assert failure(babbling) == "`torch` gave an answer that is no JSON"


def test_what_fails_inside_a_worker_is_told_in_one_line() -> None:
    session = Session()
    assert session.answer({"do": "time", "seconds": 1}) == {"error": "AssertionError: nothing is loaded", "code": None}
    with Worker("torch", 1, 60) as real, pytest.raises(CnncError) as e:
        real.ask(do="load", system="cnnc", model="/nowhere.cnnp", inputs="/nowhere.safetensors", dtype="f32", threads=1)
    (found,) = e.value.diagnostics
    assert (found.code, found.message.splitlines()) == ("E0608", [found.message])
    assert found.message.startswith("`torch` failed: FileNotFoundError: ")


def test_errors_of_cnnc_in_a_worker_keep_their_code(tmp_path: Path) -> None:
    from cnnc import weights

    weights.save(tmp_path / "x.safetensors", {"x": np.zeros(1, np.float32)})
    where = {"model": str(tmp_path / "none.cnnp"), "inputs": str(tmp_path / "x.safetensors")}
    answer = Session().answer({"do": "load", "system": "cnnc", "dtype": "f32", "threads": 1, **where})
    assert answer["code"] == "E0901"


def test_workers_get_their_threads_by_the_environment_and_no_module_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker("import json, os; input(); print(json.dumps(dict(os.environ)))", threads=3) as telling:
        found = telling.ask(do="time", seconds=0)
    assert {found[name] for name in THREADS} == {"3"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    with Worker("torch", 1, 60, COMMAND) as real:
        assert "nothing is loaded" in failure(real)


def test_what_a_library_prints_is_no_answer(tmp_path: Path) -> None:
    code = """
import os
from cnnc.bench import worker
worker.Session.answer = lambda self, request: (print("hello"), os.system("echo world"), {"seconds": 1})[-1]
worker.main()"""
    with worker(code) as printing:
        assert printing.ask(do="time", seconds=0) == {"seconds": 1}


def test_the_peak_of_memory_is_the_process_own() -> None:
    held = np.ones(50_000_000, np.uint8)
    before = peak_bytes()
    assert before is not None
    assert before > held.nbytes


# comparing


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [("f32", 1e-6), ("bf16", 1e-2)])
def test_every_system_is_measured_on_the_same_and_its_outputs_are_compared(dtype: str, error: float) -> None:
    told: list[str] = []
    case = random_case(cnnc.load("model M { input x: f32[N, 5] output y y = x -> linear(7) }", dtype=dtype))
    found = compare("net", 2, case, PEERS, replace(QUICK, target="onnx", rounds=2), told.append)
    assert (found.left_out, found.dtype) == ({}, dtype)
    assert [x.system for x in (found.own, *found.peers)] == ["cnnc", *PEERS]
    for timed in (found.own, *found.peers):
        assert len(timed.seconds) == 2
        assert min(timed.seconds) > 0
        assert 0 <= timed.error < error
        assert timed.load_seconds > 0
        assert timed.peak_bytes is None or timed.peak_bytes > 10**7
    assert [x.version for x in found.peers] == [version(SYSTEMS[x].package) for x in PEERS]
    assert told[-1] == "round 2 of 2"


def test_a_peer_that_fails_is_left_out_with_its_reason(fault: Fault) -> None:
    fault("""
    if system == "torch": sys.exit("no room")
    if system == "openvino": raise ValueError("no kernel for this")
    """)
    found = compare("net", 2, CASE, ("torch", "openvino", "onnxruntime"), QUICK)
    assert [x.system for x in found.peers] == ["onnxruntime"]
    assert found.left_out["torch"] == "stopped: no room"
    assert found.left_out["openvino"] == "stopped: ValueError: no kernel for this"


def test_a_peer_that_dies_between_rounds_is_left_out_from_there_on(fault: Fault) -> None:
    fault("if system == 'openvino' and turns == 3: os._exit(1)")
    found = compare("net", 2, CASE, ("openvino", "onnxruntime"), QUICK)
    assert [(x.system, len(x.seconds)) for x in (found.own, *found.peers)] == [("cnnc", 3), ("onnxruntime", 3)]
    assert found.left_out == {"openvino": "stopped"}


SCALED = """
if do == "run" and system == "{system}":
    run = self._run
    self._run = lambda: {{name: x * 1.001 for name, x in run().items()}}
"""


def test_a_peer_that_computes_something_else_is_not_timed(fault: Fault) -> None:
    fault(SCALED.format(system="onnxruntime"))
    found = compare("net", 2, CASE, ("onnxruntime",), QUICK)
    assert found.peers == ()
    assert found.left_out["onnxruntime"].startswith(
        "computes another value of output `y`: off by 1.0e-03 of the largest value, "
    )


def test_a_network_that_amplifies_rounding_has_a_bound_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all networks do: by the allowance of any network no system would compute what it should."""
    monkeypatch.setattr("cnnc.verification.agreement.NETWORK_TOLERANCE", 1e-12)
    found = compare("net", 2, CASE, ("onnxruntime",), QUICK)
    assert [x.system for x in found.peers] == ["onnxruntime"]


def test_what_is_left_out_does_not_go_on_beside_the_others(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fault(
        SCALED.format(system="onnxruntime")
        + "if do == 'load' and system == 'onnxruntime': open('pid', 'w').write(str(os.getpid()))\n"
        + "if do == 'time' and os.path.exists('/proc/' + open('pid').read()): sys.exit('it goes on')"
    )
    assert compare("net", 2, CASE, ("onnxruntime",), QUICK).left_out.keys() == {"onnxruntime"}


def test_if_cnnc_computes_something_else_nothing_is_timed(fault: Fault) -> None:
    fault(SCALED.format(system="cnnc"))
    with pytest.raises(CnncError) as e:
        compare("net", 2, CASE, ("onnxruntime",), QUICK)
    assert e.value.diagnostics[0].code == "E0801"
    assert "target `numpy` computes another value of output `y`" in e.value.diagnostics[0].message


def test_if_cnnc_fails_there_is_nothing_to_compare(fault: Fault) -> None:
    fault("if system == 'cnnc' and turns == 1: os._exit(1)")
    with pytest.raises(CnncError, match="`cnnc` stopped"):
        compare("net", 2, CASE, (), QUICK)


def test_the_order_of_turns_is_reversed_every_other_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = Worker.ask

    def recording(self: Worker, **request: object) -> dict[str, object]:
        asked.extend([self.system] if request["do"] == "time" else [])
        return ask(self, **request)

    monkeypatch.setattr(Worker, "ask", recording)
    found = compare("net", 2, CASE, ("onnxruntime",), replace(QUICK, rounds=2))
    assert asked == ["cnnc", "onnxruntime", "cnnc", "onnxruntime", "onnxruntime", "cnnc"]
    assert len(found.own.seconds) == 2  # the first turns warm up


def test_peers_get_the_model_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, object]] = []
    compile = cnnc.driver.compile

    def recording(graph: cnnc.Graph, target: str, weights: object, **how: object) -> object:
        compiled.append((target, how["optimise"]))
        return compile(graph, target, weights, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("cnnc.driver.compile", recording)
    compare("net", 2, CASE, ("onnxruntime", "openvino"), replace(QUICK, optimise=3, rounds=1))
    assert compiled == [("numpy", 3), ("onnx", 0)]  # once for both


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("cnnc.bench.systems.version", without)
    assert SYSTEMS["openvino"].missing() == "openvino is not installed: pip install 'cnnc[bench]'"
    found = compare("net", 2, CASE, ("openvino",), replace(QUICK, rounds=1))
    assert found.left_out == {"openvino": "openvino is not installed: pip install 'cnnc[bench]'"}


def test_a_peer_whose_target_does_not_work_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnc_onnx.OnnxTarget.status", lambda self: Status(False, "onnx is not installed"))
    assert (SYSTEMS["openvino"].missing(), SYSTEMS["torch"].missing()) == ("onnx is not installed", "")


def test_outputs_that_show_nothing_are_not_compared() -> None:
    case = random_case(cnnc.load("model M { input x: f32[N, 3, 8, 8] output y y = x -> clip(90, 100) }"))
    with pytest.raises(CnncError, match="E0802"):
        compare("m", 2, case, (), QUICK)


# which systems, which batch


def test_systems_are_known_by_name() -> None:
    check_systems(PEERS)
    with pytest.raises(CnncError, match="did you mean `openvino`"):
        check_systems(["torch", "openvnio"])
    with pytest.raises(CnncError, match="given twice"):
        check_systems(["torch", "torch"])
    with pytest.raises(CnncError, match="no system `cnnc`"):
        check_systems(["cnnc"])


def test_the_batch_is_the_first_dim_of_the_inputs() -> None:
    graph = cnnc.load(NET)
    for given, batch in ((None, 1), (8, 8)):
        bound, size = with_batch(graph, given)
        assert (str(bound.inputs[0].type), size) == (f"f32[{batch}, 3, 8, 8]", batch)
    fixed = cnnc.load(NET, dims={"N": 4})
    assert with_batch(fixed, None) == with_batch(fixed, 4) == (fixed, 4)
    with pytest.raises(CnncError, match="the batch of `Net` is 4, not 8"):
        with_batch(fixed, 8)


def test_systems_are_compared_in_one_element_type() -> None:
    assert dtype_of(cnnc.load(NET, dtype="bf16")) is DType.BF16
    mixed = "model Mixed { input x: f32[N, 3, 8, 8] output y y = x -> cast(bf16) -> relu -> cast(f32) }"
    with pytest.raises(CnncError, match="`Mixed` is in bf16 and f32: systems are compared in one element type"):
        with_batch(cnnc.load(mixed), 1)


# the report


def comparison(model: str, own: list[float], **peers: list[float]) -> Comparison:
    timed = [Timed(name, "1", 0.1, 1e-7, seconds, 10**8) for name, seconds in {"cnnc": own, **peers}.items()]
    return Comparison(model, 1, DType.F32, timed[0], tuple(timed[1:]), {"openvino": "it is not installed"})


AHEAD = comparison("a", [1.0, 4.0, 2.0, 2.0], torch=[2.0, 8.0, 8.0, 2.0], onnxruntime=[8.0, 8.0, 8.0, 8.0])
BEHIND = comparison("b", [2.0, 4.0, 2.0, 2.0], torch=[1.0, 2.0, 1.0, 1.0])


def test_ratios_are_of_the_same_round() -> None:
    assert AHEAD.ratio(AHEAD.peers[0]) == Quartiles(0.4375, 0.5, 0.625)  # of 0.5, 0.5, 0.25 and 1
    assert AHEAD.fastest is AHEAD.peers[0]
    assert comparison("c", [1.0]).fastest is None


def test_the_conclusion_is_the_mean_over_the_fastest_and_where_cnnc_is_behind() -> None:
    assert conclusion([AHEAD]) == "cnnc has 2.00 times the speed of the fastest other system (geometric mean of 1)"
    assert conclusion([AHEAD, BEHIND]) == (
        "cnnc has 1.00 times the speed of the fastest other system (geometric mean of 2); behind on b at batch 1 (2.00)"
    )
    assert conclusion([comparison("c", [1.0])]) == ""


def test_what_was_left_out_is_told_once() -> None:
    assert left_out([AHEAD, BEHIND]) == ["left out: openvino: it is not installed"]
    alone = Comparison("c", 8, DType.F32, AHEAD.own, (), {"torch": "it stopped"})
    assert left_out([AHEAD, alone])[1] == "left out: torch for c at batch 8: it stopped"


def test_the_table_has_the_fastest_first() -> None:
    page = StringIO()
    Console(file=page, width=200).print(table([AHEAD, BEHIND]))
    rows = [" ".join(line.split()) for line in page.getvalue().splitlines() if " ms" in line]
    assert rows == [
        "a 1 cnnc 2000 ms 100 MB",
        "torch 5000 ms 0.50 0.44 to 0.62 100 MB",
        "onnxruntime 8000 ms 0.25 0.22 to 0.31 100 MB",
        "b 1 torch 1000 ms 2.00 2.00 to 2.00 100 MB",
        "cnnc 2000 ms 100 MB",
    ]


def test_the_element_type_is_told_where_it_is_not_f32() -> None:
    low = replace(BEHIND, dtype=DType.BF16)
    assert conclusion([low]).endswith("behind on b in bf16 at batch 1 (2.00)")
    assert [x["dtype"] for x in to_json([AHEAD, low], QUICK)["comparisons"]] == ["f32", "bf16"]


def test_durations_have_three_digits() -> None:
    assert [duration(x) for x in (1.5, 0.0123, 0.001, 1.234e-5)] == ["1500 ms", "12.3 ms", "1.00 ms", "0.0123 ms"]


def test_json_has_every_round() -> None:
    data = json.loads(json.dumps(to_json([AHEAD], replace(QUICK, options={"mcpu": "native"}))))
    assert data["settings"]["options"] == {"mcpu": "native"}
    assert data["machine"]["cores"] == os.cpu_count()
    (found,) = data["comparisons"]
    own, torch, _ = found["systems"]
    assert (own["system"], own["median"], own["cnnc_over_it"]) == ("cnnc", 2.0, None)
    assert torch["seconds"] == [2.0, 8.0, 8.0, 2.0]
    assert torch["cnnc_over_it"] == {"lower": 0.4375, "median": 0.5, "upper": 0.625}
    assert found["left_out"] == {"openvino": "it is not installed"}


def test_plots(tmp_path: Path) -> None:
    plot(tmp_path / "x.png", [AHEAD, BEHIND], QUICK)
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > 300
    plot(tmp_path / "x.svg", [AHEAD], QUICK)
    assert "<svg" in (tmp_path / "x.svg").read_text()
    plot(tmp_path / "none.png", [comparison("c", [1.0])], QUICK)


# the command


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.cnn").write_text(NET)
    monkeypatch.setattr("cnnc.bench.measure.Settings", partial(Settings, turn=0.001, pause=0))


@pytest.mark.usefixtures("net")
def test_bench(cli: Cli) -> None:
    result = cli("bench", "net.cnn", "--vs", "onnxruntime", "-t", "numpy", "--batch", "1,3", "--rounds", 2,
                 "--json", "x.json", "--plot", "x.svg")  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines() if " ms" in line].count("net") == 2
    assert "times the speed of the fastest other system (geometric mean of 2)" in result.stdout
    data = json.loads(Path("x.json").read_text())
    assert [(x["model"], x["batch"]) for x in data["comparisons"]] == [("net", 1), ("net", 3)]
    assert Path("x.svg").exists()


@pytest.mark.usefixtures("net")
def test_a_model_that_fails_does_not_keep_the_others_from_being_measured(cli: Cli) -> None:
    Path("dead.cnn").write_text("model Dead { input x: f32[N, 3, 8, 8] output y y = x -> clip(90, 100) }")
    options = ["--vs", "onnxruntime", "-t", "numpy", "--rounds", 1, "--json", "x.json"]
    result = cli("bench", "dead.cnn", "net.cnn", *options)
    assert result.exit_code == 9
    assert result.stderr.startswith("dead at batch 1 was not measured:\nerror[E0802]: output `y` is 90 everywhere")
    assert [x["model"] for x in json.loads(Path("x.json").read_text())["comparisons"]] == ["net"]


@pytest.mark.usefixtures("net")
def test_nothing_to_compare_with_is_an_error(cli: Cli, fault: Fault) -> None:
    fault("if system == 'torch': sys.exit(1)")
    result = cli("bench", "net.cnn", "--vs", "torch", "-t", "numpy", "--rounds", 1)
    assert result.exit_code == 7
    assert "cnnc" in result.stdout
    assert result.stderr.splitlines()[0] == "left out: torch: stopped"
    assert "error[E0608]: there was no other system to compare with" in result.stderr


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--vs", "tensorflow"], 2, "there is no system `tensorflow`"),
        (["--vs", ""], 2, "is not a list of names"),
        (["--batch", "0"], 2, "is not a list of batches"),
        (["--batch", "1,x"], 2, "is not a list of batches"),
        (["--batch", "2,2"], 2, "has a batch twice"),
        (["--batch", "8", "--dim", "N=1"], 2, "the batch of `Net` is 1, not 8"),
        (["--dtype", "f8"], 2, "is not one of"),
        (["--target", "gpu"], 7, "there is no target `gpu`"),
        (["--json", "x.txt"], 2, "are written as .json"),
        (["--json", "none/x.json"], 74, "there is no folder `none`"),
        (["--plot", "x.pdf"], 2, "a plot is a .png or .svg file"),
        (["none.cnn"], 74, "there is no file `none.cnn`"),
        (["-X", "arch=sm_90", "-t", "numpy", "--vs", "torch"], 2, "has no option `arch`"),
    ],
)
@pytest.mark.usefixtures("net")
def test_bad_input_is_told_at_once(cli: Cli, args: list[str], status: int, message: str) -> None:
    result = cli("bench", "net.cnn", *args)
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in result.stderr
