"""Dims: their arithmetic is Python's, their text reads back, and equal expressions compare equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnc.diagnostics import CnncError
from cnnc.ir.dim import (
    Dim,
    Sym,
    ceildiv,
    evaluate,
    exact_quotient,
    floordiv,
    minimum,
    parse_dim,
    product,
    solve,
    substitute,
    symbols,
)

NAMES = ("H", "N", "W", "h")
H, N, W, h = (Sym.of(name) for name in NAMES)

# An expression is an int, a name, or (operator, left, right); `//` has an int on its right.
leaves = st.integers(-20, 20) | st.sampled_from(NAMES)
polynomials = st.recursive(leaves, lambda x: st.tuples(st.sampled_from("+-*"), x, x), max_leaves=6)
expressions = st.recursive(
    leaves,
    lambda x: st.tuples(st.sampled_from(["+", "-", "*", "min"]), x, x) | st.tuples(st.just("//"), x, st.integers(1, 8)),
    max_leaves=10,
)
environments = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(-50, 50)))


def as_dim(expression) -> Dim:
    match expression:
        case int():
            return expression
        case str():
            return Sym.of(expression)
        case "+", a, b:
            return as_dim(a) + as_dim(b)
        case "-", a, b:
            return as_dim(a) - as_dim(b)
        case "*", a, b:
            return as_dim(a) * as_dim(b)
        case "//", a, b:
            return as_dim(a) // b
        case _, a, b:
            return minimum(as_dim(a), as_dim(b))


def as_python(expression) -> str:
    match expression:
        case int():
            return f"({expression})"
        case str():
            return expression
        case "min", a, b:
            return f"min({as_python(a)}, {as_python(b)})"
        case operator, a, b:
            return f"({as_python(a)} {operator} {as_python(b)})"


@given(expressions, environments)
def test_a_dim_has_the_value_python_gives(expression, env):
    assert evaluate(as_dim(expression), env) == eval(as_python(expression), {"min": min}, env)


@given(expressions)
def test_printed_dims_read_back_equal(expression):
    dim = as_dim(expression)
    assert parse_dim(str(dim)) == dim


@given(expressions)
def test_the_text_is_an_expression_of_the_same_value(expression):
    dim = as_dim(expression)
    env = {"H": 17, "N": 5, "W": -31, "h": 2}
    assert eval(str(dim), {"min": min}, env) == evaluate(dim, env)


@given(expressions, expressions, environments)
def test_substitution_composes(outer, inner, env):
    replaced = substitute(as_dim(outer), {"H": as_dim(inner)})
    assert evaluate(replaced, env) == evaluate(as_dim(outer), {**env, "H": evaluate(as_dim(inner), env)})


@given(polynomials, polynomials)
def test_polynomials_are_equal_exactly_when_their_values_are(left, right):
    """Coefficients stay below 20^6 and powers below 7: at these points no two polynomials meet by chance."""
    env = {"H": 10**10, "N": 10**80, "W": 10**640, "h": 10**5120}
    a, b = as_dim(left), as_dim(right)
    assert (a == b) == (evaluate(a, env) == evaluate(b, env))


@given(polynomials, polynomials, polynomials, st.integers(1, 9), st.integers(-30, 30))
def test_one_value_has_one_form(p, q, r, k, c):
    a, b, d = as_dim(p), as_dim(q), as_dim(r)
    assert (a + b) * d == a * d + d * b
    assert a - b == -(b - a)
    assert a - a == 0
    assert floordiv(a * k + c, k) == a + c // k
    assert floordiv(floordiv(a, k) + c, 2) == floordiv(a + c * k, 2 * k)
    assert floordiv(a * k, 3 * k) == floordiv(a, 3)
    assert minimum(a, b) == minimum(b, a)
    assert hash((a + b) * d) == hash(a * d + b * d)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (H + 2, "H + 2"),
        (2 - H, "-H + 2"),
        (H * W * 3 - 1, "3*H*W - 1"),
        (H // 2, "H//2"),
        (-(H // 2), "-(H//2)"),
        (N - H // 2, "N - H//2"),
        (2 * (H // 2), "2*(H//2)"),
        ((H + 1) // 2, "(H + 1)//2"),
        ((3 * H) // 2, "H + H//2"),
        (minimum(5, H) // 2, "min(H, 5)//2"),
        (((H // 2) * W) // 3, "(W*(H//2))//3"),
        ((H + H // 2) // 2, "(3*H)//4"),
        ((H // 2 + W // 2) // 2, "(H//2 + W//2)//2"),
        (H * H, "H*H"),
        ((6 * H + 4) // 4, "H + H//2 + 1"),
    ],
)
def test_text(dim, text):
    assert str(dim) == repr(dim) == text


def test_windows_of_even_and_odd_sizes():
    assert (2 * h + 1) // 2 == h
    assert ceildiv(2 * h + 1, 2) == h + 1
    assert ((H // 2) + 1) // 2 == (H + 2) // 4
    assert ((32 * h - 1) // 2 + 1) // 16 == h


def test_a_minimum_is_decided_where_the_difference_is_known():
    assert minimum(H, H + 1) == H
    assert minimum(H + 1, H) == H
    assert minimum(3, 4) == 3
    assert str(minimum(7, W)) == "min(W, 7)"


def test_products_and_symbols():
    assert product(()) == 1
    assert product((N, 3, H, H)) == 3 * N * H * H
    assert symbols(7) == set()
    assert symbols(N * (H // 2) + minimum(W, 3)) == {"N", "H", "W"}


def test_exact_quotients():
    assert exact_quotient(64 * H * W, 32) == 2 * H * W
    assert exact_quotient(64 * H, 48) is None
    assert exact_quotient(H, 2) is None
    assert exact_quotient(12, 4) == 3
    assert exact_quotient(12, 5) is None


def test_evaluation_names_what_is_missing():
    with pytest.raises(KeyError, match="W"):
        evaluate(H * W, {"H": 1})


def test_products_of_sums_have_a_limit():
    with pytest.raises(CnncError, match=r"E0506.*a dimension has 330 terms, the limit is 256"):
        parse_dim("*".join(["(a + b + c + d + e + f + g + h)"] * 16))


@pytest.mark.parametrize("by", [0, -2])
def test_division_by_less_than_one_is_refused(by):
    with pytest.raises(ValueError, match=f"positive int, not {by}"):
        floordiv(H, by)


@pytest.mark.parametrize(
    ("pattern", "value", "bindings"),
    [
        (N, 3, {"N": 3}),
        (16 * h, 608, {"h": 38}),
        (16 * h + 1, 33, {"h": 2}),
        (16 * h, 600, None),
        (16 * h, 32 * H, {"h": 2 * H}),
        (16 * h, 8 * H, None),
        (224, 224, {}),
        (224, 225, None),
        (H * W, H * W, {}),
        (H * W, 12, None),
        (H + W, 12, None),
        (H // 2, 3, None),
        (5 - H, 3, None),
    ],
)
def test_solving(pattern, value, bindings):
    assert solve(pattern, value) == bindings


@pytest.mark.parametrize(
    "text",
    ["", "H +", "H / 2", "H // W", "H // 0", "f(H)", "min(H)", "min(H, 2, k=1)", "1.5", "'H'", "True", "H\0", "(" * 999,
     "-" * 2000 + "H", " + ".join(["H"] * 5000)],
)  # fmt: skip
def test_what_is_no_dim_is_refused(text):
    with pytest.raises(ValueError, match=r"not a dimension|positive int|null bytes"):
        parse_dim(text)
