"""Pictures as the input of a network: decoded, resized, cropped, scaled as the input's doc comment says.

An input takes a picture if it is [N, C, H, W] with one channel (grey) or three. Its doc comment may say what values it
expects; without a word, RGB (or grey) values from 0 to 1:

    ## BGR, 0..255.                         the order of the channels, and a range
    ## 0..1, minus mean [0.485, 0.456, 0.406], divided by deviation [0.229, 0.224, 0.225].     one number a channel
    ## 0..1, mean 0, variance 1.            moved and scaled by the picture's own mean and deviation
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cnnc.diagnostics import error
from cnnc.ir.dim import Dim, solve
from cnnc.target import Port, numpy_dtype

if TYPE_CHECKING:
    from PIL.Image import Image

    from cnnc.target import Array

MAX_PIXELS: Final = 100_000_000
_NUMBER: Final = r"(-?\d+(?:\.\d+)?)"


@dataclass(frozen=True, slots=True)
class Values:
    """What values an input expects of a picture."""

    low: float = 0.0
    high: float = 1.0
    bgr: bool = False
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    mean_0: bool = False
    variance_1: bool = False

    @staticmethod
    def of(doc: str) -> Values:
        """What a doc comment says; the defaults for what it does not mention."""
        span = re.search(rf"{_NUMBER}\s*\.\.\s*{_NUMBER}", doc)
        low, high = (float(span[1]), float(span[2])) if span else (0.0, 1.0)
        return Values(
            low,
            high,
            bgr=re.search(r"\bBGR\b", doc) is not None,
            mean=_list("mean", doc),
            deviation=_list("deviation", doc),
            mean_0=re.search(r"\bmean\s+0(?!\.?\d)", doc) is not None,
            variance_1=re.search(r"\b(variance|deviation)\s+1(?!\.?\d)", doc) is not None,
        )


def takes_pictures(port: Port) -> bool:
    """Whether the input has the shape of pictures: [N, 1 or 3, H, W]."""
    return port.type.rank == 4 and port.type.shape[1] in (1, 3)


def read_images(paths: Sequence[Path], port: Port) -> Array:
    """A batch of pictures for `port`, [len(paths), C, H, W] in its element type. The shorter side is resized to fit and
    the longer cropped at the centre; a side whose size the network leaves open keeps its own.

    CnncError: E0320 where the input takes no pictures or they differ in size, E0440 for a file that cannot be decoded,
    E0540 for one with more than MAX_PIXELS. OSError where a file cannot be read.
    """
    import numpy as np

    if not takes_pictures(port):
        raise error(
            "E0320", f"input `{port.name}` is {port.type}, which is not the shape of a picture",
            help=f"give an array: `--input {port.name}=FILE.npy`",
        )  # fmt: skip
    arrays = [_array(_decode(path), port) for path in paths]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        listed = ", ".join(f"{path.name} {list(array.shape)}" for path, array in zip(paths, arrays, strict=True))
        raise error("E0320", f"the pictures for `{port.name}` differ in size: {listed}", help="bind it: `--dim H=224`")
    return np.stack(arrays).astype(numpy_dtype(port.type.dtype))


def _decode(path: Path) -> Image:
    """The picture in a file, upright, eight bits a sample."""
    from PIL import Image, ImageOps

    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise error("E0540", f"`{path}` has more than {MAX_PIXELS:,} pixels") from None
    except Exception as e:  # Pillow's decoders raise whatever they trip over: ValueError, SyntaxError, ...
        kinds = "PNG, JPEG and other pictures that Pillow reads, .npy and .npz arrays"
        raise error("E0440", f"`{path}` is not a picture that can be decoded", notes=[f"inputs may be {kinds}"]) from e
    if image.mode.startswith(("I", "F")):
        raise error("E0440", f"`{path}` has more than eight bits a sample", help="convert it to an 8-bit picture")
    return ImageOps.exif_transpose(image)


def _array(image: Image, port: Port) -> Array:
    """[C, H, W] in float32 with the values that the port's doc asks for; CnncError E0320 where that does not fit."""
    import numpy as np
    from PIL import Image, ImageOps

    _, channels, rows, columns = port.type.shape
    image = image.convert("L" if channels == 1 else "RGB")
    height, width = _fit(rows, image.height), _fit(columns, image.width)
    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)  # crops first: no side can explode
    pixels = np.asarray(image, np.float32).reshape(height, width, -1).transpose(2, 0, 1)
    values = Values.of(port.doc)
    pixels = pixels[::-1] if values.bgr else pixels
    pixels = values.low + pixels / np.float32(255) * np.float32(values.high - values.low)
    pixels = pixels - pixels.mean() if values.mean_0 else pixels
    pixels = pixels / max(float(pixels.std()), 1e-6) if values.variance_1 else pixels
    for numbers in (values.mean, values.deviation):
        if len(numbers) not in (0, 1, len(pixels)):
            listed = ", ".join(f"{number:g}" for number in numbers)
            raise error("E0320", f"the doc comment of input `{port.name}` lists [{listed}], but it is {port.type}")
    pixels = pixels - np.array(values.mean or 0, np.float32).reshape(-1, 1, 1)
    return pixels / np.array(values.deviation or 1, np.float32).reshape(-1, 1, 1)


def _list(name: str, doc: str) -> tuple[float, ...]:
    """The numbers of `name [1, 2, 3]` in a doc comment; none where it has no such list."""
    found = re.search(rf"\b{name}\s*\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*\]", doc)
    return tuple(map(float, found[1].split(","))) if found else ()


def _fit(dim: Dim, size: int) -> int:
    """The size a side gets: the network's, or the largest up to the picture's that a symbolic dim (`32*h`) allows."""
    if isinstance(dim, int):
        return dim
    return next((n for n in range(size, 0, -1) if solve(dim, n)), size)
