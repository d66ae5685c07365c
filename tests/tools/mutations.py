"""What `mutate.py` puts in the place of what stands in a function: one change for each mutant.

Another comparison or arithmetic operator, a constant one more or less, a condition negated, an operand of an `and` or
a class of a union left out, neighbouring arguments swapped, a keyword argument or a statement left out, None returned,
a case of a `match` never taken. Strings (what errors say), annotations, defaults and assertions stay as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip

Place = tuple[ast.AST, str, int | None]
"""Where a node stands in a syntax tree: its parent, the field, and the position if the field is a list."""


@dataclass(frozen=True)
class Mutant:
    """A function of a file with one change: `new` at `place` of `tree`. `before` and `after` are their texts."""

    path: Path
    function: str
    line: int
    column: int
    before: str
    after: str
    tree: ast.Module
    place: Place
    new: ast.AST

    @property
    def key(self) -> tuple[str, str, int, int, str, str]:
        """What identifies it while the file is the same."""
        return self.path.as_posix(), self.function, self.line, self.column, self.before, self.after

    def mutate(self) -> ast.Module:
        """The tree of the file, changed: for a process that makes nothing else of it."""
        parent, field, i = self.place
        if i is None:
            setattr(parent, field, self.new)
        else:
            getattr(parent, field)[i] = self.new
        return ast.fix_missing_locations(self.tree)


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of the functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, function in _functions(tree, ""):
        for place in _places(function):
            parent, field, i = place
            node = getattr(parent, field) if i is None else getattr(parent, field)[i]
            options = list(_variants(node))
            conditional = isinstance(parent, ast.If | ast.IfExp | ast.While | ast.match_case | ast.comprehension)
            if conditional and field in ("test", "guard", "ifs") and not isinstance(node, ast.Compare | ast.UnaryOp):
                options.append(ast.UnaryOp(ast.Not(), node))
            at = getattr(node, "pattern", node)  # a case of a match has no line of its own
            for new in options:
                yield Mutant(path, name, at.lineno, at.col_offset, _text(node), _text(new), tree, place, new)


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand instead of a node."""
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
        case ast.BinOp(op=ast.BitOr()):  # a union of classes
            yield from (node.left, node.right)
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            yield from (ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0] for rest in _one_less(node.values))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Call():
            for i in range(1, len(node.args)):
                swapped = [*node.args[: i - 1], node.args[i], node.args[i - 1], *node.args[i + 1 :]]
                yield ast.Call(node.func, swapped, node.keywords)
            for rest in _one_less(node.keywords):
                if any(each.arg == "help" for each in node.keywords if each not in rest):
                    continue
                yield ast.Call(node.func, node.args, rest)
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Expr() | ast.AugAssign() | ast.If(orelse=[]):
            yield ast.Pass()
        case ast.MatchOr():
            yield from (ast.MatchOr(rest) if len(rest) > 1 else rest[0] for rest in _one_less(node.patterns))
        case ast.match_case() if not isinstance(node.pattern, ast.MatchAs):
            yield ast.match_case(node.pattern, ast.Constant(False), node.body)


def _one_less(of: list[Any]) -> list[list[Any]]:
    return [[*of[:i], *of[i + 1 :]] for i in range(len(of))]


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a module and of its classes, by qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def _places(node: ast.AST) -> Iterator[Place]:
    """The places below a node that may change."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _stays(child):
                yield node, field, i
                yield from _places(child)


def _stays(node: ast.AST) -> bool:
    """Assertions, texts and what helps the user, and the parameters of a function with their defaults."""
    match node:
        case ast.Assert() | ast.JoinedStr() | ast.arguments() | ast.Expr(value=ast.Constant()):
            return True
        case ast.keyword(arg="help"):
            return True
        case _:
            return False


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
