"""`cnnc bench`: how fast is a target, beside other systems on the same machine?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.compile import TargetName, check_writable
from cnnc.cli.console import note, print_table, report, working
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import case_of, load, told_already
from cnnc.cli.options import (
    Assignments,
    Command,
    Names,
    Passes,
    Settings,
    WeightSource,
    model_options,
    pass_options,
    weight_options,
)
from cnnc.diagnostics import CnncError, Diagnostic, error

if TYPE_CHECKING:
    from cnnc.bench.measure import Comparison


class Batches(click.ParamType[list[int]]):
    """`1,8`: sizes between commas."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        texts = [text.strip() for text in str(value).split(",")]
        if not all(text.isascii() and text.isdecimal() and len(text) < 6 and int(text) for text in texts):
            self.fail(f"`{value}` is not a list of batches from 1 to 99999, such as 1,8", param, ctx)
        if len(set(map(int, texts))) < len(texts):
            self.fail(f"`{value}` has a batch twice", param, ctx)
        return [int(text) for text in texts]


@click.command(
    cls=Command,
    examples="""
    cnnc bench resnet18 resnet50 --threads 2 --batch 1,8
    cnnc bench net.cnn --vs onnxruntime,torch --weights net.safetensors --dim H=64,W=64
    cnnc bench resnet50 --rounds 31 --json r50.json --plot r50.png
    """,
)
@click.argument("places", metavar="FILE[:MODEL]...", type=ModelFile(), nargs=-1, required=True)
@click.option("--vs", "peers", type=Names(), metavar="SYSTEM,...",
              help="Compare with these [onnxruntime,openvino,torch,torch.compile].")  # fmt: skip
@click.option("-t", "--target", type=TargetName(), default="cpu", help="The target that is measured [cpu].")
@click.option("--threads", type=click.IntRange(1), help="Threads of each system [one for each core].")
@click.option("--batch", "batches", type=Batches(), help="Sizes of the batch, each a comparison [1].")
@click.option("--rounds", type=click.IntRange(1), default=11, help="Turns of each system that count [11].")
@click.option("--time-limit", "limit", type=click.IntRange(1), default=600, metavar="SECONDS",
              help="Leave a system out that takes longer to load the model or to run it [600].")  # fmt: skip
@weight_options
@model_options
@click.option("-X", "options", type=Assignments(), multiple=True, help="Any option of the target: -X KEY=VALUE.")
@pass_options
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this .json file.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the ratios to this .png or .svg file.")
def bench(
    places: tuple[Place, ...], peers: list[str] | None, target: str, threads: int | None, batches: list[int] | None,
    rounds: int, limit: int, source: WeightSource, settings: Settings, options: tuple[tuple[str, str], ...],
    chosen: Passes, json_file: Path | None, plot_file: Path | None,
) -> int:  # fmt: skip
    """Measure the speed of models beside other systems.

    Each system has a process of its own and gets the same model, weights and inputs, in the element type of `--dtype`;
    the outputs are compared before anything is timed. Then they run in turns. `cnnc / it` is the median ratio of the
    times of a round, below 1 where cnnc is ahead, followed by its quartiles.
    """
    from cnnc.bench import measure
    from cnnc.bench import report as results
    from cnnc.bench.systems import PEERS
    from cnnc.target import target as find

    _check_files(json_file, plot_file)
    names = peers or list(PEERS)
    measure.check_systems(names)
    find(target)  # before the models are read: a wrong name is told at once
    how = measure.Settings(
        target, dict(options), chosen.optimise, chosen.passes, threads or os.cpu_count() or 1, rounds, limit=limit
    )
    graphs = [(place.stem, load(place, settings)) for place in places]
    sizes: list[int] | list[None] = batches or [None]
    cases = [(name, *measure.with_batch(graph, size)) for name, graph in graphs for size in sizes]
    found: list[Comparison] = []
    failed: list[Diagnostic] = []
    with working("starting", per_second=1) as status, told_already():
        for name, graph, batch in cases:

            def tell(text: str, where: str = f"{name} at batch {batch}") -> None:
                if status:
                    status.update(f"{where}: {text}")

            try:
                found.append(measure.compare(name, batch, case_of(graph, source), names, how, tell))
            except CnncError as e:
                note(f"{name} at batch {batch} was not measured:")
                report(e.diagnostics)
                failed += e.diagnostics
    _print(found)
    if json_file:
        results.write_json(json_file, found, how)
    if plot_file and found:
        results.plot(plot_file, found, how)
    if failed:
        return CnncError(tuple(failed)).exit_status
    if not any(each.peers for each in found):
        raise error("E0608", "there was no other system to compare with")
    return 0


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Before the work, not after it."""
    from cnnc.bench.report import check_plot

    if json_file is not None and json_file.suffix != ".json":
        raise click.UsageError(f"the figures are written as .json, not to `{json_file}`")
    if plot_file is not None:
        check_plot(plot_file)
    check_writable(json_file)
    check_writable(plot_file)


def _print(found: Sequence[Comparison]) -> None:
    from cnnc.bench import report as results

    if found:
        print_table(results.table(found))
    for line in results.left_out(found):
        note(line)
    if text := results.conclusion(found):
        click.echo(text)
