"""The source that the target `torch` generates: it reads well, keeps the parameters' names, and survives odd graphs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cnnc
from cnnc import ops
from cnnc.artifact import load_program
from cnnc.diagnostics import CnncError
from cnnc.ir.build import Builder
from cnnc.ir.graph import Graph, Node, Param, Value
from cnnc_torch import TorchTarget
from cnnc_torch.program import TorchProgram
from conftest import Golden
from numerics import assert_agree, random_inputs, random_weights

LENET = """
model LeNet {
  input digit: f32[N, 1, 28, 28]
  output scores
  scores = digit -> conv1: conv(6, 5, pad=2) -> tanh -> avgpool(2) -> conv2: conv(16, 5) -> tanh -> avgpool(2)
    -> flatten -> fc1: linear(120) -> tanh -> dropout(0.2) -> fc2: linear(10)
}
"""
RESIDUAL = """
def basic(c, s=1) = add {
    conv1: conv(c, 3, s=s, pad=1, bias=false) -> bn1: bn -> relu -> conv2: conv(c, 3, pad=1, bias=false) -> bn2: bn
  | downsample: (conv(c, 1, s=s, bias=false) -> bn) if s != 1 or in.c != c else id } -> relu

model Residual {
  input image: f32[N, 3, 32, 32]
  output logits, features
  logits = image -> conv1: conv(16, 3, pad=1, bias=false) -> bn1: bn -> relu
    -> layer1: basic(16) * 3 -> layer2: (basic(32, 2) -> basic(32)) -> layer3: (basic(64, 2) -> basic(64))
    -> features: (gap -> flatten) -> dropout -> fc: linear(10)
}
"""
SIAMESE = """
def net = c1: conv(4, 3) -> relu -> (add { conv(4, 1) | id }) -> gap -> flatten
model Siamese {
  input left, right: f32[N, 3, 8, 8]
  output same
  shared tower = net
  same = sub { left -> tower | right -> tower } -> abs -> distance: linear(1)
}
"""


def compile(graph: Graph) -> TorchProgram:
    return TorchTarget().compile(graph, random_weights(graph))


def assert_sound(graph: Graph) -> TorchProgram:
    """The program computes what the reference does and its weights go by the graph's names."""
    weights, inputs = random_weights(graph), random_inputs(graph, N=3)
    program = TorchTarget().compile(graph, weights)
    assert_agree(graph, weights, inputs, program(**inputs))
    state = program.module().state_dict()
    assert {name for name in state if not name.endswith(".num_batches_tracked")} == set(graph.params)
    return program


@pytest.mark.parametrize(("name", "text"), [("lenet", LENET), ("residual", RESIDUAL), ("siamese", SIAMESE)])
def test_goldens(name: str, text: str, golden: Golden) -> None:
    golden(f"torch/{name}.txt", assert_sound(cnnc.load(text)).source())


@pytest.mark.parametrize(("model", "classes"), [("resnet50", 3), ("googlenet_torchvision", 4), ("mobilenet_v2", 5)])
def test_blocks_of_one_structure_are_one_class(model: str, classes: int) -> None:
    graph = cnnc.load(Path(__file__).parents[1] / "models" / f"{model}.cnn")
    tree = ast.parse(compile(graph).source())
    assert len([x for x in tree.body if isinstance(x, ast.ClassDef)]) == classes


def test_the_file_stands_alone(tmp_path: Path) -> None:
    graph = cnnc.load(RESIDUAL)
    program = compile(graph)
    program.save(tmp_path / "net.py")
    inputs = random_inputs(graph, N=2)
    np.save(tmp_path / "image.npy", inputs["image"])
    script = (
        "import numpy, torch, net; model = net.load('net.safetensors'); net.save(model, 'again.safetensors')\n"
        "with torch.no_grad(): y = net.load('again.safetensors')(torch.from_numpy(numpy.load('image.npy')))\n"
        "numpy.save('logits.npy', y['logits'].numpy())"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), program(**inputs)["logits"])


def test_an_artifact_holds_no_code(tmp_path: Path) -> None:
    graph = cnnc.load(LENET)
    program = compile(graph)
    assert set(program.files()) == {"graph.json", "weights.safetensors"}
    inputs = random_inputs(graph, N=2)
    again = load_program(program.save(tmp_path / "net.cnnc"))
    np.testing.assert_array_equal(again(**inputs)["scores"], program(**inputs)["scores"])


def test_tracebacks_show_the_source() -> None:
    module = compile(cnnc.load(LENET)).module()
    assert "torch.tanh(self.conv1(digit))" in inspect.getsource(module.forward)


HOSTILE = [
    "half", "type", "keys", "forward", "self", "torch", "class", "crop", "__import__", "x y", "é", 'a"b', "{0}",
    "\\", "0",
]  # fmt: skip


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_that_are_no_names_in_python(label: str) -> None:
    net = Builder("end\"\"\"\nimport os")
    x: Value = net.input(label, ("N", 4, 6, 6), doc='"""\nraise SystemExit')
    for name in (label + "_", f"g.{label}", f"g.{label}{label}", f"chain.{label}", f"chain.{label}2"):
        x = net.add(ops.Conv(4, 3, pad=1), x, name=name)
        x = net.add(ops.Relu(), x, name=f"{name}r")
    x = net.add(ops.Add(), x, x, name=f"g2.{label}.a")
    assert_sound(replace(net.graph(y=x), outputs={label: x, "": x}))


