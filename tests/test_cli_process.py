"""The command line as a process of its own: start-up time, pipes, signals, terminals."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

CNNC = [sys.executable, "-m", "cnnc"]
NET = "model Net { input x: f32[N, 3] output y y = x -> linear(2) }\n"
ROOT = Path(__file__).parents[1]


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CNNC, *args], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def test_the_installed_script_runs() -> None:
    script = shutil.which("cnnc", path=str(Path(sys.executable).parent))
    assert script is not None
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("cnnc ")


def test_standard_input_and_pipes() -> None:
    done = run("check", "-", input=NET)
    assert (done.returncode, done.stdout) == (0, "-: Net: ok, 8 parameters\n")
    assert run("check", "-", stdin=subprocess.DEVNULL).returncode == 3


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*CNNC, "ir", "-"], input=NET, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_standard_output_is_no_error() -> None:
    done = subprocess.run(["/bin/sh", "-c", '"$@" >&-', "sh", *CNNC, "ir", "-"], input=NET, stderr=subprocess.PIPE,
                          text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_names_of_models() -> None:
    script = run("completion", "bash").stdout.replace("compopt", ":").replace(" $1)", ' "$@")')
    drive = f"{script}\nCOMP_WORDS=(cnnc summary resnet1) COMP_CWORD=2\n_cnnc_completion \"$@\"\necho ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", drive, "bash", *CNNC], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["resnet101", "resnet152", "resnet18"]


def test_interruption_leaves_no_trace() -> None:
    process = subprocess.Popen(
        [*CNNC, "check", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit SIG_IGN
    )  # fmt: skip
    assert process.stdin is not None
    time.sleep(2)  # it waits for its input by now
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


def without_override() -> None:
    """Let the superuser, who may write anywhere, start a program that may write only where the modes allow it."""
    pr_capbset_drop, cap_dac_override = 24, 1
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0) != 0:
        raise OSError("the right to write anywhere could not be dropped")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    before = tmp_path / "net.cnnp"
    before.write_text("an older program")
    tmp_path.chmod(0o555)
    done = run("compile", "-", "-t", "numpy", "-o", str(before), input=NET, preexec_fn=without_override)
    assert done.returncode == 74
    assert "error[E0901]" in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an older program"]


def test_a_device_is_not_replaced() -> None:
    done = run("compile", "-", "-t", "numpy", "-o", "/dev/null", input=NET)
    assert done.returncode == 74
    assert not Path("/dev/null").is_file()


def on_a_terminal(*args: str, input: str = "", **environment: str) -> str:
    """What the command shows on a terminal of 80 columns."""
    main, side = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "80", **environment}
    process = subprocess.Popen([*CNNC, *args], stdin=subprocess.PIPE, stdout=side, stderr=side, env=env, text=True)
    os.close(side)
    assert process.stdin is not None
    process.stdin.write(input)
    process.stdin.close()
    shown = b""
    while True:
        try:
            shown += os.read(main, 4096)
        except OSError:  # the other side is closed
            break
    os.close(main)
    process.wait(timeout=60)
    return shown.decode()


def test_colour_is_for_terminals() -> None:
    assert "\x1b[1;31merror[E0102]\x1b[0m" in on_a_terminal("check", "-")
    assert "\x1b" not in on_a_terminal("check", "-", NO_COLOR="1")
    assert "\x1b" not in run("check", "-", stdin=subprocess.DEVNULL).stderr


def test_pages_and_tables_fit_a_terminal() -> None:
    page = on_a_terminal("explain", "E0312", NO_COLOR="1").splitlines()
    summary = on_a_terminal("summary", "resnet50", "--depth", "1", NO_COLOR="1").splitlines()
    table = summary[next(i for i, line in enumerate(summary) if "layer" in line and "op" in line) :]
    for lines in (page, table):
        assert len(lines) > 10
        assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in lines) <= 80


def test_long_work_shows_itself_on_terminals_only() -> None:
    source = ("compile", "-", "-t", "numpy", "-o", "/dev/null")
    assert "compiling Net for numpy" in on_a_terminal(*source, input=NET)
    assert "compiling" not in run(*source, input=NET).stderr


def test_weights_in_bf16(tmp_path: Path) -> None:
    """NumPy knows them only once something has told it."""
    weights = {"0.weight": np.zeros((2, 3)), "0.bias": np.full(2, 0.25)}
    path = tmp_path / "w.safetensors"
    save_file({name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}, path)
    done = run("run", "-", "--weights", str(path), "-i", "x=zeros", input=NET)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.25" in done.stdout
