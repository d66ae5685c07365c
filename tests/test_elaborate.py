"""Elaboration: what expressions mean, how steps are named, and every refusal with its code."""

import pytest

import cnnc
from cnnc.diagnostics import CnncError, render
from cnnc.driver import elaborate
from cnnc.frontend.make_tables import grammar_text
from cnnc.frontend.model import parse_value


def graph(body: str, head: str = "", args: str = "", **given: object) -> cnnc.Graph:
    """The graph of a model with one input x: f32[N, 4, 8, 8] and an output y."""
    return cnnc.load(f"{head}\nmodel M{args} {{ input x: f32[N, 4, 8, 8] output y {body} }}", "M", **given)  # type: ignore[arg-type]


def names(body: str, head: str = "") -> list[str]:
    return [node.name for node in graph(body, head).nodes]


def refusal(body: str, head: str = "", args: str = "") -> CnncError:
    with pytest.raises(CnncError) as caught:
        graph(body, head, args)
    for d in caught.value.diagnostics:
        assert render(d)
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2*3", 7),
        ("7//2", 3),
        ("-7//2", -4),
        ("7%4", 3),
        ("6/2", 3),
        ("7/2", 3.5),
        ("1 - 2 - 3", -4),
        ("-(2)", -2),
        ("2 - -2", 4),
        ("1k", 1000),
        ("4.2G", 4_200_000_000),
        ("2Ki", 2048),
        ("244MB", 244_000_000),
        ("1_000", 1000),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        ("max(1, 3, 2)", 3),
        ("min([4, 2])", 2),
        ("len([1, 2])", 2),
        ("range(3)", [0, 1, 2]),
        ("range(1, 3)", [1, 2]),
        ("range(3, 0, -2)", [3, 1]),
        ("zip([1, 2], [3, 4])", [[1, 3], [2, 4]]),
        ("1 < 2 <= 2", True),
        ("1 < 2 > 3", False),
        ("2 != 2", False),
        ("3 >= 3", True),
        ('"a" == "a"', True),
        ("[1, 2] == [1, 2]", True),
        ("true and not false", True),
        ("false or true", True),
        ("false and 1", False),
        ("3 if 1 == 1 else 4", 3),
        ("3 if 1 == 2 else 4", 4),
        ("half", "half"),
        ("[]", []),
        ("[1, [2, 3],]", [1, [2, 3]]),
        ("true == (1 == 1)", True),
        ("0 - 3", -3),
    ],
)
def test_values(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1/0", "E0212"),
        ("1//0", "E0212"),
        ("1%0", "E0212"),
        ("1 + half", "E0212"),
        ("true + 1", "E0212"),
        ("1 < half", "E0212"),
        ("[1] < [2]", "E0212"),
        ("1 == relu", "E0208"),
        ("3 if 1 else 2", "E0212"),
        ("not 1", "E0212"),
        ("max()", "E0212"),
        ("max([])", "E0212"),
        ("max(half)", "E0212"),
        ("len(1)", "E0212"),
        ("range(1.5)", "E0212"),
        ("range(1, 2, 0)", "E0212"),
        ("range()", "E0212"),
        ("zip(1)", "E0212"),
        ("zip([1], [1, 2])", "E0212"),
        ("range(200_000)", "E0504"),
        ("9e18*9e300", "E0504"),
        ("99_000_000_000G", "E0504"),
        ("9_000_000_000_000_000_000 + 9_000_000_000_000_000_000", "E0504"),
        ("1e300*1e300", "E0504"),
        ("max(n=1)", "E0206"),
        ("nothing", "E0201"),
        ("relu.c", "E0201"),
        ("[nothing, also_nothing]", "E0201"),
        ("1k5", "E0103"),
        ("1Q", "E0103"),
        ("in", "E0208"),
        ("in.c", "E0208"),
        ("half.c", "E0201"),
    ],
)
def test_values_refused(text: str, code: str) -> None:
    with pytest.raises(CnncError) as caught:
        parse_value(text)
    assert caught.value.diagnostics[0].code == code


