"""`cnnc compile` and `cnnc run`: from a model to numbers, as a user meets it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

import cnnc
from cnnc import weights
from cnnc.cli.inputs import arrays
from cnnc.diagnostics import CnncError
from cnnc.ir.dim import Dim, Sym
from cnnc.ir.types import DType, TensorType
from cnnc.target import Port
from conftest import Cli

MEAN = """
model Mean {
  ## Values 0..255.
  input image: f32[N, 3, 4, 4]
  output scores
  scores = image -> gap -> flatten
}
"""
NET = """
model Net(classes=4) {
  input image: f32[N, 3, H=8, W=8]
  output scores
  scores = image -> conv(4, 3) -> gap -> flatten -> fc: linear(classes)
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mean.cnn").write_text(MEAN)
    Path("net.cnn").write_text(NET)
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 250, 10
    Image.fromarray(pixels).save("red.png")


# compile


def test_compile_writes_a_program_named_like_the_file(cli: Cli) -> None:
    result = cli("compile", "net.cnn", "-t", "numpy")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("note: the weights are random (seed 0)")
    assert "wrote net.cnnp (" in result.stderr
    assert [port.name for port in cnnc.load_program("net.cnnp").inputs] == ["image"]


def test_compile_of_a_model_without_weights_says_nothing_of_them(cli: Cli) -> None:
    assert "random" not in cli("compile", "mean.cnn", "-t", "numpy").stderr


def test_compile_names_the_program_after_the_model_asked_for(cli: Cli) -> None:
    cli("compile", "net.cnn:Net", "-t", "numpy")
    assert Path("Net.cnnp").exists()
    cli("compile", "-", "-t", "numpy", input=MEAN)
    assert Path("model.cnnp").exists()


def test_compile_writes_the_format_of_the_target(cli: Cli) -> None:
    assert cli("compile", "net.cnn", "-t", "numpy", "-o", "net.py").exit_code == 0
    assert "import numpy" in Path("net.py").read_text()


def test_compile_prints_the_source_and_writes_nothing(cli: Cli) -> None:
    result = cli("compile", "net.cnn", "-t", "numpy", "--print-source")
    assert "import numpy as np" in result.stdout
    assert not Path("net.cnnp").exists()


def test_compile_as_json(cli: Cli) -> None:
    options = ("-t", "numpy", "-o", "n.cnnp", "--dim", "N=2", "--print-source", "--json")
    found = json.loads(cli("compile", "net.cnn", *options).stdout)
    assert found["program"] == "n.cnnp"
    assert found["bytes"] == Path("n.cnnp").stat().st_size
    assert found["inputs"] == {"image": "f32[2, 3, 8, 8]"}
    assert found["outputs"] == {"scores": "f32[2, 4]"}
    assert "import numpy" in found["source"]


def test_weights_come_from_a_file_or_a_seed(cli: Cli) -> None:
    graph = cnnc.load("net.cnn")
    weights.save("w.safetensors", weights.init(graph, 7))
    for i, source in enumerate((["--weights", "w.safetensors"], ["--seed", "7"], ["--seed", "8"])):
        result = cli("compile", "net.cnn", "-t", "numpy", "-o", f"{i}.cnnp", *source)
        assert (result.exit_code, "random" in result.stderr) == (0, False)
    x = np.ones((1, 3, 8, 8), np.float32)
    a, b, c = (cnnc.load_program(f"{i}.cnnp")(image=x)["scores"] for i in range(3))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_weights_that_are_not_finite_are_told_once(cli: Cli) -> None:
    broken = weights.init(cnnc.load("net.cnn"), 0)
    broken["fc.bias"][1] = np.nan
    weights.save("nan.npz", broken)
    result = cli("compile", "net.cnn", "-t", "numpy", "--weights", "nan.npz")
    assert result.exit_code == 0
    assert result.stderr.count("warning[E0407]") == 1
    assert "`fc.bias`: 1 of 4" in result.stderr
    assert cli("compile", "net.cnn", "-t", "numpy", "--weights", "nan.npz", "--strict").exit_code == 5


def test_a_wrong_target_is_told_before_the_model_is_read(cli: Cli) -> None:
    Path("broken.cnn").write_text("model {")
    result = cli("compile", "broken.cnn", "-t", "cudda")
    assert (result.exit_code, "error[E0602]" in result.stderr) == (7, True)
    assert "did you mean `cuda`?" in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (["-t", "nothing"], 7, "E0602"),
        (["-t", "numpy", "-X", "colour=red"], 2, "E0902"),
        (["-t", "numpy", "--opset", "20"], 2, "E0902"),
        (["-t", "numpy", "-X", "weights=1"], 2, "E0902"),
        (["-t", "numpy", "--optimise", "4"], 2, "E0902"),
        (["-t", "numpy", "--passes", "-no_such_pass"], 2, "E0902"),
        (["-t", "numpy", "-o", "none/net.cnnp"], 74, "E0901"),
        (["-t", "numpy", "-o", "."], 74, "E0901"),
        (["-t", "numpy", "-o", "net.onnx"], 2, "E0902"),
        (["-t", "numpy", "-o", "net.cnn"], 2, "E0902"),
        (["-t", "cpu", "-o", "net.so"], 2, "E0902"),
        (["-t", "numpy", "-o", "numpy.py"], 2, "E0902"),
        (["-t", "numpy", "--seed", "1", "--weights", "w.npz"], 2, "E0902"),
        (["-t", "numpy", "--weights", "none.npz"], 74, "E0901"),
        (["-t", "numpy", "--weights", "red.png"], 5, "E0404"),
        (["-t", "numpy", "--seed", "-1"], 2, "E0902"),
        (["-t", "onnx", "--opset", "20", "-X", "opset=21"], 2, "E0902"),
        ([], 2, "E0902"),
    ],
    ids=str,
)
def test_compile_refuses(cli: Cli, options: list[str], status: int, code: str) -> None:
    result = cli("compile", "net.cnn", *options)
    assert result.exit_code == status
    assert f"error[{code}]" in result.stderr
    assert not list(Path().glob("*.cnnp"))
    assert Path("net.cnn").read_text() == NET


