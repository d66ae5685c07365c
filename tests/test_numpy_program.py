"""The program of the numpy target: its memory, its standalone source, its files, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.build import Builder
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.op import registry
from cnnc.ir.types import DType, TensorType
from cnnc_numpy import NumpyTarget
from cnnc_numpy.evaluator import evaluate, evaluate_nodes
from cnnc_numpy.program import NumpyProgram
from cnnc_numpy.rules import rule
from networks import Unruled
from numerics import Array, assert_agree, assert_node_agrees, random_inputs, random_weights, single

ONLY_NUMPY = """
import importlib.abc, importlib.util, runpy, sys
import numpy as np

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}:
            raise ImportError(f"{name} is not NumPy")

sys.meta_path.insert(0, Refuse())
path, inputs, outputs = sys.argv[1:]
module = runpy.run_path(path)
weights = dict(np.load(path.removesuffix(".py") + ".npz"))
arrays = np.load(inputs)
np.savez(outputs, **module["forward"](weights, *(arrays[name] for name in arrays.files)))
"""


def standalone(program: NumpyProgram, inputs: dict[str, Array], folder: Path) -> dict[str, Array]:
    """What the exported file computes in a process that can import nothing but NumPy."""
    program.save(folder / "net.py")
    np.savez(folder / "in.npz", **inputs)
    command = [sys.executable, "-I", "-c", ONLY_NUMPY, *(str(folder / x) for x in ("net.py", "in.npz", "out.npz"))]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with np.load(folder / "out.npz") as outputs:
        return {name: outputs[name] for name in outputs.files}


def assert_same(got: dict[str, Array], expected: dict[str, Array]) -> None:
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        assert got[name].dtype == x.dtype
        np.testing.assert_array_equal(got[name], x)


def two_branches(dtype: DType = DType.F32) -> Graph:
    """Most of what a network has: branches, views, padding that follows the input, two inputs and two outputs."""
    net = Builder("Two")
    image = net.input("image", ("N", 3, "2*H + 1", "W"), dtype)
    bias = net.input("class", ("N", 8, 1, 1), dtype)
    x = net.add(ops.Conv(8, 3, 2, "same_upper"), image, name="stem")
    x = net.add(ops.Relu(), net.add(ops.BatchNorm(), x, name="stem.bn"))
    left = net.add(ops.Conv(8, 3, pad=1, groups=8), x, name="left")
    right = net.add(ops.Clip(-1, 1), net.add(ops.AvgPool(3, 1, 1), x))
    x = net.add(ops.Relu(), net.add(ops.Add(), left, right, bias))
    x = net.add(ops.Concat(), x, net.add(ops.Gelu(), left))
    pooled = net.add(ops.Flatten(), net.add(ops.GlobalAvgPool(), x))
    return net.graph(map=x, logits=net.add(ops.Linear(5), pooled, name="fc"))


def test_the_standalone_file_computes_the_same_bits(tmp_path: Path) -> None:
    graph = two_branches()
    weights, inputs = random_weights(graph), random_inputs(graph, N=2, H=5, W=8)
    program = NumpyProgram(graph, weights)
    outputs = program(**inputs)
    assert_agree(graph, weights, inputs, outputs)
    assert_same(standalone(program, inputs, tmp_path), outputs)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["in.npz", "net.npz", "net.py", "out.npz"]


def test_the_standalone_file_runs_by_itself(tmp_path: Path) -> None:
    graph = single(ops.Linear(3), TensorType((2, 4)))
    NumpyProgram(graph, random_weights(graph)).save(tmp_path / "net.py")
    done = subprocess.run([sys.executable, "-I", tmp_path / "net.py"], check=True, capture_output=True, text=True)
    assert done.stdout == "y float32 (2, 3)\n"
    assert done.stderr == ""


def test_half_precision_rounds_each_value(tmp_path: Path) -> None:
    graph = two_branches(DType.F16)
    weights, inputs = random_weights(graph), random_inputs(graph, N=2, H=4, W=6)
    program = NumpyProgram(graph, weights)
    outputs = program(**inputs)
    assert {x.dtype for x in outputs.values()} == {np.dtype(np.float16)}
    assert_agree(graph, weights, inputs, outputs)
    assert_same(standalone(program, inputs, tmp_path), outputs)


HOSTILE = ['"""\nimport os', "'); raise SystemExit #", "\\", "class", "np", "v1", "\u2028raise", "relu"]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_never_become_code(text: str, tmp_path: Path) -> None:
    x = Input(text, TensorType((2, 3)), doc=text)
    y = Node.make(ops.Relu(), Node.make(ops.Linear(3), x, name=text + "1"), name=text)
    graph = Graph(text, (x,), {text: y}, doc=text)
    weights, inputs = random_weights(graph), {text: np.ones((2, 3), np.float32)}
    program = NumpyProgram(graph, weights)
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(compile(program.source(), "net.py", "exec"), namespace)
    assert_same(namespace["forward"](weights, *inputs.values()), program(**inputs))
    assert set(namespace) - {"__name__", "__builtins__", "__doc__", "__annotations__", "annotations"} == {
        "Array", "Path", "forward", "linear", "main", "np", "relu",
    }  # fmt: skip