@pytest.mark.parametrize(
    ("body", "head", "expected"),
    [
        ("y = x -> relu -> tanh", "", ["0", "1"]),
        ("y = x -> a: relu -> tanh -> b: abs", "", ["a", "1", "b"]),
        ("y = x -> f -> f", "def f = relu -> tanh", ["0.0", "0.1", "1.0", "1.1"]),
        ("y = x -> one: f", "def f = relu", ["one"]),
        ("y = x -> one: f", "def f = g\ndef g = leaky_relu(0.1)", ["one"]),
        ("y = x -> one: f(relu)", "def f(act) = act", ["one"]),
        ("y = x -> one: f(relu -> tanh)", "def f(act) = act", ["one.0", "one.1"]),
        ("y = x -> f(relu -> tanh)", "def f(act) = act -> abs", ["0.0", "0.1", "0.2"]),
        ("y = x -> g: (relu -> (tanh -> abs))", "", ["g.0", "g.1", "g.2"]),
        ("y = x -> relu * 2 -> for k in [1, 2] { tanh }", "", ["0", "1", "2", "3"]),
        ("y = x -> add { relu | tanh }", "", ["0", "1", "2"]),
        ("y = x -> sum: add { relu | id }", "", ["sum.0", "sum.1"]),
        ("y = x -> add { relu | id if x.c == 4 else tanh }", "", ["0", "1"]),
        ('y = x -> for i in [1, 2] { "b{i}.x": relu }', "", ["b1.x", "b2.x"]),
        ("y = x -> p.q: relu -> id -> tanh", "", ["p.q", "1"]),
        ("y = x -> id -> tap: id -> tanh", "", ["1"]),
        ("y = x -> f", "def f { y = first: relu  return y -> second: tanh }", ["0.first", "0.second"]),
        ("y = concat { x | x -> f }", "def f = relu", ["0", "1"]),
        ("y = mul { x | 0.5 }", "", ["0.arm1", "0"]),
        ("shared s = relu -> tanh  y = x -> s -> s", "", ["0.0", "0.1", "1.0", "1.1"]),
        ("y = x -> B", "model B { input z: f32[N, C, H, W] output w w = z -> relu -> b: abs }", ["0.0", "0.b"]),
        ("a, b = x -> split(2)  y = add { a | b }", "", ["0", "1", "2"]),
    ],
)
def test_names_of_steps(body: str, head: str, expected: list[str]) -> None:
    assert names(body, head) == expected


def test_a_shared_block_has_one_set_of_weights() -> None:
    g = graph("shared h.x = conv(4, 1) -> bn  y = add { x -> h.x | x -> relu -> again: h.x }")
    assert list(g.params)[:2] == ["h.x.0.weight", "h.x.0.bias"]
    first, second = (node for node in g.nodes if node.op.name == "conv")
    assert first.params["weight"] is second.params["weight"]
    assert [node.name for node in g.nodes] == ["0.0", "0.1", "1", "again.0", "again.1", "3"]


def test_shared_in_a_def_is_that_calls_own() -> None:
    g = graph("y = x -> f -> f", "def f { shared s = conv(4, 1)  return in -> s -> s }")
    assert list(g.params) == ["0.s.weight", "0.s.bias", "1.s.weight", "1.s.bias"]


def test_in_is_the_defs_input_and_id_what_flows() -> None:
    g = graph("y = x -> f", "def f = conv(8, 1) -> add { conv(in.c, 1) | in }")
    assert [str(n.type) for n in g.nodes] == ["f32[N, 8, 8, 8]", "f32[N, 4, 8, 8]", "f32[N, 4, 8, 8]"]


def test_arguments_keep_the_scope_they_were_written_in() -> None:
    head = "def outer(c) = inner(conv(c, 1) -> relu, 2)\ndef inner(block, c) = block -> conv(c, 1)"
    assert str(graph("y = x -> outer(6)", head).nodes[0].type) == "f32[N, 6, 8, 8]"


def test_blocks_in_lists_and_conditions() -> None:
    g = graph("y = x -> for b in [relu, conv(2, 1), id, (tanh -> abs) if 1 == 1 else id] { b }")
    assert [n.op.name for n in g.nodes] == ["relu", "conv", "tanh", "abs"]


def test_models_as_blocks() -> None:
    head = """model Two { input a, b: f32[N, 4, h, 8] output s, d s = add { a | b } d = sub { a | b } }
              model Part { input i: f32[N, 4, 2*h, W] output o o = i -> body: (relu -> conv(3, 1)) -> unused: tanh }"""
    g = graph("s, d = { x | x -> relu } -> Two   x -> part: Part   y = concat { s | d | part.body }", head)
    assert str(g.outputs["y"].type) == "f32[N, 11, 8, 8]"
    assert "part.unused" not in [n.name for n in g.nodes]
    assert [d.code for d in refusal("y = { x | x } -> Part", head).diagnostics] == ["E0302"]
    assert [d.code for d in refusal("y = x -> slice(0, 3) -> Part", head).diagnostics] == ["E0323"]
    assert [d.code for d in refusal("y = x -> maxpool(8) -> Part", head).diagnostics] == ["E0323"]


