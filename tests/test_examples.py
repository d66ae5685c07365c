"""The examples do what their pages say: trained digits on every target, and a target in a package of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import cnnc

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"
THIRD_PARTY = ROOT / "examples" / "third_party_target"


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DIGITS)
    import dataset

    return dataset


def python(*arguments: object, **environment: str) -> str:
    """What a Python process prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=500,
        env=os.environ | {"PYTHONUTF8": "1"} | environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_facts_of_the_digit_network_hold() -> None:
    from cnnc.driver import check_file

    report = check_file(DIGITS / "digits.cnn", facts=True)
    assert report.diagnostics == ()
    assert [fact.holds for fact in report.facts] == [True] * 4


def test_the_split_is_fixed_and_holds_out_each_class(dataset: ModuleType) -> None:
    learn, held_out = dataset.digits()
    assert (learn.images.shape, held_out.images.shape) == ((1347, 1, 8, 8), (450, 1, 8, 8))
    assert set(np.bincount(held_out.labels)) <= {43, 44, 45, 46, 47}
    seen = {image.tobytes() for image in learn.images}
    assert sum(image.tobytes() in seen for image in held_out.images) == 0, "a held-out digit was learnt from"
    np.testing.assert_array_equal(dataset.digits()[1].images, held_out.images)


@pytest.mark.slow
def test_all_targets_read_the_held_out_digits_alike(dataset: ModuleType) -> None:
    """To the last image, and as many right as the example's page says."""
    _, held_out = dataset.digits()
    graph = cnnc.load(dataset.MODEL)
    read = {
        target: cnnc.compile(graph, target, dataset.WEIGHTS)(digit=held_out.images)["scores"].argmax(1)
        for target in ("numpy", "cpu", "onnx", "torch")
    }
    for target, answers in read.items():
        np.testing.assert_array_equal(answers, read["numpy"], err_msg=target)
    right = int((read["numpy"] == held_out.labels).sum())
    assert right >= 0.98 * 450
    assert f"{right} of 450" in (DIGITS / "README.md").read_text("utf-8")


def test_the_committed_weights_are_small(dataset: ModuleType) -> None:
    assert dataset.WEIGHTS.stat().st_size < 300_000


def test_the_picture_is_the_first_seven_held_out(dataset: ModuleType) -> None:
    from cnnc.images import read_images

    _, held_out = dataset.digits()
    (port,) = cnnc.compile(cnnc.load(dataset.MODEL)).inputs
    picture = read_images([DIGITS / "seven.png"], port)[0]
    np.testing.assert_allclose(picture, held_out.images[held_out.labels == 7][0], atol=16 / 255)


@pytest.mark.slow
def test_training_learns(tmp_path: Path, dataset: ModuleType) -> None:
    """Two epochs of sixty: the loss falls, and the weights that it saves fit the network and read most digits."""
    weights = tmp_path / "digits.safetensors"
    printed = python(DIGITS / "train.py", "--epochs", 2, "--out", weights)
    assert (found := re.search(r"epoch +2  loss (\d\.\d+)", printed))
    assert float(found[1]) < np.log(10) / 2
    _, held_out = dataset.digits()
    scores = cnnc.compile(cnnc.load(dataset.MODEL), "numpy", weights)(digit=held_out.images)["scores"]
    right = int((scores.argmax(1) == held_out.labels).sum())
    assert right > 300
    assert f"{right} of 450 held-out digits right" in printed


def test_the_demo_shows_digits_and_counts(dataset: ModuleType) -> None:
    printed = python(DIGITS / "demo.py", "--target", "numpy", "--count", 3)
    assert len(re.findall(r"it is \d", printed)) == 3
    assert printed.count("%") == 3 * 3 + 1
    assert "██" in printed
    right = re.search(r"(\d+) of 450 held-out digits right \((\d+\.\d+)%\)", printed)
    assert right
    assert float(right[2]) >= 98


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has built and installed the package of the third-party target."""
    folder = tmp_path_factory.mktemp("third_party")
    source = folder / "source"  # a copy: a build leaves folders behind
    for path in THIRD_PARTY.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(THIRD_PARTY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    python(*pip, "--target", folder / "site", source)
    return folder / "site"


USE = """
import json, sys
import numpy as np
import cnnc
from cnnc.target import targets

graph = cnnc.load('''
    model Net {
      input image: f32[N, 2, 8, 6]
      output scores
      scores = image -> conv(3, 3, s=2, pad=same_upper) -> relu -> add { conv(3, 3, pad=1) | id } -> gap -> flatten
        -> fc: linear(4, bias=false)
    }
''')
x = np.random.default_rng(0).standard_normal((2, 2, 8, 6)).astype(np.float32)
program = cnnc.compile(graph, target="exact", weights=5)
path = program.save(sys.argv[1])
sums = cnnc.load("model Sum { input x: f32[1, 3] output y y = x -> fc: linear(1, bias=false) }")
ones = {"fc.weight": np.ones((1, 3), np.float32)}
large = np.array([[1e8, 1, -1e8]], np.float32)
refused = {}
for what in ("tanh", "conv(2, 3, dilation=2)"):
    try:
        cnnc.compile(cnnc.load("model M { input x: f32[N, 1, 9, 9] output y y = x -> %s }" % what), target="exact")
    except cnnc.CnncError as e:
        refused[what] = [e.diagnostics[0].code, e.diagnostics[0].message, e.diagnostics[0].primary is not None]
try:
    program(image=np.full_like(x, np.inf))
except cnnc.CnncError as e:
    refused["inf"] = [e.diagnostics[0].code]
print(json.dumps({
    "targets": list(targets()),
    "scores": program(image=x)["scores"].tolist(),
    "reference": cnnc.compile(graph, target="numpy", weights=5)(image=x)["scores"].tolist(),
    "loaded": cnnc.load_program(path)(image=x)["scores"].tolist(),
    "sum": cnnc.compile(sums, target="exact", weights=ones)(x=large)["y"].item(),
    "refused": refused,
}))
"""


@pytest.mark.slow
def test_a_target_of_others_is_found_compiles_runs_saves_and_refuses(installed: Path, tmp_path: Path) -> None:
    result = json.loads(python("-c", USE, tmp_path / "net.cnnp", PYTHONPATH=str(installed)))
    assert result["targets"] == ["cpu", "cuda", "exact", "numpy", "onnx", "torch"]
    np.testing.assert_allclose(result["scores"], result["reference"], rtol=1e-5, atol=1e-6)
    assert np.ptp(result["scores"]) > 0.01
    assert result["loaded"] == result["scores"]
    assert result["sum"] == 1  # in float32 it would be 0 in one order of additions
    assert result["refused"] == {
        "tanh": ["E0601", "target `exact` has no rule for `tanh`", True],
        "conv(2, 3, dilation=2)": ["E0601", "target `exact` has no grouped or dilated `conv`", True],
        "inf": ["E0601"],
    }


@pytest.mark.slow
def test_the_command_line_knows_a_target_of_others(installed: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.cnn"
    net.write_text("model M { input x: f32[N, 3] output y y = x -> linear(2) -> relu }")
    command = ("-m", "cnnc")
    printed = python(*command, "targets", PYTHONPATH=str(installed))
    assert "exact    computes with fractions" in printed
    printed = python(*command, "run", net, "--target", "exact", "-i", "x=random", PYTHONPATH=str(installed))
    assert printed.startswith("y: float32[1, 2]")
