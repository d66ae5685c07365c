"""Artifacts: what is saved loads equal; damage, escapes and foreign native code are refused; saving is atomic."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

import cnnc
from cnnc import artifact, signing
from cnnc.diagnostics import CnncError
from cnnc.files import replacing
from cnnc.ir import DType, Sym, TensorType
from cnnc.memory import ALIGNMENT
from cnnc.target import Port, Program, Status, Target

if TYPE_CHECKING:
    from cnnc.target import Array

PORTS = (Port("x", TensorType((Sym.of("N"), 3)), "a vector"),)
FILES = {"weights.bin": bytes(range(256)) * 8, "code/main.txt": b"y = x + 1\n"}


class Echo(Program):
    """A program that is nothing but its files."""

    suffix: ClassVar[str] = ".echo"

    def __init__(self, files: Mapping[str, bytes], target: str = "echo") -> None:
        super().__init__(target, PORTS, PORTS)
        self._files = dict(files)

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        return inputs

    def files(self) -> dict[str, bytes]:
        return self._files

    def export(self, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(self._files.values()))


class EchoTarget(Target):
    name = "echo"
    doc = "files"

    def status(self) -> Status:
        return Status(True, "")

    def compile(self, graph: object, weights: object, **options: str) -> Program:
        raise AssertionError

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Program:
        if b"unreadable" in files.values():
            raise KeyError("graph")
        return Echo(files, manifest["target"])


class NativeTarget(EchoTarget):
    name = "native"
    native = True


class MappedTarget(EchoTarget):
    name = "mapped"
    mapped = frozenset({"weights.bin"})


@pytest.fixture(autouse=True)
def _targets(monkeypatch, tmp_path):
    known = {"echo": EchoTarget, "native": NativeTarget, "mapped": MappedTarget}
    real = artifact.target
    monkeypatch.setattr(artifact, "target", lambda name: known[name]() if name in known else real(name))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def refused(call: Callable[[], object], code: str, part: str = "") -> None:
    with pytest.raises(CnncError) as e:
        call()
    (diagnostic,) = e.value.diagnostics
    assert diagnostic.code == code, diagnostic.message
    assert part in diagnostic.message


def load(path: Path) -> Callable[[], Program]:
    return lambda: cnnc.load_program(path)


def saved(path: Path, target: str = "echo") -> Path:
    return Echo(FILES, target).save(path)


def manifest(held: Mapping[str, bytes] = FILES, **changes: object) -> bytes:
    listed = {name: {"blake3": blake3(data).hexdigest(), "size": len(data)} for name, data in held.items()}
    return json.dumps({"format": artifact.FORMAT, "target": "echo", "files": listed, **changes}).encode()


def write(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile warns of duplicates
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_what_is_saved_loads_equal(tmp_path):
    program = cnnc.load_program(saved(tmp_path / "p.cnnc"))
    assert (program.files(), program.target) == (FILES, "echo")
    with zipfile.ZipFile(tmp_path / "p.cnnc") as archive:
        stated = json.loads(archive.read("manifest.json"))
    port = {"name": "x", "type": "f32[N, 3]", "doc": "a vector"}
    claims = {"cnnc": cnnc.__version__, "made_from": "", "inputs": [port], "outputs": [port], "sizes": []}
    assert stated == json.loads(manifest()) | claims


def test_members_are_mapped_for_targets_that_ask(tmp_path):
    path = saved(tmp_path / "p.cnnc", "mapped")
    before = path.read_bytes()
    view, text = cnnc.load_program(path).files().values()
    assert isinstance(text, bytes)
    assert isinstance(view, memoryview)
    assert (bytes(view), text) == tuple(FILES.values())
    assert np.frombuffer(view, np.uint8).ctypes.data % ALIGNMENT == 0
    view[0] = 1  # only here
    assert path.read_bytes() == before


def test_a_mapped_member_outlives_another_program_in_its_place(tmp_path):
    path = saved(tmp_path / "p.cnnc", "mapped")
    view = cnnc.load_program(path).files()["weights.bin"]
    Echo({"weights.bin": b""}, "mapped").save(path)
    assert bytes(view) == FILES["weights.bin"]


def test_mapped_members_are_checked(tmp_path):
    path = saved(tmp_path / "p.cnnc", "mapped")
    data = bytearray(path.read_bytes())
    data[data.index(FILES["weights.bin"])] ^= 1
    path.write_bytes(data)
    refused(load(path), "E0406", "its member `weights.bin` was changed")


def test_equal_programs_give_equal_artifacts(tmp_path):
    assert saved(tmp_path / "a").read_bytes() == saved(tmp_path / "b").read_bytes()


def test_a_program_is_copied_from_its_artifact(tmp_path, monkeypatch):
    program = cnnc.load_program(saved(tmp_path / "a"))
    monkeypatch.setattr(artifact, "_write", None)
    program.save(tmp_path / "b")
    program.save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("change", ["written to", "replaced", "removed"])
def test_a_program_is_written_anew_where_its_artifact_changed(change, tmp_path):
    path = saved(tmp_path / "a")
    was = path.read_bytes()
    program = cnnc.load_program(path)
    match change:
        case "written to":
            path.write_bytes(bytes(len(was)))
        case "replaced":
            saved(tmp_path / "c").rename(path)
            os.utime(path, ns=(0, 0))
        case "removed":
            path.unlink()
    assert program.save(tmp_path / "b").read_bytes() == was


def test_what_was_trusted_is_signed_as_it_is_saved(tmp_path, monkeypatch):
    path = saved(tmp_path / "a", "native")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    cnnc.load_program(path, trust=True).save(tmp_path / "b")
    assert cnnc.load_program(tmp_path / "b").files() == FILES


def test_the_suffix_of_a_target_gives_its_own_format(tmp_path):
    assert saved(tmp_path / "p.echo").read_bytes() == b"".join(FILES.values())
    assert os.listdir(tmp_path) == ["p.echo"]


def test_a_real_program_survives(tmp_path):
    graph = cnnc.load("model M { input x: f32[N, 4]  output y  y = x -> linear(3) -> relu }")
    program = cnnc.compile(graph, target="numpy")
    import numpy as np

    x = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    again = cnnc.load_program(program.save(tmp_path / "m.cnnc"))
    assert np.array_equal(again(x=x)["y"], program(x=x)["y"])


# Who may load native code


def test_native_code_loads_for_who_compiled_it(tmp_path):
    path = saved(tmp_path / "p.cnnc", "native")
    key = tmp_path / "config" / "cnnc" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert os.listdir(key.parent) == ["key"]
    assert cnnc.load_program(path).files() == FILES
    before = key.read_bytes()
    saved(tmp_path / "q.cnnc", "native")
    assert key.read_bytes() == before
    assert len(before) == 32


def test_native_code_of_others_needs_trust(tmp_path, monkeypatch):
    path = saved(tmp_path / "p.cnnc", "native")
    for home in ("nobody", "somebody"):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / home))
        if home == "somebody":
            saved(tmp_path / "own.cnnc", "native")  # makes this user's key
        refused(load(path), "E0711", "native code")
        assert cnnc.load_program(path, trust=True).files() == FILES


def test_a_signature_is_of_the_manifest(tmp_path):
    path = saved(tmp_path / "p.cnnc", "native")
    with zipfile.ZipFile(path) as archive:
        signature = archive.read("manifest.hmac")
    evil = {"code.so": b"evil"}
    write(path, ("manifest.json", manifest(evil, target="native")), ("manifest.hmac", signature), *evil.items())
    refused(load(path), "E0711")
    unsigned = write(path, ("manifest.json", manifest(target="native")), *FILES.items())
    refused(load(unsigned), "E0711")


def test_an_empty_key_signs_nothing(tmp_path):
    """Without a key no signature is right, not even that under no key."""
    text = manifest(target="native")
    forged = hmac.new(b"", text, hashlib.sha256).hexdigest().encode()
    refused(load(write(tmp_path / "p", ("manifest.json", text), ("manifest.hmac", forged), *FILES.items())), "E0711")


def test_a_key_that_others_can_read_is_refused(tmp_path):
    path = saved(tmp_path / "p.cnnc", "native")
    (tmp_path / "config" / "cnnc" / "key").chmod(0o644)
    refused(load(path), "E0711", "others can read your signing key")


def test_a_key_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    refused(lambda: saved(tmp_path / "p.cnnc", "native"), "E0901", "cannot write")
    assert not (tmp_path / "p.cnnc").exists()


def test_the_key_of_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "p.cnnc", "native")
    assert (tmp_path / ".config" / "cnnc" / "key").exists()


def test_a_user_without_a_home(tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError

    path = saved(tmp_path / "p.cnnc", "native")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    refused(load(path), "E0901", "no home directory")
    assert cnnc.load_program(path, trust=True).files() == FILES


def test_two_processes_agree_on_the_key(tmp_path, monkeypatch):
    """The second to make a key finds that of the first in its place."""
    path = tmp_path / "config" / "cnnc" / "key"
    signing._make_key(path)
    before = path.read_bytes()
    signing._make_key(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["key"]


# What no artifact may hold


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "..", "\\x", "..\\x", "C:\\x", "C:x", "//server/share/x"]
)
def test_members_that_reach_outside(tmp_path, name):
    files = {name: b"data"}
    refused(load(write(tmp_path / "p", ("manifest.json", manifest(files)), *files.items())), "E0710", "reaches outside")


def test_links_and_duplicates(tmp_path):
    link = zipfile.ZipInfo("weights.bin")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(load(write(tmp_path / "p", ("manifest.json", manifest()), (link, b"/etc/passwd"))), "E0710", "weights.bin")
    members = [("manifest.json", manifest()), *FILES.items(), ("weights.bin", b"other")]
    refused(load(write(tmp_path / "p", *members)), "E0710", "has the member `weights.bin` twice")


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([*FILES.items()], "it has no manifest"),
        ([("manifest.json", b""), *FILES.items()], "it has no manifest"),
        ([("manifest.json", b" " * 2**21)], "its manifest is too large"),
        ([("manifest.json", b"{")], ""),
        ([("manifest.json", b"\xff")], ""),
        ([("manifest.json", b"[" * 200_000)], "its manifest is malformed"),
        ([("manifest.json", b"[]")], "its manifest is malformed"),
        ([("manifest.json", manifest(format=0)), *FILES.items()], "its manifest is malformed"),
        ([("manifest.json", manifest(format="1")), *FILES.items()], "its manifest is malformed"),
        ([("manifest.json", manifest(target=None)), *FILES.items()], "its manifest is malformed"),
        ([("manifest.json", manifest(files=[])), *FILES.items()], "its manifest is malformed"),
        ([("manifest.json", manifest(files={"weights.bin": 3})), ("weights.bin", b"")], "`weights.bin` was changed"),
        ([("manifest.json", manifest()), ("weights.bin", FILES["weights.bin"])], "disagree about `code/main.txt`"),
        ([("manifest.json", manifest()), *FILES.items(), ("more", b"")], "disagree about `more`"),
        ([("manifest.json", manifest()), *(FILES | {"weights.bin": b"other"}).items()], "`weights.bin` was changed"),
        ([("manifest.json", manifest({"a": b"unreadable"})), ("a", b"unreadable")], "cannot read its contents"),
    ],
    ids=range(16),
)
def test_damaged_artifacts(tmp_path, members, part):
    refused(load(write(tmp_path / "p", *members)), "E0406", part)


def test_compressed_members_are_none_of_ours(tmp_path):
    bomb = write(tmp_path / "p", ("manifest.json", bytes(2**20)), compression=zipfile.ZIP_DEFLATED)
    refused(load(bomb), "E0406", "its member `manifest.json` is compressed")


def test_members_that_claim_more_than_the_file_has(tmp_path):
    path = write(tmp_path / "p", ("manifest.json", manifest()), ("weights.bin", bytes(1000)))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2  # compressed and uncompressed size
    path.write_bytes(data)
    refused(load(path), "E0406")


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x05\x06" + bytes(18), bytes(10_000)])
def test_what_is_no_artifact(tmp_path, data):
    (tmp_path / "p").write_bytes(data)
    refused(load(tmp_path / "p"), "E0406")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    refused(load(tmp_path / "nothing"), "E0901", "there is no such file")
    os.mkfifo(tmp_path / "pipe")
    refused(load(tmp_path / "pipe"), "E0901", "not a regular file")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "p")
    monkeypatch.setattr(zipfile, "ZipFile", denied)
    refused(load(path), "E0901", "Permission denied")


def test_other_formats_and_unknown_targets(tmp_path):
    path = tmp_path / "p"
    for step, whose in ((1, "a newer"), (-1, "an older")):
        other = manifest(format=artifact.FORMAT + step, files=0)
        refused(load(write(path, ("manifest.json", other))), "E0603", f"written by {whose} cnnc")
    refused(load(write(path, ("manifest.json", manifest(target="abacus")), *FILES.items())), "E0602", "abacus")


def test_diagnostics_of_a_target_pass_through(tmp_path, monkeypatch):
    def load_program(*_: object) -> Program:
        raise CnncError(())

    monkeypatch.setattr(EchoTarget, "load", load_program)
    path = saved(tmp_path / "p")
    with pytest.raises(CnncError) as e:
        cnnc.load_program(path)
    assert e.value.diagnostics == ()


@given(data=st.data())
def test_changed_bytes_are_found_or_harmless(tmp_path_factory, data):
    """Zip has fields that mean nothing (dates); whatever changes, no other contents are ever loaded."""
    path = tmp_path_factory.getbasetemp() / "fuzz.cnnc"
    good = saved(path).read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    end = at + data.draw(st.sampled_from([1, 1, 1, 4, len(good)]))
    path.write_bytes(good[:at] + data.draw(st.binary(max_size=4)) + good[end:])
    try:
        assert cnnc.load_program(path).files() == FILES
    except CnncError as e:
        codes = {d.code for d in e.diagnostics}
    else:
        codes = set()
    assert codes <= {"E0406", "E0710"}


def test_a_flipped_byte_of_the_contents(tmp_path):
    path = saved(tmp_path / "p")
    good = path.read_bytes()
    for needle in (FILES["weights.bin"], FILES["code/main.txt"], b'"target": "echo"'):
        at = good.index(needle) + len(needle) - 1
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        refused(load(path), "E0406")


# Saving leaves the old file or the new one


@pytest.mark.parametrize("suffix", [".echo", ".cnnc"])
def test_an_error_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = saved(tmp_path / f"p{suffix}")
    old = path.read_bytes()

    def full(*_: object) -> dict[str, bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Echo, "export", full)
    monkeypatch.setattr(Echo, "files", full)
    refused(lambda: saved(path), "E0901", "No space left on device")
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("place", ["nowhere/p", "file/p", "."])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").touch()
    refused(lambda: saved(tmp_path / place), "E0901", "cannot write")
    assert os.listdir(tmp_path) == ["file"]


def test_a_device_is_not_replaced():
    refused(lambda: saved(Path("/dev/null")), "E0901", "not a regular file")


def test_a_new_file_has_the_usual_mode(tmp_path):
    old = os.umask(0o027)
    try:
        assert stat.S_IMODE(saved(tmp_path / "p").stat().st_mode) == 0o640
    finally:
        os.umask(old)


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from cnnc.diagnostics import CnncError
from cnnc.files import replacing

path, way = Path(sys.argv[1]), sys.argv[2]
if way == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(bytes(500))
            file.flush()
            if way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(bytes(5000))
except CnncError as e:
    sys.exit(e.exit_status)
"""


@pytest.mark.parametrize(("way", "status"), [("kill", -signal.SIGKILL), ("full", 74)])
def test_a_kill_or_a_full_disk_leaves_the_old_file(tmp_path, way, status):
    path = tmp_path / "p"
    path.write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", CHILD, str(path), way], check=False).returncode == status
    assert path.read_bytes() == b"old"
    if way == "full":
        assert os.listdir(tmp_path) == ["p"]


def test_interruptions_remove_the_temporary(tmp_path):
    def interrupted() -> None:
        with replacing(tmp_path / "p") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_element_types_of_ports_are_written(tmp_path):
    program = Echo(FILES)
    program.inputs = (Port("h", TensorType((1,), DType.BF16)),)
    with zipfile.ZipFile(program.save(tmp_path / "p")) as archive:
        assert json.loads(archive.read("manifest.json"))["inputs"][0]["type"] == "bf16[1]"