def test_variants() -> None:
    text = """model Net(widths=[4], classes=2) { input x: f32[N, 3, 8, 8] output y
                y = x -> for c in widths { conv(c, 3) } -> gap -> flatten -> fc: linear(classes) }
              ## Wider.
              model Wide(classes=3) = Net([8, 8], classes)
              model Wider = Wide(5)
              model Loop = Loop()
              model Odd = relu
              model Chain = Net() -> Net()"""
    g = cnnc.load(text, "Wider")
    assert (g.name, str(g.outputs["y"].type)) == ("Wider", "f32[N, 5]")
    assert cnnc.load(text, "Wide").doc == "Wider."
    assert list(g.params) == list(cnnc.load(text, "Net", widths=[8, 8]).params)
    for name in ("Loop", "Odd", "Chain"):
        with pytest.raises(CnncError, match="E0219"):
            cnnc.load(text, name)


def test_defaults_of_dims() -> None:
    text = "model M(c=3) { input a: f32[N, c, 16*h=32, W=8] input b: f32[N, 2*c, h, W] output y y = a -> relu }"
    found = elaborate(text)
    assert dict(found.defaults) == {"h": 2, "W": 8}
    assert [str(x.type) for x in found.graph.inputs] == ["f32[N, 3, 16*h, W]", "f32[N, 6, h, W]"]
    assert [str(x.type) for x in cnnc.load(text, dims={"h": 3}, c=1).inputs] == ["f32[N, 1, 48, 8]", "f32[N, 2, 3, 8]"]


def test_docs_reach_inputs_and_models() -> None:
    text = "## First.\n## Second.\nmodel M {\n  ## grey\n  input x: f32[N, 1, 8, 8]\n  output y y = x -> relu }"
    g = cnnc.load(text)
    assert (g.doc, g.inputs[0].doc) == ("First.\nSecond.", "grey")


