"""Scalar functions of the element-wise rules, exact where TVM's own are fast approximations or lose NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import te, tirx

from cnnc_tvm.tensor import Expr


def f32(value: float) -> Any:
    return tirx.const(float(np.float32(value)), "float32")


def c_function(name: str, *args: Expr) -> Expr:
    """A function of C's and CUDA's mathematics library in f32: TVM's own `tanh` and, on CUDA, `exp` are less exact."""
    return tirx.call_pure_extern("float32", f"{name}f", *args)


def exp(x: Expr) -> Expr:
    return c_function("exp", x)


def sigmoid(x: Expr) -> Expr:
    return f32(1) / (f32(1) + exp(-x))


def choose(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes` or `no`, both of which may be evaluated."""
    return tirx.Select(condition, yes, no)


def bound(x: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of the value x, which is computed once however often the body uses it."""
    v = tirx.Var("v", "float32")
    return tirx.Let(v, x, body(v))


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
