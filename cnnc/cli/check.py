"""`cnnc check`: is the file right?"""

from __future__ import annotations

import click

from cnnc.cli.console import findings, plural, print_json, report
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.options import AS_JSON, Command
from cnnc.diagnostics import CnncError, Diagnostic


@click.command(
    cls=Command,
    examples="""
    cnnc check net.cnn                 all models of a file
    cnnc check net.cnn:Tiny            one of them
    cnnc check models/*.cnn --json     for tools
    """,
)
@click.argument("places", metavar="FILE[:MODEL]...", type=ModelFile(), nargs=-1, required=True)
@AS_JSON
def check(places: tuple[Place, ...], as_json: bool) -> int:
    """Find the errors in FILEs: syntax, names, shapes.

    Every model of a file is elaborated, or the one named; nothing is compiled.
    """
    from cnnc import analysis
    from cnnc.driver import check_file

    found: list[Diagnostic] = []
    models = []
    for place in places:
        try:
            result = check_file(place.source(), place.model)
        except CnncError as e:
            found += e.diagnostics
            continue
        found += result.diagnostics
        models += [(place, x.graph, analysis.params(x.graph)) for x in result.models]
    if as_json:
        rows = [
            {"file": place.path, "model": graph.name, "doc": graph.doc, "params": params}
            for place, graph, params in models
        ]
        print_json({**findings(found), "models": rows})
    else:
        report(found)
        for place, graph, params in models:
            click.echo(f"{place.path}: {graph.name}: ok, {plural(params, 'parameter')}")
    return CnncError(tuple(found)).exit_status if not findings(found)["ok"] else 0