def test_passes_are_chosen(cli: Cli) -> None:
    Path("bn.cnn").write_text(NET.replace("conv(4, 3)", "conv(4, 3) -> bn"))
    folded, *plain = (
        cli("compile", "bn.cnn", "-t", "numpy", "--print-source", "--seed", "0", *options).stdout
        for options in ([], ["--optimise", "0"], ["--passes=-fold_batch_norm,-fold_scale"])
    )
    assert all("running_var" in source and "running_var" not in folded for source in plain)


def test_options_reach_the_target(cli: Cli) -> None:
    assert cli("compile", "net.cnn", "-t", "onnx", "--opset", "20", "-o", "net.onnx").exit_code == 0
    assert cli("compile", "net.cnn", "-t", "onnx", "-X", "opset=3").exit_code == 7


# run


@pytest.mark.parametrize("program", ["mean.cnn", "mean.cnnp"])
def test_run_gives_the_numbers_of_a_picture(cli: Cli, program: str) -> None:
    assert cli("compile", "mean.cnn", "-t", "numpy").exit_code == 0
    result = cli("run", program, "--input", "image=red.png", "-o", "out.npz", "--top", 2)
    assert result.exit_code == 0
    with np.load("out.npz") as out:
        np.testing.assert_array_equal(out["scores"], np.array([[250, 0, 10]], np.float32))
    head, *best = result.stdout.splitlines()
    assert head == "scores: float32[1, 3]"
    assert best == ["  100.00%  class 0  (250)", "    0.00%  class 2  (10)"]


def test_run_names_the_classes(cli: Cli) -> None:
    Path("names.txt").write_text("red\ngreen\nblue\n")
    result = cli("run", "mean.cnn", "-i", "image=red.png", "-i", "image=red.png", "--top", 1, "--labels", "names.txt")
    assert result.stdout.splitlines()[1:] == ["  [0] 100.00%  red  (250)", "  [1] 100.00%  red  (250)"]
    result = cli("run", "mean.cnn", "-i", "image=red.png", "--labels", "names.txt")
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == ["red", "blue", "green"]


def test_run_takes_probabilities_as_they_are(cli: Cli) -> None:
    Path("p.cnn").write_text(MEAN.replace("flatten", "flatten -> softmax"))
    np.save("x.npy", np.zeros((1, 3, 4, 4), np.float32))
    result = cli("run", "p.cnn", "-i", "image=x.npy", "--top", 1)
    assert result.stdout.splitlines()[1] == "   33.33%  class 0  (0.333333)"


