"""Building graphs in Python, and binding their dims and element types."""

from __future__ import annotations

import pytest

from cnnc import ops
from cnnc.diagnostics import CnncError, Source, Span
from cnnc.ir import Builder, DType, Graph, Input, Node, Param, Sym, TensorType, bind, structurally_equal, verify
from cnnc.ir.graph import Origin
from cnnc.ir.op import ONES


def tiny() -> Graph:
    net = Builder("Tiny", "a doc")
    x = net.input("image", ("N", 3, "16*h", 32), doc="a picture")
    x = net.add(ops.Conv(8, 3, pad=1), x, name="stem")
    x = net.add(ops.BatchNorm(), net.add(ops.MaxPool(2), x))
    return net.graph(features=x, early=net.add(ops.Relu(), x))


def codes(error: pytest.ExceptionInfo[CnncError]) -> list[str]:
    return [d.code for d in error.value.diagnostics]


def test_a_graph_in_a_few_lines():
    graph = verify(tiny())
    assert [node.name for node in graph.nodes] == ["stem", "maxpool1", "bn1", "relu1"]
    assert str(graph.outputs["early"].type) == "f32[N, 8, 8*h, 16]"
    assert (graph.name, graph.doc, graph.inputs[0].doc) == ("Tiny", "a doc", "a picture")


def test_a_graph_is_printed_in_a_line():
    outputs = "features: f32[N, 8, 8*h, 16], early: f32[N, 8, 8*h, 16]"
    assert repr(tiny()) == f"<Graph Tiny(image: f32[N, 3, 16*h, 32]) -> {outputs}>"
    assert repr(tiny().inputs) == "(<Input image: f32[N, 3, 16*h, 32]>,)"


def test_automatic_names_go_round_those_taken():
    net = Builder("Names")
    x = net.input("relu2", ("N", 4))
    names = [net.add(ops.Relu(), x).name, net.add(ops.Relu(), x).name, net.add(ops.Tanh(), x).name]
    assert names == ["relu1", "relu3", "tanh1"]


def test_a_name_is_used_once():
    net = Builder("Twice")
    x = net.input("x", (1, 4))
    for again in (lambda: net.input("x", (1, 4)), lambda: net.add(ops.Relu(), x, name="x")):
        with pytest.raises(CnncError, match="two values named `x`"):
            again()


def test_the_builder_refuses_what_is_no_dim_and_no_graph():
    net = Builder("Wrong")
    with pytest.raises(CnncError, match="input `x`: not a dimension: 'N@2'"):
        net.input("x", ("N@2",))
    with pytest.raises(CnncError, match="at least one output"):
        net.graph()


def test_an_op_that_refuses_its_operands_is_a_diagnostic():
    net = Builder("Wrong")
    with pytest.raises(CnncError) as e:
        net.add(ops.Conv(4, 9), net.input("x", ("N", 3, 8, 8)))
    assert codes(e) == ["E0310"]


def test_binding_infers_everything_anew():
    graph = bind(tiny(), {"N": 2, "h": 3}, DType.BF16)
    assert str(graph.inputs[0].type) == "bf16[2, 3, 48, 32]"
    assert [str(node.type) for node in graph.nodes][:2] == ["bf16[2, 8, 48, 32]", "bf16[2, 8, 24, 16]"]
    assert {str(param.type) for param in graph.params.values()} == {"bf16[8, 3, 3, 3]", "bf16[8]"}
    assert not graph.params["bn1.running_mean"].trainable
    assert verify(graph).doc == "a doc"


def test_binding_some_dims_leaves_the_others():
    assert str(bind(tiny(), {"h": 14}).outputs["features"].type) == "f32[N, 8, 112, 16]"
    assert structurally_equal(bind(tiny(), {}), tiny())


def test_constants_take_the_element_type_of_the_graph():
    net = Builder("Constant")
    sum = net.add(ops.Add(), net.input("x", ("N", 4)), net.add(ops.Constant([1.0])))
    assert bind(net.graph(y=sum), {}, DType.F16).outputs["y"].type.dtype is DType.F16


def test_shared_parameters_stay_shared():
    x = Input("x", TensorType((Sym.of("N"), 3, 8, 8)))
    first = Node.make(ops.Conv(3, 3, pad=1), x, name="first")
    second = Node(first.op, (first,), first.params, "second")
    graph = verify(bind(Graph("Shared", (x,), {"y": second}), {"N": 1}, DType.F16))
    assert graph.nodes[0].params["weight"] is graph.nodes[1].params["weight"]
    assert list(graph.params) == ["first.weight", "first.bias"]


def test_parameters_keep_name_start_and_use():
    x = Input("x", TensorType((Sym.of("N"), 3)))
    weight = Param("w", TensorType((2, 3)), ONES, trainable=False)
    node = Node(ops.Linear(2, bias=False), (x,), {"weight": weight}, "fc")
    found = bind(Graph("Own", (x,), {"y": node}), {"N": 4}).params["w"]
    assert (found.type, found.init, found.trainable) == (weight.type, ONES, False)


def test_unknown_dims_get_a_suggestion():
    net = Builder("Dims")
    graph = net.graph(y=net.add(ops.Relu(), net.input("x", ("batch", 3))))
    with pytest.raises(CnncError) as e:
        bind(graph, {"batsch": 2, "height": 3, "batch": 0})
    first, second, third = e.value.diagnostics
    assert first.message == "the inputs of `Dims` have no dimension `batsch`: they have `batch`"
    assert first.help is not None
    assert first.help.text == "did you mean `batch`?"
    assert second.help is None
    assert third.message == "dimension `batch` is 0: a size is at least 1"
    assert codes(e) == ["E0205"] * 3
    with pytest.raises(CnncError, match="all their dimensions are known"):
        bind(bind(graph, {"batch": 1}), {"N": 1})


def test_all_independent_errors_are_found_and_what_follows_from_them_is_not():
    source = Source("net.cnn", "conv5 conv7")
    x = Input("x", TensorType((1, 3, Sym.of("H"), 8)))
    at = [Origin(Span(source, 0, 5)), Origin(Span(source, 6, 11))]
    five, seven = (Node.make(ops.Conv(3, k), x, name=f"conv{k}", origin=o) for k, o in zip((5, 7), at, strict=True))
    after = Node.make(ops.Conv(3, 4), five, name="after")
    fine = Node.make(ops.Relu(), x, name="fine")
    graph = Graph("Errors", (x,), {"a": after, "b": seven, "c": fine})
    with pytest.raises(CnncError) as e:
        bind(graph, {"H": 3})
    assert codes(e) == ["E0310", "E0310"]
    assert [str(d.primary.span) for d in e.value.diagnostics if d.primary] == ["net.cnn:1:1", "net.cnn:1:7"]


def test_inputs_that_become_empty_or_too_large():
    net = Builder("Inputs")
    origin = Origin(Span(Source("net.cnn", "input"), 0, 5))
    small = Input("small", TensorType((Sym.of("N"), Sym.of("H") - 8)), origin=origin)
    large = net.input("large", ("N", 2**16, "W"))
    graph = Graph("Inputs", (small, large), {"s": Node.make(ops.Relu(), small, name="s"), "l": large})
    with pytest.raises(CnncError) as e:
        bind(graph, {"N": 1, "H": 4, "W": 2**16})
    assert codes(e) == ["E0222", "E0502"]
    assert "2,147,483,648" in e.value.diagnostics[1].message
    assert e.value.diagnostics[0].primary is not None
