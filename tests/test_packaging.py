"""What is packaged: every module, model and page; every dependency pinned. `wheel_smoke.sh` tries the wheel itself."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distribution, requires
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TOOL = PROJECT["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Where setuptools finds a package: mapped itself, or below the nearest parent that is."""
    parent, _, last = package.rpartition(".")
    if package in TOOL["package-dir"] or not parent:
        return ROOT / TOOL["package-dir"].get(package, package)
    return folder_of(parent) / last


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_is_listed() -> None:
    found = {path.parent for top in ("cnnc", "backends", "models", "grammar") for path in (ROOT / top).rglob("*.py")}
    assert found == {folder_of(package) for package in TOOL["packages"]}


@pytest.mark.parametrize("package", TOOL["packages"])
def test_every_data_file_of_a_package_is_in_the_wheel(package: str) -> None:
    patterns = ["*.py", *TOOL["package-data"]["*"], *TOOL["package-data"].get(package, [])]
    left_out = [
        path.name
        for path in folder_of(package).iterdir()
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert left_out == []


@pytest.mark.parametrize("package", ["cnnc", "cnnc_numpy", "cnnc_torch", "cnnc_onnx", "cnnc_tvm"])
def test_packages_are_typed(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize(("package", "member"), [("cnnc.models", "resnet50.cnn"), ("cnnc.grammar", "cnn.lark")])
def test_resources_are_found_where_cnnc_is_installed(package: str, member: str) -> None:
    assert files(package).joinpath(member).is_file()


def test_every_entry_point_loads() -> None:
    from cnnc.target import targets

    assert sorted(targets()) == ["cpu", "cuda", "numpy", "onnx", "torch"]
    for name, cls in targets().items():
        assert cls().name == name


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def needed(package: str, extras: set[str], seen: set[tuple[str, str]]) -> set[str]:
    """The distributions that `package[extras]` pulls in on this machine."""
    from packaging.requirements import Requirement

    found = {canonical(package)}
    for text in requires(package) or []:
        requirement = Requirement(text)
        active = {e for e in extras | {""} if not requirement.marker or requirement.marker.evaluate({"extra": e})}
        key = (canonical(requirement.name), ",".join(sorted(requirement.extras)))
        if active and key not in seen:
            seen.add(key)
            found |= needed(requirement.name, set(requirement.extras), seen)
    return found


def test_every_dependency_is_pinned_to_what_runs_here() -> None:
    pinned = pins()
    for name in needed("cnnc", {"dev"}, set()) - {"cnnc"}:
        assert name in pinned, f"{name} is not in constraints.txt"
        assert distribution(name).version.partition("+")[0] == pinned[name], name


def test_dependencies_of_the_tool_chain_stay_out_of_the_plain_install() -> None:
    assert not needed("cnnc", set(), set()) & {"torch", "onnx", "onnxruntime", "apache-tvm", "pytest"}
