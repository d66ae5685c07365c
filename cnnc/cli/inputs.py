"""`--input NAME=VALUE` as arrays: pictures, .npy and .npz files, `random`, `zeros`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cnnc.diagnostics import error
from cnnc.ir.dim import substitute, symbols
from cnnc.ir.types import DType

if TYPE_CHECKING:
    from cnnc.target import Array, Port

GENERATED: Final = ("random", "zeros")
SEED: Final = 0


def arrays(ports: Sequence[Port], given: Iterable[tuple[str, str]], dims: Mapping[str, int]) -> dict[str, Array]:
    """An array for each input named; pictures given to one input several times make a batch. `dims` sizes what is
    generated; the first symbol of an input (its batch) is 1 without that. What is missing is the program's to say.

    CnncError E0902 for a name or a value that means nothing, and those of `read_images` and the weight files.
    """
    values: dict[str, list[str]] = {}
    for name, value in given:
        values.setdefault(name, []).append(value)
    by_name = {port.name: port for port in ports}
    for name in values:
        if name not in by_name:
            near = get_close_matches(name, by_name, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the inputs are {', '.join(by_name)}"
            raise error("E0902", f"there is no input `{name}`", help=hint)
    return {name: _array(by_name[name], texts, dims) for name, texts in values.items()}


def _array(port: Port, values: Sequence[str], dims: Mapping[str, int]) -> Array:
    from cnnc.images import read_images

    paths = [Path(value) for value in values]
    if len(values) == 1 and values[0] in GENERATED and not paths[0].exists():
        return _generated(port, values[0], dims)
    if len(values) == 1 and paths[0].suffix in (".npy", ".npz"):
        return _narrowed(_read(paths[0], port), port)
    return read_images(paths, port)


def _generated(port: Port, how: str, dims: Mapping[str, int]) -> Array:
    """Zeros, or the same uniform values from 0 to 1 each time."""
    import numpy as np

    from cnnc.target import numpy_dtype

    shape = []
    for axis, dim in enumerate(port.type.shape):
        size = substitute(dim, dims)
        if not isinstance(size, int) and axis == 0:
            size = substitute(size, dict.fromkeys(symbols(size), 1))
        if not isinstance(size, int):
            message = f"`{port.name}={how}` needs the size of `{size}` in {port.type}"
            raise error("E0902", message, help=f"`--dim {min(symbols(size))}=...`")
        shape.append(size)
    values = np.zeros(shape) if how == "zeros" else np.random.default_rng(SEED).random(shape, np.float32)
    return values.astype(numpy_dtype(port.type.dtype))


def _read(path: Path, port: Port) -> Array:
    """The array of an .npy file; of an .npz file the one with the input's name, or the only one."""
    from cnnc.weights.files import opened

    if path.suffix == ".npy":
        return _read_npy(path)
    with opened(path) as stored:
        if port.name not in stored and len(stored) != 1:
            raise error("E0902", f"`{path}` has no array `{port.name}`", notes=[f"it has {', '.join(sorted(stored))}"])
        return (stored[port.name] if port.name in stored else next(iter(stored.values()))).read()


def _narrowed(array: Array, port: Port) -> Array:
    """An array of f32 as one of 16 bits where the network takes that, as pictures are, and bf16 by its name: files of
    NumPy's have no bf16, and hold two bytes without one."""
    import numpy as np

    from cnnc.target import numpy_dtype

    wanted = numpy_dtype(port.type.dtype)
    if array.dtype == np.dtype("V2") and port.type.dtype is DType.BF16:
        return array.view(wanted)
    return array.astype(wanted) if array.dtype == np.float32 and wanted.itemsize == 2 else array


def _read_npy(path: Path) -> Array:
    """Mapped before it is read, so that a header cannot claim more than the file holds."""
    import numpy as np

    from cnnc.weights.files import malformed

    try:
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, OverflowError, RecursionError, MemoryError, SyntaxError, EOFError) as e:
        if "Python objects" in str(e):
            raise error("E0701", f"`{path}` holds Python objects, which could run code when read") from None
        raise malformed(path, str(e) or type(e).__name__) from None
