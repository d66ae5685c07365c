"""Sizes in the language: `16*h=256`, `[N, 64, H//2, W]`. Names that are not numbers in scope are symbols."""

from __future__ import annotations

from collections.abc import Callable

from cnnc.diagnostics import CnncError, Span
from cnnc.frontend import syntax as s
from cnnc.frontend.scope import POISON, describe
from cnnc.ir.dim import Dim, Sym, floordiv


class DimError(Exception):
    """An expression is no size; an empty message means that the fault has been reported."""

    def __init__(self, code: str, message: str, span: Span) -> None:
        super().__init__(message)
        self.code, self.message, self.span = code, message, span


def dim_of(expr: s.Expr, lookup: Callable[[s.Name], object | None]) -> Dim:
    """The dim an expression writes; `lookup` gives the value of a name, None for a symbol. DimError otherwise."""
    match expr:
        case s.Number(value=int(value)):
            return value
        case s.Use(name=name, args=None, operands=None) if len(name.parts) == 1:
            found = lookup(name)
            if found is None:
                return Sym.of(name.text)
            if found is POISON:
                raise DimError("E0309", "", expr.span)
            if isinstance(found, bool) or not isinstance(found, int):
                raise DimError("E0309", f"`{name.text}` is {describe(found)}, not a size", expr.span)
            return found
        case s.Minus(item=item):
            return -dim_of(item, lookup)
        case s.Arith(op="+", left=a, right=b):
            return dim_of(a, lookup) + dim_of(b, lookup)
        case s.Arith(op="-", left=a, right=b):
            return dim_of(a, lookup) - dim_of(b, lookup)
        case s.Arith(op="*", left=a, right=b):
            try:
                return dim_of(a, lookup) * dim_of(b, lookup)
            except CnncError as e:  # a product of too many terms
                raise DimError(e.diagnostics[0].code, e.diagnostics[0].message, expr.span) from None
        case s.Arith(op="//", left=a, right=b):
            by = dim_of(b, lookup)
            if not isinstance(by, int) or by < 1:
                raise DimError("E0309", f"a size is divided by a positive number, not by {by}", b.span)
            return floordiv(dim_of(a, lookup), by)
        case _:
            raise DimError("E0309", "a size is a number, a name, or `+`, `-`, `*` and `//` of them", expr.span)