@pytest.mark.parametrize(
    ("body", "head", "codes"),
    [
        ("y = x -> nothing -> alsonothing", "", ["E0201", "E0201"]),
        ("y = x -> conv(3, 1) -> conv(z, 1) -> relu(1)", "", ["E0201", "E0206"]),
        ("y = a -> relu  z = x -> b", "", ["E0201", "E0201"]),
        ("y = x -> 3", "", ["E0209"]),
        ("y = x -> x", "", ["E0209"]),
        ("y = x -> [1]", "", ["E0209"]),
        ("y = x -> max(1)", "", ["E0209"]),
        ("y = x -> relu { x | max }", "", ["E0212"]),
        ("z = relu -> tanh  y = x", "", ["E0208"]),
        ("y = in -> relu", "", ["E0208"]),
        ("y = x -> f(3)", "def f(b) = b -> relu", ["E0212"]),
        ("y = x(3)", "", ["E0209"]),
        ("y = x -> relu { 3 | relu }", "", ["E0302"]),
        ("y = add { x | [1] }", "", ["E0212"]),
        ("y = x -> conv(relu, 1)", "", ["E0207"]),
        ("y = x -> conv([1, relu], 1)", "", ["E0207"]),
        ("y = x -> conv(4, 1, s=0, pad=-1)", "", ["E0207", "E0207"]),
        ("y = x -> conv()", "", ["E0206"]),
        ("y = x -> conv(4, 1, 1, c=3)", "", ["E0206"]),
        ("y = x -> reshape()", "", ["E0206"]),
        ("y = x -> reshape(dim=3)", "", ["E0206"]),
        ("y = x -> id(3)", "", ["E0209"]),
        ("y = x -> split()", "", ["E0206"]),
        ("y = x -> split(half)", "", ["E0207"]),
        ("y = x -> split(3)", "", ["E0322"]),
        ("y = x -> split(2, axis=0)", "", ["E0322"]),
        ("y = x -> split(2, axis=9)", "", ["E0322"]),
        ("y = x -> f(1)", "def f = relu", ["E0206"]),
        ("y = x -> f", "def f(a, b) = relu", ["E0206"]),
        ("y = x -> relu * half", "", ["E0213"]),
        ("y = x -> relu * -1", "", ["E0213"]),
        ("y = x -> relu * 1.5", "", ["E0213"]),
        ("y = x -> relu * nothing", "", ["E0201"]),
        ("y = x -> for i in 3 { relu }", "", ["E0103"]),
        ("y = x -> for i in half { relu }", "", ["E0214"]),
        ("y = x -> for a, b in [1] { relu }", "", ["E0214"]),
        ("y = x -> for a in [1] { relu | tanh }", "", ["E0209"]),
        ("a, b = 3  y = x -> relu", "", ["E0214"]),
        ("y = x -> relu if x.n == 1 else id", "", ["E0215"]),
        ("y = x -> flatten -> f", "def f = relu if in.h == 1 else id", ["E0315"]),
        ("y = x -> a: relu -> add { id | a.b }", "", ["E0201"]),
        ("y = x -> a: f -> add { id | a.zero }", "def f = relu -> tanh", ["E0201"]),
        ("y = x.q -> relu", "", ["E0201"]),
        ('y = x -> "{q}": relu', "", ["E0201"]),
        ('y = x -> "a b": relu', "", ["E0224"]),
        ("x = x -> relu  y = x", "", ["E0202"]),
        ("z = 1  z = 2  y = x -> relu", "", ["E0202"]),
        ("y = x -> f(2)", "def f(c) = c: conv(c, 1)", ["E0202"]),
        ("y = x -> f(2)", "def f(c, c) = conv(c, 1)", ["E0202"]),
        ("shared s = 3  y = x -> relu", "", ["E0209"]),
        ("s = relu  y = x -> s", "", ["E0208"]),
        ("shared s = conv(4, 1)  y = x -> s(3)", "", ["E0211"]),
        ("y = x -> f", "def f { return in  z = in }", ["E0217"]),
        ("y = x -> f", "def f { z = in }", ["E0217"]),
        ("y = x -> f", "def f { output q return in }", ["E0217"]),
        ("return x", "", ["E0217", "E0201"]),
        ("y = x -> relu  output y", "", ["E0202"]),
        ("output z  y = 3  z = x -> relu", "", ["E0212"]),
        ("input x: f32[N, 3, 8, 8]  y = x -> relu", "", ["E0202"]),
        ("input z: q8[N]  y = x -> relu", "", ["E0221"]),
        ("input z: f32[0]  y = x -> relu", "", ["E0222"]),
        ("input z: f32[4_294_967_296]  y = x -> relu", "", ["E0502"]),
        ("input z: f32[65_536, 65_536]  y = x -> relu", "", ["E0502"]),
        ("input z: f32[N, 3.5]  y = x -> relu", "", ["E0309"]),
        ("input z: f32[N//M]  y = x -> relu", "", ["E0309"]),
        ("input z: f32[relu, d]  y = x -> d", "d = half", ["E0309", "E0209"]),
        ("input z: f32[N, 3*h=7]  y = x -> relu", "", ["E0309"]),
        ("input a: f32[h=7]  input b: f32[h=8]  y = x", "", ["E0309"]),
        ("y = x -> f", "def f = g\ndef g = f", ["E0218"]),
        ("y = x -> conv(a, 1)", "a = b\nb = a", ["E0223"]),
        ("y = x -> relu * 20_001", "", ["E0505"]),
        ("y = x -> relu * 15_000 -> relu * 15_000", "", ["E0505"]),
        ("y = x -> for i in range(300) { id * 999 }", "", ["E0505"]),
        ("y = x -> bn: bn -> add { id | bn }", "", ["E0210"]),
        ("y = x -> (conv(4, 1) -> add { id | x -> conv(5, 1) }) -> gap -> linear(3)", "", ["E0312"]),
        ("y = x -> for i in range(9) { f }", "def f = conv(8, 9)", ["E0310"]),
        ("y = x -> f -> f -> relu", "def f = g\ndef g = conv(4, q)", ["E0201"]),
        ("y = x -> a: 3", "", ["E0209"]),
    ],
)
def test_refusals(body: str, head: str, codes: list[str]) -> None:
    assert [d.code for d in refusal(body, head).diagnostics] == codes


def test_label_on_a_value_names_it() -> None:
    g = graph("y = add { a: x | b: 2 } -> add { id | a }")
    assert [n.op.name for n in g.nodes] == ["constant", "add", "add"]


def test_a_path_may_name_an_op_where_it_is_the_only_one() -> None:
    assert names("y = x -> body: (conv(4, 1) -> relu) -> add { id | body.relu }")[-1] == "1"
    assert refusal("y = x -> body: (relu -> relu) -> add { id | body.relu }").diagnostics[0].code == "E0201"


