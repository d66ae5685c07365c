"""Dimensions: integers and symbolic expressions in canonical form.

A `Dim` is an int or a `Sym`. A `Sym` is a polynomial with integer coefficients over atoms; an atom is a name
(`N`, `H`), a floor division of a polynomial by a positive int, or a minimum of two dims. Dims that compare equal are
equal for every value of their names. The converse holds for polynomials, whose terms are sorted; floor(p/k) and min are
brought to one form as far as windows and strides need it: multiples of k are pulled out of p, common factors cancelled
and a floor of a floor made one, so that `(2*h + 1)//2 == h`. A constant expression is always an int, never a `Sym`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import TypeAlias

from cnnc.diagnostics import error

Dim: TypeAlias = "int | Sym"
Atom: TypeAlias = "str | Floor | Min"
MAX_TERMS = 256
"""Those inside of divisions and minima included. Products of sums and divisions of divisions grow fast; networks need
a handful."""

Monomial: TypeAlias = tuple[Atom, ...]  # its atoms, sorted, an atom repeated for a power; () is the constant


@dataclass(frozen=True, slots=True)
class Floor:
    """floor(of / by), by > 1."""

    of: Sym
    by: int
    text: str = field(init=False, compare=False)
    """Kept, since terms are sorted by it."""
    size: int = field(init=False, compare=False)
    """Terms inside."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", f"{_factor(self.of)}//{self.by}")
        object.__setattr__(self, "size", _count(self.of.terms))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Min:
    """The smaller of two dims, an int second."""

    left: Dim
    right: Dim
    text: str = field(init=False, compare=False)
    """Kept, since terms are sorted by it."""
    size: int = field(init=False, compare=False)
    """Terms inside."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", f"min({self.left}, {self.right})")
        object.__setattr__(self, "size", sum(_count(dim.terms) for dim in _parts(self)))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Sym:
    """A polynomial that is not constant: (monomial, coefficient) pairs, sorted, no coefficient zero."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def of(name: str) -> Sym:
        return Sym((((name,), 1),))

    def __add__(self, other: Dim) -> Dim:
        return _make(_merged(self, other, 1))

    def __sub__(self, other: Dim) -> Dim:
        return _make(_merged(self, other, -1))

    def __rsub__(self, other: int) -> Dim:
        return _make(_merged(other, self, -1))

    def __neg__(self) -> Dim:
        return _make({mono: -c for mono, c in self.terms})

    def __mul__(self, other: Dim) -> Dim:
        out: dict[Monomial, int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in _terms(other):
                mono = tuple(sorted(m1 + m2, key=_atom_key))
                out[mono] = out.get(mono, 0) + c1 * c2
        return _make(out)

    def __floordiv__(self, by: int) -> Dim:
        return floordiv(self, by)

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        text = ""
        # The constant comes last: `H + 2`, as people write it.
        for mono, c in sorted(self.terms, key=lambda term: (not term[0], _mono_key(term[0]))):
            sign = "-" if c < 0 else "+"
            alone = len(mono) == 1 and (c == 1 or (c == -1 and text != ""))  # -H//2 would be (-H)//2
            factors = [_atom_text(atom, alone=alone) for atom in mono]
            if abs(c) != 1 or not mono:
                factors.insert(0, str(abs(c)))
            text += f" {sign} {'*'.join(factors)}" if text else f"{'-' if c < 0 else ''}{'*'.join(factors)}"
        return text

    __repr__ = __str__


def floordiv(dim: Dim, by: int) -> Dim:
    """floor(dim / by) for by >= 1, multiples of `by` pulled out."""
    if by < 1:
        raise ValueError(f"a dim is divided by a positive int, not {by}")
    if isinstance(dim, int) or by == 1:
        return dim // by if isinstance(dim, int) else dim
    whole = _make({mono: c // by for mono, c in dim.terms})
    rest = _make({mono: c % by for mono, c in dim.terms})
    if isinstance(rest, int):
        return whole
    symbolic = [(mono, c) for mono, c in rest.terms if mono]
    # floor((g*p + c) / (g*k)) = floor((p + floor(c/g)) / k)
    common = gcd(by, *(c for _, c in symbolic))
    if common > 1:
        return whole + floordiv(_make({mono: c // common for mono, c in rest.terms}), by // common)
    # floor((floor(p/a) + q) / b) = floor((p + a*q) / (a*b))
    floors = [mono[0] for mono, c in symbolic if c == 1 and len(mono) == 1 and isinstance(mono[0], Floor)]
    if len(floors) == 1:
        inner = floors[0]
        others = rest - Sym((((inner,), 1),))
        return whole + floordiv(inner.of + others * inner.by, inner.by * by)
    return whole + Sym((((Floor(rest, by),), 1),))


def ceildiv(dim: Dim, by: int) -> Dim:
    """ceil(dim / by) for by >= 1."""
    return floordiv(dim + (by - 1), by)


def exact_quotient(dim: Dim, by: int) -> Dim | None:
    """dim / by for by >= 1 where the division is exact whatever the symbols stand for; else None."""
    quotient = floordiv(dim, by)
    return quotient if quotient * by == dim else None


def minimum(left: Dim, right: Dim) -> Dim:
    """min(left, right), decided where the difference is constant."""
    difference = left - right
    if isinstance(difference, int):
        return left if difference <= 0 else right
    first, second = sorted((left, right), key=lambda dim: (isinstance(dim, int), str(dim)))
    return Sym((((Min(first, second),), 1),))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 of none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def symbols(dim: Dim) -> set[str]:
    """The names that occur in a dim."""
    return set() if isinstance(dim, int) else {name for mono, _ in dim.terms for atom in mono for name in _names(atom)}


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dim with names replaced; names not in `values` stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for mono, c in dim.terms:
        total = total + product(_substitute_atom(atom, values) for atom in mono) * c
    return total


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The dim as an int; KeyError names a symbol that `values` lacks."""
    result = substitute(dim, values)
    if not isinstance(result, int):
        raise KeyError(min(symbols(result)))
    return result


def solve(dim: Dim, value: Dim) -> dict[str, Dim] | None:
    """Bindings that make `dim`, a pattern `k*h + c` in at most one name, equal to `value`; None if there are none."""
    if isinstance(dim, int):
        return {} if dim == value else None
    names = [(mono, c) for mono, c in dim.terms if mono]
    constant = sum(c for mono, c in dim.terms if not mono)
    if len(names) != 1 or len(names[0][0]) != 1 or not isinstance(names[0][0][0], str):
        return {} if dim == value else None
    ((name,), factor) = names[0]
    if factor < 1:
        return None
    quotient = floordiv(value - constant, factor)
    return {str(name): quotient} if quotient * factor + constant == value else None


def parse_dim(text: str) -> Dim:
    """The dim that `str` printed; ValueError for anything else."""
    try:
        return _from_ast(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, RecursionError, MemoryError) as e:
        raise ValueError(f"not a dimension: {text!r}") from e


def _from_ast(node: ast.expr, text: str) -> Dim:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return Sym.of(name)
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_from_ast(x, text)
        case ast.BinOp(left=a, op=ast.Add(), right=b):
            return _from_ast(a, text) + _from_ast(b, text)
        case ast.BinOp(left=a, op=ast.Sub(), right=b):
            return _from_ast(a, text) - _from_ast(b, text)
        case ast.BinOp(left=a, op=ast.Mult(), right=b):
            return _from_ast(a, text) * _from_ast(b, text)
        case ast.BinOp(left=a, op=ast.FloorDiv(), right=ast.Constant(value=int(by))):
            return floordiv(_from_ast(a, text), by)
        case ast.Call(func=ast.Name(id="min"), args=[a, b], keywords=[]):
            return minimum(_from_ast(a, text), _from_ast(b, text))
        case _:
            raise ValueError(f"not a dimension: {text!r}")


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Sym) else (((), dim),)


def _merged(left: Dim, right: Dim, sign: int) -> dict[Monomial, int]:
    out = dict(_terms(left))
    for mono, c in _terms(right):
        out[mono] = out.get(mono, 0) + sign * c
    return out


def _make(terms: dict[Monomial, int]) -> Dim:
    kept = sorted(((mono, c) for mono, c in terms.items() if c), key=lambda term: _mono_key(term[0]))
    if not kept:
        return 0
    if (count := _count(kept)) > MAX_TERMS:
        message = f"a dimension has {count:,} terms, the limit is {MAX_TERMS}"
        raise error("E0506", message, help="give the size a name of its own")
    return kept[0][1] if len(kept) == 1 and not kept[0][0] else Sym(tuple(kept))


def _count(terms: Sequence[tuple[Monomial, int]]) -> int:
    """The terms, and those of their atoms."""
    return len(terms) + sum(atom.size for mono, _ in terms for atom in mono if not isinstance(atom, str))


def _parts(atom: Atom) -> Iterator[Sym]:
    """The dims inside of an atom."""
    if isinstance(atom, Floor):
        yield atom.of
    elif isinstance(atom, Min):
        yield from (dim for dim in (atom.left, atom.right) if isinstance(dim, Sym))


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, atom.text)


def _mono_key(mono: Monomial) -> tuple[int, list[tuple[int, str]]]:
    return (-len(mono), [_atom_key(atom) for atom in mono])


def _names(atom: Atom) -> Iterator[str]:
    if isinstance(atom, str):
        yield atom
    for dim in _parts(atom):
        yield from symbols(dim)


def _substitute_atom(atom: Atom, values: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, str):
        return values.get(atom, Sym.of(atom))
    if isinstance(atom, Floor):
        return floordiv(substitute(atom.of, values), atom.by)
    return minimum(substitute(atom.left, values), substitute(atom.right, values))


def _factor(dim: Sym) -> str:
    single = len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.terms[0][0]) == 1
    return str(dim) if single and not isinstance(dim.terms[0][0][0], Floor) else f"({dim})"


def _atom_text(atom: Atom, *, alone: bool) -> str:
    return f"({atom})" if isinstance(atom, Floor) and not alone else str(atom)


__all__ = [
    "Dim", "Sym", "ceildiv", "evaluate", "exact_quotient", "floordiv", "minimum", "parse_dim", "product", "solve",
    "substitute", "symbols",
]  # fmt: skip
