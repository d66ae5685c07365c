"""The compile cache: programs of targets that are slow to compile, kept as artifacts and found by what they are of.

An entry is named by its key, a SHA-256 over all that a program depends on, and holds the key, so that no entry passes
for another. It is a signed artifact, checked as every artifact is: one that is damaged, renamed or of others is removed
and its model compiled again, with a warning. Where the folder cannot be used there is no cache and nothing else fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cnnc.diagnostics import CnncError, Severity, error
from cnnc.files import digest
from cnnc.ir.text import to_text

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph
    from cnnc.target import Program, Target, Weights

LIMIT: Final = 5 * 10**9
"""Bytes of all entries; those not used for longest are removed first."""

_SUFFIX: Final = ".cnnp"
_ABANDONED: Final = 3600
"""Seconds after which a file that somebody began to write is left from a process that was killed."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of entries, of `limit` bytes at most."""

    folder: Path
    limit: int = LIMIT

    def refusal(self) -> str | None:
        """Why the folder is not used: others could read weights there, or what it is. None where it can be made."""
        try:
            found = self.folder.stat()
        except FileNotFoundError:
            return None
        except OSError as e:
            return e.strerror or str(e)
        if not stat.S_ISDIR(found.st_mode):
            return "it is not a folder"
        if found.st_uid != os.geteuid():
            return "it belongs to another user"
        return "others can enter it (chmod 700 mends that)" if found.st_mode & 0o077 else None

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """The entries, the one used last first: its time of access says when."""
        found = [(path, about) for path, about in self._files() if path.suffix == _SUFFIX and path.name[0] != "."]
        return sorted(found, key=lambda entry: entry[1].st_atime_ns, reverse=True)

    def load(self, key: str) -> Program | None:
        """The program of that key, if there is an intact one; one that is not is removed, with a Python warning."""
        from cnnc.artifact import load_program
        from cnnc.weights import python_warning

        path = self._path(key)
        if self.refusal() or not path.is_file():
            return None
        try:
            program = load_program(path)
            if program.made_from != key:
                raise error("E0406", f"`{path}` holds another program than its name says")
        except CnncError as e:
            if not path.exists():  # another process removed it meanwhile
                return None
            with suppress(OSError):
                path.unlink()
            note = "it was in the compile cache; the model is compiled again"
            for d in e.diagnostics:
                python_warning(replace(d, severity=Severity.WARNING, help=None, notes=(*d.notes, note)))
            return None
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return program

    def store(self, program: Program) -> None:
        """Keep a program under what it was made from, and no more than the limit in all; not where that fails."""
        from cnnc.artifact import save

        with suppress(OSError, CnncError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.refusal() is None:
                save(program, self._path(program.made_from))
                self._evict()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The regular files that are in the folder now; other processes add and remove some meanwhile."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):
                    if stat.S_ISREG((about := path.lstat()).st_mode):
                        yield path, about

    def _evict(self) -> None:
        kept = 0
        for path, about in self.entries():
            if kept + about.st_size <= self.limit:
                kept += about.st_size
            else:
                path.unlink(missing_ok=True)
        for path, about in self._files():
            if path.name.startswith(".") and path.suffix == _SUFFIX and time.time() - about.st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)


def chosen() -> Cache | None:
    """The user's cache: CNNC_CACHE names its folder, or is `off`; else it is `cnnc` in XDG_CACHE_HOME or ~/.cache."""
    if (named := os.environ.get("CNNC_CACHE")) == "off":
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home directory
        return Cache(Path(named)) if named else None
    return Cache(Path(named) if named else Path(base) / "cnnc")


def key(
    graph: Graph, weights: Weights | int, target: Target, options: Mapping[str, str], passes: Sequence[str]
) -> str | None:
    """The digest of all that the program depends on; None where the target's programs are not kept.

    `weights` are complete and match the graph, or are a seed: the code that makes them from it is in the key.
    """
    toolchain = target.toolchain(options)
    if toolchain is None:
        return None
    parts = {
        "graph": to_text(graph),
        "weights": weights if isinstance(weights, int) else _digests(weights),
        "target": target.name,
        "options": dict(options),
        "passes": list(passes),
        "toolchain": dict(toolchain),
        "versions": {name: version(name) for name in ("cnnc", "numpy")},
        "code": [code("cnnc"), code(type(target).__module__.partition(".")[0])],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digests(weights: Weights) -> dict[str, str]:
    """The digest of each array; its type and shape are in the graph."""
    import numpy as np

    contents = ((name, np.ascontiguousarray(array).reshape(-1).view(np.uint8)) for name, array in weights.items())
    return {name: digest(array.data).hex() for name, array in contents}


@cache
def code(package: str) -> str:
    """The digest of the source of a package or module: one that is being worked on changes and keeps its version."""
    spec = find_spec(package)
    assert spec is not None  # it has been imported
    folders = map(Path, spec.submodule_search_locations or ())
    files = [(str(file.relative_to(folder)), file) for folder in folders for file in folder.rglob("*.py")]
    found = hashlib.sha256()
    for name, file in sorted(files) or [(package, Path(str(spec.origin)))]:
        text = file.read_bytes()
        found.update(f"{name} {len(text)}\n".encode() + text)
    return found.hexdigest()
