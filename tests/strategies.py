"""Hypothesis strategies of random networks, built from the op registry.

`cases()` draws a well-typed graph with a symbolic batch, and sometimes symbolic rows and columns, their sizes, and a
seed for its weights and inputs. A falsified case prints as IR text and as `.cnn` text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from attribute_strategies import Draw
from cnnc import ops, verification
from cnnc.ir import bind
from cnnc.ir.dim import Sym
from cnnc.ir.graph import Graph, Input, Node, Param, keep
from cnnc.ir.op import Op, OpError, registry
from cnnc.ir.text import to_text
from cnnc.ir.types import DType
from cnnc_numpy.evaluator import evaluate
from growing import Attributes, Growing
from numerics import Array, random_inputs, random_weights

ATTEMPTS = 8
"""Inputs that are tried for a case, so that its comparison shows something."""

UNDRAWN: Mapping[type[Op], str] = {ops.Fused: "the optimiser makes it; the language does not have it"}
"""The ops that no random network has, and why."""
OPS = tuple(cls for cls in registry().values() if cls not in UNDRAWN)
HOMOGENEOUS: tuple[type[Op], ...] = (
    ops.Conv, ops.Deconv, ops.Linear, ops.Relu, ops.LeakyRelu, ops.Prelu, ops.Abs, ops.Neg, ops.Dropout, ops.MaxPool,
    ops.AvgPool, ops.GlobalAvgPool, ops.GlobalMaxPool, ops.AdaptiveAvgPool, ops.Add, ops.Sub, ops.Maximum, ops.Minimum,
    ops.Concat, ops.Slice, ops.Take, ops.Flatten, ops.Reshape, ops.Transpose, ops.ChannelShuffle, ops.PixelShuffle,
    ops.Upsample, ops.Resize, ops.Crop, ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin, ops.Unpool,
)  # fmt: skip
"""Ops with f(2^k x) = 2^k f(x) in every bit, where they have no bias."""


@dataclass(frozen=True, repr=False)
class Case:
    """A random network: its graph, the sizes of its symbolic dims, and its weights and inputs by a seed."""

    graph: Graph
    sizes: Mapping[str, int]
    seed: int

    @cached_property
    def weights(self) -> dict[str, Array]:
        """Of every fourth case some channels are pruned: the layers that read them have zeros for them."""
        weights = random_weights(self.graph, self.seed)
        if self.seed % 4 == 3:
            for array in weights.values():
                if array.ndim > 1 and array.shape[1] > 1:
                    array[:, self.seed % array.shape[1]] = 0
        return weights

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """The first inputs drawn from the seed that the outputs depend on, in which no output is zero."""
        tried = [self.other_inputs(k) for k in range(ATTEMPTS)]
        return next((x for x in tried if self.shows(x)), tried[0])

    @cached_property
    def expected(self) -> dict[str, Array]:
        """The reference."""
        return verification.reference(self._bound)

    def allowed(self, *, winograd: bool = False) -> dict[str, float]:
        """How far from the reference each output of a correct program may be; `winograd` as in `network_bounds`."""
        return self._allowed_with_winograd if winograd else self._allowed

    @cached_property
    def _bound(self) -> verification.Case:
        return verification.Case(bind(self.graph, self.sizes), self.weights, self.inputs)

    @cached_property
    def _allowed(self) -> dict[str, float]:
        return verification.network_bounds(self._bound)

    @cached_property
    def _allowed_with_winograd(self) -> dict[str, float]:
        return verification.network_bounds(self._bound, winograd=True)

    def other_inputs(self, k: int, **sizes: int) -> dict[str, Array]:
        """The k-th inputs drawn from the seed, of other sizes where some are given."""
        inputs = random_inputs(self.graph, self.seed + 1000 * k, **{**self.sizes, **sizes})
        if (rois := inputs.get("rois")) is not None:  # x1, y1, x2, y2 in an image of up to 12 x 12, or a little outside
            corner, extent = 3 * np.abs(rois[..., :2]), 1 + 4 * np.abs(rois[..., 2:])
            inputs["rois"] = np.concatenate([corner - 1, corner + extent], -1).astype(rois.dtype)
        return inputs

    def shows(self, inputs: Mapping[str, Array]) -> bool:
        """Whether every output is finite, not zero everywhere, and differs somewhere from that of other inputs."""
        first, second = (evaluate(self.graph, self.weights, x) for x in (inputs, self.other_inputs(ATTEMPTS)))
        return all(np.isfinite(x).all() and x.any() and (x != second[name]).any() for name, x in first.items())

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        return f"{sizes}, seed={self.seed} of\n{to_text(self.graph)}\n{to_cnn(self.graph)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # how Hypothesis prints a falsified case
        printer.text(repr(self))


@st.composite
def cases(
    draw: Draw, of: Sequence[type[Op]] = OPS, fixed: Attributes | None = None, dtype: DType = DType.F32
) -> Case:
    """Networks of 2 to 8 nodes or a few more; `fixed` sets attributes by their Python names wherever an op has them."""
    graph = draw(graphs(of, fixed or {}, dtype))
    sizes = {"N": draw(st.integers(1, 3))}
    if draw(st.integers(0, 3)) == 3:
        _, _, rows, columns = graph.inputs[0].type.shape
        for name, axis, size in (("H", 2, rows), ("W", 3, columns)):
            if (wider := _with_symbol(graph, axis, name)) is not None and isinstance(size, int):
                graph, sizes[name] = wider, size
    return Case(graph, sizes, draw(st.integers(0, 1000)))


@st.composite
def graphs(draw: Draw, of: Sequence[type[Op]], fixed: Attributes, dtype: DType) -> Graph:
    """Graphs on one or two inputs; everything that nothing reads is an output, and sometimes another value is."""
    growing = Growing(draw, of, fixed, dtype)
    count = draw(st.integers(2, 8))
    while len(growing.nodes) < count:
        growing.grow()
    read = {x for node in growing.nodes for x in node.inputs}
    live = [node for node in growing.nodes if node not in growing.constant]
    outputs = [node for node in live if node not in read]
    inner = [node for node in live if node in read]
    if inner and draw(st.integers(0, 3)) == 3:
        outputs.append(draw(st.sampled_from(inner)))
    return Graph("Random", tuple(growing.inputs), {f"y{i}": node for i, node in enumerate(outputs)})


def _with_symbol(graph: Graph, axis: int, name: str) -> Graph | None:
    """The graph with this axis of its images symbolic; None where an op needs to know its size."""

    def widened(x: Input) -> Input:
        shape = [Sym.of(name) if i == axis else dim for i, dim in enumerate(x.type.shape)]
        return replace(x, type=x.type.with_shape(shape)) if x.type.rank == 4 else x

    try:
        return graph.rebuild(keep, tuple(map(widened, graph.inputs)))
    except OpError:
        return None


def to_cnn(graph: Graph) -> str:
    """The graph in the language; a block used again is `shared`."""
    uses: dict[Param, list[Node]] = {}
    for node in graph.nodes:
        for param in node.params.values():
            uses.setdefault(param, []).append(node)
    shared = {param: f"s{i}" for i, param in enumerate(p for p, nodes in uses.items() if len(nodes) > 1)}
    lines = [f"input {x.name}: {x.type}" for x in graph.inputs] + [f"output {', '.join(graph.outputs)}"]
    for node in graph.nodes:
        operands = [x.name for x in node.inputs]
        block = str(node.op)
        if params := [param for param in node.params.values() if param in shared]:
            name = shared[params[0]]
            if uses[params[0]][0] is node:
                lines.append(f"shared {name} = {block}")
            block = name
        call = f"{operands[0]} -> {block}" if len(operands) == 1 else f"{block} {{ {' | '.join(operands)} }}"
        lines.append(f"{node.name} = {call if operands else block}")
    lines += [f"{name} = {x.name}" for name, x in graph.outputs.items()]
    return "\n".join([f"model {graph.name} {{", *(f"  {line}" for line in lines), "}"])
