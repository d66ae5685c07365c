"""The syntax tree: what was written, with the span of everything. It knows names and numbers, no op and no shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeAlias

from cnnc.diagnostics import Span


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """An identifier, dotted or not: `conv`, `layer3.5`, `in.c`."""

    span: Span
    text: str

    @property
    def parts(self) -> list[str]:
        return self.text.split(".")


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    span: Span
    value: int | float


@dataclass(frozen=True, slots=True, eq=False)
class String:
    """A string literal without its quotes; `{name}` in a label is replaced by the value of `name`."""

    span: Span
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Boolean:
    span: Span
    value: bool


@dataclass(frozen=True, slots=True, eq=False)
class In:
    """`in`: the input of the def."""

    span: Span


@dataclass(frozen=True, slots=True, eq=False)
class ListOf:
    span: Span
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Argument:
    """`value`, or `name=value`."""

    span: Span
    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Arms:
    """`{ a | b }`: operands, each run on what flows here."""

    span: Span
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """`for names in over { body }`: a chain by itself, the arms of a merge after an op."""

    span: Span
    names: tuple[Name, ...]
    over: Expr
    body: Arms


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A name, called or not, with operands or not: `relu`, `conv(64, 3)`, `add { a | b }`, `concat for k in ks {}`."""

    span: Span
    name: Name
    args: tuple[Argument, ...] | None = None
    operands: Arms | Loop | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """`a -> b -> c`, two steps or more."""

    span: Span
    steps: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """`label: body`."""

    span: Span
    label: Name | String
    body: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Cond:
    """`then if test else other`."""

    span: Span
    then: Expr
    test: Expr
    other: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Logic:
    """`a and b and ...`, `a or b or ...`, or `not a`."""

    span: Span
    op: str
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Compare:
    """`a < b <= c`: every neighbouring pair holds."""

    span: Span
    ops: tuple[str, ...]
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Arith:
    """`left op right`, or `block * n`: repetition."""

    span: Span
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Minus:
    span: Span
    item: Expr


Expr: TypeAlias = (
    Use | Number | String | Boolean | In | ListOf | Arms | Loop | Chain | Labelled | Cond | Logic | Compare | Arith
    | Minus
)


@dataclass(frozen=True, slots=True, eq=False)
class InputDim:
    """A dim of an input, with its default where it has one: `3`, `N`, `16*h=224`."""

    span: Span
    size: Expr
    default: Expr | None


@dataclass(frozen=True, slots=True, eq=False)
class InputStmt:
    span: Span
    names: tuple[Name, ...]
    dtype: Name
    dims: tuple[InputDim, ...]
    doc: str


@dataclass(frozen=True, slots=True, eq=False)
class OutputStmt:
    span: Span
    names: tuple[Name, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Bind:
    span: Span
    names: tuple[Name, ...]
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """`shared name = block`."""

    span: Span
    name: Name
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """`value -> step -> ...` as a statement."""

    span: Span
    chain: Chain


@dataclass(frozen=True, slots=True, eq=False)
class Return:
    span: Span
    value: Expr


Statement: TypeAlias = InputStmt | OutputStmt | Bind | Share | Flow | Return


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The statements between the braces of a def or model."""

    span: Span
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    span: Span
    name: Name
    default: Expr | None


@dataclass(frozen=True, slots=True, eq=False)
class Alias:
    """`name as alias` of an import."""

    span: Span
    name: Name
    alias: Name


@dataclass(frozen=True, slots=True, eq=False)
class Import:
    span: Span
    path: String
    names: tuple[Alias, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    span: Span
    name: Name
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Def:
    span: Span
    name: Name
    params: tuple[Parameter, ...]
    body: Expr | Block
    doc: str


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model; the body of a variant is a call of another model."""

    span: Span
    name: Name
    params: tuple[Parameter, ...]
    body: Block | Expr
    doc: str


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """`measure(args) < bound <= bound` in a check block."""

    span: Span
    measure: Name
    args: tuple[Argument, ...]
    ops: tuple[str, ...]
    bounds: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    span: Span
    name: Name
    args: tuple[Argument, ...]
    facts: tuple[Fact, ...]


Item: TypeAlias = Import | Const | Def | Model | Check


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A parsed file."""

    items: tuple[Item, ...]


def walk(node: object) -> Iterator[object]:
    """The node and everything in it that has a span, outermost first."""
    stack = [node]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple):
            stack.extend(reversed(top))
        elif hasattr(top, "span"):
            yield top
            stack.extend(getattr(top, f.name) for f in reversed(fields(top)) if f.name != "span")  # type: ignore[arg-type]
