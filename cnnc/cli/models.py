"""`cnnc models`: the models that come with cnnc."""

from __future__ import annotations

import click

from cnnc.cli.console import print_json
from cnnc.cli.files import Place, shipped
from cnnc.cli.load import load
from cnnc.cli.options import AS_JSON, NO_SETTINGS, Command


@click.command(cls=Command, examples="cnnc models\ncnnc summary squeezenet")
@AS_JSON
def models(as_json: bool) -> None:
    """List the models that come with cnnc.

    Their names can stand wherever a FILE is asked for.
    """
    from cnnc import analysis

    rows = []
    for name in shipped():
        graph = load(Place(name), NO_SETTINGS)
        rows.append({"name": name, "params": analysis.params(graph), "doc": graph.doc.partition("\n")[0]})
        if not as_json:
            click.echo("{name:<22} {params:>12,}  {doc}".format(**rows[-1]))
    if as_json:
        print_json(rows)
