"""Every rule of the verifier, each broken once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir import Graph, Input, Node, Param, TensorType, Value, verify
from cnnc.ir.graph import fresh_params
from cnnc.ir.op import ONES

X = Input("x", TensorType((1, 3, 8, 8)))
CONV = ops.Conv(3, 3, pad=1, bias=False)


def graph(*outputs: Value, inputs: tuple[Input, ...] = (X,)) -> Graph:
    return Graph("G", inputs, {f"y{i}": x for i, x in enumerate(outputs)})


def conv(name: str = "conv", x: Value = X) -> Node:
    return Node.make(CONV, x, name=name)


def changed(node: Node, **changes: object) -> Node:
    """The node as no constructor would leave it, which is what the verifier is there to find."""
    for key, value in changes.items():
        object.__setattr__(node, key, value)
    return node


def weight(shape: tuple[int, ...]) -> dict[str, Param]:
    return {"weight": Param("w", TensorType(shape), ONES)}


def test_good_graphs_come_back():
    first = conv()
    good = graph(conv("second", first), first, X)
    assert verify(good) is good
    assert verify(good, legal={ops.Conv}) is good


@pytest.mark.parametrize(
    ("bad", "where", "rule"),
    [
        (graph(), "G", "no output"),
        (graph(conv("x")), "x", "another value has its name"),
        (graph(*(Node.make(ops.Relu(), X, name="relu") for _ in range(2))), "relu", "another value has its name"),
        (graph(X, inputs=(X, replace(X))), "x", "another value has its name"),
        (graph(X, inputs=(X, X)), "x", "another value has its name"),
        (graph(conv(x=Input("stray", X.type))), "conv", "operand `stray` is not a value of the graph"),
        (graph(Input("stray", X.type)), "stray", "output `y0` is not a value of the graph"),
        (graph(changed(conv(), type=TensorType((1, 3, 9, 9)))), "conv", "its type is f32[1, 3, 9, 9]"),
        (graph(changed(conv(), op=ops.Conv(3, 9))), "conv", "refuses its operands"),
        (graph(Node(CONV, (X,), {}, "conv")), "conv", "its parameters are {}"),
        (graph(Node(CONV, (X,), weight((3, 3, 1, 1)), "conv")), "conv", "`conv(3, 3, pad=1, bias=false)` takes"),
        (
            graph(*(Node(CONV, (X,), weight((3, 3, 3, 3)), name) for name in ("a", "b"))), "b",
            "parameter `w` is not the one of that name used before",
        ),
    ],
)  # fmt: skip
def test_broken_graphs_are_named(bad, where, rule):
    with pytest.raises(CnncError) as e:
        verify(bad)
    (diagnostic,) = e.value.diagnostics
    assert diagnostic.code == "E0999"
    assert f"`{where}`" in diagnostic.message
    assert rule in diagnostic.message


def test_ops_are_legal_for_the_stage():
    with pytest.raises(CnncError, match="op `conv` is not legal at this stage"):
        verify(graph(conv()), legal={ops.Relu})


def test_the_parameters_of_a_good_node_are_those_of_its_op():
    assert verify(graph(Node(CONV, (X,), fresh_params(CONV, (X,), "other"), "conv")))
