"""Artifacts: a compiled program as one file, a zip archive of stored members and a manifest with their checksums.

Nothing in an artifact is believed before it is checked: names stay inside, sizes are those of the file itself, every
byte is under a BLAKE3 digest. Native code is loaded only from an artifact that this user saved (its manifest carries an
HMAC under a key in the user's configuration directory) or that the caller trusts.

Members are read first and checked then, so that nobody changes them in between. Only those that a target asks for as
`mapped`, which are numbers and no code, stay in the file: like a shared library, an artifact in use is replaced by
another file, as `save` does, and not written over.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import stat
import struct
import sys
import zipfile
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from cnnc.diagnostics import CnncError, error
from cnnc.files import check_readable, digest, io_error, replacing, zip_archive
from cnnc.ir.dim import Sym, parse_dim
from cnnc.ir.graph import Graph
from cnnc.ir.json import from_json, to_json
from cnnc.ir.verify import verify
from cnnc.memory import ALIGNMENT
from cnnc.signing import sign, signed_here
from cnnc.target import Port, Program, target

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cnnc.target import Array, Contents, Weights

FORMAT: Final = 3
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.hmac"
MAX_MANIFEST: Final = 2**20
"""Bytes of a manifest."""
_LOCAL_HEADER: Final = 30
"""Bytes of the header before a member of a zip archive, of which the last four say how long what follows it is."""
_PADDING: Final = 0xD935
"""The extra field that aligns, as Android's zipalign numbers it."""
_NO_ARTIFACTS: Final = frozenset({
    ".a", ".c", ".cnn", ".cpp", ".cu", ".cubin", ".dll", ".dylib", ".exe", ".h", ".json", ".npy", ".npz", ".o", ".onnx",
    ".png", ".pt", ".pth", ".ptx", ".py", ".safetensors", ".so", ".txt",
})  # fmt: skip
"""Endings that say that a file is something else: `-o net.cnn` would put an artifact in the place of the model."""


def save(program: Program, path: Path) -> Path:
    """Write a program to `path`, atomically: in the target's own format if `path` ends in its suffix, else an artifact.

    CnncError E0901 where the system does not let it, E0902 where the name promises another kind of file.
    """
    if program.suffix and path.suffix.lower() == program.suffix:
        _check_module(path)
        try:
            program.export(path)
        except OSError as e:
            raise io_error("write", path, e) from e
    elif path.suffix.lower() in _NO_ARTIFACTS:
        own = f", or {program.suffix} for the format of `{program.target}`" if program.suffix else ""
        message = f"target `{program.target}` writes an artifact of cnnc, which is no `{path.suffix}` file"
        raise error("E0902", message, help=f"name it .cnnp{own}")
    else:
        with replacing(path) as temporary:
            if not _copied(program, temporary):
                _write(program, temporary)
        program.artifact = (path, _identity(path))
    return path


def _check_module(path: Path) -> None:
    """CnncError E0902 for Python under the name of what it may import: `numpy.py` would import itself."""
    if path.suffix == ".py" and path.stem in {"numpy", "torch", *sys.stdlib_module_names}:
        raise error("E0902", f"`{path.name}` would hide the module `{path.stem}`", help="name it otherwise")


GRAPH: Final = "graph.json"
WEIGHTS: Final = "weights.safetensors"


def network_files(graph: Graph, weights: Weights) -> dict[str, bytes]:
    """The members of an artifact of a target that makes its program anew from the graph: no code is among them."""
    from cnnc.weights import to_bytes

    return {GRAPH: json.dumps(to_json(graph)).encode(), WEIGHTS: to_bytes(weights)}


def read_network(files: Mapping[str, Contents]) -> tuple[Graph, dict[str, Array]]:
    """The graph and weights that `network_files` wrote. CnncError E0402 and E0405 for malformed ones, E0401 for
    weights that do not fit the graph, E0999 for a graph that is not well formed."""
    from cnnc.weights import check, from_bytes

    try:
        graph = from_json(json.loads(bytes(files.get(GRAPH, b""))))
    except (ValueError, RecursionError) as e:
        raise error("E0405", f"`{GRAPH}` is not JSON: {e}") from None
    return verify(graph), check(from_bytes(bytes(files.get(WEIGHTS, b"")), WEIGHTS), graph, WEIGHTS)


def load_program(path: Path, *, trust: bool = False) -> Program:
    """The program of an artifact.

    CnncError E0406 for a file that is no artifact or was changed, E0602 for a target that is not installed, E0603 for
    another format, E0710 for member names that reach outside, E0711 for native code of others unless `trust`, E0901 for
    a file that cannot be read.
    """
    check_readable(path)
    identity = _identity(path)
    with zip_archive(path, partial(_damaged, path)) as archive:
        members = _members(path, archive)
        manifest_bytes = archive.read(MANIFEST) if MANIFEST in members else b""
        manifest = _manifest(path, manifest_bytes)
        signature = archive.read(SIGNATURE) if SIGNATURE in members else b""
        chosen = target(manifest["target"])
        files = _files(path, archive, members, manifest, chosen.mapped)
    if changed := _changed(files, manifest["files"]):
        raise _damaged(path, f"its member `{changed}` was changed")
    ours = not chosen.native or (not trust and signed_here(manifest_bytes, signature))
    if not ours and not trust:
        raise error(
            "E0711", f"`{path}` holds native code that was not compiled by you",
            help="if you trust where it comes from, load it with `--trust` (in Python: `trust=True`)",
        )  # fmt: skip
    try:
        program = chosen.load(manifest, files)
        program.inner_sizes = tuple(x for x in map(parse_dim, manifest.get("sizes", [])) if isinstance(x, Sym))
        program.made_from = str(manifest.get("made_from", ""))
        program.artifact = (path, identity) if ours else None  # what is trusted is signed when it is saved
        return program
    except CnncError:
        raise
    except Exception as e:  # the checksums hold, so whoever wrote these files gave them contents the target cannot read
        raise _damaged(path, f"target `{chosen.name}` cannot read its contents") from e


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when another file takes the place of this one, or somebody writes to it; () where there is none."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _copied(program: Program, path: Path) -> bool:
    """Whether the program is in a file still, and now in this one too: checksums take longer than a copy."""
    if program.artifact is None:
        return False
    source, identity = program.artifact
    with suppress(OSError):
        if _identity(source) == identity:
            shutil.copyfile(source, path)
            return _identity(source) == identity
    return False


