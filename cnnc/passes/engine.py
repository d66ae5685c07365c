"""The engine of the optimiser.

A *rule* takes a node whose operands have been rewritten and returns what replaces it, or None to keep it; Python's
`match` is the pattern language. A rule that sees its pattern and must not apply raises `Refusal` with the reason. A
*pass* sweeps a graph once with its rules, operands before users, so the cost is linear. Every pass preserves the value
of the graph; the verifier runs after each one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from cnnc.ir.graph import Graph, Node, Param, Value, keep
from cnnc.ir.types import TensorType
from cnnc.ir.verify import verify

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

Rule: TypeAlias = "Callable[[Node, Sweep], Value | None]"


class Refusal(Exception):  # noqa: N818
    """A rule found its pattern and must not apply. The message completes "not applied: ..."."""


@dataclass(frozen=True, slots=True)
class Network:
    """A graph with the arrays of its parameters."""

    graph: Graph
    weights: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass did with a node, or why it did nothing."""

    passed: str
    node: Node
    """The node as it stood before the pass."""
    result: Value | None = None
    """What replaced it; None where the pass was refused."""
    reason: str = ""
    """Why it was refused."""

    @property
    def applied(self) -> bool:
        return self.result is not None

    def __str__(self) -> str:
        if self.result is None:
            return f"{self.passed}: not applied: {self.reason}"
        became = f"{self.result.op}" if isinstance(self.result, Node) else "an input"
        return f"{self.passed}: now `{self.result.name}`, {became}"


@dataclass(frozen=True)
class Pass:
    """A named sweep. `rules` are tried in order until none replaces the node.

    `doc` is the docstring of its module, which has its mathematics. `level` is the lowest -O at which it runs: 1 keeps
    every bit of the results, 2 keeps them within the derived bound, 3 does so where every value on the way is finite.
    One of level 4 is in no -O: it is asked for by name.
    """

    name: str
    doc: str
    rules: tuple[Rule, ...]
    level: int

    @property
    def title(self) -> str:
        """The first line of its documentation."""
        return self.doc.partition("\n")[0].rstrip(".")

    @property
    def exact(self) -> bool:
        """Whether every bit of the results stays as it is."""
        return self.level == 1

    def run(self, network: Network, notes: list[Note] | None = None) -> Network:
        """The rewritten network; notes on what was done and refused are appended to `notes`."""
        sweep = Sweep(network, self, [] if notes is None else notes)
        graph = network.graph.rebuild(sweep.rewrite)
        if graph is network.graph:
            return network
        return Network(graph, {name: sweep.weights[name] for name in graph.params})


class Sweep:
    """One run of a pass: what rules may ask of the graph, and the arrays they read and make."""

    def __init__(self, network: Network, owner: Pass, notes: list[Note]) -> None:
        self.graph, self.owner, self.notes = network.graph, owner, notes
        self.weights: Mapping[str, Array] = network.weights
        self._made: dict[str, Array] | None = None
        self._new_uses: dict[Value, int] = {}
        self._names: set[str] = set()
        self.memo: dict[object, Any] = {}
        """What rules of this run keep for each other."""
        self.written: Node
        """The node being rewritten, as it stands in `graph`: it knows its users, and its operands as they were."""

    def rewrite(self, node: Node, inputs: tuple[Value, ...]) -> Value:
        """What becomes of a node on rewritten operands: the rules' replacement, itself rewritten until none applies."""
        self.written = node
        value: Value = keep(node, inputs)
        while isinstance(value, Node):
            replacement = self._apply(value)
            if replacement is None:
                break
            value = replacement
        if value is not node:  # one that was there already keeps its other uses; this node's of it are gone
            others = self._new_uses.get(value, self.graph.uses.get(value, 0)) - inputs.count(value)
            self._new_uses[value] = self.graph.uses[node] + others
        return value

    def _apply(self, value: Node) -> Value | None:
        for rule in self.owner.rules:
            try:
                replacement = rule(value, self)
            except Refusal as e:
                self.notes.append(Note(self.owner.name, self.written, reason=str(e)))
                continue
            if replacement is not None:
                self.notes.append(Note(self.owner.name, self.written, replacement))
                return replacement
        return None

    def uses(self, value: Value) -> int:
        """How many operands of nodes and outputs of the graph the value is."""
        new = self._new_uses.get(value)
        return self.graph.uses.get(value, 1) if new is None else new

    def used_once(self, value: Value) -> bool:
        """Whether one node and no output reads the value."""
        return self.uses(value) == 1

    def owned(self, param: Param) -> bool:
        """Whether one node alone uses the parameter: a shared one must not be changed for the others."""
        return self.graph.param_uses.get(param, 1) == 1

    def name(self, wanted: str) -> str:
        """A name for a further node, which no value of the graph has: as wanted, or with a number after it."""
        self._names = self._names or {x.name for x in self.graph.users}
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def array(self, node: Node, role: str) -> Array:
        """The array of a parameter of a node, in float64: what is computed at compile time is rounded once."""
        import numpy as np

        return np.asarray(self.weights[node.params[role].name], np.float64)

    def param(self, name: str, value: Array, like: Param) -> Param:
        """A new parameter with this value, rounded to the element type of `like`."""
        array = value.astype(self.weights[like.name].dtype, copy=False)
        if self._made is None:  # most passes make no weights: those given are copied by the first that does
            self.weights = self._made = dict(self.weights)
        self._made[name] = array
        return Param(name, TensorType(array.shape, like.type.dtype), like.init, like.trainable)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: graphs have none, and looking for them is a sixth of the time of all passes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    passes: tuple[Pass, ...] = ()

    def run(self, network: Network, after: Callable[[Pass, Network], None] | None = None) -> Optimised:
        """Run the passes, verifying after each one; `after` sees each result."""
        with _uncollected():
            return self._run(network, after)

    def _run(self, network: Network, after: Callable[[Pass, Network], None] | None) -> Optimised:
        notes: list[Note] = []
        known: AbstractSet[Value] = frozenset()
        for each in self.passes:
            before, network = network, each.run(network, notes)
            if network is not before:
                verify(network.graph, known=known)
                known = network.graph.uses.keys()
            if after is not None:
                after(each, network)
        return Optimised(network, tuple(notes))


@dataclass(frozen=True)
class Optimised:
    """The result of a pipeline, and the notes of its passes."""

    network: Network
    notes: tuple[Note, ...] = field(default=())
