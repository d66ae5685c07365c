"""`cnnc passes`: the passes of the optimiser and their documentation."""

from __future__ import annotations

import click

from cnnc.cli.console import print_json
from cnnc.cli.options import AS_JSON, Command


@click.command(cls=Command, examples="cnnc passes\ncnnc passes fold_batch_norm")
@click.argument("name", metavar="[PASS]", required=False)
@AS_JSON
def passes(name: str | None, as_json: bool) -> None:
    """List the passes of the optimiser, or explain one.

    An explanation says what the pass does, why that is right, and what it leaves alone. Passes run in the order of
    the list, from the level -O on that stands before them: 1 keeps every bit of the results, 2 keeps them within
    rounding, 3 does where no value on the way is infinite. One without a level is asked for by name: --passes NAME.
    """
    from cnnc.passes import LEVELS, PASSES, find

    if as_json:
        chosen = PASSES.values() if name is None else [find(name)]
        print_json([{"name": x.name, "level": x.level, "title": x.title, "doc": x.doc} for x in chosen])
    elif name is not None:
        click.echo(find(name).doc.rstrip())
    else:
        width = max(map(len, PASSES))
        levels = {x.name: f"-O{x.level}" if x.level in LEVELS else "" for x in PASSES.values()}
        click.echo("\n".join(f"{levels[x.name]:<3}  {x.name:<{width}}  {x.title}" for x in PASSES.values()))
