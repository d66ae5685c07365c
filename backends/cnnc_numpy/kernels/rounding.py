"""Arithmetic in element types of 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnc_numpy.kernels import Array


def rounded(kernel: Callable[..., Array], /, *operands: Array, **attributes: Any) -> Array:
    """What `kernel` gives in float32, rounded to the element type of the operands."""
    return kernel(*(x.astype(np.float32) for x in operands), **attributes).astype(operands[0].dtype)
