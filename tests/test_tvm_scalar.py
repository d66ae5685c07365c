"""The functions of f32 that are computed by arithmetic, on every 1,009th of all numbers and around the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnnc import ops
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import TensorType
from cnnc_tvm import CpuTarget
from numerics import Array

FUNCTIONS: dict[str, tuple[Any, Callable[[Array], Array], float]] = {
    "exp": (ops.Exp(), np.exp, 1.1),
    "expm1": (ops.Elu(1.0), lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x), 2),
    "tanh": (ops.Tanh(), np.tanh, 3),
}
"""An op, what it computes, and the units in the last place that it may be off by."""


def numbers() -> Array:
    everywhere = np.arange(0, 2**32, 1009, np.uint64).astype(np.uint32).view(np.float32)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 88.72283, 88.72284, -103.97208, -103.97209, 0.625, -0.625]
    parts = [np.linspace(-110, 95, 500_001), np.linspace(-1, 1, 500_001), np.array(edges)]
    return np.concatenate([everywhere, *(x.astype(np.float32) for x in parts)])[None]


@pytest.mark.parametrize("mcpu", ["x86-64", "native"])  # without and with products that are added unrounded
def test_within_units_in_the_last_place(mcpu: str) -> None:
    x = numbers()
    image = Input("x", TensorType(x.shape))
    nodes = {name: Node.make(op, image, name=name) for name, (op, _, _) in FUNCTIONS.items()}
    found = CpuTarget().compile(Graph("Functions", (image,), nodes), {}, mcpu=mcpu)(x=x)
    for name, (_, function, units) in FUNCTIONS.items():
        with np.errstate(over="ignore", invalid="ignore"):
            exact = function(x.astype(np.float64))
            nearest = exact.astype(np.float32)
        finite = np.isfinite(nearest)
        np.testing.assert_array_equal(found[name][~finite], nearest[~finite], name)
        unit = np.spacing(np.maximum(np.abs(nearest[finite]), np.finfo(np.float32).tiny)).astype(np.float64)
        error = np.abs(found[name][finite] - exact[finite]) / unit
        assert error.max() < units, (name, x[finite][error.argmax()], error.max())
