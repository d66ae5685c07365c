"""How far a result may be from the reference, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from cnnc.diagnostics import error
from cnnc.ir.dim import evaluate
from cnnc.target import bind_dims, numpy_dtype
from cnnc.verification.case import Case, reference
from cnnc.verification.network_bound import has_16_bits, largest, network_bounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnnc.target import Array

NETWORK_TOLERANCE: Final = 1e-5
"""max|delta| / max|y| of a whole network in f32: correct compilers stay below 1e-6, one missing ReLU is above 5e-3."""
DERIVED_UP_TO: Final = 10**9
"""Multiply-accumulates of a case up to which its own bound is derived in any case, which takes some ten evaluations."""
DERIVED_IN: Final = 10**8
"""Values of all nodes of a case up to which it is derived at all: they are all held, five times."""


@dataclass(frozen=True)
class Place:
    """A place of a result: what the reference has there, and what was computed."""

    index: tuple[int, ...]
    expected: float
    got: float

    def __str__(self) -> str:
        return f"at {list(self.index)}: expected {self.expected:.7g}, got {self.got:.7g}"


@dataclass(frozen=True)
class Agreement:
    """How one output compares with the reference; `error` and `bound` are relative to its largest value.

    `mismatch` says what is wrong with it, '' if nothing is; `worst` is where, unless it has another shape or type.
    Agreement shows nothing where the bound is as large as the values are: zeros would agree as well.
    """

    output: str
    error: float
    bound: float
    mismatch: str = ""
    worst: Place | None = None

    @property
    def shows_nothing(self) -> bool:
        return not self.mismatch and self.bound >= 1


class Expected:
    """The float64 values of the outputs of a case, and the bound of each.

    The bound is that of `network_bounds`, which weights that amplify rounding make large. Where to derive it takes
    long, and always if it is to be `late`, that is done only for outputs that are not within `NETWORK_TOLERANCE`. With
    `values`, which are given where they are known already, that tolerance is all there is. Where the graph has f16 or
    bf16 it is at least twice what rounding every value to its element type does, since errors that are the same at all
    places add up.
    """

    def __init__(self, case: Case, values: Mapping[str, Array] | None = None, *, late: bool = False) -> None:
        self._case = case
        self._derived: dict[bool, dict[str, float]] = {}
        self.values = reference(case) if values is None else values
        dims = bind_dims(case.graph.inputs, case.inputs)
        types = [*(x.type for x in case.graph.inputs), *(x.type for x in case.graph.nodes)]
        can = values is None and sum(type.size_at(dims) for type in types) <= DERIVED_IN
        self._at_once = can and not late and sum(evaluate(x.macs, dims) for x in case.graph.nodes) <= DERIVED_UP_TO
        self._late = can and not self._at_once

    def _derive(self, winograd: bool) -> dict[str, float]:
        if winograd not in self._derived:
            derived = network_bounds(self._case, winograd=winograd)
            self._derived[winograd] = {name: max(bound, self._rounded[name]) for name, bound in derived.items()}
        return self._derived[winograd]

    @cached_property
    def _tolerances(self) -> dict[str, float]:
        return {
            name: max(NETWORK_TOLERANCE * largest(value), self._rounded[name]) for name, value in self.values.items()
        }

    @cached_property
    def _rounded(self) -> dict[str, float]:
        """Twice what rounding every value to f16 or bf16 does to the outputs; 0 where all is f32."""
        if not has_16_bits(self._case.graph):
            return dict.fromkeys(self.values, 0.0)
        rounded = reference(self._case, exact=False)
        return {name: 2 * largest(rounded[name].astype(np.float64) - value) for name, value in self.values.items()}

    def check_varied(self) -> None:
        """CnncError E0802 for an output of which all values are the same: agreement on it would show nothing."""
        for name, value in self.values.items():
            if value.size > 1 and (value == value.flat[0]).all():
                raise error(
                    "E0802", f"output `{name}` is {value.flat[0]:.6g} everywhere: comparing it would show nothing",
                    help="give weights or another `--seed`",
                )  # fmt: skip

    def compare(self, outputs: Mapping[str, Array], *, winograd: bool = False) -> tuple[Agreement, ...]:
        """How these outputs compare, in order; those of a target that has it, with `Target.winograd`."""

        def agreements(bounds: Mapping[str, float]) -> tuple[Agreement, ...]:
            return tuple(self._agreement(name, outputs.get(name), bounds[name]) for name in self.values)

        found = agreements(self._derive(winograd) if self._at_once else self._tolerances)
        return agreements(self._derive(winograd)) if self._late and any(x.mismatch for x in found) else found

    def _agreement(self, name: str, got: Array | None, bound: float) -> Agreement:
        expected, scale = self.values[name], largest(self.values[name]) or 1.0
        dtype = numpy_dtype(self._case.graph.outputs[name].type.dtype)
        if got is None or got.shape != expected.shape or got.dtype != dtype:
            what = "missing" if got is None else f"{got.dtype}{list(got.shape)}"
            return Agreement(name, np.inf, bound / scale, f"is {what}, not {dtype}{list(expected.shape)}")
        stored, wide = expected.astype(dtype).astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(stored)
        misplaced = ~finite & ~((wide == stored) | (np.isnan(wide) & np.isnan(stored))) | finite & ~np.isfinite(wide)
        if misplaced.any():
            return Agreement(
                name, np.inf, bound / scale, "has NaN or Inf at other places", _place(misplaced, expected, wide)
            )
        delta = np.where(finite, np.abs(wide - np.where(finite, expected, 0)), 0)
        error = float(delta.max(initial=0))
        mismatch = "is wrong" if error > bound else ""
        return Agreement(name, error / scale, bound / scale, mismatch, _place(delta, expected, wide))


def _place(where: Array, expected: Array, got: Array) -> Place | None:
    """The place at which `where` is largest."""
    if not where.size:
        return None
    index = tuple(map(int, np.unravel_index(int(where.argmax()), where.shape)))
    return Place(index, float(expected[index]), float(got[index]))
