"""Files: written so that a crash, a full disk or a kill leaves the old one whole; read without trusting them."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cnnc.diagnostics import CnncError, error

if TYPE_CHECKING:
    from zipfile import ZipFile


def digest(data: bytes | memoryview) -> bytes:
    """That of large data, BLAKE3, by as many threads as there are cores: a seventh of the work of BLAKE2b or less."""
    from blake3 import blake3

    return blake3(data, max_threads=blake3.AUTO).digest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, to be written in the block, that takes its place when the block ends without an error.

    Its name ends as that of `path`. It is on disk before it takes that, and is removed if the block raises. CnncError
    E0901 for what the system refuses, and for a `path` that is not a regular file.
    """
    temporary = path.with_name(f".{secrets.token_hex(6)}.{path.name}")
    try:
        if path.exists() and not path.is_file():
            raise error("E0901", f"cannot write `{path}`: it is not a regular file")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as e:
        raise io_error("write", path, e) from e
    finally:
        with suppress(OSError):  # it is gone if it was renamed, or if it could not be made
            temporary.unlink()


def check_readable(path: Path) -> None:
    """CnncError E0901 unless there is a regular file at `path`: reading a pipe or a device may never end."""
    if not path.is_file():
        why = "it is not a regular file" if path.exists() else "there is no such file"
        raise error("E0901", f"cannot read `{path}`: {why}")


@contextmanager
def zip_archive(path: Path, malformed: Callable[[str], CnncError]) -> Iterator[ZipFile]:
    """The zip archive at `path`, to be read in the block.

    All that `zipfile` raises for a malformed one, in opening and in reading, becomes the error that `malformed` makes
    of the reason. CnncError E0901 for what the system refuses.
    """
    import struct
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error, zlib.error) as e:
        raise malformed(str(e)) from None
    except OSError as e:
        if e.errno == errno.EINVAL:  # a seek to where a malformed directory points
            raise malformed("its directory points outside of it") from None
        raise io_error("read", path, e) from e


def io_error(verb: str, path: Path, reason: OSError) -> CnncError:
    """E0901: the system did not let cnnc `verb` the file."""
    return error("E0901", f"cannot {verb} `{path}`: {reason.strerror or reason}")


def _flush(path: Path) -> None:
    """Have the file, or the names in a directory, written to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
