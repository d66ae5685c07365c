"""Weights: arrays by parameter name. How they start, how files hold them, and whether they fit a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from cnnc.diagnostics import CnncError, Diagnostic, Help, Severity, error, render
from cnnc.files import io_error, replacing
from cnnc.ir.graph import Graph, Param
from cnnc.ir.types import DType, shape_text
from cnnc.target import numpy_dtype
from cnnc.weights.files import Stored, opened
from cnnc.weights.initial import init

if TYPE_CHECKING:
    from cnnc.target import Array

__all__ = ["Warn", "check", "from_bytes", "init", "load", "save", "to_bytes"]


_GUESSES: Final = 20
"""For how many missing parameters a renaming is sought: comparing all names with all takes too long."""
_CLOSE: Final = 0.6
"""How alike their names are at least: 1 is the same."""


Warn: TypeAlias = Callable[[Diagnostic], None]


def python_warning(finding: Diagnostic) -> None:
    """Issue a diagnostic as a Python warning, for callers that have no better way to show it."""
    warnings.warn(render(finding), stacklevel=4)


def load(path: str | Path, graph: Graph, *, strict: bool = False, warn: Warn = python_warning) -> dict[str, Array]:
    """The weights of a graph from a .safetensors, .npz or .pth file; only tensors of the right shape are read.

    CnncErrors as of `check` and `opened`.
    """
    with opened(Path(path)) as tensors:
        return _fitted(tensors, graph, f"the weights of `{path}`", strict, warn)


def check(
    weights: Mapping[str, Array], graph: Graph, where: str = "the weights", *, strict: bool = False,
    warn: Warn = python_warning,
) -> dict[str, Array]:  # fmt: skip
    """The weights as the graph wants them: f32 arrays are converted to its element type, f16 and bf16 ones to f32.

    CnncError E0401 lists every missing, unexpected, mis-shaped and mistyped array; `*.num_batches_tracked`, which
    PyTorch adds, is ignored. NaN and infinity are passed to `warn` as one warning (E0407); they are an error if
    `strict`. `where` names the weights in messages.
    """
    tensors = {name: Stored.of(np.asarray(array)) for name, array in weights.items()}
    return _fitted(tensors, graph, where, strict, warn)


def save(path: str | Path, weights: Mapping[str, Array]) -> None:
    """Write a .safetensors or .npz file, atomically. An npz has bf16 as f32: NumPy's format has no name for it."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise error("E0902", f"cannot write weights to `{path}`", help="cnnc writes .safetensors and .npz")
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            widened = {k: v.astype(np.float32) if v.dtype.name == "bfloat16" else v for k, v in weights.items()}
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **widened)
            return
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        mode = temporary.stat().st_mode
        try:
            save_file({name: np.asarray(array, order="C") for name, array in weights.items()}, temporary)
        except SafetensorError as e:
            raise io_error("write", path, OSError(str(e))) from None
        temporary.chmod(mode)  # the library makes a file that its owner alone can read


def to_bytes(weights: Mapping[str, Array]) -> bytes:
    """The contents of a .safetensors file with these arrays."""
    from safetensors.numpy import save as dump

    return dump({name: np.asarray(array, order="C") for name, array in weights.items()})


def from_bytes(data: bytes, where: str) -> dict[str, Array]:
    """The arrays of the contents of a .safetensors file, bf16 among them; CnncError E0402 for other bytes."""
    from safetensors import SafetensorError, deserialize

    kinds = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}
    try:
        tensors: list[tuple[str, Any]] = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as e:
        raise error("E0402", f"`{where}` is not a valid safetensors file: {e}") from None
    if odd := [name for name, tensor in tensors if tensor["dtype"] not in kinds]:
        raise error("E0402", f"`{where}` has elements of a type that cnnc does not write, in `{odd[0]}`")
    return {
        name: np.frombuffer(tensor["data"], numpy_dtype(kinds[tensor["dtype"]])).reshape(tensor["shape"])
        for name, tensor in tensors
    }


def _fitted(tensors: Mapping[str, Stored], graph: Graph, where: str, strict: bool, warn: Warn) -> dict[str, Array]:
    _check_fit(tensors, graph, where)
    weights, odd = {}, []
    for name, param in graph.params.items():
        with np.errstate(over="ignore"):  # an overflow to infinity is reported as such
            array = tensors[name].read().astype(numpy_dtype(param.type.dtype), copy=False)
        weights[name] = array
        if bad := int(array.size - np.isfinite(array).sum()):
            odd.append(f"`{name}`: {bad:,} of {array.size:,}")
    if odd:
        message = f"{where} have NaN or infinite values in {len(odd)} parameters of `{graph.name}`"
        finding = Diagnostic("E0407", message, notes=tuple(odd))
        if strict:
            raise CnncError((finding,))
        warn(replace(finding, severity=Severity.WARNING))
    return weights


def _check_fit(tensors: Mapping[str, Stored], graph: Graph, where: str) -> None:
    missing = [x for name, x in graph.params.items() if name not in tensors]
    extra = [name for name in tensors if name not in graph.params and name.split(".")[-1] != "num_batches_tracked"]
    both = [(x, tensors[name]) for name, x in graph.params.items() if name in tensors]
    shaped = [(x, t) for x, t in both if t.shape != x.type.shape]
    typed = [(x, t) for x, t in both if not _convertible(t.kind, x)]
    counts = {
        "missing": len(missing), "unexpected": len(extra), "of another shape": len(shaped),
        "of another element type": len(typed),
    }  # fmt: skip
    if not any(counts.values()):
        return
    notes = [f"`{x.name}`, {x.type}, is missing" for x in missing]
    notes += [f"`{name}`, {tensors[name]}, is unexpected" for name in extra]
    notes += [f"`{x.name}` has shape {list(t.shape)}, not {shape_text(x.type.shape)}" for x, t in shaped]
    notes += [f"`{x.name}` is {t.kind}, not {x.type.dtype}" for x, t in typed]
    what = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    mend = _renamed(missing, {name: tensors[name] for name in extra})
    message = f"{where} do not fit `{graph.name}`: {what}"
    raise CnncError((Diagnostic("E0401", message, help=mend, notes=tuple(notes)),))


def _convertible(kind: str, param: Param) -> bool:
    """Same, from f32 (rounding is what the graph's element type asks for), or to f32 (exact)."""
    wanted = param.type.dtype
    return kind == wanted or (kind in ("f32", "f16", "bf16") and "f32" in (kind, wanted))


def _renamed(missing: list[Param], extra: Mapping[str, Stored]) -> Help | None:
    """What the missing may be called instead: unexpected tensors of the same shapes, each for the one with the closest
    name."""
    close: list[tuple[float, str, str]] = []
    for param in missing[:_GUESSES]:
        same = [name for name, tensor in extra.items() if tensor.shape == param.type.shape][: 10 * _GUESSES]
        close += [(SequenceMatcher(None, name, param.name).ratio(), param.name, name) for name in same]
    guessed: dict[str, str] = {}
    for ratio, wanted, name in sorted(close, reverse=True):
        if ratio >= _CLOSE and wanted not in guessed and name not in guessed.values():
            guessed[wanted] = name
    guesses = [
        f"`{guessed[x.name]}` may be what the graph calls `{x.name}`" for x in missing[:_GUESSES] if x.name in guessed
    ]
    return Help("\n".join(guesses)) if guesses else None
