"""README.md and the pages of docs/: their commands and Python blocks run, and print what the page shows.

A block marked `console` has commands after `$` and what they print; `...` stands for anything in a line, and alone in a
line for any lines. The Python blocks of a page are one program. All run in one folder, which has the README's first
network as small.cnn.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "python_api.md", ROOT / "docs" / "targets.md", ROOT / "docs" / "architecture.md")


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it is to print."""
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert "".join(f"$ {command}\n{output}" for command, output in found) == block
    return found


def matches(expected: str, printed: str) -> bool:
    lines = (
        "(?s:.*)" if line == "..." else ".*".join(map(re.escape, line.split("...")))
        for line in expected.strip("\n").splitlines()
    )
    printed = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    return re.fullmatch("\n".join(lines), printed) is not None


CONSOLE = [x for block in blocks(README, "console") for x in commands(block)]
NVCC = [x for block in blocks(README, "console needs nvcc") for x in commands(block)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has saved the first network, beside the examples."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "small.cnn").write_text(blocks(README, "cnn")[0], encoding="utf-8")
    return folder


def run(command: str | list[str], folder: Path) -> str:
    """What a command prints on both channels."""
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": binaries, "COLUMNS": "120", "PYTHONUTF8": "1", "NO_COLOR": "1"}
    return subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, env=environment, text=True, timeout=500, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ).stdout  # fmt: skip


def compare(commands: list[tuple[str, str]], folder: Path) -> None:
    for command, expected in commands:
        printed = run(command, folder)
        assert matches(expected, printed), f"$ {command}\n{printed}\ninstead of\n{expected}"


@pytest.mark.slow
def test_the_tour_prints_what_the_page_shows(folder: Path) -> None:
    assert len(CONSOLE) > 10
    compare(CONSOLE, folder)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_cuda_part_of_the_tour_prints_what_the_page_shows(folder: Path) -> None:
    assert NVCC
    compare(NVCC, folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "python_api.md"], ids=lambda page: page.stem)
def test_the_python_blocks_run(page: Path, folder: Path) -> None:
    """And print the `text` block that follows them, where there is one."""
    (folder / f"{page.stem}_page.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    printed = run([sys.executable, f"{page.stem}_page.py"], folder)
    assert matches("".join(blocks(page, "text")), printed), printed


def test_the_page_on_targets_shows_the_example() -> None:
    """Its blocks are excerpts of the package, word for word."""
    package = ROOT / "examples" / "third_party_target"
    sources = [path.read_text("utf-8") for path in (*package.rglob("*.py"), package / "pyproject.toml")]
    excerpts = [x for kind in ("python", "toml") for x in blocks(ROOT / "docs" / "targets.md", kind)]
    assert len(excerpts) == 7
    assert [x for x in excerpts if not any(x in source for source in sources)] == []


def test_a_comparison_can_fail() -> None:
    assert matches("wrote a (...)\n...\nend", "wrote a (3 kB)\n1\n2\nend\n")
    assert not matches("wrote a (...)\nend", "wrote a (3 kB)\n1\nend\n")
    assert not matches("wrote a (3 kB)", "wrote a (4 kB)")


def test_every_command_is_in_the_table() -> None:
    from cnnc.cli import main

    listed = re.findall(r"^\| `cnnc (\w+)", README.read_text("utf-8"), re.MULTILINE)
    assert listed == list(main.commands)


def test_every_target_and_option_is_in_the_table() -> None:
    from cnnc.target import targets

    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", README.read_text("utf-8"), re.MULTILINE))
    assert rows.keys() == targets().keys()
    for name, row in rows.items():
        assert set(re.findall(r"-X (\w+)=", row)) == set(targets()[name].options)


def test_there_are_exactly_two_commands_to_set_up() -> None:
    setup = README.read_text("utf-8").partition("## Set up")[2].partition("\n## ")[0]
    assert re.findall(r"^    (\S+ \S+)", setup, re.MULTILINE) == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(f"\n{name}:" in makefile for name in ("demo", "test"))
    python = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert f"Python {python.removeprefix('>=')} or newer" in setup


def test_links_and_named_files_exist() -> None:
    found = []
    for page in (*PAGES, *ROOT.glob("examples/*/README.md")):
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        found += [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", prose)]
        found += [ROOT / x for x in re.findall(r"`((?:cnnc|backends|examples|grammar|models|tests)/[\w./]*)`", prose)]
    assert len(found) > 40
    assert [str(path) for path in found if not path.exists()] == []
