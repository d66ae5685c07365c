"""Sizes that only the running program knows, as functions have them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from tvm import te, tirx

from cnnc.ir.dim import Dim, Floor, Min, Sym, ceildiv, substitute, symbols
from cnnc_tvm.tensor import Expr


class Sizes:
    """The symbols of a graph, and what stands for expressions of them."""

    def __init__(self, reserved: frozenset[str] = frozenset()) -> None:
        """`reserved` has the symbols of the graph, whose names nothing else takes."""
        self.reserved = reserved
        self.sizes: dict[str, Dim] = {}
        """What stands for expressions of symbols in functions: parameters of their own, since TVM fails to see which
        loops cover which where sizes are 2*W and (W + 6)//7*14."""
        self.variables: dict[str, Expr] = {}
        """Those of functions, by the symbols that they stand for."""
        self._rounded: set[Dim] = set()

    def variable(self, name: str) -> Expr:
        """The variable of functions for a symbol."""
        return self.variables.setdefault(name, te.var(name, "int32"))

    def symbol(self, dim: Dim) -> Dim:
        """A dim as functions have it: a number, a symbol or what `rounded_up` gave. A symbol that stands for anything
        else is in `sizes`."""
        if isinstance(dim, int) or _is_symbol(dim) or dim in self._rounded:
            return dim
        dim = substitute(dim, self.sizes)
        names = {of: name for name, of in self.sizes.items()}
        if dim not in names:
            taken = self.reserved | self.sizes.keys()
            names[dim] = next(name for i in count() if (name := f"__dim{i}") not in taken)
            self.sizes[names[dim]] = dim
        return Sym.of(names[dim])

    def rounded_up(self, dim: Dim, by: int) -> Dim:
        """A dim, as functions have it, rounded up to a multiple of a number: TVM sees that one covers the other."""
        rounded = ceildiv(dim, by) * by
        self._rounded.add(rounded)
        return rounded

    def size(self, dim: Dim) -> Expr:
        """A dim as an expression."""
        dim = self.symbol(dim)
        if isinstance(dim, int):
            return dim
        total: Expr = 0
        for atoms, factor in dim.terms:
            term: Expr = factor
            for atom in atoms:
                term = term * self._atom(atom)
            total = total + term
        return total

    def _atom(self, atom: str | Floor | Min) -> Expr:
        if isinstance(atom, str):
            return self.variable(atom)
        if isinstance(atom, Floor):
            return tirx.floordiv(self.size(atom.of), atom.by)
        return te.min(self.size(atom.left), self.size(atom.right))

    def shape(self, dims: Iterable[Dim]) -> tuple[Expr, ...]:
        return tuple(map(self.size, dims))


def _is_symbol(dim: Dim) -> bool:
    return isinstance(dim, Sym) and len(names := symbols(dim)) == 1 and dim == Sym.of(*names)
