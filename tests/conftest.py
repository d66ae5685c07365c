"""What all tests share: golden files, Hypothesis profiles, and one thread for each library under xdist."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Set before the first import of a library that reads them: workers must not fight over the cores.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

os.environ["CNNC_CACHE"] = "off"  # no test but the cache's own gets a program that was compiled before

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

GOLDENS = Path(__file__).parent / "goldens"

Golden = Callable[[str, str], None]
"""`golden(name, text)` compares `text` with the file tests/goldens/`name`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that saved programs are signed with are made here, not in the user's configuration."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with its golden file; `pytest --update-golden` writes the file."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"there is no golden {name}; make it with --update-golden", pytrace=False)
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            old, new = expected.splitlines(), text.splitlines()
            lines = difflib.unified_diff(old, new, f"goldens/{name}", "now", lineterm="")
            pytest.fail("\n".join([*lines, "if this is intended: pytest --update-golden"]), pytrace=False)

    return compare


Cli = Callable[..., Result]
"""`cli("check", "net.cnn")` runs the command line in this process; standard output and error are kept apart."""


@pytest.fixture
def cli() -> Cli:
    """Run the command line as its entry point does."""
    from cnnc.cli import main

    def run(*args: object, input: str | bytes | None = None) -> Result:
        result = CliRunner(env={"NO_COLOR": None}).invoke(main, [str(arg) for arg in args], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
