"""Programs of the targets `cpu` and `cuda` as a whole: fusion, memory, artifacts, 16-bit types, errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import TensorType
from cnnc_tvm import KERNEL_SOURCE, CpuTarget, CudaTarget, cuda_device
from cnnc_tvm.plan import Plan
from cnnc_tvm.runtime import TvmProgram
from cuda_emulator import emulated
from numerics import Array, assert_agree, random_inputs, random_weights, single

RESIDUAL = """
def block(c) = add { conv(c, 3, pad=1, bias=false) -> bn -> relu -> conv(c, 3, pad=1) -> bn | id } -> relu
model Small {
  input image: DTYPE[N, 3, H=12, W=10]
  output out, taken
  x = image -> conv(16, 3, s=2, pad=1) -> silu -> block(16) -> block(16)
  taken = x
  out = concat { x | x -> depthwise: conv(16, 3, pad=1, groups=16) -> hard_swish | x -> maxpool(3, s=1, pad=1) }
    -> gap -> flatten -> linear(5) -> softmax
}
"""


def small(dtype: str = "f32") -> Graph:
    return cnnc.load(RESIDUAL.replace("DTYPE", dtype))


def compiled(target: str, graph: Graph, weights: dict[str, Array]) -> TvmProgram:
    return CpuTarget().compile(graph, weights) if target == "cpu" else emulated(CudaTarget().compile(graph, weights))


@pytest.fixture(scope="module")
def program() -> TvmProgram:
    graph = small()
    return CpuTarget().compile(graph, random_weights(graph))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_network_agrees_at_any_batch_in_any_order(target: str) -> None:
    graph = small()
    weights = random_weights(graph)
    run = compiled(target, graph, weights)
    for n in (3, 1, 2, 3):
        inputs = random_inputs(graph, seed=n, N=n)
        assert_agree(graph, weights, inputs, run(**inputs))


@pytest.mark.parametrize(("target", "dtype"), [("cpu", "f16"), ("cpu", "bf16"), ("cuda", "f16"), ("cuda", "bf16")])
def test_sixteen_bits(target: str, dtype: str) -> None:
    graph = small(dtype)
    weights = random_weights(graph)
    inputs = random_inputs(graph, N=2)
    assert_agree(graph, weights, inputs, compiled(target, graph, weights)(**inputs))


def test_a_symbolic_image_stays_symbolic() -> None:
    graph = cnnc.load(RESIDUAL.replace("DTYPE", "f32").replace("H=12", "H").replace("W=10", "W"))
    weights = random_weights(graph)
    run = CpuTarget().compile(graph, weights)
    for h, w in ((12, 10), (5, 23)):
        inputs = random_inputs(graph, N=2, H=h, W=w)
        assert_agree(graph, weights, inputs, run(**inputs))


def test_a_convolution_takes_in_what_follows_it(program: TvmProgram) -> None:
    functions = [step.function.rpartition("_")[0] for step in program.plan.steps]
    assert "conv_bn_relu" in functions
    assert "conv_bn_add_relu" in functions
    assert "bn" not in functions
    assert "relu" not in functions


def test_equal_layers_share_a_function(program: TvmProgram) -> None:
    fused = [step for step in program.plan.steps if step.function.startswith("conv_bn_add_relu")]
    assert len(fused) == 2
    assert fused[0].function == fused[1].function
    assert fused[0].args != fused[1].args


def test_compiling_is_deterministic(program: TvmProgram) -> None:
    graph = small()
    again = CpuTarget().compile(graph, random_weights(graph))
    assert again.plan == program.plan


def test_dead_memory_is_used_again(program: TvmProgram) -> None:
    """A chain of any length takes two slots."""
    x = Input("x", TensorType.parse("f32[N, 4, 8, 8]"))
    y: Input | Node = x
    for i in range(6):
        y = Node.make(ops.MaxPool(3, 1, pad=1), y, name=f"n{i}")
    plan = CpuTarget().compile(Graph("Chain", (x,), {"y": y}), {}).plan
    assert len(plan.slot_sizes({"N": 1})) == 2
    assert plan.slot_sizes({"N": 3}) == dict.fromkeys((0, 1), 3 * 4 * 8 * 8 * 4)


def test_no_value_is_overwritten_before_it_is_read(program: TvmProgram) -> None:
    plan = program.plan
    made = {step.args[-1] for step in plan.steps}
    held: dict[str | int, int] = {}  # what lies in each slot
    for reads, writes in [*((step.args[:-1], step.args[-1:]) for step in plan.steps), (plan.outputs.values(), ())]:
        for i in reads:
            tensor = plan.tensors[i]
            if tensor.place == "slot" and i in made:
                assert held[tensor.key] == i
            elif tensor.place == "slot":  # a view
                assert plan.tensors[held[tensor.key]].type.size == tensor.type.size
        for i in writes:
            assert plan.tensors[i].key not in {plan.tensors[j].key for j in reads}
            held[plan.tensors[i].key] = i


def test_the_plan_survives_json(program: TvmProgram) -> None:
    assert Plan.from_json(program.plan.to_json()) == program.plan


def test_too_large_a_batch_is_refused_before_memory_is_taken(program: TvmProgram) -> None:
    with pytest.raises(CnncError, match="E0502"):
        program.plan.slot_sizes({"N": 2**30})


def test_an_artifact_runs_elsewhere_without_the_compiler(program: TvmProgram, tmp_path: Path) -> None:
    inputs = random_inputs(small(), N=2)
    expected = program(**inputs)
    path = program.save(tmp_path / "small")
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = (
        "import sys, numpy as np; from cnnc.artifact import load_program; from pathlib import Path\n"
        "p = load_program(Path(sys.argv[1]), trust=True); y = p(**np.load(sys.argv[2])); np.savez(sys.argv[3], **y)\n"
        "heavy = {'tvm', 'torch', 'onnx'} & sys.modules.keys(); assert not heavy, heavy"
    )
    paths = [str(path), str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz")]
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    subprocess.run([sys.executable, "-c", script, *paths], check=True, env=environment)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert set(outputs) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(outputs[name], array)


def test_source() -> None:
    graph = single(ops.Relu(), TensorType.parse("f32[N, 8]"))
    assert "define" in CpuTarget().compile(graph, {}).source()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_is_compiled_without_a_gpu_and_refuses_to_run_there(arch: str, tmp_path: Path) -> None:
    graph = small()
    program = cnnc.compile(graph, "cuda", random_weights(graph), arch=arch)
    text = program.source()
    assert "__global__" in text
    assert text.count("blockIdx.x") >= len(program.plan.kernels)  # type: ignore[attr-defined]
    path = program.save(tmp_path / "small")
    loaded = cnnc.load_program(path)
    assert loaded.source() == text
    assert loaded.files().keys() == {"plan.json", "weights.safetensors", "kernels.fatbin", KERNEL_SOURCE}
    if cuda_is_absent():
        with pytest.raises(CnncError, match=r"E0625.*NVIDIA GPU"):
            loaded(**random_inputs(graph, N=1))


def cuda_is_absent() -> bool:
    try:
        cuda_device.Driver()
    except CnncError:
        return True
    return False


def relu() -> Graph:
    return single(ops.Relu(), TensorType.parse("f32[N, 8]"))


def test_no_cuda_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnc_tvm.cuda_compiler.find_nvcc", lambda: None)
    monkeypatch.setattr("cnnc_tvm.cuda_compiler.find_nvrtc", lambda: None)
    with pytest.raises(CnncError, match="E0623"):
        CudaTarget().compile(relu(), {})
    assert not CudaTarget().status().works


def test_no_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(CnncError, match="E0621"):
        CpuTarget().compile(relu(), {})
    assert not CpuTarget().status().works


def test_unknown_machines() -> None:
    with pytest.raises(CnncError, match=r"E0622.*pentium9"):
        CpuTarget().compile(relu(), {}, mcpu="pentium9")
    with pytest.raises(CnncError, match=r"E0622.*turing"):
        CudaTarget().compile(relu(), {}, arch="turing")
    with pytest.raises(CnncError, match="E0624"):  # it is written as one, but nvcc knows none of that number
        CudaTarget().compile(relu(), {}, arch="sm_999")


def test_an_older_cpu_can_be_compiled_for() -> None:
    graph = small()
    weights = random_weights(graph)
    inputs = random_inputs(graph, N=1)
    assert_agree(graph, weights, inputs, CpuTarget().compile(graph, weights, mcpu="x86-64-v3")(**inputs))


def test_constants_and_scalars() -> None:
    graph = cnnc.load(
        "model M { input x: f32[N, 3, 4, 4]  output y  y = add { mul { x | constant(2.5) } | "
        "constant([1.0, 2.0, 3.0], shape=[3, 1, 1]) } }"
    )
    inputs = random_inputs(graph, N=2)
    for target in ("cpu", "cuda"):
        assert_agree(graph, {}, inputs, compiled(target, graph, {})(**inputs))


def test_an_op_without_a_rule() -> None:
    graph = single(ops.Anchors([32], [1.0], 16), TensorType.parse("f32[N, 3, 8, 8]"))
    for target in (CpuTarget(), CudaTarget()):
        with pytest.raises(CnncError, match=r"E0601.*anchors"):
            target.compile(graph, {})
