"""Blocks as classes: those of one structure are one class, and what differs between them are its parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from cnnc.ir.graph import Node
from cnnc_torch.blocks import Block, Blocks, Child, Container, Style
from cnnc_torch.forward import identifier
from cnnc_torch.names import Naming
from cnnc_torch.written import Arg, Make, Name, Written


@dataclass(frozen=True)
class Chain:
    """An nn.Sequential written in place."""

    parts: Mapping[str, Part]
    numbered: bool


@dataclass(frozen=True)
class Group:
    """A container written in place; `module` is what it is besides."""

    parts: Mapping[str, Part]
    style: Style
    module: Make | None


Part: TypeAlias = Make | Chain | Group


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class; `values` are its values in the blocks of the class."""

    name: str
    kind: str
    values: tuple[object, ...]
    default: object


@dataclass(frozen=True)
class Class:
    """A class of the source. `parts` are the modules it holds, with its parameters in their arguments."""

    name: str
    blocks: tuple[Block, ...]
    parts: Mapping[str, Part]
    parameters: tuple[Parameter, ...]

    @property
    def first(self) -> Block:
        return self.blocks[0]


def classes(blocks: Blocks, written: Mapping[Node, Written], naming: Naming) -> list[Class]:
    """The classes of the source, each after those it uses; the last is the whole network."""
    return _Classes(blocks, written, naming).made


class _Classes:
    def __init__(self, blocks: Blocks, written: Mapping[Node, Written], naming: Naming) -> None:
        self.written, self.naming = written, naming
        self.of: dict[Block, Make] = {}
        """How a block that is of a class is constructed."""
        self.made: list[Class] = []
        alike: dict[int, list[Block]] = defaultdict(list)
        for block in sorted(blocks.by_home.values(), key=lambda x: (x.height, blocks.position(x.region))):
            alike[block.key].append(block)
        places = _places(blocks.by_home.values())
        named = [
            group
            for key, group in alike.items()
            if group[0] is blocks.root or group[0].chain is None or (places[key] > 1 and self._worth(group[0]))
        ]
        for group, name in zip(named, naming.classes(named), strict=True):
            self._add(name, group)

    def _worth(self, block: Block) -> bool:
        """Whether a chain that stands in several places becomes a class.

        One with names does; one of numbers if it is no mere list of blocks, and has a name of its own or is long.
        """
        parts = list((block.chain or {}).values())
        layers = any(isinstance(x, Node) for x in parts)
        known = self.naming.definition(block.region) is not None
        return not block.numbered or (layers and (known or len(parts) > 3))

    def _add(self, name: str, group: list[Block]) -> None:
        members = [block.chain if block.numbered and block.chain else block.children for block in group]
        whole = [Group({name: self._part(x) for name, x in each.items()}, "attribute", None) for each in members]
        columns = list(_columns(whole, ()))
        parameters = _parameters(columns)
        arguments = _arguments(columns, parameters)
        filled = _fill(whole[0], iter(arguments))
        assert isinstance(filled, Group)
        ordered = tuple(sorted(parameters, key=lambda p: p.default is not ...))
        self.made.append(Class(name, tuple(group), filled.parts, ordered))
        for i, block in enumerate(group):
            self.of[block] = Make(name, tuple(Arg(p.name, p.values[i], p.default, p.kind) for p in ordered))

    def _part(self, child: Child) -> Part:
        if isinstance(child, Node):
            made = self.written[child].module
            assert made is not None
            return made
        if isinstance(child, Container):
            parts = {name: self._part(x) for name, x in child.children.items()}
            node = self._part(child.node) if child.node else None
            assert node is None or isinstance(node, Make)
            return Group(parts, child.style, node)
        if child in self.of:
            return self.of[child]
        assert child.chain is not None
        return Chain({name: self._part(x) for name, x in child.chain.items()}, child.numbered)


def _places(blocks: Iterable[Block]) -> dict[int, int]:
    """In how many places each structure stands, blocks of one structure counted once."""
    seen: dict[int, set[tuple[int, tuple[str, ...]]]] = defaultdict(set)
    for block in blocks:
        for path, child in block.inner():
            seen[child.key].add((block.key, path))
    return defaultdict(int, {key: len(places) for key, places in seen.items()})


