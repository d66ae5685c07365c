"""Regions as modules: what each holds, under which names, and how it runs them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, count
from typing import Literal, TypeAlias

from torch import nn

from cnnc.ir.graph import Graph, Node
from cnnc.target import unsupported
from cnnc_torch.forward import RESERVED, Forward, Writer, identifier
from cnnc_torch.regions import Item, Path, Region, Regions, homes, path_of
from cnnc_torch.written import Written, quoted

Style: TypeAlias = Literal["attribute", "key", "index"]
"""How a module's children are reached: `self.a`, `self["0"]` of an nn.ModuleDict, or `self[0]` of a list."""
Key: TypeAlias = tuple[object, ...]


@dataclass(eq=False)
class Container:
    """What has modules in it and is not run itself; or a node's module with others inside its name."""

    children: dict[str, Child] = field(default_factory=dict)
    node: Node | None = None

    @property
    def style(self) -> Style:
        if self.node is not None:
            return "attribute"
        if sorted(self.children) == sorted(_numbers(self.children)):
            return "index"
        return "attribute" if any(map(_clashes, self.children)) else "key"


@dataclass(eq=False)
class Block:
    """A region as a module. `children` are the modules it holds, `forward` how it runs them."""

    region: Region
    children: dict[str, Child]
    forward: Forward = field(default_factory=Forward)
    chain: dict[str, Node | Block] | None = None
    """Its modules in order, where each runs once on the result of the one before: it can be an nn.Sequential."""
    key: int = 0
    """Equal for blocks of one structure, whatever their sizes."""
    height: int = 1

    def inner(self) -> Iterator[tuple[Path, Block]]:
        """The blocks it holds, by path."""
        yield from _inner(self.children, ())

    @property
    def style(self) -> Style:
        if self.numbered:
            return "index"
        plain = all(map(safe, self.children)) or any(map(_clashes, self.children))
        return "attribute" if plain else "key"

    @property
    def numbered(self) -> bool:
        """Whether it is a chain with the names that nn.Sequential gives: 0, 1, 2, ..."""
        return self.chain is not None and list(self.chain) == _numbers(self.chain)


Child: TypeAlias = "Node | Block | Container"


def access(name: str, style: Style) -> str:
    """What follows a module's text for its child of this name."""
    if style == "index":
        return f"[{name}]"
    if style == "key":
        return f"[{quoted(name)}]"
    return f".{name}" if safe(name) else f"._modules[{quoted(name)}]"


def safe(name: str) -> bool:
    """Whether a module of this name can be an attribute of a module."""
    return identifier(name) is not None and not _clashes(name)


def _clashes(name: str) -> bool:
    """Whether modules have something else under this name: `type`, `half`, `keys`."""
    return any(hasattr(module, name) for module in _modules())


@cache
def _modules() -> tuple[nn.Module, nn.Module]:
    return nn.ModuleDict(), nn.Sequential()


def _numbers(names: Iterable[str]) -> list[str]:
    return [str(i) for i, _ in enumerate(names)]


