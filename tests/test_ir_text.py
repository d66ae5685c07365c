"""The text and JSON forms of graphs read back equal, and bad ones get one clear diagnostic."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir import (
    Builder,
    Graph,
    Input,
    Node,
    Param,
    Sym,
    TensorType,
    from_json,
    from_text,
    structurally_equal,
    to_json,
    to_text,
    verify,
)  # fmt: skip
from cnnc.ir.graph import fresh_params
from cnnc.ir.op import Init
from test_ops import CASES

TEXT = """graph "Tiny" "one layer" (%image: f32[N, 3, 16*h, 32] "RGB") {
  %stem = conv(16, 3, pad=1)(%image) : f32[N, 16, 16*h, 32]
  %twin = conv(16, 3, pad=same_upper, bias=false)(%image) {weight=@stem.weight} : f32[N, 16, 16*h, 32]
  %"a name" = gelu(approx="tanh")(%twin) : f32[N, 16, 16*h, 32]
  %gap1 = gap(%"a name") : f32[N, 16, 1, 1]
  %c = constant([1, -2.5], shape=[2, 1], dtype=f32)() : f32[2, 1]
  return stem = %stem, pooled = %gap1, "the constant" = %c
}
"""


def canonical() -> Graph:
    return from_text(TEXT)


def test_the_canonical_text():
    text = to_text(canonical())
    assert text == TEXT.replace(", dtype=f32", "").replace("pad=same_upper", "pad=1")
    assert to_text(from_text(text)) == text


def test_what_a_text_means():
    graph = verify(canonical())
    assert (graph.name, graph.doc, graph.inputs[0].doc) == ("Tiny", "one layer", "RGB")
    assert list(graph.outputs) == ["stem", "pooled", "the constant"]
    nodes = {node.name: node for node in graph.nodes}
    assert nodes["twin"].params["weight"] is nodes["stem"].params["weight"]
    assert nodes["c"].op == ops.Constant([1, -2.5], [2, 1])
    origin = nodes["stem"].origin
    assert origin is not None
    assert origin.span.line == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_op_reads_back_equal(case):
    inputs = tuple(Input(f"x{i}", TensorType.parse(f"f32[{x}]")) for i, x in enumerate(case.operands))
    graph = Graph("Single", inputs, {"y": Node.make(case.op, *inputs, name="node")})
    for again in (from_text(to_text(graph)), from_json(json.loads(json.dumps(to_json(graph))))):
        assert again.nodes[0].op == case.op
        assert again.nodes[0].type == graph.nodes[0].type
        assert structurally_equal(again, graph)


UNARY = [
    ops.Relu(), ops.LeakyRelu(0.123456789), ops.Conv(6, 3, pad=(1, 0, 1, 2)), ops.Conv(6, 1, init="normal(0.01234567)"),
    ops.Conv(6, (1, 3), pad="same_lower", stride=(1, 2), groups=3), ops.BatchNorm(1e-3), ops.MaxPool(3, (1, 2), 1),
    ops.Deconv(6, 2, stride=2), ops.Scale(bias=False), ops.Lrn(5, k=2), ops.Clip(-1e-9, 1e30),
]  # fmt: skip
NAMES = st.text(min_size=1, max_size=8)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs of image ops: any names and docs, merges, shared and fixed parameters, unused inputs."""
    net = Builder(draw(NAMES), draw(st.text(max_size=5)))
    names = draw(st.lists(NAMES.filter(lambda name: not name.startswith("add")), min_size=9, max_size=9, unique=True))
    values = [net.input(names.pop(), ("N", 6, "64*h", "W"), doc=draw(st.text(max_size=5))) for _ in range(2)]
    for name in names:
        op = draw(st.sampled_from(UNARY))
        x = draw(st.sampled_from(values))
        node = net.add(op, x, name=name)
        for old in values[2:]:
            if isinstance(old, Node) and old.op == op and draw(st.booleans()):
                node = Node(op, (x,), old.params, name)
                break
        else:
            if draw(st.booleans()):
                start = Init("normal", draw(st.floats(1e-3, 1)))
                own = {role: replace(p, init=start, trainable=draw(st.booleans())) for role, p in node.params.items()}
                node = Node(op, (x,), own, name)
        values.append(node)
        if draw(st.booleans()):
            values.append(net.add(ops.Add(), node, node))
    outputs = draw(st.dictionaries(NAMES, st.sampled_from(values), min_size=1, max_size=3))
    return net.graph(first=values[0]).with_outputs(outputs)


