"""Scalar functions of the element-wise rules, exact where TVM's own are fast approximations or lose NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from tvm import te, tirx

from cnnc_tvm.tensor import Expr, floated


def f32(value: float) -> Any:
    return tirx.const(float(np.float32(value)), "float32")


def c_function(name: str, *args: Expr) -> Expr:
    """A function of C's and CUDA's mathematics library in f32: a call for each element, which no loop can vectorise."""
    return tirx.call_pure_extern("float32", f"{name}f", *args)


def power(x: Expr, exponent: float) -> Expr:
    """x to a constant power: those of local response normalisation by square roots, others by C's function."""
    if exponent == 0.75:
        return bound(te.sqrt(x), lambda root: root * te.sqrt(root))
    return te.sqrt(x) if exponent == 0.5 else c_function("pow", x, f32(exponent))


# Exponential functions by arithmetic alone, so that loops over them are vectors: x is n ln 2 + r with an integer n,
# and e^x = 2^n e^r. ln 2 is split in two, so that n times the first part is exact.

_LN2 = 0.693359375, -2.12194440e-4
_ROUNDS = 1.5 * 2.0**23
"""Added to a number below 2^22, it leaves the nearest integer in the last bits."""
_ROUNDS_BITS = int(np.float32(_ROUNDS).view(np.int32))
_SERIES = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
"""(e^r - 1 - r) / r^2 for r up to (ln 2)/2, highest power first (Moshier's Cephes library)."""


def exp(x: Expr) -> Expr:
    """e^x within 1.1 units in the last place, 0 and infinity where they are nearest, NaN for NaN."""

    def scaled(n: Expr, r: Expr) -> Expr:
        half = n >> _i32(1)  # one power of two alone may be beyond what f32 has
        return (_exp_less_one(r) + f32(1)) * _power_of_two(half) * _power_of_two(n - half)

    return _split(bound(x, lambda v: choose(v < f32(-104), f32(-104), choose(v > f32(89), f32(89), v))), scaled)


def exp_less_one(x: Expr) -> Expr:
    """e^x - 1 for x <= 0, within 2 units in the last place; NaN for NaN."""

    def scaled(n: Expr, r: Expr) -> Expr:
        return bound(_power_of_two(n), lambda scale: _exp_less_one(r) * scale + (scale - f32(1)))

    return _split(at_least(x, -30), scaled)


def _split(x: Expr, of: Callable[[Expr, Expr], Expr]) -> Expr:
    """`of(n, r)` for x = n ln 2 + r, r at most half of ln 2."""

    def remainder(x: Expr, rounded: Expr) -> Expr:
        n = rounded - f32(_ROUNDS)
        integer = tirx.reinterpret("int32", rounded) - _i32(_ROUNDS_BITS)
        return bound(x - n * f32(_LN2[0]) - n * f32(_LN2[1]), lambda r: of(integer, r))

    return bound(x, lambda x: bound(x * f32(1 / math.log(2)) + f32(_ROUNDS), lambda rounded: remainder(x, rounded)))


def _exp_less_one(r: Expr) -> Expr:
    """e^r - 1 for r up to (ln 2)/2."""
    return _polynomial(_SERIES, r) * (r * r) + r


def _power_of_two(n: Expr) -> Expr:
    """2^n for n of -126 to 127."""
    return tirx.reinterpret("float32", (n + _i32(127)) << _i32(23))


def _polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """The polynomial with these coefficients, that of the highest power first."""
    first, *rest = coefficients
    return reduce(lambda value, c: value * x + f32(c), rest, f32(first))


def _i32(value: int) -> Expr:
    return tirx.const(value, "int32")


def sigmoid(x: Expr) -> Expr:
    return floated(exp(-x), lambda e: f32(1) / (f32(1) + e))


_TANH = -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1
"""(tanh x - x) / x^3 in x^2 for x up to 0.625 (Cephes)."""


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent within 3 units in the last place, NaN for NaN."""

    def near(v: Expr) -> Expr:
        return bound(v * v, lambda square: _polynomial(_TANH, square) * square * v + v)

    def far(v: Expr) -> Expr:  # e^-2|x| - 1 is between -1 and 0
        size = bound(exp_less_one(f32(-2) * te.abs(v)), lambda e: e / (e + f32(2)))
        return floated(size, lambda size: choose(v < f32(0), f32(1), f32(-1)) * size)

    def both(v: Expr) -> Expr:
        return floated(near(v), lambda near: floated(far(v), lambda far: choose(te.abs(v) < f32(0.625), near, far)))

    return bound(x, both)


def choose(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes` or `no`, both of which may be evaluated."""
    return tirx.Select(condition, yes, no)


def bound(x: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of the value x, which is computed once however often the body uses it."""

    def let(x: Expr) -> Expr:
        v = tirx.Var("v", x.ty)
        return tirx.Let(v, x, body(v))

    return floated(x, let)


def at_least(x: Expr, low: float) -> Expr:
    """max(x, low), NaN where x is."""
    return bound(x, lambda v: choose(v < f32(low), f32(low), v))


def at_most(x: Expr, high: float) -> Expr:
    """min(x, high), NaN where x is."""
    return bound(x, lambda v: choose(v > f32(high), f32(high), v))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger, NaN where either is."""
    return bound(a, lambda v: bound(b, lambda w: choose(tirx.any(v < w, te.isnan(w)), w, v)))


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller, NaN where either is."""
    return bound(a, lambda v: bound(b, lambda w: choose(tirx.any(v > w, te.isnan(w)), w, v)))


def inside(*ranges: tuple[Expr, Expr]) -> Expr:
    """Whether each i of (i, size) lies in 0 .. size - 1."""
    return tirx.all(*(c for i, size in ranges for c in (i >= 0, i < size)))
