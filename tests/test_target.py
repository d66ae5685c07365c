"""What all targets share: how those of other packages are used, and the inputs of programs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import TensorType
from cnnc.target import Program, Status, Target, ports
from conftest import Cli
from numerics import random_weights

if TYPE_CHECKING:
    from cnnc.target import Array, Weights


class Silent(Program):
    """Generates no source."""

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {}


class SilentTarget(Target):
    name, doc = "silent", "nothing"

    def status(self) -> Status:
        return Status(True, "")

    def compile(self, graph: Graph, weights: Weights, **options: str) -> Silent:
        return Silent(self.name, *ports(graph))

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Silent:
        raise NotImplementedError


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The target `silent` is installed, and the folder is empty."""
    entry = EntryPoint("silent", f"{__name__}:SilentTarget", "cnnc.targets")
    monkeypatch.setattr("cnnc.target.installed", lambda: {"silent": entry})
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("silent")
def test_a_target_without_source_prints_none(cli: Cli) -> None:
    result = cli("compile", "lenet5", "--target", "silent", "--print-source")
    assert result.exit_code == 7
    assert "error[E0605]: target `silent` generates no source to print" in result.stderr


@pytest.mark.usefixtures("silent")
def test_a_target_without_source_writes_programs(cli: Cli) -> None:
    assert cli("compile", "lenet5", "--target", "silent", "-o", "net.cnnp").exit_code == 0
    assert Path("net.cnnp").is_file()


class OnAGpu:
    """An array that cannot be read from here."""

    def __dlpack__(self, **_: object) -> object:
        raise BufferError("it is on a GPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize("value", [[[0.0], [0.0, 1.0]], OnAGpu()], ids=["ragged", "on a GPU"])
def test_what_is_no_array_is_refused(value: object) -> None:
    program = cnnc.compile(cnnc.load("model M { input x: f32[N, 2] output y y = x -> relu }"))
    with pytest.raises(CnncError, match=r"E0204.*input `x` cannot be read as an array"):
        program(x=value)


@pytest.mark.parametrize("target", ["numpy", "onnx", "cpu"])
@pytest.mark.parametrize("size", [5, 8])
def test_inputs_that_leave_nothing_are_refused(target: str, size: int) -> None:
    text = "model M { input x: f32[N, 3, H, W] output y y = x -> conv(4, 9) }"
    program = cnnc.compile(cnnc.load(text), target=target)
    with pytest.raises(CnncError, match="too small: output `y`") as caught:
        program(x=np.zeros((1, 3, size, 12), np.float32))
    assert [d.code for d in caught.value.diagnostics] == ["E0320"]


@pytest.mark.parametrize("target", ["numpy", "torch", "onnx", "cpu"])
def test_an_input_may_be_a_single_number(target: str) -> None:
    x = Input("x", TensorType.parse("f32[]"))
    program = cnnc.compile(Graph("M", (x,), {"y": Node.make(ops.Abs(), x, name="y")}), target)
    y = program(x=np.float32(-3))["y"]
    assert (y.shape, y) == ((), 3)


@pytest.mark.parametrize("target", ["numpy", "torch", "onnx", "cpu"])
def test_weights_that_change_later_change_no_program(target: str) -> None:
    """Training may go on with the arrays; some are in new ones by then, others not."""
    graph = cnnc.load("model M { input x: f32[N, 3, 8, 8]  output y  y = x -> conv(4, 3) -> bn -> relu -> conv(2, 1) }")
    weights, x = random_weights(graph), np.ones((1, 3, 8, 8), np.float32)
    program = cnnc.compile(graph, target, weights)
    before = program(x=x)["y"]
    for array in weights.values():
        array *= 2
    np.testing.assert_array_equal(program(x=x)["y"], before)


@pytest.mark.parametrize("target", ["numpy", "torch", "onnx", "cpu"])
def test_inputs_are_checked_whatever_fitted_before(target: str) -> None:
    text = "model M { input a: f32[N, 2]  input b: f32[N, K]  output y  y = concat { a | b } }"
    program = cnnc.compile(cnnc.load(text), target)

    def run(*shapes: tuple[int, int]) -> tuple[int, ...]:
        return program(**dict(zip("ab", (np.ones(shape, np.float32) for shape in shapes), strict=True)))["y"].shape

    for _ in range(2):
        assert run((3, 2), (3, 4)) == (3, 6)
        assert run((3, 2), (3, 1)) == (3, 3)
        assert run((1, 2), (1, 1)) == (1, 3)
        for wrong in [((3, 2), (1, 1)), ((1, 2), (3, 1)), ((1, 3), (1, 1)), ((0, 2), (0, 1))]:
            with pytest.raises(CnncError, match="E0320"):
                run(*wrong)


@pytest.mark.parametrize("name", ["numpy", "torch", "onnx", "cpu"])
def test_an_input_that_leaves_nothing_inside_is_refused(name: str, tmp_path: Path) -> None:
    """The output has a fixed shape, so only the sizes inside tell: saved programs know them too."""
    graph = cnnc.load("model M { input x: f32[N, 3, H, W] output y y = x -> conv(4, 9) -> gap -> flatten }")
    program = cnnc.compile(graph, name)
    program.save(tmp_path / "m.cnnp")
    for each in (program, cnnc.load_program(tmp_path / "m.cnnp")):
        assert each(x=np.ones((1, 3, 9, 9), np.float32))["y"].shape == (1, 4)
        with pytest.raises(CnncError, match=r"E0320.*inside the network H - 8 would be 0"):
            each(x=np.ones((1, 3, 8, 9), np.float32))
