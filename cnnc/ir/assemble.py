"""What the text and the JSON form of a graph share: which parameters are named, and a graph put together from names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from difflib import get_close_matches
from typing import Any

from cnnc.ir.graph import Graph, Input, Node, Origin, Param, Value, fresh_params
from cnnc.ir.op import Init, Op, OpError, attributes, registry
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Named:
    """A parameter as a form states it: by name, and by its start where that is not the one its op gives it."""

    name: str
    init: Init | None = None
    trainable: bool | None = None


def named_params(node: Node) -> dict[str, Named]:
    """The node's parameters, by role, that are not those it would get by itself."""
    named = {}
    for role, fresh in fresh_params(node.op, node.inputs, node.name).items():
        param = node.params[role]
        if (param.name, param.init, param.trainable) != (fresh.name, fresh.init, fresh.trainable):
            own = (param.init, param.trainable) == (fresh.init, fresh.trainable)
            named[role] = Named(param.name) if own else Named(param.name, param.init, param.trainable)
    return named


def make_op(name: str, positional: Sequence[object], named: Mapping[str, object]) -> Op:
    """The op of a call, its attributes named as the language does; ValueError if there is none such."""
    cls = registry().get(name)
    if cls is None:
        close = get_close_matches(name, registry(), 1)
        raise ValueError(f"there is no op `{name}`" + (f": did you mean `{close[0]}`?" if close else ""))
    fields = attributes(cls)
    values: dict[str, Any] = {}
    if fields and fields[0].metadata["variadic"] and positional:
        values[fields[0].name] = list(positional)
    elif len(positional) > len(fields):
        raise ValueError(f"`{name}` takes {len(fields)} attributes, not {len(positional)}")
    else:
        values = {field.name: value for field, value in zip(fields, positional, strict=False)}
    own_names = {field.metadata["name"]: field.name for field in fields}
    for key, value in named.items():
        if key not in own_names:
            raise ValueError(f"`{name}` has no attribute `{key}`")
        if own_names[key] in values:
            raise ValueError(f"`{key}` of `{name}` is given twice")
        values[own_names[key]] = value
    for field in fields:
        if field.default is MISSING and field.name not in values:
            raise ValueError(f"`{name}` needs `{field.metadata['name']}`")
    return cls(**values)


class Assembly:
    """A graph being put together, operands first. Every method raises ValueError for what does not fit."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._params: dict[str, Param] = {}

    def input(self, name: str, type: str, doc: str, origin: Origin | None = None) -> None:
        self._define(name, Input(name, TensorType.parse(type), doc, origin))

    def node(
        self, name: str, op: Op, operands: Sequence[str], named: Mapping[str, Named], type: str,
        origin: Origin | None = None,
    ) -> None:  # fmt: skip
        """Add a node; `type` is what it is said to give and must be what it gives."""
        inputs = tuple(self.value(x) for x in operands)
        try:
            fresh = fresh_params(op, inputs, name)
            if strange := named.keys() - fresh.keys():
                raise ValueError(f"`{op.name}` has no parameter `{min(strange)}` here")
            params = {role: self._param(param, named.get(role)) for role, param in fresh.items()}
            node = Node(op, inputs, params, name, origin)
        except OpError as e:
            raise ValueError(str(e)) from None
        if str(node.type) != type:
            raise ValueError(f"`{name}` is said to be {type}, but `{op}` gives {node.type}")
        self._define(name, node)

    def graph(self, name: str, outputs: Mapping[str, str], doc: str) -> Graph:
        if not outputs:
            raise ValueError("the graph has no output")
        inputs = tuple(x for x in self._values.values() if isinstance(x, Input))
        return Graph(name, inputs, {key: self.value(x) for key, x in outputs.items()}, doc)

    def value(self, name: str) -> Value:
        if name not in self._values:
            raise ValueError(f"`{name}` is used before it is defined")
        return self._values[name]

    def _define(self, name: str, value: Value) -> None:
        if name in self._values:
            raise ValueError(f"`{name}` is defined twice")
        self._values[name] = value

    def _param(self, fresh: Param, named: Named | None) -> Param:
        """The parameter of a name: a new one, or the one that has the name already."""
        if named is not None:
            fresh = replace(fresh, name=named.name)
            if named.init is not None and named.trainable is not None:
                fresh = replace(fresh, init=named.init, trainable=named.trainable)
        known = self._params.setdefault(fresh.name, fresh)
        if known.type != fresh.type:
            raise ValueError(f"parameter `{fresh.name}` is {known.type} in one place and {fresh.type} in another")
        return known
