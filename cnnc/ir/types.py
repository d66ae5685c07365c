"""Tensor types: a shape of dims and an element type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from cnnc.ir.dim import Dim, evaluate, parse_dim, product, substitute, symbols


class DType(StrEnum):
    """Element types of tensors; sums are accumulated in f32 whatever the type."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def size(self) -> int:
        """Bytes an element."""
        return 4 if self is DType.F32 else 2


@dataclass(frozen=True, slots=True)
class TensorType:
    """`dtype[shape]`, printed as the language writes it: `f32[N, 3, 224, 224]`. Images are [N, C, H, W]."""

    shape: tuple[Dim, ...]
    dtype: DType = DType.F32

    @staticmethod
    def parse(text: str) -> TensorType:
        """The type that `str` printed; ValueError for anything else."""
        match = re.fullmatch(r"\s*(f32|f16|bf16)\[(.*)\]\s*", text, re.DOTALL)
        if match is None:
            raise ValueError(f"not a tensor type: {text!r}")
        return TensorType(tuple(parse_dim(part) for part in _split(match[2])), DType(match[1]))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    @property
    def bytes(self) -> Dim:
        return self.size * self.dtype.size

    def size_at(self, dims: Mapping[str, int]) -> int:
        """Number of elements for these values of the symbols. It exists where the terms of `size` would be too many."""
        return prod(evaluate(dim, dims) for dim in self.shape)

    def bytes_at(self, dims: Mapping[str, int]) -> int:
        return self.size_at(dims) * self.dtype.size

    @property
    def symbols(self) -> set[str]:
        return {name for dim in self.shape for name in symbols(dim)}

    def bind(self, dims: Mapping[str, Dim], dtype: DType | None = None) -> TensorType:
        """The type with symbolic dims replaced, and another element type if one is given."""
        return TensorType(tuple(substitute(dim, dims) for dim in self.shape), dtype or self.dtype)

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}{shape_text(self.shape)}"


def shape_text(shape: Iterable[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _split(text: str) -> list[str]:
    """The parts between commas that no parenthesis encloses."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if text.strip() else []