def test_run_as_json(cli: Cli) -> None:
    found = json.loads(cli("run", "mean.cnn", "-i", "image=red.png", "--json").stdout)
    mean = pytest.approx(260 / 3)
    assert found == {"scores": {"shape": [1, 3], "dtype": "float32", "min": 0, "mean": mean, "max": 250}}
    found = json.loads(cli("run", "mean.cnn", "-i", "image=red.png", "--json", "--top", 1).stdout)
    assert found["scores"]["top"] == [[{"class": 0, "label": "class 0", "score": 250.0, "probability": 1.0}]]


def test_run_shows_what_is_not_finite(cli: Cli) -> None:
    x = np.zeros((1, 3, 4, 4), np.float32)
    x[0, 1, 2, 2] = np.nan
    np.save("x.npy", x)
    assert cli("run", "mean.cnn", "-i", "image=x.npy").stdout.splitlines()[1] == "  min nan, mean nan, max nan"
    found = json.loads(cli("run", "mean.cnn", "-i", "image=x.npy", "--json").stdout, parse_constant=pytest.fail)
    assert found["scores"]["mean"] is None


def test_run_in_half_precision(cli: Cli) -> None:
    for target, dtype in (("numpy", "f16"), ("onnx", "bf16")):
        result = cli("run", "mean.cnn", "-t", target, "-i", "image=red.png", "--dtype", dtype, "--top", 1)
        assert result.exit_code == 0
        assert result.stdout.splitlines()[1] == "  100.00%  class 0  (250)"


def test_arrays_of_f32_are_rounded_to_16_bits(cli: Cli) -> None:
    image = np.full((1, 3, 4, 4), 250.3, np.float32)
    rounded = image.astype(ml_dtypes.bfloat16)
    np.save("f32.npy", image)
    np.save("f64.npy", image.astype(np.float64))
    np.savez("f32.npz", image=image)
    np.save("bf16.npy", rounded)  # whose header calls it two bytes
    for name, dtype in (("f32.npy", "bf16"), ("bf16.npy", "bf16"), ("f32.npz", "f16")):
        result = cli("run", "mean.cnn", "-t", "onnx", "-i", f"image={name}", "--dtype", dtype)
        assert result.stdout.splitlines()[1].startswith("  min 250"), result.stderr
    refused = cli("run", "mean.cnn", "-t", "onnx", "-i", "image=f64.npy", "--dtype", "bf16")
    assert "E0303" in refused.stderr
    assert "image.astype(ml_dtypes.bfloat16)" in refused.stderr


def test_run_without_top_shows_the_range(cli: Cli) -> None:
    result = cli("run", "mean.cnn", "-i", "image=red.png")
    assert result.stdout.splitlines()[1] == "  min 0, mean 86.6667, max 250"


def test_run_compiles_as_told(cli: Cli) -> None:
    options = ("--set", "classes=2", "--dim", "H=16,W=16", "--seed", "3", "-t", "numpy", "--json")
    found = json.loads(cli("run", "net.cnn", "-i", "image=random", *options).stdout)
    assert found["scores"]["shape"] == [1, 2]


def test_run_reads_standard_input(cli: Cli) -> None:
    assert cli("run", "-", "-i", "image=zeros", input=MEAN).exit_code == 0


@pytest.mark.parametrize(
    ("args", "status", "code"),
    [
        ([], 4, "E0204"),
        (["-i", "imgae=red.png"], 2, "E0902"),
        (["-i", "image"], 2, "E0902"),
        (["-i", "image=none.png"], 74, "E0901"),
        (["-i", "image=mean.cnn"], 5, "E0440"),
        (["-i", "image=red.png", "--labels", "none.txt"], 74, "E0901"),
        (["-i", "image=red.png", "-o", "out.txt"], 2, "E0902"),
        (["-i", "image=red.png", "-o", "none/out.npz"], 74, "E0901"),
        (["-i", "image=red.png", "--weights", "w.npz", "--seed", "0"], 2, "E0902"),
        (["-i", "image=f64.npy"], 4, "E0303"),
        (["-i", "image=objects.npy"], 8, "E0701"),
        (["-i", "image=short.npy"], 5, "E0402"),
        (["-i", "image=empty.npy"], 5, "E0402"),
        (["-i", "image=two.npz"], 2, "E0902"),
    ],
    ids=str,
)
def test_run_refuses(cli: Cli, args: list[str], status: int, code: str) -> None:
    np.save("f64.npy", np.zeros((1, 3, 4, 4)))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.savez("two.npz", a=np.zeros(1), b=np.zeros(1))
    Path("short.npy").write_bytes(Path("f64.npy").read_bytes()[:-1])
    Path("empty.npy").write_bytes(b"")
    result = cli("run", "mean.cnn", *args)
    assert f"error[{code}]" in result.stderr
    assert result.exit_code == status


