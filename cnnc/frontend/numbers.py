"""Arithmetic, comparison and the functions of the language, on evaluated values. Everything raises ValueError."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

from cnnc.frontend.scope import describe

MAX_INT = 2**63 - 1
MAX_LIST = 20_000

_COMPARE: Mapping[str, Callable[[object, object], bool]] = {
    "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,  # type: ignore[dict-item]
}  # fmt: skip


class TooLargeError(ValueError):
    """A number or list beyond the limits."""


def code(error: ValueError) -> str:
    """The code under which an error of this module is reported."""
    return "E0504" if isinstance(error, TooLargeError) else "E0212"


def arithmetic(op: str, left: object, right: object) -> int | float:
    """`left op right` of two numbers; `/` of integers is an integer where it divides."""
    a, b = number(left, f"the left of `{op}`"), number(right, f"the right of `{op}`")
    if op in ("/", "//", "%") and b == 0:
        raise ValueError(f"division by zero: {a} {op} {b}")
    try:
        result = _compute(op, a, b)
    except OverflowError:
        raise TooLargeError(f"{a} {op} {b} is too large") from None
    return bounded(result, f"{a} {op} {b}")


def _compute(op: str, a: int | float, b: int | float) -> int | float:
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "//":
            return a // b
        case "%":
            return a % b
        case _:
            return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b


def bounded(value: int | float, what: str) -> int | float:
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise TooLargeError(f"{what} is beyond 2^63")
    if isinstance(value, float) and not math.isfinite(value):
        raise TooLargeError(f"{what} is not a finite number")
    return value


def compare(op: str, left: object, right: object) -> bool:
    """`left op right`; order is of numbers only, equality of numbers, words, truth values and lists of them."""
    if op not in ("==", "!="):
        left, right = number(left, f"the left of `{op}`"), number(right, f"the right of `{op}`")
    elif not (_comparable(left) and _comparable(right)):
        other = left if not _comparable(left) else right
        raise ValueError(f"`{op}` compares numbers, words and lists, not {describe(other)}")
    return _COMPARE[op](left, right)


def _comparable(value: object) -> bool:
    return all(map(_comparable, value)) if isinstance(value, list) else isinstance(value, int | float | str | bool)


def size(items: list[object]) -> int:
    """The items of a list and of the lists in it."""
    return len(items) + sum(size(item) for item in items if isinstance(item, list))


def number(value: object, what: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is {describe(value)}, not a number")
    return value


def call(name: str, args: list[object]) -> object:
    """A function of the language on evaluated positional arguments."""
    return _FUNCTIONS[name](args)


def _extreme(name: str, choose: Callable[[list[int | float]], int | float]) -> Callable[[list[object]], object]:
    def run(args: list[object]) -> object:
        values = args[0] if len(args) == 1 and isinstance(args[0], list) else args
        if not values:
            raise ValueError(f"`{name}` needs at least one number")
        return choose([number(v, f"an argument of `{name}`") for v in values])

    return run


def _range(args: list[object]) -> object:
    bounds = []
    for arg in args:
        if isinstance(arg, bool) or not isinstance(arg, int):
            raise ValueError(f"`range` takes integers, not {describe(arg)}")
        bounds.append(arg)
    if not 1 <= len(bounds) <= 3 or (len(bounds) == 3 and bounds[2] == 0):
        raise ValueError("it is `range(stop)`, `range(start, stop)` or `range(start, stop, step)` with a step not 0")
    values = range(*bounds)
    if len(values) > MAX_LIST:
        raise TooLargeError(f"a list has at most {MAX_LIST:,} items, this range has {len(values):,}")
    return list(values)


def _zip(args: list[object]) -> object:
    lists = [arg for arg in args if isinstance(arg, list)]
    if not args or len(lists) != len(args):
        raise ValueError("`zip` takes lists")
    if len(set(map(len, lists))) > 1:
        raise ValueError(f"`zip` takes lists of one length, not of {', '.join(str(len(x)) for x in lists)}")
    return [list(items) for items in zip(*lists, strict=True)]


def _len(args: list[object]) -> object:
    if len(args) != 1 or not isinstance(args[0], list):
        raise ValueError("`len` takes a list")
    return len(args[0])


_FUNCTIONS: Mapping[str, Callable[[list[object]], object]] = {
    "max": _extreme("max", max), "min": _extreme("min", min), "range": _range, "zip": _zip, "len": _len,
}  # fmt: skip
FUNCTIONS = tuple(_FUNCTIONS)
