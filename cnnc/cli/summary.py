"""`cnnc summary`: what a network is made of and what it costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.console import count_text, print_json, print_table, size_text
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import load
from cnnc.cli.options import AS_JSON, Command, Settings, model_options

if TYPE_CHECKING:
    from cnnc.analysis import Row
    from cnnc.ir.dim import Dim
    from cnnc.ir.graph import Graph


@click.command(
    cls=Command,
    examples="""
    cnnc summary resnet50 --depth 1
    cnnc summary net.cnn:Tiny --set classes=10 --dim N=1,H=320
    cnnc summary net.cnn --outputs features --json
    """,
)
@click.argument("place", metavar="FILE[:MODEL]", type=ModelFile())
@click.option("--depth", type=click.IntRange(1), help="Fold blocks below this depth.")
@model_options
@AS_JSON
def summary(place: Place, settings: Settings, depth: int | None, as_json: bool) -> None:
    """Show the layers, their shapes and what they cost.

    For each layer: shape, parameters, multiply-accumulates, bytes of its result, receptive field. Counts are for the
    whole batch: `4.09 G*N` is 4.09 G for each image. What is planned is the memory for all results, where they may be
    written over what is no longer needed, and into the result of a concatenation.
    """
    from cnnc import analysis

    graph = load(place, settings)
    rows = analysis.table(graph)
    peak, planned = analysis.peak_bytes(graph), analysis.planned_bytes(graph)
    totals = {
        "params": analysis.params(graph),
        "macs": analysis.macs(graph),
        "weight_bytes": analysis.weight_bytes(graph),
        "activation_bytes": analysis.activation_bytes(graph),
        "peak_bytes": peak,
        "planned_bytes": planned,
    }
    if as_json:
        print_json(
            {
                "model": graph.name,
                "doc": graph.doc,
                "inputs": {x.name: str(x.type) for x in graph.inputs},
                "outputs": {name: str(x.type) for name, x in graph.outputs.items()},
                "totals": {name: _json(total) for name, total in totals.items()},
                "layers": [_row_json(row, depth) for row in rows],
            }
        )
        return
    _print_head(graph)
    _print_rows(rows, depth)
    click.echo(f"{totals['params']:,} parameters, {size_text(analysis.weight_bytes(graph))} of weights")
    click.echo(f"{_count(analysis.macs(graph))} multiply-accumulates")
    most = "" if peak is None else f", at most {_bytes(peak)} at one time"
    plan = "" if planned is None else f"; planned: {_bytes(planned)}"
    click.echo(f"{_bytes(analysis.activation_bytes(graph))} of results{most}{plan}")


def _print_head(graph: Graph) -> None:
    click.echo(graph.name)
    for line in graph.doc.splitlines():
        click.echo(f"  {line}")
    for x in graph.inputs:
        click.echo(f"input  {x.name}: {x.type}{f'  {x.doc}' if x.doc else ''}")
    for name, value in graph.outputs.items():
        click.echo(f"output {name}: {value.type}")


def _print_rows(rows: Iterable[Row], depth: int | None) -> None:
    from rich import box
    from rich.table import Table

    from cnnc.ir.types import shape_text

    titles = ("layer", "op", "shape", "parameters", "MACs", "result", "sees")
    cells = [
        (
            "  " * level + row.name,
            row.op,
            shape_text(row.type.shape),
            f"{row.params:,}" if row.params else "",
            _count(row.macs) if row.macs else "",
            _bytes(row.bytes),
            str(row.field or ""),
        )
        for level, row in _walk(rows, depth)
    ]
    columns = zip(titles, *cells, strict=True)
    widths = {column[0]: max(map(len, column)) for column in columns}
    if sys.stdout.isatty():  # where it is narrow the ops are cut short, so that a layer stays on a line
        rest = sum(width + 1 for title, width in widths.items() if title != "op") + 2
        widths["op"] = max(2, min(widths["op"], get_terminal_size().columns - rest))
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for title, width in widths.items():
        table.add_column(title, no_wrap=True, width=width, justify="left" if title in titles[:3] else "right")
    for row in cells:
        table.add_row(*row)
    print_table(table)


def _walk(rows: Iterable[Row], depth: int | None, level: int = 0) -> Iterator[tuple[int, Row]]:
    for row in rows:
        yield level, row
        if depth is None or level + 1 < depth:
            yield from _walk(row.rows, depth, level + 1)


def _row_json(row: Row, depth: int | None) -> dict[str, Any]:
    deeper = depth is None or depth > 1
    return {
        "name": row.name,
        "op": row.op or None,
        "type": str(row.type),
        "params": row.params,
        "macs": _json(row.macs),
        "bytes": _json(row.bytes),
        "receptive_field": row.field and list(row.field.size),
        "layers": [_row_json(x, depth and depth - 1) for x in row.rows] if deeper else [],
    }


def _json(count: Dim | None) -> int | str | None:
    return count if count is None or isinstance(count, int) else str(count)


def _count(count: Dim) -> str:
    """A count for people, with its symbols: `4.09 G*N`."""
    return _with_symbols(count, count_text)


def _bytes(count: Dim) -> str:
    return _with_symbols(count, size_text)


def _with_symbols(count: Dim, text: Callable[[int], str]) -> str:
    from cnnc.ir.dim import Sym

    if isinstance(count, int):
        return text(count)
    (names, factor), *others = count.terms
    return str(count) if others else f"{text(factor)}*{Sym(((names, 1),))}"
