"""The compile cache: what was compiled comes back, for nothing but what it was compiled from, and never a bad entry."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import invalidate_caches
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import cnnc
from cnnc import cache
from cnnc.cache import Cache
from cnnc.cli.console import size_text
from cnnc.diagnostics import CnncError
from cnnc.ir.graph import Graph
from cnnc.passes import LEVELS
from cnnc.target import Program, Status, Target, installed, ports

if TYPE_CHECKING:
    from cnnc.target import Array, Weights
    from conftest import Cli

MODEL = "model M { input x: f32[N, 3] output y y = x -> fc: linear(2) -> dropout }"
WEIGHTS = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}


class Kept(Program):
    def __init__(self, content: bytes) -> None:
        super().__init__("slow", *ports(cnnc.load(MODEL)))
        self.content = content

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        return inputs

    def files(self) -> dict[str, bytes]:
        return {"content": self.content}


class Slow(Target):
    """Counts what it compiles, and puts the count into the program."""

    name = "slow"
    doc = "for these tests"
    options: ClassVar = {"arch": "anything"}
    native = True
    compiled = 0
    tools: ClassVar[dict[str, str]] = {}

    def status(self) -> Status:
        return Status(True, "")

    def toolchain(self, options: Mapping[str, str]) -> Mapping[str, str] | None:
        return self.tools

    def compile(self, graph: Graph, weights: Weights, **options: str) -> Program:
        Slow.compiled += 1
        return Kept(b"%d" % Slow.compiled)

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Program:
        return Kept(files["content"])


class Quick(Slow):
    def toolchain(self, options: Mapping[str, str]) -> Mapping[str, str] | None:
        return None


def install(monkeypatch: pytest.MonkeyPatch, target: type[Target]) -> None:
    known = {**installed(), "slow": SimpleNamespace(load=lambda: target)}
    monkeypatch.setattr("cnnc.target.installed", lambda: known)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the cache; a warning is an error, and `slow` is a target."""
    install(monkeypatch, Slow)
    monkeypatch.setattr(Slow, "compiled", 0)
    monkeypatch.setenv("CNNC_CACHE", str(tmp_path / "kept"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield tmp_path / "kept"


def compile(text: str = MODEL, weights: Any = 0, **options: Any) -> bytes:
    """The content of the program: how many were compiled before it and with it."""
    return cnnc.compile(cnnc.load(text), "slow", weights, **options).files()["content"]


def entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_compiled_comes_back(folder):
    graph = cnnc.load("model M { input x: f32[N, 3, 4*h, 4] output y y = x -> maxpool(2) -> maxpool(2) }")
    first, again = (cnnc.compile(graph, "slow") for _ in range(2))
    assert (first.files(), first.inner_sizes) == (again.files(), again.inner_sizes)
    assert Slow.compiled == 1
    assert first.inner_sizes


def test_nobody_else_can_enter_the_folder(folder):
    compile()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


OTHERS: dict[str, Callable[[pytest.MonkeyPatch], bytes]] = {
    "model": lambda _: compile(MODEL.replace("linear(2)", "linear(4)")),
    "name": lambda _: compile(MODEL.replace("M", "Other")),
    "seed": lambda _: compile(weights=1),
    "weights": lambda _: compile(weights=WEIGHTS),
    "option": lambda _: compile(arch="x"),
    "level": lambda _: compile(optimise=0),
    "pass": lambda _: compile(passes="-remove_identity"),
    "compiler": lambda patch: [patch.setattr(Slow, "tools", {"tvm": "2"}), compile()][-1],
    "code of cnnc": lambda patch: [patch.setattr(cache, "code", lambda package: package), compile()][-1],
    "version": lambda patch: [patch.setattr(cache, "version", lambda name: "2"), compile()][-1],
    "cache": lambda _: compile(cache=False),
    "passes to be seen": lambda _: compile(after=lambda *_: None),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_programs_do_not(other, monkeypatch):
    assert compile() == b"1"
    assert OTHERS[other](monkeypatch) == b"2"


@pytest.mark.parametrize("change", ["value", "sign of zero", "name of a value"])
def test_weights_count_by_content(change):
    compile(weights=WEIGHTS)
    assert compile(weights={name: array.copy() for name, array in reversed(WEIGHTS.items())}) == b"1"
    bias = {"value": [0, 1e-30], "sign of zero": [0, -0.0], "name of a value": [1, 0]}[change]
    assert compile(weights=WEIGHTS | {"fc.bias": np.array(bias, np.float32)}) == b"2"


def test_options_written_otherwise_are_the_same():
    compile(optimise=2)
    assert compile(optimise=1, passes=",".join({*LEVELS[2]})) == b"1"


@pytest.mark.parametrize("kind", ["module", "package"])
def test_the_code_of_a_target_counts_wherever_it_lies(kind, tmp_path, monkeypatch):
    def digest(folder: str, text: str) -> str:
        place = tmp_path / folder
        file = place / {"module": "mine.py", "package": "mine/inner/file.py"}[kind]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if kind == "package":
            (place / "mine" / "__init__.py").touch()
        invalidate_caches()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(place)
            cache.code.cache_clear()
            return cache.code("mine")

    assert digest("a", "x = 1") == digest("b", "x = 1") != digest("b", "x = 2")


def test_a_compiler_that_a_script_calls_counts(tmp_path):
    toolchain = pytest.importorskip("cnnc_tvm.toolchain")
    script, compiler = tmp_path / "nvcc", tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\nexec {compiler} $@\n")
    told = []
    for release in "12":
        compiler.write_text(f"#!/bin/sh\necho release {release}, asked for $1\n")
        for file in (script, compiler):
            file.chmod(0o755)
        told.append(toolchain.tool(str(script)))
    assert "release 1, asked for --version" in told[0]
    assert told[0] != told[1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_entry(path: Path) -> None:
    """Intact and ours, but another program's."""
    (other,) = (x for x in path.parent.iterdir() if x != path)
    shutil.copy(other, path)


def new_key(path: Path) -> None:
    Path(os.environ["XDG_CONFIG_HOME"], "cnnc", "key").write_bytes(bytes(32))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip, "E0406"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "E0406"),
    "empty": (lambda path: path.write_bytes(b""), "E0406"),
    "another's name": (other_entry, "another program than its name says"),
    "another's signature": (new_key, "E0711"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_bad_entry_is_compiled_again_with_a_warning(how, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    compile()
    path = entry(folder)
    compile(weights=7)
    spoil, told = SPOILED[how]
    spoil(path)
    with pytest.warns(UserWarning, match=told) as found:
        assert compile() == b"3"
    assert "compiled again" in str(found[0].message)
    assert compile() == b"3"


def test_a_bad_entry_is_removed(folder):
    compile()
    flip(entry(folder))
    with pytest.warns(UserWarning, match="E0406"):
        assert Cache(folder).load(entry(folder).stem) is None
    assert list(folder.iterdir()) == []


def test_each_use_counts(folder):
    """Whatever the file system notes of reading: some note the first time of a day."""
    compile()
    for _ in range(2):
        before = time.time_ns()
        compile()
        assert entry(folder).stat().st_atime_ns >= before


def test_a_full_disk_means_no_cache(folder, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert [compile(), compile()] == [b"1", b"2"]
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_means_no_cache(folder):
    folder.write_text("a file")
    assert [compile(), compile()] == [b"1", b"2"]


def test_a_folder_that_others_can_enter_is_not_used(folder):
    folder.mkdir()
    folder.chmod(0o750)
    assert [compile(), compile()] == [b"1", b"2"]
    assert list(folder.iterdir()) == []
    assert "others" in str(Cache(folder).refusal())


def test_a_folder_of_another_user_is_not_used(folder, monkeypatch):
    compile()
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert compile() == b"2"


def test_what_was_used_longest_ago_goes_first(folder):
    def stored(key: str, age: int) -> None:
        program = Kept(bytes(100_000))
        program.made_from = key
        small.store(program)
        os.utime(small._path(key), (time.time() - age,) * 2)

    small = Cache(folder, limit=350_000)
    for age, key in enumerate("abc"):
        stored(key, 100 - age)
    assert small.load("a") is not None
    stored("d", 0)
    assert sorted(path.stem for path, _ in small.entries()) == ["a", "c", "d"]
    assert [path.stem for path, _ in small.entries()][-1] == "c"


def test_a_program_larger_than_the_cache_does_not_empty_it(folder):
    for key, size in (("small", 10_000), ("large", 400_000)):
        program = Kept(bytes(size))
        program.made_from = key
        Cache(folder, limit=350_000).store(program)
    assert [path.stem for path, _ in Cache(folder).entries()] == ["small"]


def test_what_a_killed_process_left_is_removed(folder):
    folder.mkdir(mode=0o700)
    left, written_now = folder / ".aa.key.cnnp", folder / ".bb.key.cnnp"
    for path in (left, written_now):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    compile()
    assert sorted(path.name[:4] for path in folder.iterdir() if path.name[0] == ".") == [".bb."]
    assert len(Cache(folder).entries()) == 1


def test_writers_and_readers_at_once(folder):
    def store_or_load(i: int) -> Program | None:
        program = Kept(bytes(50_000))
        program.made_from = "key"
        return Cache(folder).load("key") if i % 2 else Cache(folder).store(program)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(store_or_load, range(60)))
    assert any(found)
    assert entry(folder).stem == "key"


def test_quick_targets_keep_nothing(folder, monkeypatch):
    install(monkeypatch, Quick)
    assert [compile(), compile()] == [b"1", b"2"]
    assert not folder.exists()


def test_bad_arguments_are_told_as_without_a_cache():
    with pytest.raises(CnncError, match="E0902"):
        compile(weights=-1)
    with pytest.raises(CnncError, match="E0401"):
        compile(weights={})


def test_the_environment_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.chosen() == Cache(tmp_path / "kept")
    monkeypatch.delenv("CNNC_CACHE")
    assert cache.chosen() == Cache(tmp_path / "xdg" / "cnnc")
    monkeypatch.setenv("CNNC_CACHE", "off")
    assert cache.chosen() is None


def test_the_command_line(cli: Cli, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.cnn").write_text(MODEL)
    compiling = ("compile", "m.cnn", "-t", "slow", "--seed", "0", "-o", "m.cnnp")
    for expected, flags in enumerate((["--no-cache"], [], ["--no-cache"]), start=1):
        assert cli(*compiling, *flags).exit_code == 0
        assert cnnc.load_program("m.cnnp").files() == {"content": b"%d" % expected}
    assert cli(*compiling).stderr.startswith("wrote")
    assert cnnc.load_program("m.cnnp").files() == {"content": b"2"}
    flip(entry(folder))
    result = cli(*compiling)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning[E0406]: `")
    assert cnnc.load_program("m.cnnp").files() == {"content": b"4"}


def test_compile_tells_why_it_is_not_used(cli: Cli, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.cnn").write_text(MODEL)
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    told = f"the compile cache {folder} is not used: others can enter it"
    for target, flags, tells in (("slow", [], True), ("slow", ["--no-cache"], False), ("numpy", [], False)):
        result = cli("compile", "m.cnn", "-t", target, "--seed", "0", "-o", "m.cnnp", *flags)
        assert result.exit_code == 0
        assert (told in result.stderr) == tells


def test_doctor_tells_where_it_is_and_how_large(cli: Cli, folder, monkeypatch):
    compile()
    size = entry(folder).stat().st_size
    told = cli("doctor").stdout
    assert f"{folder}\n" in told
    assert f"1 program, {size_text(size)} of at most 5.0 GB" in told
    folder.chmod(0o755)
    assert f"{folder}, not used: others can enter it" in cli("doctor").stdout
    monkeypatch.setenv("CNNC_CACHE", "off")
    assert '"folder": null' in cli("doctor", "--json").stdout


def test_programs_of_the_cpu_target():
    pytest.importorskip("tvm")
    graph, x = cnnc.load(MODEL), np.ones((2, 3), np.float32)
    first, again = (cnnc.compile(graph, "cpu") for _ in range(2))
    assert (first.remade, again.made_from) == (None, first.made_from)
    assert again.remade is not None
    assert (first(x=x)["y"] == again(x=x)["y"]).all()
    assert "define" in again.source()