class Blocks:
    """Every region of a graph as a block, by home; regions that share their weights are one block.

    E0601 where the parameters cannot be held by modules. `reserved` are names that the source has another use for.
    """

    def __init__(self, graph: Graph, written: Mapping[Node, Written], reserved: Iterable[str]) -> None:
        self.graph, self.written, self.reserved = graph, written, {*RESERVED, *reserved}
        self.leaves = homes(graph)
        self._check_names()
        self._check_shared()
        self._nodes = {home: node for node, home in reversed(self.leaves.items())}
        self._below: dict[Path, list[Path]] = defaultdict(list)
        for path in dict.fromkeys(self.leaves.values()):
            for n in range(len(path)):
                self._below[path[:n]].append(path)
        self._position = {node: i for i, node in enumerate(graph.nodes)}
        self._keys: dict[Key, int] = {}
        refused: set[Path] = set()
        while (unequal := self._build(refused)) is not None:
            refused.add(unequal)

    @property
    def root(self) -> Block:
        return self.by_home[()]

    def position(self, region: Region) -> int:
        """Where the region begins in the graph."""
        return min((self._position[node] for node in region.nodes), default=0)

    def _check_names(self) -> None:
        """E0601 for modules with parameters, which are named after their labels, under a name that `train` sets."""
        named = [node for node, home in self.leaves.items() if "training" in home]
        unsupported("torch", {node.name: "cannot name a module `training`" for node in named}, self.graph)

    def _check_shared(self) -> None:
        first: dict[Path, Node] = {}
        reasons = {}
        for node, home in self.leaves.items():
            here, there = self.written[node].module, self.written[first.setdefault(home, node)].module
            if here != there:
                reasons[node.name] = f"cannot share one module between `{there}` and `{here}`"
        unsupported("torch", reasons, self.graph)

    def _build(self, refused: set[Path]) -> Path | None:
        """Make the blocks. A home whose regions are not run alike is returned: they are no calls of one module."""
        regions: dict[Path, list[Region]] = {}
        for region in Regions(self.graph, self.leaves, refused).root.walk():
            regions.setdefault(region.home, []).append(region)
        self.by_home: dict[Path, Block] = {}
        for home in sorted(regions, key=len, reverse=True):  # what is inside first
            blocks = [self._block(region, self._children(home, set(regions))) for region in regions[home]]
            if any(block.key != blocks[0].key for block in blocks):
                return home
            self.by_home[home] = blocks[0]
        return None

    def _children(self, home: Path, others: set[Path]) -> dict[str, Child]:
        """The modules that the block at `home` holds: those below it and below no block inside it, by first use."""
        children: dict[str, Child] = {}
        for path in self._below[home]:
            inner = next((path[:n] for n in range(len(home) + 1, len(path)) if path[:n] in others), None)
            here = inner or path
            _insert(children, here[len(home) :], self.by_home.get(here) or self._nodes[here])
        return children

    def _block(self, region: Region, children: dict[str, Child]) -> Block:
        homed = [x for x in region.items if isinstance(x, Region) or x in self.leaves]
        paths = {x: self._home(x)[len(region.home) :] for x in homed}
        block = Block(region, children)
        block.chain = self._chain(block, paths)
        names = {x: name for name, x in (block.chain or {}).items()}
        for item in region.items:
            if isinstance(item, Node) and item not in self.leaves and self.written[item].expr is None:
                name = names.get(item) or self._fresh(item, children)
                paths[item], children[name] = (name,), item
        order = list(dict.fromkeys(paths[x][0] for x in region.items if x in paths))
        block.children = {name: children[name] for name in dict.fromkeys([*order, *children])}
        member = {item: _reach(block, path) for item, path in paths.items()}
        outputs = tuple(self.graph.outputs) if not region.path else None
        block.forward = Writer(region, self.written, member, self.reserved).write(outputs)
        block.height = 1 + max((inner.height for _, inner in block.inner()), default=0)
        block.key = self._key(block)
        return block

    def _home(self, item: Item) -> Path:
        return item.home if isinstance(item, Region) else self.leaves[item]

    def _chain(self, block: Block, paths: Mapping[Item, Path]) -> dict[str, Node | Block] | None:
        """The modules of the block by name, if each runs once on the result of the one before."""
        region = block.region
        if len(region.inputs) != 1 or len(region.outputs) != 1:
            return None
        names: list[str] = []
        modules: list[Node | Block] = []
        uses = Counter(x for item in region.items for x in item.inputs)
        value = region.inputs[0]
        for item in region.items:
            outputs = item.outputs if isinstance(item, Region) else (item,)
            if item.inputs != (value,) or len(outputs) != 1 or uses[value] != 1:
                return None
            value = outputs[0]
            module: Child | None
            if item in paths:
                path = paths[item]
                module = block.children.get(path[0])
                if len(path) != 1 or module is None or isinstance(module, Container):
                    return None
            else:
                assert isinstance(item, Node)
                path, module = path_of(item.name)[len(region.path) :], item
                if self.written[item].module is None:
                    return None
            names.append(path[-1])
            modules.append(module)
        if value is not region.outputs[0] or len(set(map(id, modules))) < len(modules):
            return None
        if any(child not in modules for child in block.children.values()):
            return None
        if names != _numbers(names):
            taken = set(block.children)
            for i, module in enumerate(modules):
                if module not in block.children.values():
                    assert isinstance(module, Node)
                    names[i] = self._fresh(module, taken)
                    taken.add(names[i])
        if any(_clashes(name) or not name for name in names):
            return None
        return dict(zip(names, modules, strict=True))

    def _fresh(self, node: Node, taken: Iterable[str]) -> str:
        """A name for a module without state, which is free to choose: the node's label, else its op."""
        names = chain([path_of(node.name)[-1], node.op.name], (f"{node.op.name}{i}" for i in count(2)))
        return next(name for name in names if safe(name) and name not in set(taken))

    def _key(self, block: Block) -> int:
        """A number for the structure of a block."""
        shape: Key
        if block.chain is not None and block.numbered:
            shape = ("sequence", *(self._child_key(x) for x in block.chain.values()))
        else:
            named = ((name, self._child_key(x)) for name, x in (block.chain or block.children).items())
            shape = (block.style, block.chain is None, *block.forward.key, *named)
        return self._keys.setdefault(shape, len(self._keys))

    def _child_key(self, child: Child) -> Key:
        if isinstance(child, Block):
            return (child.key,)
        if isinstance(child, Container):
            node = self._child_key(child.node) if child.node else None
            return (child.style, node, *((name, self._child_key(x)) for name, x in child.children.items()))
        module = self.written[child].module
        assert module is not None
        return (module.callee, *(arg.name for arg in module.args))


def _insert(children: dict[str, Child], path: Path, child: Node | Block) -> None:
    """Put a module at a path, through containers."""
    name, *rest = path
    there = children.get(name)
    if not rest:
        if isinstance(there, Container) and isinstance(child, Node):
            there.node = child
        else:
            children[name] = child
        return
    if not isinstance(there, Container):
        assert not isinstance(there, Block)  # what is below a block's home is inside the block
        there = children[name] = Container(node=there)
    _insert(there.children, tuple(rest), child)


def _reach(block: Block, path: Path) -> str:
    """The text for the module at a path inside a block, in the block's methods."""
    text = "self"
    here: Child = block
    for name in path:
        assert not isinstance(here, Node)
        text += access(name, here.style)
        here = here.children[name]
    return text


def _inner(children: Mapping[str, Child], path: Path) -> Iterator[tuple[Path, Block]]:
    for name, child in children.items():
        if isinstance(child, Container):
            yield from _inner(child.children, (*path, name))
        elif isinstance(child, Block):
            yield (*path, name), child