@given(graphs())
def test_any_graph_reads_back_equal(graph):
    verify(graph)
    text = to_text(graph)
    assert to_text(from_text(text)) == text
    assert to_text(from_json(json.loads(json.dumps(to_json(graph))))) == text
    again = verify(from_text(text))
    assert [(x.name, x.op, x.type) for x in again.nodes] == [(x.name, x.op, x.type) for x in graph.nodes]
    mine, others = again.params, graph.params
    assert [(p.name, p.type, p.init, p.trainable) for p in mine.values()] == [
        (p.name, p.type, p.init, p.trainable) for p in others.values()
    ]


def test_graphs_that_differ_are_not_equal():
    graph = canonical()
    image = graph.inputs[0]
    others = [
        from_text(TEXT.replace("conv(16, 3, pad=1)", 'conv(16, 3, pad=1, init="orthogonal")')),
        from_text(TEXT.replace(' "RGB"', "")),
        from_text(TEXT.replace("gap1", "gap2")),
        from_text(TEXT.replace("{weight=@stem.weight} ", "")),
        graph.with_outputs({"stem": graph.outputs["stem"]}),
        replace(graph, inputs=(image, Input("more", image.type))),
    ]
    assert not any(structurally_equal(graph, other) for other in others)


def test_own_parameters_are_written_with_how_they_start():
    x = Input("x", TensorType((Sym.of("N"), 4)))
    fresh = fresh_params(ops.Linear(2), (x,), "fc")
    bias = Param("b", TensorType((2,)), Init("normal", 0.1))
    params = {"weight": replace(fresh["weight"], trainable=False), "bias": bias}
    text = to_text(Graph("Own", (x,), {"y": Node(ops.Linear(2), (x,), params, "fc")}))
    assert "{weight=@fc.weight he_normal fixed, bias=@b normal(0.1) trained}" in text
    assert to_text(from_text(text)) == text


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("graph", "grph", 1, 'expected `graph "name"'),
        (', 32] "RGB"', ', 32] "RGB" x', 1, "expected `, ` between inputs"),
        ("%image: f32[N, 3, 16*h, 32]", "%image", 1, "inputs expected, not `%image"),
        ("f32[N, 3, 16*h, 32]", "f64[N, 3]", 1, "not a tensor type"),
        ("%stem =", "%stem", 2, "expected `%name = op(...)"),
        ("conv(16, 3, pad=1)(", "conf(16, 3, pad=1)(", 2, "there is no op `conf`: did you mean `conv`?"),
        ("conv(16, 3, pad=1)(", "frobnicate(", 2, "there is no op `frobnicate`"),
        ("conv(16, 3, pad=1)(", "conv(16)(", 2, "`conv` needs `k`"),
        ("conv(16, 3, pad=1)(", "conv(16, 3, c=1)(", 2, "`c` of `conv` is given twice"),
        ("conv(16, 3, pad=1)(", "conv(16, 3, padd=1)(", 2, "`conv` has no attribute `padd`"),
        ("conv(16, 3, pad=1)(", "conv(16, 3, **1)(", 2, "`conv` has no attribute `None`"),
        ("conv(16, 3, pad=1)(", "conv(16, 0)(", 2, "`k` of `conv` expects"),
        ("conv(16, 3, pad=1)(", "conv(16, 3, pad=1+1)(", 2, "`1 + 1` is not the value of an attribute"),
        ("conv(16, 3, pad=1)(", "conv(16, 3,,)(", 2, "is not the call of an op"),
        ("conv(16, 3, pad=1)(", "conv[3](", 2, "is not the call of an op"),
        ("conv(16, 3, pad=1)(", f"conv({'-' * 5000}1)(", 2, ""),
        ("gap(", "gap(1)(", 5, "`gap` takes 0 attributes, not 1"),
        ("(%image) : f32[N, 16", "(%photo) : f32[N, 16", 2, "`photo` is used before it is defined"),
        ("(%image) : f32[N, 16", "(%image) : f32[N, 17", 2, "`stem` is said to be f32[N, 17, 16*h, 32]"),
        ("conv(16, 3, pad=1)(%image)", "linear(16)(%image)", 2, "linear"),
        ("%twin = conv(16, 3,", "%twin = conv(16, 5,", 3, "`stem.weight` is f32[16, 3, 3, 3] in one place"),
        ("{weight=@stem", "{wait=@stem", 3, "`conv` has no parameter `wait` here"),
        ("{weight=@stem.weight}", "{weight=@w he_uniform fixed}", 3, "expects one of he_normal"),
        ("{weight=@stem.weight}", "{weight}", 3, "parameters expected, not `weight`"),
        ('%"a name" = gelu', "%stem = gelu", 4, "`stem` is defined twice"),
        ("return stem = %stem", "return stem = %trunk", 7, "`trunk` is used before it is defined"),
        ("return stem = %stem, pooled", "return stem = %stem, stem", 7, "expected outputs of different names"),
        ("\n}\n", "\nreturn y = %stem", 8, "expected `}` after the outputs"),
        ("\n}\n", "\n}\n}\n", 9, "there is text after the graph"),
    ],
)  # fmt: skip
def test_bad_text_is_refused_with_its_line(old, new, line, message):
    text = TEXT.replace(old, new, 1)
    assert text != TEXT
    with pytest.raises(CnncError) as e:
        from_text(text, "tiny.ir")
    (diagnostic,) = e.value.diagnostics
    assert diagnostic.code == "E0105"
    assert message in diagnostic.message
    assert diagnostic.primary is not None
    assert str(diagnostic.primary.span).startswith(f"tiny.ir:{line}:")


