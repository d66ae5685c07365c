"""`cnnc ir`: the graph as text."""

from __future__ import annotations

import click

from cnnc.cli.console import print_json
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import load
from cnnc.cli.options import AS_JSON, Command, Settings, model_options


@click.command(
    cls=Command,
    examples="""
    cnnc ir net.cnn
    cnnc ir resnet50 --dim N=1 --outputs layer1
    """,
)
@click.argument("place", metavar="FILE[:MODEL]", type=ModelFile())
@model_options
@AS_JSON
def ir(place: Place, settings: Settings, as_json: bool) -> None:
    """Print the graph of a model as text.

    One line for each node, in the form that `cnnc.ir` reads back.
    """
    from cnnc.ir.json import to_json
    from cnnc.ir.text import to_text

    graph = load(place, settings)
    if as_json:
        print_json(to_json(graph))
    else:
        click.echo(to_text(graph).rstrip())