def test_a_module_inside_the_name_of_another() -> None:
    net = Builder("Nested")
    x: Value = net.input("x", ("N", 4, 6, 6))
    for name in ("a", "a.b", "a.b.half", "a.b.c.d"):
        x = net.add(ops.Conv(4, 3, pad=1), x, name=name)
    assert_sound(net.graph(y=x))


def test_a_group_that_cannot_be_one_call() -> None:
    """g's second part needs what was made of its first."""
    net = Builder("Twisted")
    x = net.input("x", ("N", 4, 6, 6))
    a = net.add(ops.Conv(4, 3, pad=1), x, name="g.a")
    b = net.add(ops.Conv(4, 3, pad=1), a, name="b")
    c = net.add(ops.Add(), net.add(ops.Conv(4, 1), b, name="g.c"), a, name="g.sum")
    assert_sound(net.graph(y=c))


def test_groups_that_do_not_hang_together_are_containers() -> None:
    net = Builder("Pyramid")
    x, y = net.input("x", ("N", 3, 6, 6)), net.input("y", ("N", 5, 6, 6))
    parts = [net.add(ops.Conv(4, 1), z, name=f"inner.{i}") for i, z in enumerate((x, y))]
    source = assert_sound(net.graph(sum=net.add(ops.Add(), *parts))).source()
    assert "nn.ModuleList([" in source
    assert "self.inner[0](x) + self.inner[1](y)" in source


def test_weights_shared_by_two_layers() -> None:
    net = Builder("Tied")
    x = net.input("x", ("N", 4, 6, 6))
    first = net.add(ops.Conv(4, 3, pad=1), x, name="block.a")
    second = Node(first.op, (first,), first.params, "block.b")
    program = assert_sound(net.graph(y=second))
    assert len(list(program.module().parameters())) == 2


def test_parameters_that_no_module_can_hold_are_refused() -> None:
    net = Builder("Mixed")
    x = net.input("x", ("N", 4, 6, 6))
    first = net.add(ops.Conv(4, 3, pad=1), x, name="a")
    bias = Param("b.bias", first.params["bias"].type, first.params["bias"].init)
    second = Node(first.op, (first,), {"weight": first.params["weight"], "bias": bias}, "b")
    with pytest.raises(CnncError, match=r"E0601.*named apart: `a.weight`, `b.bias`"):
        compile(net.graph(y=second))
    other = Node(ops.Conv(4, 3, pad=2), (first,), first.params, "c")
    with pytest.raises(CnncError, match=r"E0601.*cannot share parameters between different ops"):
        compile(net.graph(y=other))


def test_a_layer_named_as_what_training_sets_is_refused() -> None:
    """PyTorch's `train` and `eval` would fail; what has no parameters gets another name."""
    for label, refused in (("training: conv(4, 3)", True), ("training: stage(4)", True), ("training: relu", False)):
        text = f"def stage(c) = conv(c, 3) -> relu\nmodel M {{ input x: f32[N, 3, 8, 8] output y y = x -> {label} }}"
        graph = cnnc.load(text)
        if refused:
            with pytest.raises(CnncError, match=r"E0601.*cannot name a module `training`"):
                compile(graph)
        else:
            assert_sound(graph)


def test_instance_norm_of_open_sizes_takes_maps_of_one_pixel() -> None:
    for norm in "instance_norm", "instance_norm(affine=false)":
        graph = cnnc.load(f"model M {{ input x: f32[N, 4, H, W] output y y = x -> {norm} }}")
        weights = random_weights(graph)
        program = TorchTarget().compile(graph, weights)
        for height, width in (1, 3), (4, 5):
            inputs = random_inputs(graph, N=2, H=height, W=width)
            assert_agree(graph, weights, inputs, program(**inputs))
        bias = weights.get(f"{graph.nodes[0].name}.bias", np.zeros(4))
        line = cnnc.load(f"model M {{ input x: f32[N, 4, L] output y y = x -> {norm} }}")
        place = TorchTarget().compile(line, random_weights(line))(**random_inputs(line, N=2, L=1))
        assert place["y"].shape == (2, 4, 1)
        pixel = program(**random_inputs(graph, N=2, H=1, W=1))["y"]
        np.testing.assert_allclose(pixel, np.broadcast_to(bias[:, None, None], pixel.shape), atol=1e-4)


def test_a_network_without_layers() -> None:
    net = Builder("Sum")
    x = net.input("x", ("N", 4))
    table = net.add(ops.Constant([1, 2, 3, 4], [4]))
    half = net.add(ops.Constant([0.5]))
    y = net.add(ops.Maximum(), net.add(ops.Mul(), x, half), net.add(ops.Sub(), table, x), half)
    source = assert_sound(net.graph(y=y)).source()
    assert "x * 0.5" in source or "torch.tensor(0.5)" in source


@pytest.mark.slow
def test_runs_under_torch_compile() -> None:
    graph = cnnc.load(RESIDUAL)
    program = compile(graph)
    module = program.module().eval()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for n in (2, 5):
        inputs = random_inputs(graph, N=n)
        with torch.no_grad():
            y = compiled(torch.from_numpy(inputs["image"]))
        np.testing.assert_allclose(y["logits"].numpy(), program(**inputs)["logits"], rtol=1e-5, atol=1e-6)
