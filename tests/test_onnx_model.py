"""The models the target `onnx` writes: names, places, types, versions, files; and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

from cnnc import ops
from cnnc.diagnostics import CnncError, Source, Span
from cnnc.ir.dim import Sym
from cnnc.ir.graph import Frame, Graph, Input, Node, Origin
from cnnc.ir.types import DType, TensorType
from cnnc_onnx import OnnxTarget
from cnnc_onnx.lower import lower
from cnnc_onnx.opset import newest
from cnnc_onnx.program import OnnxProgram
from networks import Unruled
from numerics import assert_agree, random_inputs, random_weights, single

N, H, W = map(Sym.of, "NHW")
SOURCE = Source("net.cnn", "model Net {\n  image -> stem: conv(4, 3, s=2) -> relu\n}\n")


def origin(text: str) -> Origin:
    start = SOURCE.text.index(text)
    return Origin(Span(SOURCE, start, start + len(text)), Frame("stage(c=4)", Frame("Net")))


def net() -> Graph:
    """Two outputs, dropout in the middle, shared weights, symbolic rows and columns."""
    image = Input("image", TensorType((N, 3, 2 * H, W)), doc="an RGB picture")
    stem = Node.make(ops.Conv(4, 3, stride=2), image, name="stem", origin=origin("conv(4, 3, s=2)"))
    relu = Node.make(ops.Relu(), stem, name="stem.relu", origin=origin("relu"))
    dropped = Node.make(ops.Dropout(), relu, name="drop")
    shared = Node.make(ops.Conv(4, 1), dropped, name="mix")
    again = Node(ops.Conv(4, 1), (shared,), shared.params, "mix2")
    pooled = Node.make(ops.Flatten(), Node.make(ops.GlobalAvgPool(), again, name="gap"), name="flat")
    return Graph("Net", (image,), {"logits": pooled, "features": relu}, doc="A small net.")


def compiled(graph: Graph, **options: str) -> tuple[OnnxProgram, onnx.ModelProto]:
    program = OnnxTarget().compile(graph, random_weights(graph), **options)
    return program, onnx.load_model_from_string(program.files()["model.onnx"])


def test_the_network_agrees_and_its_dims_stay_symbolic() -> None:
    graph = net()
    program, _ = compiled(graph)
    for n, h, w in ((1, 4, 9), (3, 7, 12)):
        inputs = random_inputs(graph, N=n, H=h, W=w)
        assert_agree(graph, random_weights(graph), inputs, program(**inputs))


def test_names_are_those_of_the_graph() -> None:
    _, model = compiled(net())
    assert [x.name for x in model.graph.initializer] == ["stem.weight", "stem.bias", "mix.weight", "mix.bias"]
    assert [x.name for x in model.graph.node] == ["stem", "stem.relu", "mix", "mix2", "gap", "flat/Constant", "flat"]
    assert [x.output[0] for x in model.graph.node if "/" not in x.name] == [
        "stem", "features", "mix", "mix2", "gap", "logits",
    ]  # fmt: skip
    assert model.graph.node[2].input[0] == "features"  # dropout is gone


def test_documentation_and_places() -> None:
    _, model = compiled(net())
    stem, relu, *_ = model.graph.node
    assert stem.doc_string == "net.cnn:2:18 in Net > stage(c=4)"
    assert relu.doc_string == "net.cnn:2:37 in Net > stage(c=4)"
    assert (model.doc_string, model.graph.name) == ("A small net.", "Net")
    assert model.graph.input[0].doc_string == "an RGB picture"
    assert (model.producer_name, [(x.domain, x.version) for x in model.opset_import]) == ("cnnc", [("", newest())])


def test_dims_are_texts() -> None:
    _, model = compiled(net())
    shapes = {
        x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
        for x in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    assert shapes["image"] == ["N", 3, "2*H", "W"]
    assert shapes["stem"] == ["N", 4, "H - 1", "(W + 1)//2 - 1"]
    assert shapes["logits"] == ["N", 4]


def test_the_whole_model_passes_the_full_check_and_the_inferred_types_are_ours() -> None:
    graph = net()
    _, model = compiled(graph)
    onnx.checker.check_model(model, full_check=True)
    ours = {x.name: x for x in (*model.graph.value_info, *model.graph.output)}
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    compared = 0
    for found in inferred.graph.value_info:
        if found.name in ours:
            pairs = zip(found.type.tensor_type.shape.dim, ours[found.name].type.tensor_type.shape.dim, strict=True)
            for theirs, mine in pairs:
                assert theirs.dim_value == mine.dim_value
                compared += bool(mine.dim_value)
    assert compared > 4


def test_a_wrong_type_is_caught_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = net()
    conv = graph.nodes[0]
    object.__setattr__(conv, "type", conv.type.with_shape((N, 5, H - 1, 7)))
    with pytest.raises(onnx.shape_inference.InferenceError):
        lower(graph, random_weights(graph), newest())


def test_the_reference_evaluator_of_onnx_agrees() -> None:
    """A second opinion on the model, of an implementation that shares no code with ONNX Runtime."""
    graph = net()
    _, model = compiled(graph)
    inputs = random_inputs(graph, N=2, H=4, W=9)
    results = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    assert_agree(graph, random_weights(graph), inputs, dict(zip(graph.outputs, results, strict=True)))


def test_bytes_are_the_same_in_another_process() -> None:
    program, _ = compiled(net())
    again, _ = compiled(net())
    assert again.files() == program.files()
    code = "import sys, test_onnx_model as t; sys.stdout.buffer.write(t.compiled(t.net())[0].data)"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert run.stdout == program.data


def test_outputs_that_are_inputs_or_share_a_value() -> None:
    x = Input("x", TensorType((N, 2)))
    y = Node.make(ops.Relu(), x, name="y")
    dropped = Node.make(ops.Dropout(), y, name="drop")
    graph = Graph("Odd", (x,), {"x": x, "a": x, "b": y, "c": y, "d": dropped, "b.1": dropped})
    program, model = compiled(graph)
    assert [port.name for port in program.outputs] == ["x", "a", "b", "c", "d", "b.1"]
    value = np.array([[1, -1]], np.float32)
    for name, result in program(x=value).items():
        np.testing.assert_array_equal(result, value if name in "xa" else np.maximum(value, 0))
    onnx.checker.check_model(model, full_check=True)


def test_names_that_clash_with_weights_and_outputs() -> None:
    x = Input("x", TensorType((N, 2)))
    first = Node.make(ops.Linear(2), x, name="fc")
    second = Node.make(ops.Relu(), first, name="fc.weight")
    third = Node.make(ops.Sigmoid(), second, name="y")
    graph = Graph("Clash", (x,), {"y": Node.make(ops.Tanh(), third, name="x")})
    program, model = compiled(graph)
    assert [x.output[0] for x in model.graph.node] == ["fc", "fc.weight/2", "y/2", "y"]
    inputs = random_inputs(graph, N=2)
    assert_agree(graph, random_weights(graph), inputs, program(**inputs))


def test_save_and_load(tmp_path: Path) -> None:
    graph = net()
    program, _ = compiled(graph)
    again = OnnxTarget().load({}, program.files())
    assert (again.inputs, again.outputs) == (program.inputs, program.outputs)
    inputs = random_inputs(graph, N=2, H=4, W=9)
    for name, result in program(**inputs).items():
        np.testing.assert_array_equal(again(**inputs)[name], result)
    program.export(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == program.files()["model.onnx"]


def test_source_is_readable() -> None:
    program, _ = compiled(net())
    text = program.source()
    assert 'doc_string: "A small net."' in text
    assert "float[4,3,3,3] stem.weight" in text.replace('"', "")
    assert "Conv" in text


@pytest.mark.parametrize("opset", ["13", "18", str(newest())])
def test_an_opset_that_is_asked_for(opset: str) -> None:
    _, model = compiled(net(), opset=opset)
    assert model.opset_import[0].version == int(opset)


@pytest.mark.parametrize("opset", ["12", "999", str(newest() + 1), "-1", "latest", "", "١٧"])
def test_an_opset_there_is_not(opset: str) -> None:
    with pytest.raises(CnncError, match=r"E0670.*a number from 13 to"):
        compiled(net(), opset=opset)


def test_every_op_that_needs_a_newer_opset_is_reported_at_its_line() -> None:
    graph = net()
    relu = graph.outputs["features"]
    norm = Node.make(ops.LayerNorm(1, affine=False), relu, name="ln", origin=origin("relu"))
    pool = Node.make(ops.L2Pool(2, ceil=True), norm, name="pool", origin=origin("stem"))
    with pytest.raises(CnncError) as caught:
        compiled(graph.with_outputs({"y": pool}), opset="16")
    first, second = caught.value.diagnostics
    assert first.message == "target `onnx` writes `layer_norm` from opset 17 on, and opset 16 was asked for"
    assert first.path == ("Net", "stage(c=4)")
    assert [str(x.primary and x.primary.span) for x in (first, second)] == ["net.cnn:2:37", "net.cnn:2:12"]
    assert caught.value.exit_status == 7


def test_an_op_without_a_rule() -> None:
    with pytest.raises(CnncError, match=r"E0601.*`onnx` has no rule for `unruled`"):
        OnnxTarget().compile(single(Unruled(), TensorType((N, 4))), {})


def test_a_kernel_onnx_runtime_lacks() -> None:
    """The model is valid, but nothing runs it here."""
    graph = single(ops.RoiPool(2), TensorType((N, 3, 8, 8)), TensorType((N, 2, 4)))
    program, model = compiled(graph, opset=str(newest()))
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(CnncError, match=r"E0671.*no kernel for `MaxRoiPool` of node `node`, opset"):
        program(**random_inputs(graph, N=1))


def test_inputs_too_small_for_a_kernel() -> None:
    """ONNX Runtime has fused the convolution with its relu, and names the relu's output."""
    graph = net()
    graph = graph.with_outputs({"logits": graph.outputs["logits"]})
    program, _ = compiled(graph)
    with pytest.raises(CnncError, match=r"E0672(?s:.*)`image` \[1, 3, 2, 9\](?s:.*)written at net.cnn:2:37"):
        program(**random_inputs(graph, N=1, H=1, W=9))


