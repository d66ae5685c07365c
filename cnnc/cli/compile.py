"""`cnnc compile`: from a model to a program."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from cnnc.cli.console import note, print_json, report, size_text, working
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import load
from cnnc.cli.options import AS_JSON, Assignments, Command, Settings, WeightSource, model_options, weight_options
from cnnc.diagnostics import Diagnostic, error

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph
    from cnnc.target import Array, Program


class TargetName(click.ParamType[str]):
    """The name of a target; whether it is one is checked where it is used."""

    name = "TARGET"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from importlib.metadata import entry_points

        names = sorted(entry_points(group="cnnc.targets").names)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(
    "compile",
    cls=Command,
    examples="""
    cnnc compile resnet50 --target cpu --weights resnet50.safetensors -o r50.cnnp
    cnnc compile resnet50 --target cuda --arch sm_90 -o r50
    cnnc compile net.cnn:Tiny --target onnx --opset 20 -o tiny.onnx
    cnnc compile net.cnn --target numpy --set classes=10 --print-source
    """,
)
@click.argument("place", metavar="FILE[:MODEL]", type=ModelFile())
@click.option("-t", "--target", type=TargetName(), required=True, help="`cnnc targets` lists them.")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Where to write the program [FILE.cnnp].")
@weight_options
@model_options
@click.option("--arch", metavar="ARCH", help="The GPU of target cuda: sm_80, sm_90.")
@click.option("--mcpu", metavar="CPU", help="The processor of target cpu, as LLVM names it.")
@click.option("--opset", metavar="N", help="The opset of target onnx.")
@click.option("-O", "options", type=Assignments(), multiple=True, help="Any option of the target: -O KEY=VALUE.")
@click.option("--optimise", type=click.IntRange(0, 3), default=2, help="How much to optimise the graph [2].")
@click.option("--passes", default="", metavar="[+|-]PASS,...", help="Passes to add or leave out: -fold_batch_norm.")
@click.option("--print-source", is_flag=True, help="Print the generated source; writes a program only with -o.")
@AS_JSON
def compile_(
    place: Place, target: str, out: Path | None, source: WeightSource, settings: Settings, arch: str | None,
    mcpu: str | None, opset: str | None, options: tuple[tuple[str, str], ...], optimise: int, passes: str,
    print_source: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compile a model for a target.

    The program is written to a file: in the target's own format where the name ends so (.onnx, .py), else as an
    artifact for `cnnc run` and `cnnc.load_program`.
    """
    chosen = dict(options)
    chosen |= {key: value for key, value in (("arch", arch), ("mcpu", mcpu), ("opset", opset)) if value is not None}
    if out is None and not print_source:
        out = Path(f"{place.stem}.cnnp")
    check_writable(out)
    program = build(place, settings, source, target, chosen, optimise, passes)
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
    optimise: int = 2, passes: str = "",
) -> Program:  # fmt: skip
    """The compiled program of a model."""
    import cnnc

    own = signature(cnnc.compile).parameters
    if wrong := [name for name in options or {} if name in own]:
        raise click.UsageError(f"`{wrong[0]}` is not an option of a target")
    if source.weights is not None and source.seed is not None:
        raise click.UsageError("--weights and --seed exclude each other")
    graph = load(place, settings)
    if source.weights is None and source.seed is None and graph.params:
        note("note: the weights are random (seed 0); --weights gives others")
    weights = source.seed or 0 if source.weights is None else _read(source.weights, graph, source.strict)
    with working(f"compiling {graph.name} for {target}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the weights, told already
        return cnnc.compile(graph, target, weights, optimise=optimise, passes=passes, **dict(options or {}))


def _read(path: Path, graph: Graph, strict: bool) -> Mapping[str, Array]:
    """The weights in a file; what is odd about them is printed."""
    from cnnc import weights

    odd: list[Diagnostic] = []
    arrays = weights.load(path, graph, strict=strict, warn=odd.append)
    report(odd)
    return arrays


def check_writable(out: Path | None) -> None:
    """Before the work, not after it."""
    if out is not None and not out.absolute().parent.is_dir():
        raise error("E0901", f"cannot write `{out}`: there is no folder `{out.parent}`")
    if out is not None and out.is_dir():
        raise error("E0901", f"cannot write `{out}`: it is a folder")
