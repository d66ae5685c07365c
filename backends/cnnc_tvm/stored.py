"""The weights of a program as the contents of a .safetensors file, in which devices read them where they lie.

The library would copy each array when it reads, and puts them at places that suit no vector.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import numpy as np

from cnnc.ir.types import DType
from cnnc.memory import ALIGNMENT
from cnnc.target import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnnc.target import Array, Contents

_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def dump(weights: Mapping[str, Array]) -> bytes:
    """The contents of a file with these arrays. Each is at a multiple of ALIGNMENT if the file is, but for small ones:
    the format has no gaps, so those that are no multiple of it long come last."""
    arrays = sorted(weights.items(), key=lambda item: (item[1].nbytes % ALIGNMENT > 0, -item[1].itemsize))
    header, end = {}, 0
    for name, array in arrays:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    parts = (np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for _, array in arrays)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def arrays(data: Contents) -> dict[str, Array]:
    """The arrays of such contents, as views of them."""
    begin = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, about in json.loads(bytes(data[8:begin])).items():
        dtype = numpy_dtype(DType(about["dtype"].lower()))
        first, last = about["data_offsets"]
        array = np.frombuffer(data, dtype, (last - first) // dtype.itemsize, begin + first)
        found[name] = array.reshape(about["shape"])
    return found
