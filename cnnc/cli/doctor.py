"""`cnnc doctor` and `cnnc targets`: what this machine can do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.console import plural, print_json, size_text
from cnnc.cli.options import AS_JSON, Command

if TYPE_CHECKING:
    from cnnc.target import Status, Target

PACKAGES = (
    "numpy", "lark", "blake3", "safetensors", "pillow", "torch", "onnx", "onnxruntime", "apache-tvm", "openvino",
)  # fmt: skip
TOOLS = ("cc", "gcc", "clang", "nvcc", "nvidia-smi")


@click.command(cls=Command, examples="cnnc targets")
@AS_JSON
def targets(as_json: bool) -> None:
    """List the targets and their options."""
    found = _installed()
    if as_json:
        print_json([_described(name, target) for name, target in found.items()])
        return
    for name, target in found.items():
        described = _described(name, target)
        click.echo(f"{name:<8} {described['doc']}")
        for option, doc in described["options"].items():
            click.echo(f"         -X {option}=...  {doc}")


@click.command(cls=Command, examples="cnnc doctor\ncnnc doctor --json")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Show what is installed and which targets work here.

    For a target that does not work on this machine, the reason and what to do. The last lines say where programs that
    were compiled before are kept.
    """
    import platform

    packages = {name: _version(name) for name in PACKAGES}
    tools = {name: _tool(name) for name in TOOLS}
    states = {name: _status(target) for name, target in _installed().items()}
    system = {
        "cnnc": _version("cnnc"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }
    if as_json:
        working = {name: {"works": state.works, "detail": state.detail} for name, state in states.items()}
        print_json({"system": system, "packages": packages, "tools": tools, "targets": working, "cache": _cache()})
        return
    for title, rows in (("system", system), ("packages", packages), ("tools", tools)):
        click.echo(title)
        for name, text in rows.items():
            click.echo(f"  {name:<14} {text or 'not found'}")
    click.echo("targets")
    for name, state in states.items():
        detail = state.detail.replace("\n", "\n" + " " * 21)
        click.echo(f"  {name:<14} {'yes' if state.works else 'no '} {detail}")
    click.echo("compile cache")
    cache = _cache()
    click.echo(f"  {'folder':<14} {cache['folder'] or 'none'}{', not used: ' * bool(cache['why'])}{cache['why'] or ''}")
    used = f"{plural(cache['entries'], 'program')}, {size_text(cache['bytes'])} of at most {size_text(cache['limit'])}"
    click.echo(f"  {'holds':<14} {used}")


def _cache() -> dict[str, Any]:
    """Where the compile cache is, why it is not used (None where it is), and how large it is."""
    from cnnc.cache import chosen

    cache = chosen()
    if cache is None:
        return {"folder": None, "why": None, "entries": 0, "bytes": 0, "limit": 0}
    entries = cache.entries()
    size = sum(about.st_size for _, about in entries)
    return {
        "folder": str(cache.folder), "why": cache.refusal(), "entries": len(entries), "bytes": size,
        "limit": cache.limit,
    }  # fmt: skip


def _installed() -> dict[str, Target | Exception]:
    """The targets by name, or what came of loading one: a broken package must not hide the others."""
    from cnnc.target import installed

    found: dict[str, Target | Exception] = {}
    for name, entry in installed().items():
        try:
            found[name] = entry.load()()
        except Exception as e:
            found[name] = e
    return found


def _described(name: str, target: Target | Exception) -> dict[str, Any]:
    if isinstance(target, Exception):
        return {"name": name, "doc": _broken(target), "options": {}}
    return {"name": name, "doc": target.doc, "options": dict(target.options)}


def _status(target: Target | Exception) -> Status:
    from cnnc.target import Status

    return Status(False, _broken(target)) if isinstance(target, Exception) else target.status()


def _broken(e: Exception) -> str:
    return f"cannot be loaded: {type(e).__name__}: {e}"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tool(name: str) -> str | None:
    """The path of a tool and the line of its `--version` that has the number; None where there is no such tool."""
    import shutil
    import subprocess

    path = shutil.which(name)
    if path is None:
        return None
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return f"{path} (does not answer)"
    lines = [line.strip() for line in answer.stdout.splitlines() if any(c.isdigit() for c in line)]
    release = [line for line in lines if "release" in line]  # nvcc's first line with a digit is a copyright
    return " ".join([path, *(release or lines)[:1]])
