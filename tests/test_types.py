"""Tensor types: text, sizes, binding."""

from __future__ import annotations

import pytest

from cnnc.ir.dim import Sym, minimum
from cnnc.ir.types import DType, TensorType, shape_text

N, H = Sym.of("N"), Sym.of("H")


@pytest.mark.parametrize(
    "x",
    [
        TensorType(()),
        TensorType((1,), DType.F16),
        TensorType((N, 3, 32, 32), DType.BF16),
        TensorType((N * (H // 2), minimum(H, 5), -(H // 2) + 9)),
    ],
)
def test_printed_types_read_back_equal(x):
    assert TensorType.parse(str(x)) == x


def test_text():
    assert str(TensorType((N, 3, 2 * H, minimum(H, 5)))) == "f32[N, 3, 2*H, min(H, 5)]"
    assert shape_text((N, 1)) == "[N, 1]"


@pytest.mark.parametrize("text", ["", "f64[1]", "f32", "f32[1", "f32[1,]", "f32[1, , 2]", "f32[a/b]", "f32[1] f32[2]"])
def test_what_is_no_type_is_refused(text):
    with pytest.raises(ValueError, match="not a"):
        TensorType.parse(text)


def test_sizes():
    x = TensorType((N, 3, H, H), DType.F16)
    assert x.rank == 4
    assert x.size == 3 * N * H * H
    assert x.bytes == 6 * N * H * H
    assert x.symbols == {"N", "H"}
    assert TensorType((2, 3)).bytes == 24


def test_binding():
    x = TensorType((N, 3, H // 2))
    assert x.bind({"H": 9}) == TensorType((N, 3, 4))
    assert x.bind({"N": 2, "H": 2 * H}, DType.F16) == TensorType((2, 3, H), DType.F16)
    assert x.with_shape([1, 2]) == TensorType((1, 2))
