"""The arrows of the architecture, held by reading every import: what may know of what.

    diagnostics <- files <- {ir, signing} <- {ops, memory} <- {frontend, analysis} <- target <- {passes, weights,
    images, contracts} <- artifact <- cache <- {driver, tuned} <- {verification, profiling, tuning} <- bench <- cnnc
    <- cli

A backend knows public cnnc and its own library; cnnc knows no backend.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"diagnostics"},
    {"files"},
    {"ir", "signing"},
    {"ops", "memory"},
    {"frontend", "analysis"},
    {"target"},
    {"passes", "weights", "images", "contracts"},  # passes: what is constant is computed by a target
    {"artifact"},
    {"cache"},
    {"driver", "tuned"},
    {"verification", "profiling", "tuning"},
    {"bench"},
    {""},  # cnnc/__init__.py, the public face
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
UPWARD = {("target", "artifact")}  # Program.save, lazily: an artifact holds any program, so it knows the class

BACKENDS = {"cnnc_numpy": None, "cnnc_torch": "torch", "cnnc_onnx": "onnx", "cnnc_tvm": "tvm"}
PRIVATE = {"cli", "frontend", "driver"}  # parts that no backend has business with
LIBRARIES = {"torch", "torchvision", "onnx", "onnxruntime", "openvino", "tvm", "tvm_ffi"}
OWNER = {"onnxruntime": "onnx", "tvm_ffi": "tvm"}
ALLOWED = {
    ("weights/files.py", "torch"),  # .pth files, lazily, with an error where PyTorch is missing
    ("bench/systems.py", "torch"), ("bench/systems.py", "onnxruntime"), ("bench/systems.py", "openvino"),  # in workers
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """The absolute dotted names that a module imports anywhere in it, names after `from` included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """`cnnc.ir.dim.Dim` is of part `ir`, `cnnc.load` of the public face."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in RANK else ""


def modules(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def test_every_part_of_cnnc_has_a_place_in_the_order() -> None:
    parts = {path.relative_to(ROOT / "cnnc").parts[0].removesuffix(".py") for path in modules("cnnc")}
    assert parts - {"__init__", "errors"} <= set(RANK)


@pytest.mark.parametrize("path", modules("cnnc"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(ROOT / "cnnc").parts[0].removesuffix(".py").replace("__init__", "")
    if part == "errors":
        return
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in BACKENDS, f"cnnc imports the backend {name}"
        if top in LIBRARIES:
            assert (path.relative_to(ROOT / "cnnc").as_posix(), top) in ALLOWED, f"cnnc imports {name}"
        if top != "cnnc":
            continue
        other = part_of(name)
        assert other == part or RANK[other] < RANK[part] or (part, other) in UPWARD, f"{part} imports {name}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_know_public_cnnc_and_their_own_library(backend: str) -> None:
    for path in modules(f"backends/{backend}"):
        for name in imports(path):
            top, *rest = name.split(".")
            assert top not in BACKENDS or top == backend, f"{path.name} imports another backend: {name}"
            if top in LIBRARIES:
                assert OWNER.get(top, top) == BACKENDS[backend], f"{path.name} imports {name}"
            if top == "cnnc":
                assert not any(x.startswith("_") and not x.startswith("__") for x in rest), f"{path.name}: {name}"
                assert rest[:1] == [] or rest[0] not in PRIVATE, f"{path.name} imports {name}"


def loaded_by(code: str, among: set[str]) -> set[str]:
    """The modules of `among` that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return among & set(json.loads(done.stdout.splitlines()[-1]))


def test_constructing_targets_loads_no_library() -> None:
    assert loaded_by("from cnnc.target import targets\nfor cls in targets().values(): cls()", LIBRARIES) == set()


def test_check_loads_neither_numpy_nor_any_library() -> None:
    code = """
from cnnc.cli import main
try:
    main(["check", "models/resnet152.cnn"])
except SystemExit as e:
    assert not e.code, e.code
"""
    assert loaded_by(code, LIBRARIES | {"blake3", "numpy", "PIL", "rich", "safetensors"}) == set()
