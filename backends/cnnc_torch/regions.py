"""Which nodes become one module: the tree of modules, read off the dotted names of nodes and parameters.

The nodes under one prefix of names are a region, and a region that can be a module becomes one: it holds parameters,
nothing flows out of it and back in, and its parameters lie under one prefix, its home. The home is where the module
stands in the state_dict; a block with shared weights is several regions with one home. The nodes of a prefix that
cannot be a module belong to the region around it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from cnnc.ir.graph import Graph, Node, Value
from cnnc.target import unsupported

Path: TypeAlias = tuple[str, ...]


@dataclass(eq=False)
class Region:
    """Nodes that run as one call of a module; `items` are its own nodes and the regions inside, in running order."""

    path: Path
    home: Path
    nodes: list[Node]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    items: list[Item]

    def walk(self) -> Iterator[Region]:
        """The region and those inside, the innermost first."""
        for item in self.items:
            if isinstance(item, Region):
                yield from item.walk()
        yield self


Item: TypeAlias = "Node | Region"


def path_of(name: str) -> Path:
    return tuple(name.split("."))


def homes(graph: Graph) -> dict[Node, Path]:
    """The path of the module that has a node's parameters, for each node with any.

    Raises E0601 for a node whose parameters are not named `{path}.{role}` with one path, and for nodes that share
    parameters but not their op: no module could hold them.
    """
    found: dict[Node, Path] = {}
    users: dict[Path, Node] = {}
    reasons = {}
    for node in graph.nodes:
        if not node.params:
            continue
        names = {role: param.name for role, param in node.params.items()}
        homes = {name.removesuffix(f".{role}") if name.endswith(f".{role}") else "" for role, name in names.items()}
        home = path_of(homes.pop())
        first = users.setdefault(home, node)
        if homes or home == ("",):
            listed = ", ".join(f"`{name}`" for name in names.values())
            reasons[node.name] = f"keeps the parameters of a node in one module, but these are named apart: {listed}"
        elif first.op != node.op:
            reasons[node.name] = f"cannot share parameters between different ops, `{first.op}` and `{node.op}`"
        found[node] = home
    unsupported("torch", reasons, graph)
    return found


class Regions:
    """The regions of a graph; `root` is the whole. Homes in `refused` do not become modules."""

    def __init__(self, graph: Graph, leaves: Mapping[Node, Path], refused: Set[Path] = frozenset()) -> None:
        self.graph, self.leaves, self.refused = graph, leaves, refused
        self.taken = set(leaves.values())
        self.outputs = set(graph.outputs.values())
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        root = self._region((), (), list(graph.nodes))
        root.inputs, root.outputs = graph.inputs, tuple(graph.outputs.values())
        self.root = root

    def _region(self, path: Path, home: Path, nodes: list[Node]) -> Region:
        """The region of these nodes. Groups of names inside that cannot be modules are split until the rest can."""
        pieces = list(self._split(path, home, path, nodes))
        while True:
            try:
                ordered = self._ordered(pieces)
                break
            except CycleError as cycle:  # something flows out of a group and back in: the group cannot be a call
                stuck = {id(piece) for piece in cycle.args[1]}
                pieces = [
                    part
                    for piece in pieces
                    for part in (self._split(path, home, piece[0], piece[2]) if id(piece) in stuck else [piece])
                ]
        items = [nodes[0] if inner is None else self._region(name, inner, nodes) for name, inner, nodes in ordered]
        return Region(path, home, nodes, *self._interface(nodes), items)

    def _split(self, path: Path, home: Path, prefix: Path, nodes: list[Node]) -> Iterator[_Piece]:
        """The parts of a prefix, each a node or a group that can be a module of the region `path`."""
        groups: dict[Path, list[Node]] = {}
        for node in nodes:
            name = path_of(node.name)
            if len(name) > len(prefix) + 1:
                groups.setdefault(name[: len(prefix) + 1], []).append(node)
            else:
                yield name, None, [node]
        for group, members in groups.items():
            inner = self._home(home + group[len(path) :], home, group, members)
            if inner is None:
                yield from self._split(path, home, group, members)
            else:
                yield group, inner, members

    def _home(self, expected: Path, around: Path, group: Path, nodes: list[Node]) -> Path | None:
        """Where the module of a group stands, inside the module `around`; None if it cannot be one."""
        leaves = {node: self.leaves[node] for node in nodes if node in self.leaves}
        if not leaves or not _connected(nodes):
            return None
        if any(leaf[: len(expected)] != expected for leaf in leaves.values()):
            # Not under its own name: weights shared under another, the same for all.
            node, leaf = next(iter(leaves.items()))
            expected = leaf[: len(leaf) - len(path_of(node.name)) + len(group)]
            if any(leaf != expected + path_of(node.name)[len(group) :] for node, leaf in leaves.items()):
                return None
        inside = expected[: len(around)] == around and len(expected) > len(around)
        return expected if inside and expected not in self.taken | self.refused else None

    def _ordered(self, pieces: list[_Piece]) -> list[_Piece]:
        """The pieces, operands before users and otherwise in the graph's order; CycleError if there is no order."""
        holder = {node: i for i, (_, _, nodes) in enumerate(pieces) for node in nodes}
        sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(len(pieces)), ()))
        for i, (_, _, nodes) in enumerate(pieces):
            needed = {holder[x] for node in nodes for x in node.inputs if x in holder}
            sorter.add(i, *(needed - {i}))
        try:
            sorter.prepare()
        except CycleError as error:
            raise CycleError(error.args[0], [pieces[i] for i in error.args[1]]) from None
        rank = [min(self.position[node] for node in nodes) for _, _, nodes in pieces]
        order, ready = [], [(rank[i], i) for i in sorter.get_ready()]
        heapq.heapify(ready)
        while ready:
            _, i = heapq.heappop(ready)
            order.append(pieces[i])
            sorter.done(i)
            for j in sorter.get_ready():
                heapq.heappush(ready, (rank[j], j))
        return order

    def _interface(self, nodes: Sequence[Node]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """What nodes read from elsewhere, and what of them is read elsewhere."""
        inside = set(nodes)
        inputs = dict.fromkeys(x for node in nodes for x in node.inputs if x not in inside)
        outputs = [
            node for node in nodes if node in self.outputs or any(user not in inside for user in self.graph.users[node])
        ]
        return tuple(inputs), tuple(outputs)


def _connected(nodes: Sequence[Node]) -> bool:
    """Whether nodes hang together: a common prefix of names alone does not make them a block."""
    group: dict[Value, Value] = {}

    def find(x: Value) -> Value:
        while group.setdefault(x, x) is not x:
            group[x] = group[group[x]]
            x = group[x]
        return x

    for node in nodes:
        for x in node.inputs:
            group[find(x)] = find(node)
    return len({find(node) for node in nodes}) == 1


_Piece: TypeAlias = tuple[Path, Path | None, list[Node]]
"""A node under its name, or the nodes of a group under its name and home."""
