"""The syntax tree: what was written, with the span of everything. It knows names and numbers, no op and no shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import get_annotations
from typing import Any, ClassVar, TypeAlias, dataclass_transform

from cnnc.diagnostics import Span


@dataclass_transform(frozen_default=True, eq_default=False)
class _Fields:
    """Fields declared as in a dataclass, with one constructor for all: to generate one for each class would slow the
    start of every command."""

    fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.fields = (*cls.fields, *(name for name in get_annotations(cls)))

    def __init__(self, *values: Any) -> None:
        self.__dict__.update(zip(self.fields, values, strict=False))  # what is left out has its default


class Syntax(_Fields):
    """Base of the nodes of the tree: never changed, compared by identity."""

    span: Span


class Name(Syntax):
    """An identifier, dotted or not: `conv`, `layer3.5`, `in.c`."""

    text: str

    @property
    def parts(self) -> list[str]:
        return self.text.split(".")


class Number(Syntax):
    value: int | float


class String(Syntax):
    """A string literal without its quotes; `{name}` in a label is replaced by the value of `name`."""

    value: str


class Boolean(Syntax):
    value: bool


class In(Syntax):
    """`in`: the input of the def."""


class ListOf(Syntax):
    items: tuple[Expr, ...]


class Argument(Syntax):
    """`value`, or `name=value`."""

    name: str | None
    value: Expr


class Arms(Syntax):
    """`{ a | b }`: operands, each run on what flows here."""

    items: tuple[Expr, ...]


class Loop(Syntax):
    """`for names in over { body }`: a chain by itself, the arms of a merge after an op."""

    names: tuple[Name, ...]
    over: Expr
    body: Arms


class Use(Syntax):
    """A name, called or not, with operands or not: `relu`, `conv(64, 3)`, `add { a | b }`, `concat for k in ks {}`."""

    name: Name
    args: tuple[Argument, ...] | None = None
    operands: Arms | Loop | None = None


class Chain(Syntax):
    """`a -> b -> c`, two steps or more."""

    steps: tuple[Expr, ...]


class Labelled(Syntax):
    """`label: body`."""

    label: Name | String
    body: Expr


class Cond(Syntax):
    """`then if test else other`."""

    then: Expr
    test: Expr
    other: Expr


class Logic(Syntax):
    """`a and b and ...`, `a or b or ...`, or `not a`."""

    op: str
    items: tuple[Expr, ...]


class Compare(Syntax):
    """`a < b <= c`: every neighbouring pair holds."""

    ops: tuple[str, ...]
    items: tuple[Expr, ...]


class Arith(Syntax):
    """`left op right`, or `block * n`: repetition."""

    op: str
    left: Expr
    right: Expr


class Minus(Syntax):
    item: Expr


Expr: TypeAlias = (
    Use | Number | String | Boolean | In | ListOf | Arms | Loop | Chain | Labelled | Cond | Logic | Compare | Arith
    | Minus
)


class InputDim(Syntax):
    """A dim of an input, with its default where it has one: `3`, `N`, `16*h=224`."""

    size: Expr
    default: Expr | None


class InputStmt(Syntax):
    names: tuple[Name, ...]
    dtype: Name
    dims: tuple[InputDim, ...]
    doc: str


class OutputStmt(Syntax):
    names: tuple[Name, ...]


class Bind(Syntax):
    names: tuple[Name, ...]
    value: Expr


class Share(Syntax):
    """`shared name = block`."""

    name: Name
    value: Expr


class Flow(Syntax):
    """`value -> step -> ...` as a statement."""

    chain: Chain


class Return(Syntax):
    value: Expr


Statement: TypeAlias = InputStmt | OutputStmt | Bind | Share | Flow | Return


class Block(Syntax):
    """The statements between the braces of a def or model."""

    statements: tuple[Statement, ...]


class Parameter(Syntax):
    name: Name
    default: Expr | None


class Alias(Syntax):
    """`name as alias` of an import."""

    name: Name
    alias: Name


class Import(Syntax):
    path: String
    names: tuple[Alias, ...]


class Const(Syntax):
    name: Name
    value: Expr


class Def(Syntax):
    name: Name
    params: tuple[Parameter, ...]
    body: Expr | Block
    doc: str


class Model(Syntax):
    """A model; the body of a variant is a call of another model."""

    name: Name
    params: tuple[Parameter, ...]
    body: Block | Expr
    doc: str


class Fact(Syntax):
    """`measure(args) < bound <= bound` in a check block."""

    measure: Name
    args: tuple[Argument, ...]
    ops: tuple[str, ...]
    bounds: tuple[Expr, ...]


class Check(Syntax):
    name: Name
    args: tuple[Argument, ...]
    facts: tuple[Fact, ...]


Item: TypeAlias = Import | Const | Def | Model | Check


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A parsed file."""

    items: tuple[Item, ...]


def walk(node: object) -> Iterator[Syntax]:
    """The node and everything in it, outermost first."""
    stack = [node]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple):
            stack.extend(reversed(top))
        elif isinstance(top, Syntax):
            yield top
            stack.extend(getattr(top, name) for name in reversed(top.fields[1:]))
