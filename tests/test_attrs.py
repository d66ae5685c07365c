"""Attributes of ops: what each kind takes, makes of it, shows, and refuses."""

from __future__ import annotations

import pickle
from copy import copy
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import pytest

from cnnc.ir.attrs import (
    AttrError,
    Bool,
    Choice,
    DTypeKind,
    Float,
    Int,
    ListOf,
    Optional,
    PadKind,
    PairKind,
    attr,
    show_value,
)
from cnnc.ir.op import Init, InitKind, Op, Operands, operands_of, register, registry
from cnnc.ir.types import DType, TensorType
from cnnc.ops import Conv, MaxPool, Relu, Reshape

POOL = PadKind()


@pytest.mark.parametrize(
    ("kind", "given", "value", "shown"),
    [
        (Int(), -3, -3, "-3"),
        (Int(1), 3.0, 3, "3"),
        (Int(1), Fraction(6, 2), 3, "3"),
        (Float(), 2, 2.0, "2"),
        (Float(), Fraction(1, 16), 0.0625, "0.0625"),
        (Float(low=0), 0, 0.0, "0"),
        (Float(), 1e-5, 1e-5, "1e-05"),
        (Bool(), True, True, "true"),
        (Bool(), False, False, "false"),
        (Choice(("none", "tanh")), "tanh", "tanh", '"tanh"'),
        (DTypeKind(), "bf16", DType.BF16, "bf16"),
        (DTypeKind(), DType.F16, DType.F16, "f16"),
        (PairKind(), 3, (3, 3), "3"),
        (PairKind(), [1, 7], (1, 7), "[1, 7]"),
        (PairKind(0), (0, 0.0), (0, 0), "0"),
        (POOL, 1, (1, 1, 1, 1), "1"),
        (POOL, [1, 2], (1, 2, 1, 2), "[1, 2]"),
        (POOL, (1, 2, 3, 4), (1, 2, 3, 4), "[1, 2, 3, 4]"),
        (POOL, "valid", (0, 0, 0, 0), "0"),
        (POOL, "same_upper", "same_upper", "same_upper"),
        (ListOf(Int()), range(3), (0, 1, 2), "[0, 1, 2]"),
        (ListOf(Int()), 5, (5,), "[5]"),
        (ListOf(Int(), least=0), [], (), "[]"),
        (ListOf(Float()), [1, 0.5], (1.0, 0.5), "[1, 0.5]"),
        (Optional(PairKind()), None, None, None),
        (Optional(PairKind()), 2, (2, 2), "2"),
        (InitKind(), "orthogonal", Init("orthogonal"), '"orthogonal"'),
        (InitKind(), "normal(0.0123456789)", Init("normal", 0.0123456789), '"normal(0.0123456789)"'),
        (InitKind(), Init("constant", 1.0), Init("constant", 1.0), '"constant(1)"'),
    ],
)
def test_values(kind, given, value, shown):
    made = kind.coerce(given)
    assert made == value
    assert type(made) is type(value)
    if value is not None:
        assert kind.show(made) == shown
        assert kind.coerce(made) == made


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Int(), 0.5, "expects an integer, not 0.5"),
        (Int(), "3", 'expects an integer, not "3"'),
        (Int(), True, "expects an integer, not true"),
        (Int(), float("inf"), "expects an integer, not inf"),
        (Int(), 2**31, "expects an integer and at most 2,147,483,647, not 2147483648"),
        (Int(1), 0, "expects an integer of at least 1, not 0"),
        (Int(0, 9), 10, "expects an integer from 0 to 9, not 10"),
        (Int(1), Fraction(1, 2), "expects an integer of at least 1, not 0.5"),
        (Float(), "x", 'expects a finite number, not "x"'),
        (Float(), False, "expects a finite number, not false"),
        (Float(), float("nan"), "expects a finite number, not nan"),
        (Float(), 10**400, "expects a finite number, not 1000"),
        (Float(above=0), 0, "expects a finite number above 0, not 0"),
        (Float(low=0, below=1), 1.5, "expects a finite number at least 0 and below 1, not 1.5"),
        (Bool(), 1, "expects true or false, not 1"),
        (Choice(("a", "b")), "c", 'expects one of "a", "b", not "c"'),
        (Choice(("a", "b")), 1, 'expects one of "a", "b", not 1'),
        (DTypeKind(), "f64", 'expects f32, f16 or bf16, not "f64"'),
        (DTypeKind(), 32, "expects f32, f16 or bf16, not 32"),
        (PairKind(), [1, 2, 3], "two of them for rows and columns, not [1, 2, 3]"),
        (PairKind(), [1, 0], "an integer of at least 1, or two of them for rows and columns, not [1, 0]"),
        (PairKind(), None, "not None"),
        (POOL, [1, 2, 3], "expects a number, [rows, columns] or [top, left, bottom, right], or half, same_upper"),
        (POOL, -1, "not -1"),
        (POOL, "same", 'not "same"'),
        (PadKind(modes=()), "half", "expects a number, [rows, columns] or [top, left, bottom, right], not"),
        (ListOf(Int(1)), [], "expects a list of at least 1, each an integer of at least 1, not []"),
        (ListOf(Int(1)), [2, 0], "expects an integer of at least 1, not 0"),
        (Optional(Int(1)), 0, "expects an integer of at least 1, not 0"),
        (InitKind(), 3, '"normal(std)" or "constant(value)", not 3'),
        (InitKind(), "he", 'expects one of he_normal, glorot_uniform, orthogonal, bilinear, "normal(std)" or'),
        (InitKind(), "normal", "expects one of he_normal"),
        (InitKind(), "he_normal(2)", "expects one of he_normal"),
        (InitKind(), "constant(x)", "expects one of he_normal"),
        (InitKind(), "constant(nan)", "expects one of he_normal"),
        (InitKind(), "normal(-1)", "expects one of he_normal"),
    ],
)
def test_refusals(kind, given, message):
    with pytest.raises(AttrError) as e:
        kind.coerce(given)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (DType.F16, "f16"), ("a", '"a"'), (Fraction(1, 4), "0.25"), (Fraction(4), "4"),
        ([1, (2.5,)], "[1, [2.5]]"),
    ],
)  # fmt: skip
def test_values_are_shown_as_the_language_writes_them(value, text):
    assert show_value(value) == text