def _write(program: Program, path: Path) -> None:
    files = program.files()
    manifest = {
        "format": FORMAT,
        "cnnc": version("cnnc"),
        "target": program.target,
        "made_from": program.made_from,
        "inputs": [_port_json(x) for x in program.inputs],
        "outputs": [_port_json(x) for x in program.outputs],
        "sizes": [str(size) for size in program.inner_sizes],
        "files": {name: _claim(data) for name, data in files.items()},
    }
    text = json.dumps(manifest, indent=2).encode()
    members = {MANIFEST: text, **files}
    if target(program.target).native:
        members[SIGNATURE] = sign(text)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)  # a fixed date: equal programs give equal artifacts
            assert archive.fp is not None
            member.extra = _padding(archive.fp.tell() + _LOCAL_HEADER + len(name.encode()))
            archive.writestr(member, data)


def _padding(start: int) -> bytes:
    """An extra field at this place after which the contents of a member are aligned, for those who map them."""
    room = -start % ALIGNMENT
    size = room - 4 if room >= 4 else room - 4 + ALIGNMENT  # its head has four bytes
    return struct.pack("<HH", _PADDING, size) + bytes(size)


def _claim(data: Contents) -> dict[str, object]:
    """What the manifest says of a member."""
    return {"blake3": digest(data).hex(), "size": len(data)}


def _port_json(port: Port) -> dict[str, str]:
    return {"name": port.name, "type": str(port.type), "doc": port.doc}


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name, once none of them reaches outside and all together are no larger than the file."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename
        parts = PureWindowsPath(name)  # which knows both kinds of slash, and drives
        if parts.anchor or ".." in parts.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise error("E0710", f"`{path}` has a member that reaches outside of it: `{name}`")
        if name in members:
            raise error("E0710", f"`{path}` has the member `{name}` twice")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _damaged(path, f"its member `{name}` is compressed")
        members[name] = member
    if sum(member.file_size for member in members.values()) > path.stat().st_size:
        raise _damaged(path, "its members claim more bytes than it has")
    return members


def _manifest(path: Path, data: bytes) -> dict[str, Any]:
    """The manifest, checked as far as this module and the choice of a target rely on it."""
    if not 0 < len(data) <= MAX_MANIFEST:
        raise _damaged(path, "it has no manifest" if not data else "its manifest is too large")
    try:
        manifest = json.loads(data)
    except RecursionError:
        raise _damaged(path, "its manifest is malformed") from None
    stated = manifest.get("format") if isinstance(manifest, dict) else None
    if type(stated) is int and 0 < stated != FORMAT:
        whose, help = ("a newer", "update cnnc, or ") if stated > FORMAT else ("an older", "")
        raise error(
            "E0603", f"`{path}` is in format {stated}, written by {whose} cnnc; this one reads format {FORMAT}",
            help=f"{help}compile the model again",
        )  # fmt: skip
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if stated != FORMAT or not isinstance(manifest.get("target"), str) or not isinstance(files, dict):
        raise _damaged(path, "its manifest is malformed")
    return dict(manifest)


def _files(
    path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], manifest: dict[str, Any],
    mapped: Collection[str],
) -> dict[str, Contents]:  # fmt: skip
    """The members that the manifest lists, which must be all there are."""
    listed = manifest["files"]
    if different := listed.keys() ^ (members.keys() - {MANIFEST, SIGNATURE}):
        raise _damaged(path, f"its manifest and its members disagree about `{min(different)}`")
    return {name: _stored(archive, members[name], mapped=name in mapped) for name in listed}


def _changed(files: Mapping[str, Contents], claims: Mapping[str, object]) -> str:
    """The first member that is not what the manifest says of it, "" if there is none."""
    return next((name for name, data in files.items() if claims[name] != _claim(data)), "")


def _stored(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, mapped: bool) -> Contents:
    """The bytes of a member that is not compressed, without a look at its CRC-32: its digest says more."""
    file = archive.fp
    assert file is not None
    file.seek(member.header_offset + _LOCAL_HEADER - 4)
    lengths = struct.unpack("<HH", file.read(4))  # of the name and of extra fields, which follow
    start = file.seek(sum(lengths), os.SEEK_CUR)
    if not mapped:
        return file.read(member.file_size)
    # DLPack refuses memory that cannot be written; what is written stays with this process.
    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return whole[start : start + member.file_size]


def _damaged(path: Path, reason: str) -> CnncError:
    help = "a program is what `cnnc compile` or `program.save` wrote, whole and unchanged"
    if path.suffix.lower() in (".onnx", ".py"):
        help = f"files of `{path.suffix}` are for other tools; cnnc runs what `cnnc compile -o {path.stem}.cnnp` writes"
    return error("E0406", f"`{path}` is not an intact artifact of cnnc: {reason}", help=help)