def test_top_needs_scores(cli: Cli) -> None:
    Path("map.cnn").write_text(MEAN.replace("gap -> flatten", "relu"))
    result = cli("run", "map.cnn", "-i", "image=red.png", "--top", 3)
    assert (result.exit_code, "--top and --labels need an output" in result.stderr) == (2, True)


def test_a_program_takes_no_options_of_a_model(cli: Cli) -> None:
    cli("compile", "mean.cnn", "-t", "numpy")
    for option in (["--set", "a=1"], ["--weights", "w.npz"], ["--seed", "0"], ["-t", "numpy"], ["--dtype", "f16"]):
        assert cli("run", "mean.cnnp", "-i", "image=red.png", *option).exit_code == 2


def test_a_size_that_a_program_does_not_have_is_refused(cli: Cli) -> None:
    cli("compile", "mean.cnn", "-t", "numpy")
    result = cli("run", "mean.cnnp", "-i", "image=random", "--dim", "H=8")
    assert (result.exit_code, "have no dimension `H`: they have `N`" in result.stderr) == (4, True)


def test_native_code_of_others_needs_trust(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("compile", "mean.cnn", "-t", "cpu").exit_code == 0
    assert cli("run", "mean.cnnp", "-i", "image=red.png").exit_code == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("another user").absolute()))
    result = cli("run", "mean.cnnp", "-i", "image=red.png")
    assert result.exit_code == 8
    assert "--trust" in result.stderr
    assert cli("run", "mean.cnnp", "-i", "image=red.png", "--trust").exit_code == 0


def test_a_damaged_program_is_refused(cli: Cli) -> None:
    Path("bad.cnnp").write_bytes(b"PK\x03\x04nonsense")
    assert cli("run", "bad.cnnp", "-i", "image=red.png").exit_code == 5
    with zipfile.ZipFile("empty.cnnp", "w"):
        pass
    assert cli("run", "empty.cnnp", "-i", "image=red.png").exit_code == 5


# inputs


def port(*shape: Dim, dtype: DType = DType.F32) -> Port:
    return Port("x", TensorType(shape, dtype))


def test_generated_inputs() -> None:
    N, H = Sym.of("N"), Sym.of("H")
    (first,) = arrays([port(N, 3, H)], [("x", "random")], {"H": 5}).values()
    (again,) = arrays([port(N, 3, H)], [("x", "random")], {"H": 5}).values()
    assert (first.shape, first.dtype) == ((1, 3, 5), np.float32)
    np.testing.assert_array_equal(first, again)
    assert 0 <= first.min() < first.max() < 1
    (zeros,) = arrays([port(2 * N, 3, dtype=DType.F16)], [("x", "zeros")], {"N": 2}).values()
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((4, 3), np.float16, False)
    with pytest.raises(CnncError, match="--dim H="):
        arrays([port(N, 3, H)], [("x", "random")], {})


def test_arrays_are_used_as_they_are() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save("x.npy", x.T)
    np.savez("named.npz", y=np.zeros(2), x=x)
    np.savez("only.npz", y=x)
    for name, expected in (("x.npy", x.T), ("named.npz", x), ("only.npz", x)):
        np.testing.assert_array_equal(arrays([port(3, 4)], [("x", name)], {})["x"], expected)


@pytest.mark.parametrize("given", [-1, None, 1.5, ["w.npz"]])
def test_what_is_no_source_of_weights(given: object) -> None:
    with pytest.raises(CnncError) as caught:
        cnnc.compile(cnnc.load(NET), weights=given)  # type: ignore[arg-type]
    assert [d.code for d in caught.value.diagnostics] == ["E0902"]


def test_a_program_is_printed_in_a_line() -> None:
    program = cnnc.compile(cnnc.load(MEAN))
    assert repr(program) == "<Program for numpy(image: f32[N, 3, 4, 4]) -> scores: f32[N, 3]>"


def test_a_file_named_like_a_generator_is_a_file() -> None:
    Path("zeros").write_bytes(Path("red.png").read_bytes())
    (array,) = arrays([port(1, 3, 4, 4)], [("x", "zeros")], {}).values()
    assert array.any()
