"""`cnnc compile`: from a model to a program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from cnnc.cli.console import note, print_json, size_text, working
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import load, told_already, weights_for
from cnnc.cli.options import (
    AS_JSON,
    CACHE,
    DEFAULT_PASSES,
    Assignments,
    Command,
    Passes,
    Settings,
    WeightSource,
    model_options,
    pass_options,
    weight_options,
)
from cnnc.diagnostics import error

if TYPE_CHECKING:
    from cnnc.passes import Network, Pass
    from cnnc.target import Program, Target


class TargetName(click.ParamType[str]):
    """The name of a target; whether it is one is checked where it is used."""

    name = "TARGET"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from cnnc.target import installed

        return [CompletionItem(name) for name in installed() if name.startswith(incomplete)]


@click.command(
    "compile",
    cls=Command,
    examples="""
    cnnc compile resnet50 --target cpu --weights resnet50.safetensors -o r50.cnnp
    cnnc compile resnet50 --target cuda --arch sm_90 -o r50
    cnnc compile net.cnn:Tiny --target onnx --opset 20 -o tiny.onnx
    cnnc compile net.cnn --target numpy --set classes=10 --print-source
    cnnc compile net.cnn --target cpu -O3 --passes=-fuse_epilogue --dump-ir ir
    """,
)
@click.argument("place", metavar="FILE[:MODEL]", type=ModelFile())
@click.option("-t", "--target", type=TargetName(), required=True, help="`cnnc targets` lists them.")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Where to write the program [FILE.cnnp].")
@weight_options
@model_options
@click.option("--arch", metavar="ARCH", help="The GPU of target cuda: sm_80, sm_90.")
@click.option("--mcpu", metavar="CPU", help="The processor of target cpu, as LLVM names it.")
@click.option("--no-winograd", is_flag=True, help="Forbid target cpu Winograd's algorithm, which rounds more.")
@click.option("--opset", metavar="N", help="The opset of target onnx.")
@click.option("-X", "options", type=Assignments(), multiple=True, help="Any option of the target: -X KEY=VALUE.")
@pass_options
@click.option("--dump-ir", metavar="DIR", type=click.Path(path_type=Path), help="Write the graph after each pass.")
@click.option("--print-source", is_flag=True, help="Print the generated source; writes a program only with -o.")
@CACHE
@AS_JSON
def compile_(
    place: Place, target: str, out: Path | None, source: WeightSource, settings: Settings, arch: str | None,
    mcpu: str | None, no_winograd: bool, opset: str | None, options: tuple[tuple[str, str], ...], chosen: Passes,
    dump_ir: Path | None, print_source: bool, cache: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compile a model for a target.

    The program is written to a file: in the target's own format where the name ends so (.onnx, .py), else as an
    artifact for `cnnc run` and `cnnc.load_program`. What was compiled before for `cpu` or `cuda`, from the same network
    and weights, comes from the compile cache: CNNC_CACHE=DIR says where it is, CNNC_CACHE=off that there is none.
    """
    own = dict(options)
    winograd = "off" if no_winograd else None
    named = {"arch": arch, "mcpu": mcpu, "winograd": winograd, "opset": opset}
    for key, value in named.items():
        if value is not None and own.setdefault(key, value) != value:
            raise click.UsageError(f"`{key}` cannot be both `{own[key]}` and `{value}`")
    if out is None and not print_source:
        out = Path(f"{place.stem}.cnnp")
    check_writable(out)
    program = build(place, settings, source, target, own, chosen, dump_ir, cache=cache)
    text = program.source() if print_source else ""
    if print_source and not text:
        raise error("E0605", f"target `{target}` generates no source to print")
    written = program.save(out) if out else None
    if as_json:
        print_json(
            {
                "target": target,
                "program": str(written) if written else None,
                "bytes": written.stat().st_size if written else None,
                "inputs": {port.name: str(port.type) for port in program.inputs},
                "outputs": {port.name: str(port.type) for port in program.outputs},
                **({"source": text} if print_source else {}),
            }
        )
        return
    if text:
        click.echo(text)
    if written:
        note(f"wrote {written} ({size_text(written.stat().st_size)})")


def build(
    place: Place, settings: Settings, source: WeightSource, target: str, options: Mapping[str, str] | None = None,
    chosen: Passes = DEFAULT_PASSES, dump_ir: Path | None = None, *, cache: bool = True,
) -> Program:  # fmt: skip
    """The compiled program of a model, from the compile cache where it may; the graph after each pass is written to the
    folder `dump_ir`."""
    import cnnc
    from cnnc.target import target as find

    found = find(target)  # before the model is read: a wrong name is told at once
    if dump_ir is not None and not found.passes:
        raise click.UsageError(f"target `{target}` takes the graph as it was written: no pass runs to --dump-ir")
    own = signature(cnnc.compile).parameters
    if wrong := [name for name in options or {} if name in own]:
        raise click.UsageError(f"`{wrong[0]}` is not an option of a target")
    graph = load(place, settings)
    weights = weights_for(graph, source)
    if cache:
        _tell_of_unused_cache(found, options or {})
    after = graphs_into(dump_ir) if dump_ir else None
    with working(f"compiling {graph.name} for {target}"), told_already():
        return cnnc.compile(
            graph, target, weights, optimise=chosen.optimise, passes=chosen.passes, after=after, cache=cache,
            **dict(options or {}),
        )  # fmt: skip


def _tell_of_unused_cache(target: Target, options: Mapping[str, str]) -> None:
    """Say why a target's programs are compiled anew each time, where that is so."""
    from cnnc.cache import chosen

    kept = chosen()
    if kept and (why := kept.refusal()) and target.toolchain(options) is not None:
        note(f"note: the compile cache {kept.folder} is not used: {why}")


def graphs_into(folder: Path) -> Callable[[Pass, Network], None]:
    """Writes the graph after each pass, as text, to a file of `folder` numbered in their order, in place of those of an
    earlier run."""
    from cnnc.files import replacing
    from cnnc.ir.text import to_text
    from cnnc.passes import PASSES

    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("[0-9][0-9]_*.ir"):
        if earlier.stem[3:] in PASSES:
            earlier.unlink()
    count = itertools.count(1)

    def write(each: Pass, network: Network) -> None:
        with replacing(folder / f"{next(count):02}_{each.name}.ir") as temporary:
            temporary.write_text(to_text(network.graph), encoding="utf-8")

    return write


def check_writable(out: Path | None) -> None:
    """Before the work, not after it."""
    if out is not None and not out.absolute().parent.is_dir():
        raise error("E0901", f"cannot write `{out}`: there is no folder `{out.parent}`")
    if out is not None and out.is_dir():
        raise error("E0901", f"cannot write `{out}`: it is a folder")
