"""What `import cnnc` offers takes Python's values, and refuses others with a `CnncError` that says what it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cnnc
from cnnc.diagnostics import CnncError

TEXT = """
model M(c=4, widths=[4, 8], bias=true) {
  input x: f32[N, 3, H, 8]
  output y
  y = x -> for k in widths { conv(k, 3, pad=1, bias=bias) } -> conv(c, 1)
}
"""
GRAPH = cnnc.load(TEXT)


@pytest.mark.parametrize("widths", [(3, 5), range(3, 6, 2), np.array([3, 5]), [np.int32(3), np.uint8(5)]], ids=repr)
def test_arguments_are_numbers_and_lists_of_any_kind(widths: object) -> None:
    graph = cnnc.load(TEXT, c=np.int64(6), widths=widths, bias=np.bool_(False), dims={"H": np.int64(9)})
    assert str(graph) == str(cnnc.load(TEXT, c=6, widths=[3, 5], bias=False, dims={"H": 9}))
    assert [node.type.shape[1] for node in graph.nodes] == [3, 5, 6]


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        (lambda: cnnc.load(TEXT, c=None), "E0902", "`c` is a number, a word, a truth value or a list of them"),
        (lambda: cnnc.load(TEXT, widths=[{}]), "E0902", "not of type dict"),
        (lambda: cnnc.load(TEXT, dims={"H": "8"}), "E0902", "`dims` has a whole number for each name"),
        (lambda: cnnc.load(TEXT, dims={"H": True}), "E0902", "`dims` has a whole number for each name"),
        (lambda: cnnc.load(TEXT, dims={"H": 8.5}), "E0902", "`dims` has a whole number for each name"),
        (lambda: cnnc.load(TEXT, dims=["H"]), "E0902", "`dims` has a whole number for each name"),
        (lambda: cnnc.load(TEXT, outputs=[]), "E0902", "`outputs` is a list of names"),
        (lambda: cnnc.load(TEXT, outputs=5), "E0902", "`outputs` is a list of names"),
        (lambda: cnnc.load(TEXT, outputs=[1]), "E0902", "`outputs` is a list of names"),
        (lambda: cnnc.load(TEXT, 5), "E0902", "`model` is a name, not of type int"),
        (lambda: cnnc.load(TEXT, dims={1: 2}), "E0902", "`dims` has a whole number for each name"),
        (lambda: cnnc.load(TEXT, c=np.int64), "E0902", "not of type type"),
        (lambda: cnnc.load(TEXT, outputs="y"), "E0902", "`outputs` is a list of names"),
        (lambda: cnnc.load(""), "E0102", "<text> declares nothing"),
        (lambda: cnnc.compile(TEXT), "E0902", "a graph is needed, not one of type str"),
        (lambda: cnnc.optimise(None), "E0902", "a graph is needed, not one of type NoneType"),
        (lambda: cnnc.compile(GRAPH, None), "E0602", "there is no target `None`"),
        (lambda: cnnc.compile(GRAPH, "numpy", passes=["-cse"]), "E0902", "`passes` is a text"),
        (lambda: cnnc.compile(GRAPH, "numpy", optimise="2"), "E0902", "there is no optimisation level '2'"),
        (lambda: cnnc.compile(GRAPH, "cpu", mcpu=None), "E0902", "option `mcpu` of target `cpu` is a text or a number"),
        (lambda: cnnc.compile(GRAPH, "onnx", opset=3), "E0670", "`opset`"),
        (lambda: cnnc.compile(GRAPH)(x=np.zeros((0, 3, 9, 8), np.float32)), "E0320", "a size of at least 1"),
        (lambda: cnnc.load(TEXT, c=2**21, widths=[2**21]), "E0502", "`weight` of `conv` is f32[2097152, 2097152"),
    ],
)  # fmt: skip
def test_other_values_are_refused(call: Callable[[], object], code: str, says: str) -> None:
    with pytest.raises(CnncError) as e:
        call()
    (diagnostic,) = e.value.diagnostics
    assert diagnostic.code == code
    assert says in diagnostic.message


def test_options_are_truth_values_and_numbers_too(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    program = cnnc.compile(GRAPH, "onnx", opset=20)
    assert onnx.load(program.save(tmp_path / "m.onnx")).opset_import[0].version == 20
    pytest.importorskip("tvm")
    with pytest.raises(CnncError, match="E0622"):
        cnnc.compile(GRAPH, "cuda", arch=90)
    assert cnnc.compile(GRAPH, "cpu", winograd=False, mcpu="x86-64-v3")