def test_elaboration_is_linear() -> None:
    """Ten times the layers take no more than some ten times the steps."""
    from cnnc.frontend.elaborate import Elaborator

    counts = []
    original = Elaborator.tick
    for n in (100, 1000):
        steps = 0

        def tick(self: Elaborator, *args: object) -> None:
            nonlocal steps
            steps += 1
            original(self, *args)  # type: ignore[arg-type]

        Elaborator.tick = tick  # type: ignore[method-assign, assignment]
        try:
            assert len(graph(f"y = x -> for i in range({n}) {{ conv(4, 1) -> relu }}").nodes) == 2 * n
        finally:
            Elaborator.tick = original  # type: ignore[method-assign]
        counts.append(steps)
    assert counts[1] <= 10 * counts[0] + 10


def test_tables_are_those_of_the_grammar() -> None:
    """A parser built from the committed grammar has the committed tables' hash, and no conflicts."""
    from hashlib import sha256

    from lark import Lark

    from cnnc.frontend import tables

    assert sha256(grammar_text().encode()).hexdigest() == tables.GRAMMAR
    Lark(grammar_text(), parser="lalr", lexer="basic", strict=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("shared a = conv(3, 1)  y = x -> a -> a: conv(3, 1)",
         "`a.weight` is already the name of weights of a shared block"),
        ("shared a = conv(3, 1)  y = x -> a: conv(3, 1) -> a", "`a.weight` is already the name of weights of a layer"),
        ("y = x -> a: (b: conv(3, 1)) -> a.b: conv(3, 1)", "`a.b.weight` is already the name of weights of a layer"),
        ("y = x -> a: (b: relu) -> a.b: relu", "`a.b` is already the name of another layer"),
        ("y = x -> a: conv(3, 1) -> a.weight: relu", "`a.weight` is already the name of weights"),
        ("y = x -> relu -> x: conv(3, 1)", "`x` is already the name of an input"),
    ],
)  # fmt: skip
def test_names_of_layers_are_of_the_whole_network(body: str, message: str) -> None:
    (found,) = refusal(body).diagnostics
    assert (found.code, found.message) == ("E0202", message)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        ("ConvTranspose2d(4, 2)", ["deconv"]),
        ("batch_norm", ["bn"]),
        ("ReLU", ["relu"]),
        ("dense(4)", ["linear"]),
        ("max_pool2d(2)", ["maxpool"]),
        ("swish", ["silu"]),
        ("conv(4, 3, padding=1, stride=2)", ["pad", "s"]),
        ("conv(4, kernel_size=3)", ["k"]),
        ("conv(4, 3, bias=False)", ["false"]),
    ],
)
def test_words_of_other_frameworks_lead_to_ours(call: str, meant: list[str]) -> None:
    with pytest.raises(CnncError) as caught:
        cnnc.load(f"model M {{ input x: f32[N, 3, 8, 8] output y y = x -> {call} }}")
    assert [str(d.help.text) for d in caught.value.diagnostics if d.help] == [f"did you mean `{x}`?" for x in meant]


@pytest.mark.parametrize(
    ("branch", "help"),
    [
        ("conv(6, 3, pad=1)", "project the shortcut: `conv(6, 1)`"),
        ("conv(4, 3, s=2, pad=1)", "project the shortcut: `conv(4, 1, s=2)`"),
        ("conv(4, 3)", "pad the other branch by 1 more to keep the size"),
        ("conv(4, 4)", None),
        ("conv(4, [3, 1])", None),
    ],
)
def test_how_to_mend_a_residual_addition(branch: str, help: str | None) -> None:
    (found,) = refusal(f"y = x -> add {{ {branch} | id }}").diagnostics
    assert (found.help and found.help.text) == help


@pytest.mark.parametrize(
    ("call", "help"),
    [
        ("relu(x)", "`x -> relu`"),
        ("conv(x, 16, k=3)", "`x -> conv(16, k=3)`"),
        ("concat(x, x, axis=1)", "`concat(axis=1) { x | x }`"),
        ("concat([x, x])", "`concat { a | b }`"),
        ("x -> relu -> add(x)", "`add { id | x }`"),
    ],
)
def test_tensors_are_no_arguments_of_ops(call: str, help: str) -> None:
    (found,) = refusal(f"y = {call}").diagnostics
    assert (found.code, found.help and found.help.text) == ("E0207", help)
