"""The engine of the optimiser.

A *rule* takes a node whose operands have been rewritten and returns what replaces it, or None to keep it; Python's
`match` is the pattern language. A rule that sees its pattern and must not apply raises `Refusal` with the reason. A
*pass* sweeps a graph once with its rules, operands before users, so the cost is linear; it says which ops they replace
at all, and a graph without any of them is not swept. Every pass preserves the value of the graph; the verifier runs
after each one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cnnc.ir.graph import Graph, Node, Origin, Param, Value, keep
from cnnc.ir.op import Op
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


class Note(NamedTuple):
    """What a pass did with a node, or why it did nothing. It has names: a node would keep the graph before the pass."""

    passed: str
    node: str
    """The name of the node as it stood before the pass."""
    origin: Origin | None
    near: tuple[str, ...]
    """By name, what replaced it; where the pass was refused, its operands."""
    op: Op | None = None
    """The op of what replaced it; None for an input."""
    reason: str | None = None
    """Why the pass was refused; None where it was not."""

    @property
    def applied(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.passed}: not applied: {self.reason}"
        return f"{self.passed}: now `{self.near[0]}`, {self.op or 'an input'}"


@dataclass(frozen=True)
class Pass:
    """A named sweep. `rules` are tried in order, on nodes of the ops `of` alone, until none replaces the node.

    `doc` is the docstring of its module, which has its mathematics. `level` is the lowest -O at which it runs: 1 keeps
    every bit of the results, 2 keeps them within the derived bound, 3 does so where every value on the way is finite.
    One of level 4 is in no -O: it is asked for by name.
    """

    name: str
    doc: str
    rules: tuple[Rule, ...]
    level: int
    of: tuple[type[Op], ...] = (Op,)

    @property
    def title(self) -> str:
        """The first line of its documentation."""
        return self.doc.partition("\n")[0].rstrip(".")

    @property
    def exact(self) -> bool:
        """Whether every bit of the results stays as it is."""
        return self.level == 1

    @cached_property
    def takes(self) -> Mapping[type[Op], bool]:
        """Whether an op is one of `of`, by its class."""
        return _Among(self.of)

    def run(self, network: Network, notes: list[Note] | None = None) -> Network:
        """The rewritten network; notes on what was done and refused are appended to `notes`."""
        import numpy as np

        if not any(self.takes[each] for each in network.graph.classes):
            return network
        sweep = Sweep(network, self, [] if notes is None else notes)
        with np.errstate(all="ignore"):  # what is not finite in new weights is refused
            graph = network.graph.rebuild(sweep.rewrite)
        if graph is network.graph:
            return network
        if not sweep.weights and len(graph.params) == len(network.weights):
            return Network(graph, network.weights)
        return Network(graph, {name: sweep.weights[name] for name in graph.params})


class _Among(dict[type[Op], bool]):
    """Whether classes are among some or derived from one of them, found out when first asked."""

    def __init__(self, classes: tuple[type[Op], ...]) -> None:
        self.classes = classes

    def __missing__(self, cls: type[Op]) -> bool:
        self[cls] = among = issubclass(cls, self.classes)
        return among


class _Weights(dict[str, "Array"]):
    """The arrays that a sweep makes. Those of the network, of which it makes few, are found behind them, by `[]` alone.
    """

    def __init__(self, given: Mapping[str, Array]) -> None:
        self.given = given

    def __missing__(self, name: str) -> Array:
        return self.given[name]


class Sweep:
    """One run of a pass: what rules may ask of the graph, and the arrays they read and make."""

    def __init__(self, network: Network, owner: Pass, notes: list[Note]) -> None:
        self.graph, self.owner, self.notes = network.graph, owner, notes
        self._takes = owner.takes
        self.weights = _Weights(network.weights)
        self._new_uses: dict[Value, int] = {}
        self._names: set[str] = set()
        self.memo: dict[object, Any] = {}
        """What rules of this run keep for each other."""
        self.written: Node
        """The node being rewritten, as it stands in `graph`: it knows its users, and its operands as they were."""

    def rewrite(self, node: Node, inputs: tuple[Value, ...]) -> Value:
        """What becomes of a node on rewritten operands: the rules' replacement, itself rewritten until none applies."""
        self.written = node
        kept: Value = keep(node, inputs)
        value = kept
        while isinstance(value, Node) and self._takes[type(value.op)]:
            replacement = self._apply(value)
            if replacement is None:
                break
            value = replacement
        if value is not kept:  # one that was there already keeps its other uses; this node's of it are gone
            others = self._new_uses.get(value, self.graph.uses.get(value, 0)) - inputs.count(value)
            self._new_uses[value] = self.graph.uses[node] + others
        elif value is not node:
            self._new_uses[value] = self.graph.uses[node]
        return value

    def _apply(self, value: Node) -> Value | None:
        for rule in self.owner.rules:
            try:
                replacement = rule(value, self)
            except Refusal as e:
                self._note(tuple(x.name for x in self.written.inputs), reason=str(e))
                continue
            if replacement is not None:
                self._note((replacement.name,), replacement.op if isinstance(replacement, Node) else None)
                return replacement
        return None

    def _note(self, near: tuple[str, ...], op: Op | None = None, reason: str | None = None) -> None:
        self.notes.append(Note(self.owner.name, self.written.name, self.written.origin, near, op, reason))

    def uses(self, value: Value) -> int:
        """How many operands of nodes and outputs of the graph the value is."""
        new = self._new_uses.get(value)
        return self.graph.uses.get(value, 1) if new is None else new

    def readers(self, operand: Value) -> tuple[Node, ...]:
        """The nodes that read an operand of `written`, both as they stand in `graph`."""
        if self.graph.uses[operand] == 1:  # so it is in most networks at most values
            return (self.written,)
        return self.graph.users[operand]

    def used_once(self, value: Value) -> bool:
        """Whether one node and no output reads the value."""
        return self.uses(value) == 1

    def owned(self, param: Param) -> bool:
        """Whether one node alone uses the parameter: a shared one must not be changed for the others."""
        return self.graph.param_uses.get(param, 1) == 1

    def name(self, wanted: str) -> str:
        """A name for a further node, which no value of the graph has: as wanted, or with a number after it."""
        self._names = self._names or {x.name for x in self.graph.uses}
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
        self.weights[name] = array = value.astype(self.weights[like.name].dtype, copy=False)
        type = like.type if array.shape == like.type.shape else TensorType(array.shape, like.type.dtype)
        return Param(name, type, like.init, like.trainable)


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