def test_dims_that_explode_are_refused():
    dim = "*".join(f"(a{i} + b{i})" for i in range(40))
    with pytest.raises(CnncError) as e:
        from_text(TEXT.replace("16*h", dim, 1))
    assert [d.code for d in e.value.diagnostics] == ["E0506"]


@pytest.mark.parametrize("text", ["", "\n\n", TEXT[: TEXT.index("}\n")], TEXT.splitlines()[0]])
def test_incomplete_text_is_refused(text):
    with pytest.raises(CnncError, match="incomplete"):
        from_text(text)


@given(st.integers(0, len(TEXT)), st.integers(0, 5), st.text(max_size=3))
def test_any_text_gives_a_graph_or_a_diagnostic(at, cut, put):
    found: set[str] = set()
    try:
        from_text(TEXT[:at] + put + TEXT[at + cut :])
    except CnncError as e:
        found = {d.code for d in e.diagnostics}
    assert found <= {"E0105"}


DATA = to_json(from_text(TEXT))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "its format is 2, this cnnc reads 1"),
        (["format"], None, "`format` is missing"),
        (["name"], 3, "`name` is missing or not of the right kind"),
        (["inputs"], {}, "`inputs` is missing or not of the right kind"),
        (["inputs", 0], "image", "`name` is missing"),
        (["inputs", 0, "type"], "f32[", "not a tensor type"),
        (["nodes", 0, "op"], "konv", "there is no op `konv`"),
        (["nodes", 0, "attributes", "c"], "many", "`c` of `conv` expects"),
        (["nodes", 0, "inputs"], ["nothing"], "`nothing` is used before it is defined"),
        (["nodes", 0, "inputs"], [], "takes 1 operand"),
        (["nodes", 0, "type"], "f32[1]", "is said to be f32[1]"),
        (["nodes", 0, "params", "weight"], {"name": "w", "init": "zero", "trainable": True}, "expects one of"),
        (["nodes", 0, "params", "weight"], {"name": "w", "init": "he_normal"}, "`trainable` is missing"),
        (["nodes", 0, "params", "weight"], [], "`name` is missing"),
        (["outputs"], {}, "the graph has no output"),
        (["outputs"], {"y": 3}, "`3` is used before it is defined"),
    ],
)
def test_bad_json_is_refused(path, value, message):
    data = copy.deepcopy(DATA)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CnncError) as e:
        from_json(data)
    (diagnostic,) = e.value.diagnostics
    assert diagnostic.code == "E0405"
    assert message in diagnostic.message


@pytest.mark.parametrize("data", [None, [], 3, "graph", {}])
def test_other_data_is_no_graph(data):
    with pytest.raises(CnncError, match="the data is no graph"):
        from_json(data)
