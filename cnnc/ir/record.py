"""Records: immutable values with fields declared as in a dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Base of classes that are frozen dataclasses without saying so, equal where class and fields are.

    `dataclass` would generate the methods below for each of them, which took a third of the start of every command.
    """

    __slots__ = ("__dict__", "__weakref__", "_hash")
    _hash: int
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *values: object, **named: object) -> None:
        fields = dataclasses.fields(self)
        names = [field.name for field in fields]
        given = dict(zip(names, values, strict=False))
        if len(values) > len(fields) or given.keys() & named.keys() or not named.keys() <= set(names):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names) or 'nothing'}, each once")
        given |= named
        for field in fields:
            value = given.get(field.name, field.default)
            if value is dataclasses.MISSING:
                raise TypeError(f"{type(self).__name__} needs {field.name}")
            self.__dict__[field.name] = value
        self.__post_init__()

    def __post_init__(self) -> None:
        """What a class does with its fields once they are set."""

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"{type(self).__name__} does not change: {name}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"{type(self).__name__} does not change: {name}")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy and a pickle hold: the fields, for another process hashes otherwise."""
        return self.__dict__

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:  # it is kept when first asked for: fields are set until `__post_init__` is done
            object.__setattr__(self, "_hash", hash((type(self), *self.__dict__.values())))
            return self._hash

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"
