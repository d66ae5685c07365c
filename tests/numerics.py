"""When a target's numbers are right: bounds derived from the computation instead of fixed tolerances.

The reference is `cnnc_numpy.evaluator` in float64 on the graph as it was written (unoptimised) and on the weights as
they are stored (rounded to the graph's element type). A test of one op uses `assert_node_agrees`, whose bound follows
from the terms each output sums; a test of a whole network uses `assert_agree`.

    graph = single(Conv(8, 3, pad=1), TensorType((2, 3, 9, 9)))
    weights, inputs = random_weights(graph), random_inputs(graph)
    assert_node_agrees(graph, weights, inputs, program(**inputs))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc.verification import NETWORK_TOLERANCE, Case, Expected, node_bound, random_inputs, random_weights

__all__ = [
    "NETWORK_TOLERANCE", "Array", "Weights", "assert_agree", "assert_close", "assert_node_agrees", "random_inputs",
    "random_weights", "single",
]  # fmt: skip

Array: TypeAlias = np.ndarray[Any, Any]
Weights: TypeAlias = Mapping[str, Array]


def single(op: Op, *types: TensorType) -> Graph:
    """The graph of one node `node` on inputs `x0`, `x1`, ... of these types, with the output `y`."""
    inputs = tuple(Input(f"x{i}", x) for i, x in enumerate(types))
    return Graph("Single", inputs, {"y": Node.make(op, *inputs, name="node")})


def assert_agree(
    graph: Graph,
    weights: Weights,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array] | None = None,
    *,
    winograd: bool = False,
) -> None:
    """A network's outputs agree with the reference within the bound of whole networks, as `cnnc verify` has it.

    `reference` is given where it is known already, from another target's comparison; `winograd` as in `compare`.
    """
    expected = Expected(Case(graph, weights, inputs), reference)
    assert outputs.keys() == expected.values.keys()
    for name, value in expected.values.items():
        _assert_varied(value, name)
    wrong = [x for x in expected.compare(outputs, winograd=winograd) if x.mismatch]
    assert not wrong, wrong


def assert_node_agrees(
    graph: Graph,
    weights: Weights,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    *,
    winograd: bool = False,
) -> None:
    """The output of a graph of one node agrees with the reference within its derived bound; `winograd` as there."""
    ((name, got),) = outputs.items()
    expected, bound = node_bound(Case(graph, weights, inputs), winograd=winograd)
    _assert_varied(expected, name)
    assert_close(got, expected, graph.outputs[name].type.dtype, bound, name)


def _assert_varied(expected: Array, name: str) -> None:
    assert np.unique(expected).size > 1, f"`{name}` has one distinct value: the comparison would show nothing"


def assert_close(got: Array, expected: Array, dtype: DType, bound: Array, name: str) -> None:
    """Shape, element type and the positions of NaN and Inf are the same, and each finite place is within its bound."""
    assert got.shape == expected.shape, f"`{name}` has shape {got.shape}, not {expected.shape}"
    assert got.dtype == numpy_dtype(dtype), f"`{name}` has elements of {got.dtype}, not {dtype}"
    stored = expected.astype(got.dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(stored), err_msg=f"positions of NaN in `{name}`")
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(stored), err_msg=f"positions of Inf in `{name}`")
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(stored), err_msg=f"positions of -Inf in `{name}`")
    finite = np.isfinite(stored)
    delta, bound = np.abs(got[finite].astype(np.float64) - expected[finite]), bound[finite]
    if (delta > bound).any():
        worst = int((delta - bound).argmax())
        raise AssertionError(
            f"`{name}`: {(delta > bound).sum()} of {delta.size} values are out of bounds; the worst is off by "
            f"{delta[worst]:.3g}, allowed {bound[worst]:.3g}; max|delta|/max|y| = "
            f"{delta.max() / np.abs(expected[finite]).max():.3g}"
        )
