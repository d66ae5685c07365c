"""Where the time of a run goes: the layers of a network on this machine's processor, and what they make of it.

The `cpu` target runs a plan of steps, each of which computes a node of the optimised graph, several, or part of one.
Its steps are timed one by one in runs of the whole network, so that caches are as they are in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol, cast

from cnnc import driver
from cnnc.ir.dim import evaluate
from cnnc.ir.graph import Graph, Node
from cnnc.target import bind_dims, target

if TYPE_CHECKING:
    from cnnc.diagnostics import Source
    from cnnc.target import Array

TARGET = "cpu"


@dataclass(frozen=True, slots=True)
class StepTimes:
    """A call of a compiled function."""

    function: str
    nodes: tuple[str, ...]
    """The nodes of the graph that it computes, operands first; of the last it may be a part."""
    bytes: int
    """Those of its operands and its result."""
    seconds: tuple[float, ...]
    """In each run."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a machine does in a second where nothing holds it up: medians, as the times of layers are."""

    flops: float
    """Floating-point operations in f32: a product that is added counts as two. Kernels of bf16 may do more."""
    bandwidth: float
    """Bytes read from memory and written to it, as much of one as of the other."""


class Timed(Protocol):
    """What programs of the target `cpu` offer beside running."""

    def timed(self, runs: int, between: Callable[[], object], /, **arrays: object) -> Sequence[StepTimes]: ...


class Meter(Protocol):
    """Measures the peaks: by samples, taken between the runs of what is compared with them."""

    def sample(self) -> None: ...

    def peaks(self) -> Peaks: ...


class Measured(Protocol):
    """What the target `cpu` offers beside compiling."""

    def meter(self) -> Meter: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """A node of the optimised graph and the steps that compute it; `seconds` is the median of the runs.

    Nodes that one of the steps computes before it are `before`: `macs` and the times are of them all.
    """

    node: Node
    before: tuple[Node, ...]
    functions: tuple[str, ...]
    seconds: float
    macs: int
    bytes: int

    @property
    def flops(self) -> float:
        """Floating-point operations a second, as direct convolution counts them: fewer may be done (Winograd)."""
        return 2 * self.macs / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second, of operands and results; what a cache still holds does not come from memory."""
        return self.bytes / self.seconds


@dataclass(frozen=True, slots=True)
class Profile:
    """The layers of a network in running order, and what the machine does at best."""

    graph: Graph
    layers: tuple[Layer, ...]
    peaks: Peaks
    runs: int

    @property
    def seconds(self) -> float:
        """Those of all layers."""
        return sum(x.seconds for x in self.layers)

    def by_line(self) -> dict[Source, dict[int, list[Layer]]]:
        """The layers by the source and the line where the node was written; those written nowhere are left out."""
        found: dict[Source, dict[int, list[Layer]]] = {}
        for layer in self.layers:
            if (origin := layer.node.origin) is not None:
                lines = found.setdefault(origin.span.source, {})
                lines.setdefault(origin.span.line, []).append(layer)
        return found


def profile(
    graph: Graph, weights: driver.WeightsOf, inputs: Mapping[str, Array], *, runs: int = 20, optimise: int = 2,
    passes: str = "", cache: bool = True, **options: Any,
) -> Profile:  # fmt: skip
    """The profile of a graph on these inputs, for the target `cpu` with its `options`, over `runs` runs.

    The other arguments and the errors are those of `cnnc.compile`.
    """
    network = driver.optimise(graph, weights, level=optimise, passes=passes).network
    program = driver.compile(network.graph, TARGET, network.weights, optimise=0, cache=cache, **options)
    meter = cast(Measured, target(TARGET)).meter()
    steps = cast(Timed, program).timed(runs, meter.sample, **inputs)
    dims = bind_dims(program.inputs, inputs)
    nodes = {node.name: node for node in network.graph.nodes}
    by_count = sorted(steps, key=lambda step: len(step.nodes))  # one may be copied by itself and computed with others
    within = {name: step.nodes[-1] for step in by_count for name in step.nodes}
    own: dict[str, list[StepTimes]] = {}
    for step in steps:
        own.setdefault(within[step.nodes[-1]], []).append(step)
    layers = (_layer([nodes[x] for x in nodes if within.get(x) == name], dims, each) for name, each in own.items())
    return Profile(graph, tuple(layers), meter.peaks(), runs)


def _layer(nodes: Sequence[Node], dims: Mapping[str, int], steps: Sequence[StepTimes]) -> Layer:
    """Of these nodes, operands first."""
    *before, node = nodes
    macs = sum(evaluate(each.macs, dims) for each in nodes)
    functions = tuple(step.function for step in steps)
    return Layer(node, tuple(before), functions, _median(steps), macs, sum(step.bytes for step in steps))


def _median(steps: Iterable[StepTimes]) -> float:
    return median(map(sum, zip(*(step.seconds for step in steps), strict=True)))
