"""Ops: what a node computes.

An op is a record. Its fields are its attributes, the parameters of its `infer` are its operands, and its
docstring says what it computes, the formula, the shapes and the source. Everything else about it (the call in the
language, the diagnostics, the documentation, the text form) is derived from these, so an op is written in one place:

    @register
    class LeakyRelu(Op):
        \"\"\"max(x, 0) + slope * min(x, 0). ...\"\"\"

        name = "leaky_relu"
        slope: float = attr(Float(), "slope", default=0.01)

        def infer(self, x: TensorType) -> TensorType:
            return x
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any, ClassVar, TypeVar, dataclass_transform

from cnnc.ir.attrs import AttrError, Float, Kind, attr, show_value
from cnnc.ir.dim import Dim
from cnnc.ir.record import Record
from cnnc.ir.types import DType, TensorType

MAX_ELEMENTS = 2**31
"""A tensor has fewer elements than this."""


class OpError(Exception):
    """An op refuses its operands.

    `operand` and `axis` name the operand (by position) and the dim at fault, so that the diagnostic can point at where
    it was made and say why it is what it is.
    """

    def __init__(
        self, code: str, message: str, *, operand: int = 0, axis: int | None = None, help: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.operand, self.axis, self.help = code, message, operand, axis, help


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter starts: `he_normal`, `glorot_uniform`, `orthogonal`, `bilinear`, `normal(std)`, `constant(c)`."""

    kind: str
    value: float | None = None

    KINDS: ClassVar = ("he_normal", "glorot_uniform", "orthogonal", "bilinear")
    VALUED: ClassVar = ("normal", "constant")

    @staticmethod
    def parse(text: str) -> Init:
        """The initialiser that `str` printed; AttrError for anything else."""
        match = re.fullmatch(r"(\w+)(?:\(([^()]+)\))?", text)
        if match and match[2] is None and match[1] in Init.KINDS:
            return Init(match[1])
        if match and match[2] is not None and match[1] in Init.VALUED:
            with suppress(ValueError):
                kind = Float(low=0) if match[1] == "normal" else Float()
                return Init(match[1], kind.coerce(float(match[2])))
        raise AttrError(f'expects {InitKind.text}, not "{text}"')

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}({show_value(self.value)})"


ZEROS, ONES = Init("constant", 0.0), Init("constant", 1.0)


class InitKind(Kind):
    """The attribute kind of initialisers, written as a string: `init="orthogonal"`."""

    text = f'one of {", ".join(Init.KINDS)}, "normal(std)" or "constant(value)"'

    def coerce(self, value: object) -> Init:
        if isinstance(value, Init):
            return value
        if isinstance(value, str):
            return Init.parse(value)
        raise self._refuse(value)

    def show(self, value: Init) -> str:
        return f'"{value}"'


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """A parameter an op wants: its shape, how it starts, and whether training changes it (it computes statistics)."""

    shape: tuple[int, ...]
    init: Init
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class Operands:
    """The data operands of an op: their names, and how many it takes; `most` is None for any number."""

    names: tuple[str, ...]
    least: int
    most: int | None

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least} or more operands"
        count = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        return f"{count} operand{'s' if self.most != 1 else ''} ({', '.join(self.names)})"


def _no_params(op: Op, *operands: TensorType) -> Mapping[str, ParamSpec]:
    return {}


def _no_macs(op: Op, out: TensorType, *operands: TensorType) -> Dim:
    return 0