@dataclass(frozen=True)
class _Column:
    """One argument inside the blocks of a class, with its value in each."""

    path: tuple[str, ...]
    arg: Arg
    values: tuple[object, ...]

    @property
    def varies(self) -> bool:
        return any(value != self.values[0] or type(value) is not type(self.values[0]) for value in self.values)


def _columns(parts: Sequence[Part], path: tuple[str, ...]) -> Iterator[_Column]:
    """The arguments in parts of one structure, in order."""
    first = parts[0]
    made = [x if isinstance(x, Make) else x.module for x in parts if not isinstance(x, Chain)]
    for i, arg in enumerate(made[0].args if made and made[0] else ()):
        yield _Column(path, arg, tuple(x.args[i].value for x in made if x))
    if not isinstance(first, Make):
        for name in first.parts:
            yield from _columns([x.parts[name] for x in parts if not isinstance(x, Make)], (*path, name))


def _fill(part: Part, values: Iterator[object]) -> Part:
    """The part with these values for its arguments, in the order of `_columns`."""
    if isinstance(part, Make):
        return replace(part, args=tuple(replace(arg, value=next(values)) for arg in part.args))
    if isinstance(part, Group) and part.module:
        module = _fill(part.module, values)
        assert isinstance(module, Make)
        part = replace(part, module=module)
    return replace(part, parts={name: _fill(x, values) for name, x in part.parts.items()})


def _parameters(columns: Sequence[_Column]) -> list[Parameter]:
    """A parameter for each way of varying that does not follow from one before it."""
    found: list[_Column] = []
    for column in columns:
        if column.varies and not any(_relation(column, x.arg.kind, x.values) for x in found):
            found.append(column)
    bases = [_base_name(x, columns) for x in found]
    names: list[str] = []
    for column, base in zip(found, bases, strict=True):
        name = base
        if bases.count(base) > 1 and (base != "channels" or names):
            where = "_".join(column.path)
            name = f"{base}_{where}" if where[0].isdigit() else f"{where}_{base}"
        names.append(name if identifier(name) and name not in names else f"{base}_{len(names)}")
    return [Parameter(n, x.arg.kind, x.values, x.arg.default) for n, x in zip(names, found, strict=True)]


def _arguments(columns: Sequence[_Column], parameters: Sequence[Parameter]) -> Iterator[object]:
    """What stands for each column in the class: its value, a parameter, or an expression of one."""
    for column in columns:
        if not column.varies:
            yield column.values[0]
        else:
            forms = ((p.name, _relation(column, p.kind, p.values)) for p in parameters)
            yield next(Name(form.format(name)) for name, form in forms if form)


def _relation(column: _Column, kind: str, base: tuple[object, ...]) -> str | None:
    """How a column follows from a parameter: the same values, a multiple, a part, or the padding of a kernel."""
    pairs = list(zip(column.values, base, strict=True))
    if column.arg.kind == kind and all(type(x) is type(y) and x == y for x, y in pairs):
        return "{}"
    numbers = [(x, y) for x, y in pairs if type(x) is int and type(y) is int]
    if len(numbers) < len(pairs):
        return None
    if (column.arg.kind, kind) == ("padding", "kernel_size"):
        return "{} // 2" if all(x == y // 2 for x, y in numbers) else None
    if column.arg.kind == kind == "channels":
        x, y = numbers[0]
        for times, form in ((x // y, "{times} * {{}}"), (y // x, "{{}} // {times}")):
            whole = all(x == y * times if "*" in form else y == x * times for x, y in numbers)
            if times > 1 and whole:
                return form.format(times=times)
    return None


def _base_name(column: _Column, columns: Sequence[_Column]) -> str:
    """A name for a parameter by what it is: a number of channels in, out, or throughout."""
    if column.arg.kind != "channels":
        return column.arg.name
    same = {x.arg.name for x in columns if _relation(x, column.arg.kind, column.values) == "{}"}
    for ends, whole in (({"in_channels", "out_channels"}, "channels"), ({"in_features", "out_features"}, "features")):
        if same & ends:
            return whole if ends <= same else min(same & ends)
    return "channels" if column.arg.name.startswith("num_") else column.arg.name
