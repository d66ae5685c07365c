"""How an op is written in PyTorch: a module that is constructed, an expression, or either."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cnnc.ir.attrs import Pair
from cnnc.ir.types import DType


class Name(str):
    """Text that stands in the source as it is: the name of a parameter, an expression of it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Optional:
    """An argument's value, left out where it is the callee's default."""

    value: object
    default: object


@dataclass(frozen=True, slots=True)
class Arg:
    """An argument of a constructor. One without a default stands by position, one with a default by keyword."""

    name: str
    value: object
    default: object = ...
    kind: str = ""
    """Arguments of one kind may become one parameter of a class: all numbers of channels are of kind "channels"."""

    @property
    def text(self) -> str:
        if self.default is ...:
            return text(self.value)
        return "" if self.value == self.default else f"{self.name}={text(self.value)}"


@dataclass(frozen=True, slots=True)
class Make:
    """The construction of a module: `nn.Conv2d(3, 64, 7, stride=2)`."""

    callee: str
    args: tuple[Arg, ...] = ()

    def __str__(self) -> str:
        return f"{self.callee}({join(self.args)})"


@dataclass(frozen=True, slots=True)
class Written:
    """An op in PyTorch: `expr` has {0}, {1}, ... for the operands; with parameters or a mode it has only `module`."""

    module: Make | None = None
    expr: str | None = None

    @property
    def infix(self) -> bool:
        """Whether the expression needs parentheses inside another operator's."""
        return self.expr is not None and self.expr.startswith(("{0} ", "-{0}"))

    @property
    def binds(self) -> bool:
        """Whether an operand stands next to an operator or a dot, so that an infix operand needs parentheses."""
        return self.expr is not None and self.expr.startswith(("{0}", "-{0}"))


_CHANNELS: Final = {
    "in_channels", "out_channels", "num_features", "in_features", "out_features", "num_channels", "num_parameters",
    "groups", "normalized_shape",
}  # fmt: skip


def arguments(**values: object) -> tuple[Arg, ...]:
    """Arguments by name; an `Optional` is left out where it is the default."""
    return tuple(
        Arg(name, *((x.value, x.default) if isinstance(x, Optional) else (x, ...)), kind=kind(name))
        for name, x in values.items()
    )


def kind(name: str) -> str:
    return "channels" if name in _CHANNELS else name


def module(callee: str, **values: object) -> Written:
    """An op that is a module."""
    return Written(Make(callee, arguments(**values)))


def either(callee: str, function: str, **values: object) -> Written:
    """An op that is a module in a chain of modules and a function elsewhere, with the same arguments."""
    args = arguments(**values)
    rest = join(args)
    return Written(Make(callee, args), f"{function}({{0}}{', ' if rest else ''}{rest})")


def join(args: Iterable[Arg]) -> str:
    return ", ".join(x.text for x in args if x.text)


def pair(value: Pair) -> int | Pair:
    """A pair as people write it: one number where both are the same."""
    return value[0] if value[0] == value[1] else value


def quoted(value: str) -> str:
    """A string as Python source, in double quotes where that needs no escapes."""
    plain = value.isprintable() and not {'"', "'", "\\"} & set(value)
    return f'"{value}"' if plain else repr(value)


def text(value: object) -> str:
    """A value as Python source."""
    match value:
        case Name():
            return str(value)
        case DType():
            return {DType.F32: "torch.float32", DType.F16: "torch.float16", DType.BF16: "torch.bfloat16"}[value]
        case str():
            return quoted(value)
        case float():
            return repr(value).replace("e-0", "e-").replace("e+0", "e")
        case tuple():
            return f"({', '.join(map(text, value))}{',' if len(value) == 1 else ''})"
        case list():
            return f"[{', '.join(map(text, value))}]"
        case _:
            return repr(value)
