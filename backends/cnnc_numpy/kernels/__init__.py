"""The kernels: pure functions of arrays that need NumPy alone.

The generated source of a program holds their text, so each is readable by itself. Images are [N, C, H, W]. A kernel
works in the element type of its operands. `out`, where a kernel takes it, is an array of the result's shape that the
result is written to; of a kernel that works place by place it may be the first operand itself.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