@dataclass_transform(frozen_default=True, field_specifiers=(attr,))
class Op(Record):
    """Base of all ops. Subclasses have a `name`, an `infer`, and attributes as fields.

    `infer(self, x, ...)` takes the types of the data operands and returns the type of the result, or raises OpError;
    `*xs` makes the op variadic, a default of None an operand optional. `params(self, x, ...)` gives the parameters the
    op wants for operands of these types, by role, in order. `macs(self, out, x, ...)` counts multiply-accumulates.
    """

    name: ClassVar[str]
    internal: ClassVar[bool] = False
    """Whether only passes make it: the language does not have it."""
    # Callable[...], not methods, so that each op can name its own operands.
    infer: ClassVar[Callable[..., TensorType]]
    params: ClassVar[Callable[..., Mapping[str, ParamSpec]]] = _no_params
    macs: ClassVar[Callable[..., Dim]] = _no_macs

    def __post_init__(self) -> None:
        """Bring attributes to their one form. An op that checks several together extends it."""
        for field in attributes(type(self)):
            try:
                value = field.metadata["kind"].coerce(getattr(self, field.name))
            except AttrError as e:
                raise AttrError(f"`{field.metadata['name']}` of `{self.name}` {e}") from None
            object.__setattr__(self, field.name, value)

    def default(self, field: dataclasses.Field[Any]) -> object:
        """The value of an attribute that need not be written."""
        return field.default

    def result(self, *operands: TensorType) -> TensorType:
        """The type of the result for operands of these types; OpError says what is wrong with them."""
        return _result(self, operands)

    def param_types(self, *operands: TensorType) -> Mapping[str, TensorType]:
        """The types of its parameters by role, which are of the element type of the first operand."""
        return _param_types(self, operands)

    def __str__(self) -> str:
        """The op as the language writes it: required attributes by position, others if not the default."""
        parts = []
        for field in attributes(type(self)):
            value, kind = getattr(self, field.name), field.metadata["kind"]
            if field.metadata["variadic"]:
                parts += [kind.item.show(item) for item in value]
            elif field.default is dataclasses.MISSING:
                parts.append(kind.show(value))
            elif value != self.default(field):
                parts.append(f"{field.metadata['name']}={kind.show(value)}")
        return f"{self.name}({', '.join(parts)})" if parts else self.name


@lru_cache(maxsize=2**12)
def _result(op: Op, operands: tuple[TensorType, ...]) -> TensorType:
    """Kept for calls to come: networks repeat their layers, and every stage asks for their types again."""
    takes = operands_of(type(op))
    if len(operands) < takes.least or (takes.most is not None and len(operands) > takes.most):
        raise OpError("E0302", f"`{op.name}` takes {takes}, not {len(operands)}")
    dtypes = [x.dtype for x in operands]
    for i, dtype in enumerate(dtypes):
        if dtype != dtypes[0]:
            raise OpError(
                "E0303",
                f"operands of `{op.name}` have different element types: {dtypes[0]} and {dtype}",
                operand=i,
                help=f"convert one of them: `cast({dtypes[0]})`",
            )
    out = op.infer(*operands)
    for axis, dim in enumerate(out.shape):
        if isinstance(dim, int) and dim < 1:
            raise OpError("E0304", f"`{op.name}` gives {out}: dimension {axis} is empty", axis=axis)
    if (size := known_size(out)) >= MAX_ELEMENTS:
        message = f"`{op.name}` gives {out}: {size:,} elements or more; there must be fewer than {MAX_ELEMENTS:,}"
        raise OpError("E0502", message)
    return out


@lru_cache(maxsize=2**12)
def _param_types(op: Op, operands: tuple[TensorType, ...]) -> Mapping[str, TensorType]:
    dtype = operands[0].dtype if operands else DType.F32
    types = {role: TensorType(spec.shape, dtype) for role, spec in op.params(*operands).items()}
    for role, type in types.items():
        if (size := known_size(type)) >= MAX_ELEMENTS:
            message = f"`{role}` of `{op.name}` is {type}: {size:,} elements; there must be fewer than {MAX_ELEMENTS:,}"
            raise OpError("E0502", message)
    return types


def known_size(x: TensorType) -> int:
    """The elements of a tensor, its symbolic dims counted as 1."""
    return prod(dim for dim in x.shape if isinstance(dim, int))


OpClass = TypeVar("OpClass", bound=type[Op])
_REGISTRY: dict[str, type[Op]] = {}


def register(cls: OpClass) -> OpClass:
    """Make an op known to the language, the IR text and the backends, under its `name`."""
    if cls.name in _REGISTRY:
        raise ValueError(f"two ops are named {cls.name!r}")
    _REGISTRY[cls.name] = cls
    return cls


def registry() -> Mapping[str, type[Op]]:
    """Every registered op class by its name."""
    return _REGISTRY


def attributes(cls: type[Op]) -> tuple[dataclasses.Field[Any], ...]:
    """The attributes of an op, in the order of its call; `metadata` has each one's `kind` and `name`."""
    return dataclasses.fields(cls)


def operands_of(cls: type[Op]) -> Operands:
    """The data operands of an op, read off the signature of its `infer`."""
    return _operands(cls.infer)


@cache
def _operands(infer: Callable[..., TensorType]) -> Operands:
    parameters = list(inspect.signature(infer).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        fixed = sum(p.kind is not p.VAR_POSITIONAL for p in parameters)
        return Operands(tuple(p.name for p in parameters), max(fixed, 1), None)
    required = sum(p.default is p.empty for p in parameters)
    return Operands(tuple(p.name for p in parameters), required, len(parameters))