def test_branches_are_computed_into_the_joined_result(tmp_path: Path) -> None:
    graph = cnnc.load(
        "def dense(g) = concat { id | relu -> conv(g, 3, pad=1) | avgpool(3, s=1, pad=1) }\n"
        "model M { input x: f32[N, 3, 6, 5]  output y  y = x -> conv(8, 1) -> dense(4) -> dense(6) -> tanh }"
    )
    weights, inputs = random_weights(graph), random_inputs(graph, N=3)
    program = NumpyProgram(graph, weights)
    forward = program.source().partition("def forward")[2]
    assert "concat(" not in forward
    assert forward.count("np.empty(") == 1  # the first concatenation is a part of the second
    assert "out=v0[:, 8:12])" in forward  # conv writes there itself
    assert "v0[:, 12:20] = avg_pool(" in forward
    outputs = program(**inputs)
    assert_agree(graph, weights, inputs, outputs)
    assert_same(standalone(program, inputs, tmp_path), outputs)


IN_PLACE: list[Any] = [ops.Relu(), ops.Clip(-1, 1), ops.Tanh(), ops.BatchNorm(), ops.Scale()]
VIEWS: list[Any] = [ops.Dropout(), ops.Slice(0, 9), ops.Transpose([0, 1, 3, 2]), ops.Flatten(3), ops.Add()]
FRESH: list[Any] = [ops.Neg(), ops.Abs()]
PAIRS: list[Any] = [ops.Add(), ops.Mul(), ops.Sub(), ops.Maximum(), ops.Concat()]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Nodes that overwrite, alias and read each other's memory, and any of them as outputs."""
    net = Builder("Mixed")
    values: list[Value] = [net.input("a", (2, 3, 4, 4)), net.input("b", (2, 3, 4, 4))]
    for _ in range(draw(st.integers(1, 12))):
        op = draw(st.sampled_from([*IN_PLACE, *VIEWS, *FRESH, *PAIRS]))
        x = draw(st.sampled_from(values))
        if op in PAIRS and draw(st.booleans()) and not isinstance(op, ops.Concat):
            more = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2 if isinstance(op, ops.Add) else 1))
            values.append(net.add(op, x, *more))
        elif not isinstance(op, ops.Sub | ops.Concat):
            values.append(net.add(op, x))
    chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    return net.graph(**{f"y{i}": x for i, x in enumerate(chosen)})


@given(graphs())
def test_values_are_overwritten_only_when_nothing_reads_them(graph: Graph) -> None:
    weights, inputs = random_weights(graph), random_inputs(graph)
    kept = {name: x.copy() for name, x in (weights | inputs).items()}
    every = evaluate_nodes(graph, weights, inputs, dtype=None)  # overwrites nothing
    expected = {name: every[x.name] for name, x in graph.outputs.items()}
    assert_same(evaluate(graph, weights, inputs, dtype=None), expected)
    program = NumpyProgram(graph, weights)
    outputs = program(**inputs)
    assert_same(outputs, expected)
    assert not any(np.shares_memory(x, y) for x in outputs.values() for y in inputs.values())
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(compile(program.source(), "net.py", "exec"), namespace)
    assert_same(namespace["forward"](weights, *inputs.values()), expected)
    assert_same(weights | inputs, kept)


def test_an_operand_read_again_within_the_node_is_not_overwritten() -> None:
    net = Builder("Again")
    a = net.input("a", (2,))
    x = net.add(ops.Neg(), a)
    graph = net.graph(y=net.add(ops.Add(), x, a, x))
    assert evaluate(graph, {}, {"a": np.array([1, 2], np.float32)})["y"].tolist() == [-1, -2]


def test_an_artifact_holds_no_code_and_reads_back(tmp_path: Path) -> None:
    graph = two_branches()
    weights, inputs = random_weights(graph), random_inputs(graph, N=1, H=3, W=4)
    program = NumpyProgram(graph, weights)
    assert set(program.files()) == {"graph.json", "weights.safetensors"}
    assert_same(NumpyTarget().load({}, program.files())(**inputs), program(**inputs))


@pytest.mark.parametrize(
    ("member", "data", "code"),
    [
        ("graph.json", b"{", "E0405"),
        ("graph.json", b"[" * 100_000, "E0405"),
        ("graph.json", b"\xff", "E0405"),
        ("graph.json", b"{}", "E0405"),
        ("weights.safetensors", b"", "E0402"),
        ("weights.safetensors", b"\xff" * 64, "E0402"),
        ("weights.safetensors", b"\x02\0\0\0\0\0\0\0{}", "E0401"),
    ],
)
def test_malformed_members_are_refused(member: str, data: bytes, code: str) -> None:
    graph = single(ops.Linear(3), TensorType((2, 4)))
    files = NumpyProgram(graph, random_weights(graph)).files()
    with pytest.raises(CnncError) as caught:
        NumpyTarget().load({}, {**files, member: data})
    assert caught.value.diagnostics[0].code == code


