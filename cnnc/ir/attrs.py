"""Kinds of op attributes: what an attribute may be, how it is read and how it is written.

A kind turns what a user wrote (`3`, `[1, 7]`, `half`) into the one form the op works with, or raises `AttrError` with a
sentence that follows "`s` of `conv` "; `show` writes it back as the language spells it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias

from cnnc.ir.record import Record
from cnnc.ir.types import DType

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = "tuple[int, int, int, int] | str"
"""Rows above, columns left, rows below, columns right; or `half`, `same_upper`, `same_lower`, `valid`."""

MAX_INT = 2**31 - 1


class AttrError(ValueError):
    """An attribute's value is not of its kind. The message follows the attribute's name."""


class Kind(Record, ABC):
    """What values an attribute takes; `text` completes "expects ..."."""

    text: ClassVar[str]

    @abstractmethod
    def coerce(self, value: object) -> Any:
        """The value in its one form; AttrError where it is not of this kind."""

    def show(self, value: Any) -> str:
        return show_value(value)

    def _refuse(self, value: object) -> AttrError:
        return AttrError(f"expects {self.text}, not {show_value(value)}")


def show_value(value: object) -> str:
    """A value as the language writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, DType):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Fraction):
        return show_value(float(value)) if value.denominator != 1 else str(value.numerator)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show_value, value))}]"
    return str(value)


class Int(Kind):
    """An integer from `low` to `high`."""

    low: int = -MAX_INT
    high: int = MAX_INT

    @property
    def text(self) -> str:  # type: ignore[override]
        if self.high < MAX_INT:
            return f"an integer from {self.low} to {self.high}"
        return "an integer" if self.low == -MAX_INT else f"an integer of at least {self.low}"

    def coerce(self, value: object) -> int:
        number = _integer(value)
        if number is not None and abs(number) > MAX_INT:
            raise AttrError(f"expects {self.text} and at most {MAX_INT:,}, not {show_value(value)}")
        if number is None or not self.low <= number <= self.high:
            raise self._refuse(value)
        return number


class Float(Kind):
    """A finite number; above `above` or at least `low` where given."""

    low: float = -math.inf
    above: float = -math.inf
    below: float = math.inf

    @property
    def text(self) -> str:  # type: ignore[override]
        bounds = [f"at least {self.low:g}"] if self.low > -math.inf else []
        bounds += [f"above {self.above:g}"] if self.above > -math.inf else []
        bounds += [f"below {self.below:g}"] if self.below < math.inf else []
        return " ".join(["a finite number", " and ".join(bounds)]).strip()

    def coerce(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
            raise self._refuse(value)
        number = _finite(value)
        if number is None or not (self.low <= number and self.above < number < self.below):
            raise self._refuse(value)
        return number


class Bool(Kind):
    text = "true or false"

    def coerce(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise self._refuse(value)
        return value


class Choice(Kind):
    """One of some words."""

    words: tuple[str, ...]

    @property
    def text(self) -> str:  # type: ignore[override]
        return "one of " + ", ".join(f'"{word}"' for word in self.words)

    def coerce(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise self._refuse(value)
        return value


class DTypeKind(Kind):
    text = "f32, f16 or bf16"

    def coerce(self, value: object) -> DType:
        if isinstance(value, str) and value in list(DType):
            return DType(value)
        raise self._refuse(value)

    def show(self, value: DType) -> str:
        return str(value)


class PairKind(Kind):
    """Rows and columns: one number for both, or a list of two."""

    low: int = 1

    @property
    def text(self) -> str:  # type: ignore[override]
        return f"an integer of at least {self.low}, or two of them for rows and columns"

    def coerce(self, value: object) -> Pair:
        numbers = [value, value] if not isinstance(value, list | tuple) else list(value)
        found = [n for n in map(_integer, numbers) if n is not None and self.low <= n <= MAX_INT]
        if len(numbers) != 2 or len(found) != 2:
            raise self._refuse(value)
        return found[0], found[1]

    def show(self, value: Pair) -> str:
        return str(value[0]) if value[0] == value[1] else f"[{value[0]}, {value[1]}]"


class PadKind(Kind):
    """Zero padding: a number, two (rows, columns), four (top, left, bottom, right), or one of `modes`."""

    modes: tuple[str, ...] = ("half", "same_upper", "same_lower", "valid")

    @property
    def text(self) -> str:  # type: ignore[override]
        words = f", or {', '.join(self.modes)}" if self.modes else ""
        return f"a number, [rows, columns] or [top, left, bottom, right]{words}"

    def coerce(self, value: object) -> Padding:
        if isinstance(value, str):
            if value not in self.modes:
                raise self._refuse(value)
            return (0, 0, 0, 0) if value == "valid" else value
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        found = [n for n in map(_integer, numbers) if n is not None and 0 <= n <= MAX_INT]
        if len(found) != len(numbers) or len(found) not in (1, 2, 4):
            raise self._refuse(value)
        if len(found) == 1:
            found *= 4
        elif len(found) == 2:
            found *= 2
        return found[0], found[1], found[2], found[3]

    def show(self, value: Padding) -> str:
        if isinstance(value, str):
            return value
        top, left, bottom, right = value
        if (top, left) == (bottom, right):
            return str(top) if top == left else f"[{top}, {left}]"
        return f"[{top}, {left}, {bottom}, {right}]"


class ListOf(Kind):
    """A list of values of one kind; a single value stands for a list of one."""

    item: Kind
    least: int = 1

    @property
    def text(self) -> str:  # type: ignore[override]
        return f"a list of at least {self.least}, each {self.item.text}"

    def coerce(self, value: object) -> tuple[Any, ...]:
        values = value if isinstance(value, list | tuple | range) else [value]
        if len(values) < self.least:
            raise self._refuse(list(values))
        return tuple(self.item.coerce(v) for v in values)

    def show(self, value: Sequence[Any]) -> str:
        return f"[{', '.join(map(self.item.show, value))}]"


class Optional(Kind):
    """A value of a kind, or nothing (the default, which the language cannot write)."""

    item: Kind

    @property
    def text(self) -> str:  # type: ignore[override]
        return self.item.text

    def coerce(self, value: object) -> Any:
        return None if value is None else self.item.coerce(value)

    def show(self, value: Any) -> str:
        return self.item.show(value)


def attr(kind: Kind, name: str, *, default: Any = dataclasses.MISSING, variadic: bool = False) -> Any:
    """A dataclass field of an op: its kind, the name the language has for it, and its default where it has one.

    A variadic attribute (of kind `ListOf`) takes all the positional arguments of the call: `reshape(32, 7, 7)`.
    """
    if default is not dataclasses.MISSING:
        default = kind.coerce(default)
    return dataclasses.field(default=default, metadata={"kind": kind, "name": name, "variadic": variadic})


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float | Fraction) and _finite(value) is not None and value == int(value):
        return int(value)
    return None


def _finite(value: float | Fraction) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
