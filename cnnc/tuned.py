"""What `cnnc tune` found: for each kernel it measured the fastest plan, found again by all that it depends on.

A *plan* is the sizes that a target makes a kernel with, as a JSON object of the target's own. An entry is a file named
by the SHA-256 of what it is about, which it holds as well, so that none passes for another. Entries are data: a plan is
used only where the target lists it among those it knows itself, and an entry that is damaged is left aside with a
warning. The folder lies in that of the compile cache and is as private.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from cnnc.cache import Cache, chosen
from cnnc.diagnostics import Diagnostic, Severity, error
from cnnc.files import replacing

Plan: TypeAlias = Mapping[str, Any]
About: TypeAlias = Mapping[str, Any]

_FORMAT: Final = 1
_MAX_BYTES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a kernel."""

    tried: int
    """How many of the target's plans have been measured, in the target's order."""
    plan: Plan | None
    """The fastest; None where that is the one the target chooses without measuring."""
    before: float
    """Seconds of the kernel that the target chooses, and of the fastest, both measured in turns."""
    after: float


@dataclass(frozen=True)
class Store:
    """A folder of entries."""

    folder: Path

    def read(self, about: About) -> Entry | None:
        """The entry about this, if there is an intact one; a Python warning where there is one that is not."""
        path = self._path(about)
        try:
            return _checked(_data(path), about)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            self.ignore(about, str(e))
            return None

    def ignore(self, about: About, why: str) -> None:
        """Issue the Python warning that the entry about this is not used."""
        from cnnc.weights import python_warning

        message = f"`{self._path(about)}` is not used: {why}"
        notes = ("the kernel is chosen as if it had not been tuned", "`cnnc tune` measures it again")
        python_warning(Diagnostic("E0409", message, notes=notes, severity=Severity.WARNING))

    def write(self, about: About, entry: Entry) -> None:
        """Keep an entry: a crash leaves the one before it, or this one. CnncError E0901 where that fails."""
        data = {"format": _FORMAT, "about": about, **asdict(entry)}
        with replacing(self._path(about)) as path:
            path.write_text(json.dumps(data, indent=1))

    def digest(self) -> str:
        """One of all plans that are not the target's own choice: programs compiled now depend on some of them."""
        digest = hashlib.sha256()
        with suppress(OSError):
            for path in sorted(self.folder.glob("*.json")):
                with suppress(OSError, ValueError):
                    if (plan := _data(path).get("plan")) is not None:
                        digest.update(f"{path.name} {json.dumps(plan)}\n".encode())
        return digest.hexdigest()

    def _path(self, about: About) -> Path:
        return self.folder / f"{hashlib.sha256(_text(about).encode()).hexdigest()}.json"


def _text(about: About) -> str:
    return json.dumps(about, sort_keys=True)


def _data(path: Path) -> dict[str, Any]:
    """The object that a file holds; ValueError where it is none."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if about.st_size > _MAX_BYTES:
        raise ValueError("it is too large")
    try:
        found = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it nests too deep") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError("it has another format")
    return found


def _checked(found: Mapping[str, Any], about: About) -> Entry:
    """The entry that is said to be about this; ValueError says why it is not."""
    if _text(found.get("about", {})) != _text(about):
        raise ValueError("it is about another kernel than its name says")
    match found:
        case {"tried": int(tried), "plan": dict() | None as plan, "before": float(before), "after": float(after)}:
            if tried > 0 and 0 < after <= before:
                return Entry(tried, plan, before, after)
    raise ValueError("it does not say what was measured")


def store() -> Store | None:
    """The user's store, to read from; None where there is none, or where others could write to it."""
    cache = chosen()
    found = cache and Store(cache.folder / "tuned")
    with suppress(OSError):  # a folder that this user may not enter
        return found if found and found.folder.is_dir() and not Cache(found.folder).refusal() else None
    return None


def made_store() -> Store:
    """The user's store, made if need be. CnncError E0409 where there can be none."""
    cache = chosen()
    if cache is None:
        hint = "CNNC_CACHE=DIR keeps it elsewhere"
        raise error("E0409", "what is tuned has no place: the compile cache, where it would be, is off", help=hint)
    folders = cache.folder, cache.folder / "tuned"
    for folder in folders:  # one after the other: `parents` would let others enter those above
        try:
            folder.mkdir(mode=0o700, parents=folder is folders[0], exist_ok=True)
            why = Cache(folder).refusal()
        except OSError as e:
            why = e.strerror or str(e)
        if why:
            raise error("E0409", f"what is tuned cannot be kept in `{folder}`: {why}")
    return Store(folders[1])