def test_every_op_has_a_rule_and_others_are_refused() -> None:
    assert not {name for name, op in registry().items() if op not in rule and not op.internal}
    with pytest.raises(CnncError, match=r"E0601.*target `numpy` has no rule for `unruled`"):
        NumpyProgram(single(Unruled(), TensorType((1, 5))), {})


def test_bf16_is_refused_but_has_a_reference() -> None:
    graph = single(ops.Conv(4, 3), TensorType((1, 3, 6, 6), DType.BF16))
    weights, inputs = random_weights(graph), random_inputs(graph)
    with pytest.raises(CnncError, match=r"E0606.*element type of `x0`: NumPy has no bfloat16"):
        NumpyProgram(graph, weights)
    assert_node_agrees(graph, weights, inputs, evaluate(graph, weights, inputs, dtype=None))


def test_the_reference_rounds_at_casts_alone() -> None:
    net = Builder("Cast")
    x = net.input("x", (3,))
    y = net.add(ops.Cast("f32"), net.add(ops.Cast("bf16"), x))
    graph = net.graph(y=net.add(ops.Add(), y, net.add(ops.Constant([0.1]))))
    got = evaluate(graph, {}, {"x": np.array([1, 1.001, 3.14159], np.float32)})["y"]
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, np.array([1, 1, 3.140625]) + np.float64(np.float32(0.1)))


def test_inputs_of_contradicting_sizes_are_refused() -> None:
    net = Builder("Sizes")
    a, b = net.input("a", ("N", 2)), net.input("b", ("N", 2))
    graph = net.graph(y=net.add(ops.Add(), a, b))
    with pytest.raises(CnncError, match="E0320"):
        evaluate(graph, {}, {"a": np.zeros((2, 2)), "b": np.zeros((3, 2))})


def test_the_bounds_catch_what_they_are_for() -> None:
    graph = single(ops.Conv(8, 3, pad=1), TensorType((2, 16, 9, 9)))
    weights, inputs = random_weights(graph), random_inputs(graph)
    outputs = evaluate(graph, weights, inputs, dtype=None)
    assert_node_agrees(graph, weights, inputs, outputs)
    tf32 = {name: (x.view(np.uint32) & 0xFFFFE000).view(np.float32) for name, x in weights.items()}
    bad = [
        evaluate(graph, tf32, inputs, dtype=None),
        {"y": outputs["y"] * np.float32(1.0001)},
        {"y": outputs["y"].astype(np.float64)},
        {"y": outputs["y"][:1]},
        {"y": np.where(outputs["y"] > 1, np.float32(np.nan), outputs["y"])},
    ]
    for y in bad:
        with pytest.raises(AssertionError):
            assert_node_agrees(graph, weights, inputs, y)
    relu = single(ops.Relu(), TensorType((2, 9)))
    x = np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 9)
    assert_node_agrees(relu, {}, {"x0": x}, {"y": np.maximum(x, 0)})
    with pytest.raises(AssertionError):  # exact: not off by a bit
        assert_node_agrees(relu, {}, {"x0": x}, {"y": np.nextafter(np.maximum(x, 0), np.float32(2))})
    zeros = {name: np.zeros_like(x) for name, x in (weights | inputs).items()}
    with pytest.raises(AssertionError, match="one distinct value"):
        assert_node_agrees(graph, zeros, zeros, evaluate(graph, zeros, zeros, dtype=None))


def test_the_tolerance_of_networks_catches_a_missing_relu() -> None:
    graph = two_branches()
    weights, inputs = random_weights(graph), random_inputs(graph, N=2, H=5, W=8)
    mutant = graph.rebuild(
        lambda node, xs: xs[0] if isinstance(node.op, ops.Relu) else Node(node.op, xs, node.params, node.name)
    )
    with pytest.raises(AssertionError, match="is wrong"):
        assert_agree(graph, weights, inputs, evaluate(mutant, weights, inputs, dtype=None))


def test_numbers_are_not_written_over() -> None:
    """NumPy gives a number, not an array, where everything has rank 0."""
    half = "constant(0.5) -> sigmoid -> exp -> add { id | 1 }"
    graph = cnnc.load(f"model M {{ input x: f32[N, 2] output y y = mul {{ x | {half} }} }}")
    x = np.ones((1, 2), np.float32)
    np.testing.assert_allclose(cnnc.compile(graph, optimise=0)(x=x)["y"], 2.8634 * x, rtol=1e-4)
