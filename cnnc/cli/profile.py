"""`cnnc profile`: where the time of a run goes, and how much of the machine each layer uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.console import print_json, print_table, size_text, working
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.inputs import arrays
from cnnc.cli.load import load, told_already, weights_for
from cnnc.cli.options import (
    AS_JSON,
    CACHE,
    Assignments,
    Command,
    Passes,
    Settings,
    WeightSource,
    model_options,
    pass_options,
    weight_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnnc.ir.graph import Node
    from cnnc.profiling import Layer, Profile

WIDEST = 48
"""Characters of an op in the table."""


@click.command(
    cls=Command,
    examples="""
    cnnc profile resnet50 --dim N=8
    cnnc profile net.cnn --annotate
    cnnc profile net.cnn:Tiny --weights tiny.safetensors -O0 --json
    """,
)
@click.argument("place", metavar="FILE[:MODEL]", type=ModelFile())
@click.option("--runs", type=click.IntRange(1), default=20, help="How often to run; times are medians [20].")
@click.option("--annotate", is_flag=True, help="Print the .cnn file with the time beside each line.")
@weight_options
@model_options
@click.option("-X", "options", type=Assignments(), multiple=True, help="An option of target cpu: -X KEY=VALUE.")
@pass_options
@CACHE
@AS_JSON
def profile(
    place: Place, runs: int, annotate: bool, source: WeightSource, settings: Settings,
    options: tuple[tuple[str, str], ...], chosen: Passes, cache: bool, as_json: bool,
) -> None:  # fmt: skip
    """Time the layers of a model on this processor.

    The model is compiled for target cpu and run on random inputs. For each layer, with what the optimiser fused into
    it: the median of its times, its share of their sum, floating-point operations a second, bytes of operands and
    results a second, and their shares of what this machine reaches, which is measured between the runs. Operations
    are those of direct convolution, and bytes may come from a cache, so that shares can be above 100%. Layers that one
    kernel computes together are timed as the last of them, the others are marked ↓.
    """
    from cnnc.profiling import profile as measure
    from cnnc.target import ports

    graph = load(place, settings)
    weights = weights_for(graph, source)
    inputs = arrays(ports(graph)[0], [(x.name, "random") for x in graph.inputs], settings.dims)
    with working(f"profiling {graph.name}", per_second=1), told_already():
        found = measure(
            graph, weights, inputs, runs=runs, optimise=chosen.optimise, passes=chosen.passes, cache=cache,
            **dict(options),
        )  # fmt: skip
    if as_json:
        print_json(_json(found))
    elif annotate:
        _print_lines(found)
    else:
        _print_layers(found)
    if not as_json:
        click.echo(_summary(found))


def _summary(profile: Profile) -> str:
    ms, _, rate = _time(profile, profile.layers)
    peaks = f"{profile.peaks.flops / 1e9:.1f} GFLOP/s and {profile.peaks.bandwidth / 1e9:.1f} GB/s of memory"
    of = f", {rate} GFLOP/s" if rate else ""
    return f"{profile.graph.name}: {ms} ms{of}, medians of {profile.runs} runs; this machine reaches {peaks}"


def _print_layers(profile: Profile) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    left = ("layer", "op", "result")
    for title in (*left, "ms", "share", "GFLOP/s", "of peak", "bytes", "GB/s", "of memory"):
        table.add_column(title, no_wrap=True, justify="left" if title in left else "right")
    for layer in profile.layers:
        peaks = profile.peaks
        for node in layer.before:
            table.add_row(*_columns(node), "↓")
        table.add_row(
            *_columns(layer.node),
            *_time(profile, [layer]),
            f"{layer.flops / peaks.flops:.0%}" if layer.macs else "",
            size_text(layer.bytes),
            f"{layer.bandwidth / 1e9:.1f}",
            f"{layer.bandwidth / peaks.bandwidth:.0%}",
        )
    print_table(table)


def _columns(node: Node) -> tuple[str, str, str]:
    op = str(node.op)
    return node.name, op if len(op) <= WIDEST else f"{op[: WIDEST - 1]}…", str(node.type)


def _time(profile: Profile, layers: Sequence[Layer]) -> tuple[str, str, str]:
    """Milliseconds, share of the run, and GFLOP/s where there are products."""
    seconds, macs = sum(x.seconds for x in layers), sum(x.macs for x in layers)
    rate = f"{2 * macs / seconds / 1e9:.1f}" if macs else ""
    return f"{seconds * 1e3:.3f}", f"{seconds / (profile.seconds or 1):.1%}", rate


def _print_lines(profile: Profile) -> None:
    """The sources that have layers, whole, with the time of those beside each line."""
    before = [node.origin.span for layer in profile.layers for node in layer.before if node.origin]
    for source, lines in profile.by_line().items():
        earlier = {span.line for span in before if span.source == source}
        click.echo(f"{source.name}\n{'ms':>10} {'share':>6} {'GFLOP/s':>8}")
        for number, text in enumerate(source.text.splitlines(), start=1):
            mark = "↓" if number in earlier else ""
            time, share, rate = _time(profile, lines[number]) if number in lines else (mark, "", "")
            click.echo(f"{time:>10} {share:>6} {rate:>8} | {text}".rstrip())
        click.echo()


def _json(profile: Profile) -> dict[str, Any]:
    peaks = profile.peaks
    return {
        "model": profile.graph.name,
        "target": "cpu",
        "runs": profile.runs,
        "seconds": profile.seconds,
        "peaks": {"flops_per_second": peaks.flops, "bytes_per_second": peaks.bandwidth},
        "layers": [
            {
                "name": x.node.name,
                "before": [node.name for node in x.before],
                "op": str(x.node.op),
                "type": str(x.node.type),
                "at": str(x.node.origin.span) if x.node.origin else None,
                "functions": list(x.functions),
                "seconds": x.seconds,
                "share": x.seconds / profile.seconds,
                "macs": x.macs,
                "flops_per_second": x.flops,
                "share_of_peak": x.flops / peaks.flops,
                "bytes": x.bytes,
                "bytes_per_second": x.bandwidth,
                "share_of_bandwidth": x.bandwidth / peaks.bandwidth,
            }
            for x in profile.layers
        ],
    }