def test_an_optional_attribute_expects_what_its_item_does():
    assert Optional(Int(1)).text == Int(1).text == "an integer of at least 1"


def test_a_default_is_checked_where_it_is_written():
    with pytest.raises(AttrError):
        attr(Int(1), "n", default=0)


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Relu(), "relu"),
        (Conv(64, 7), "conv(64, 7)"),
        (Conv(64, (1, 7), stride=2, pad="half", bias=False), "conv(64, [1, 7], s=2, pad=[0, 3], bias=false)"),
        (Conv(8, 3, pad="same_upper", stride=2), "conv(8, 3, s=2, pad=same_upper)"),
        (MaxPool(3), "maxpool(3)"),
        (MaxPool(3, 3), "maxpool(3)"),
        (MaxPool(3, 2, ceil=True), "maxpool(3, s=2, ceil=true)"),
        (Reshape((-1, 7, 7)), "reshape(-1, 7, 7)"),
    ],
)
def test_ops_are_shown_as_the_language_calls_them(op, text):
    assert str(op) == text


def test_equal_attributes_make_equal_ops():
    assert MaxPool(3) == MaxPool([3, 3], stride=3)
    assert hash(Conv(8, 3, pad="half")) == hash(Conv(8, 3, pad=1))
    assert Conv(8, 3) != Conv(8, 3, bias=False)


def test_a_copy_of_an_op_finds_its_own_hash():
    op = Conv(8, 3)
    object.__setattr__(op, "_hash", hash(op) + 1)  # as another process may have it
    for again in (copy(op), pickle.loads(pickle.dumps(op))):
        assert again == op
        assert hash(again) == hash(Conv(8, 3)) != hash(op)


def test_an_op_does_not_change():
    op = Conv(8, 3)
    with pytest.raises(FrozenInstanceError):
        op.channels = 9
    with pytest.raises(FrozenInstanceError):
        del op.channels
    assert replace(op, channels=9) == Conv(9, 3) != op
    assert repr(MaxPool(2)).startswith("MaxPool(kernel=(2, 2), stride=(2, 2), ")


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((8,), {}), ((8, 3), {"kernel": 3}), ((8, 3), {"size": 3}), ((1,) * 20, {})]
)
def test_arguments_that_an_op_does_not_take(values, named):
    with pytest.raises(TypeError, match=r"^Conv (takes channels, kernel, stride|needs (channels|kernel)$)"):
        Conv(*values, **named)


def test_an_attribute_is_named_as_the_language_names_it():
    with pytest.raises(AttrError, match=r"^`k` of `conv` expects an integer of at least 1"):
        Conv(64, 0)


class _Any(Op):
    name = "test_any"

    def infer(self, x: TensorType, y: TensorType | None = None) -> TensorType:
        return x


def test_operands_are_read_off_the_signature():
    assert operands_of(Relu) == Operands(("x",), 1, 1)
    assert operands_of(_Any) == Operands(("x", "y"), 1, 2)
    assert operands_of(registry()["concat"]) == Operands(("xs",), 1, None)
    assert operands_of(registry()["roi_align_pyramid"]) == Operands(("rois", "level", "levels"), 2, None)
    assert operands_of(registry()["constant"]) == Operands((), 0, 0)
    assert str(operands_of(Relu)) == "1 operand (x)"
    assert str(operands_of(_Any)) == "1 to 2 operands (x, y)"
    assert str(operands_of(registry()["add"])) == "1 or more operands"


def test_a_name_is_registered_once():
    class Other(Op):
        name = "relu"

        def infer(self, x: TensorType) -> TensorType:
            return x

    with pytest.raises(ValueError, match="two ops are named 'relu'"):
        register(Other)
    assert registry()["relu"] is Relu
