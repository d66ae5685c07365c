"""Weight files: safetensors, npz and PyTorch checkpoints as tensors known by shape and element type, read on demand.

Every reader is total: any bytes give tensors or one diagnostic, and no claim of a file is believed before it is checked
against the file's real size, so that nothing is allocated for data that is not there.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from cnnc.diagnostics import CnncError, error
from cnnc.files import check_readable, io_error, zip_archive
from cnnc.ir.op import MAX_ELEMENTS

if TYPE_CHECKING:
    from cnnc.target import Array

MAX_TENSORS = 10_000
MAX_HEADER = 2**22
"""Bytes of the header of a safetensors file: names and shapes of `MAX_TENSORS` tensors fit."""
MAX_INFLATED, MAX_RATIO = 2**28, 200
"""A zip archive may expand to this many bytes, or else to this many times its size."""

_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that can be had: `kind` is its element type (`f32`, or the file's own name for one cnnc has not)."""

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], Array]

    @staticmethod
    def of(array: Array) -> Stored:
        kind = str(array.dtype.name)
        return Stored(array.shape, _SHORT.get(kind, kind), lambda: array)

    def __str__(self) -> str:
        return f"{self.kind}{list(self.shape)}"


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Stored]]:
    """The tensors of a weight file by name, readable while the block lasts.

    CnncError E0402 for a malformed file, E0404 for a file of another kind, E0530 for one that claims too much, E0604
    for a checkpoint where PyTorch is missing, E0701 and E0702 for files that want code run, E0901 for one that cannot
    be read.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _checkpoint, ".pt": _checkpoint}
    if path.suffix not in readers:
        raise error("E0404", f"`{path}` is not a weight file", help=f"cnnc reads {', '.join(readers)}")
    check_readable(path)
    try:
        with readers[path.suffix](path) as tensors:
            yield tensors
    except OSError as e:
        raise io_error("read", path, e) from e


def malformed(path: Path, reason: object) -> CnncError:
    return error("E0402", f"`{path}` is not a valid {path.suffix} file: {reason}")


def _entry(path: Path, name: str, shape: tuple[int, ...], kind: str, read: Callable[[], Array]) -> Stored:
    if prod(shape) >= MAX_ELEMENTS:
        raise error("E0530", f"`{path}`: `{name}` claims {prod(shape):,} elements, the limit is {MAX_ELEMENTS - 1:,}")
    return Stored(shape, _SHORT.get(kind, kind), read)


def _limit_count(path: Path, count: int) -> None:
    if count > MAX_TENSORS:
        raise error("E0530", f"`{path}` has {count:,} tensors, the limit is {MAX_TENSORS:,}")


@contextmanager
def _safetensors(path: Path) -> Iterator[dict[str, Stored]]:
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(path, framework="np") as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                view = file.get_slice(name)
                shape, kind = tuple(view.get_shape()), view.get_dtype()
                tensors[name] = _entry(path, name, shape, kind, partial(_tensor, file, name, kind))
            yield tensors
    except SafetensorError as e:
        raise malformed(path, str(e).removeprefix("Error while deserializing header: ")) from None


def _tensor(file: Any, name: str, kind: str) -> Array:
    if kind == "BF16":
        import ml_dtypes  # noqa: F401 - NumPy knows `bfloat16`, as the library calls it, once this is imported
    array: Array = file.get_tensor(name)
    return array


def _check_header(path: Path) -> None:
    """What the library leaves unchecked: a bound on the length, and names given twice, of which it takes the last."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise malformed(path, f"its header would have {length:,} bytes, the file has {size:,}")
        if length > MAX_HEADER:
            raise error("E0530", f"the header of `{path}` has {length:,} bytes, the limit is {MAX_HEADER:,}")
        text = file.read(length)
    try:
        names = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise malformed(path, f"its header is not valid JSON: {e}") from None
    _limit_count(path, len(names) if isinstance(names, dict) else 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(name for name in names if names.count(name) > 1)}` is in it twice")
    return found


@contextmanager
def _npz(path: Path) -> Iterator[dict[str, Stored]]:
    with zip_archive(path, partial(malformed, path)) as archive:
        members = archive.infolist()
        _check_archive(path, members)
        tensors: dict[str, Stored] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in tensors or name == member.filename:
                fault = "there twice" if name in tensors else "no array"
                raise malformed(path, f"member `{member.filename}` is {fault}")
            tensors[name] = _member(path, archive, member, name)
        yield tensors


def _check_archive(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """E0530 for a zip bomb: by what it says of itself, which `zipfile` holds it to when it reads."""
    _limit_count(path, len(members))
    inflated, size = sum(member.file_size for member in members), path.stat().st_size
    if inflated > max(MAX_INFLATED, MAX_RATIO * size):
        raise error("E0530", f"`{path}` would expand from {size:,} to {inflated:,} bytes")


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Stored:
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file)
        start = file.tell()
    if dtype.hasobject:
        raise error(
            "E0701", f"`{path}`: `{name}` holds Python objects, which could run code when read",
            help="save it as an array of numbers: `array.astype(numpy.float32)`",
        )  # fmt: skip
    if any(size < 0 for size in shape):
        raise ValueError(f"`{name}` has shape {list(shape)}")
    length = prod(shape) * dtype.itemsize

    def read() -> Array:
        with archive.open(member) as file:
            file.seek(start)
            array: Array = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
        return np.ascontiguousarray(array, dtype.newbyteorder("="))

    stored = _entry(path, name, shape, dtype.name, read)
    if start + length != member.file_size:
        raise ValueError(f"`{name}` is said to be {stored}, but has {member.file_size - start:,} bytes, not {length:,}")
    return stored


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and element type. Only format 1.0, whose header is at most 64 KiB, is read."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array is in npy format {version[0]}.{version[1]}, not 1.0")
    try:
        return np.lib.format.read_array_header_1_0(file)
    except Exception:  # the header is Python source; its parsers raise what they like
        raise ValueError("the header of an array is malformed") from None


@contextmanager
def _checkpoint(path: Path) -> Iterator[dict[str, Stored]]:
    """A PyTorch state_dict. Nothing but tensors and plain containers is unpickled."""
    try:
        import torch
    except ImportError:
        raise error(
            "E0604", f"reading `{path}` needs PyTorch, which is not installed",
            help="install it (`pip install torch`), or save the weights as safetensors",
        ) from None  # fmt: skip
    try:
        if zipfile.is_zipfile(path):
            with zip_archive(path, partial(malformed, path)) as archive:
                _check_archive(path, archive.infolist())
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (CnncError, OSError):
        raise
    except pickle.UnpicklingError as e:
        if wanted := _code_wanted(path, str(e)):
            raise error(
                "E0702", f"`{path}` wants {wanted}, which could run code when read",
                help="save only the tensors: `torch.save(model.state_dict(), path)`",
            ) from None  # fmt: skip
        raise malformed(path, "it is not a checkpoint of tensors") from None
    except Exception as e:  # PyTorch promises nothing about what it raises for malformed files
        raise malformed(path, type(e).__name__) from None
    if not isinstance(state, Mapping) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise malformed(path, "it is not a state_dict (a mapping from names to tensors)")
    _limit_count(path, len(state))

    def entry(name: str, tensor: torch.Tensor) -> Stored:
        def read() -> Array:
            array = tensor.detach().contiguous()
            if array.dtype is not torch.bfloat16:
                return array.numpy()
            import ml_dtypes

            return array.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

        kind = str(tensor.dtype).removeprefix("torch.")
        kind = kind if tensor.layout is torch.strided else f"sparse {kind}"
        return _entry(path, name, tuple(tensor.shape), kind, read)

    yield {str(name): entry(str(name), tensor) for name, tensor in state.items()}


def _code_wanted(path: Path, refusal: str) -> str:
    """What a checkpoint asks for beyond tensors and plain containers, from PyTorch's refusal; "" if it is malformed."""
    if wanted := re.search(r"GLOBAL ([\w.]+)", refusal):
        return f"`{wanted[1]}`"
    opcode = re.search(r"operand (\d+)", refusal)  # one of pickle's that PyTorch does not read, or garbage
    with path.open("rb") as file:
        pickled = file.read(1) in (pickle.PROTO, pickle.MARK)
    known = opcode and any(ord(x.code) == int(opcode[1]) for x in pickletools.opcodes)
    return "all of Python's pickle" if pickled and known else ""
