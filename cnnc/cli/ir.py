"""`cnnc ir`: the graph as text."""

from __future__ import annotations

import click

from cnnc.cli.console import print_json
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import load, told_already, weights_for
from cnnc.cli.options import (
    AS_JSON,
    Command,
    Passes,
    Settings,
    WeightSource,
    model_options,
    pass_options,
    weight_options,
)


@click.command(
    cls=Command,
    examples="""
    cnnc ir net.cnn
    cnnc ir resnet50 --dim N=1 --outputs layer1
    cnnc ir resnet50 --after fold_batch_norm
    cnnc ir resnet50 -O3 --after all
    """,
)
@click.argument("place", metavar="FILE[:MODEL]", type=ModelFile())
@click.option("--after", metavar="PASS|all", help="The graph after this pass and those before it, or after all.")
@pass_options
@weight_options
@model_options
@AS_JSON
def ir(
    place: Place, after: str | None, chosen: Passes, source: WeightSource, settings: Settings, as_json: bool
) -> None:
    """Print the graph of a model as text.

    One line for each node, in the form that `cnnc.ir` reads back: as written, or with --after as the optimiser
    leaves it.
    """
    from cnnc.ir.json import to_json
    from cnnc.ir.text import to_text

    graph = load(place, settings)
    if after is not None:
        from cnnc.driver import network_of
        from cnnc.passes import choose, find, optimise

        names = choose(chosen.optimise, chosen.passes)
        if after != "all":
            if find(after).name not in names:
                raise click.UsageError(f"pass `{after}` does not run: -O{chosen.optimise} and --passes leave it out")
            names = names[: names.index(after) + 1]
        with told_already():
            graph = optimise(network_of(graph, weights_for(graph, source)), names).network.graph
    if as_json:
        print_json(to_json(graph))
    else:
        click.echo(to_text(graph).rstrip())