def test_weights_beyond_two_gigabytes() -> None:
    graph = single(ops.Linear(2**15), TensorType((N, 2**15)))
    with pytest.raises(CnncError, match=r"E0510.*4,295,098,368 bytes"):
        OnnxTarget().compile(graph, {})


def test_f16_weights_are_stored_as_such() -> None:
    graph = single(ops.Conv(4, 3), TensorType((N, 3, 9, 9), DType.F16))
    _, model = compiled(graph)
    assert {x.data_type for x in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert [x.op_type for x in model.graph.node] == ["Conv"]


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\x07", b"\xff" * 40])
def test_files_that_are_no_model(data: bytes) -> None:
    with pytest.raises(CnncError, match="E0470"):
        OnnxTarget().load({}, {"model.onnx": data})


def test_every_flipped_byte_loads_or_is_refused() -> None:
    program, _ = compiled(net())
    for position in range(0, len(program.data), 7):
        data = bytearray(program.data)
        data[position] ^= 0x41
        try:
            OnnxTarget().load({}, {"model.onnx": bytes(data)})
        except CnncError as e:
            assert e.diagnostics[0].code == "E0470"  # noqa: PT017


def external(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="net.cnn")


def test_models_that_reach_beyond_themselves_are_refused() -> None:
    """Nothing an artifact holds makes ONNX Runtime open a file, or hides nodes in subgraphs and functions."""
    _, weights = compiled(net())
    external(weights.graph.initializer[0])
    _, constant = compiled(net())
    external(next(x for x in constant.graph.node if x.op_type == "Constant").attribute[0].t)
    _, subgraph = compiled(net())
    branch = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["z"])], "b", [], [
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    ])  # fmt: skip
    constant_true = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.array(True)))
    choose = onnx.helper.make_node("If", ["c"], ["unused"], then_branch=branch, else_branch=branch)
    subgraph.graph.node.extend([constant_true, choose])
    for model in (weights, constant, subgraph):
        with pytest.raises(CnncError, match=r"E0470.*data in other files, subgraphs or functions"):
            OnnxTarget().load({}, {"model.onnx": model.SerializeToString()})


def test_status_and_laziness() -> None:
    assert OnnxTarget().status().works
    code = "import sys, cnnc_onnx; cnnc_onnx.OnnxTarget().status(); print({'onnx', 'onnxruntime'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
