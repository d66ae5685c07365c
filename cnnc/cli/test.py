"""`cnnc test`: do the `check` blocks hold?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from cnnc.cli.console import coloured, findings, plural, print_json, report
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.options import AS_JSON, Command
from cnnc.diagnostics import CnncError, Diagnostic

if TYPE_CHECKING:
    from cnnc.contracts import FactResult

FAILED = 4


@click.command(
    cls=Command,
    examples="""
    cnnc test net.cnn           a line for every fact
    cnnc test models/*.cnn
    """,
)
@click.argument("places", metavar="FILE[:MODEL]...", type=ModelFile(), nargs=-1, required=True)
@AS_JSON
def test(places: tuple[Place, ...], as_json: bool) -> int:
    """Test the facts in the `check` blocks of FILEs.

    Parameters, work, shapes, receptive fields: a line for each fact; one that does not hold exits with 4.
    """
    from cnnc.driver import check_file

    found: list[Diagnostic] = []
    facts: list[FactResult] = []
    for place in places:
        try:
            result = check_file(place.source(), place.model, facts=True)
        except CnncError as e:
            found += e.diagnostics
            continue
        found += result.diagnostics
        facts += result.facts
    passed = sum(fact.holds for fact in facts)
    if as_json:
        rows = [
            {"at": str(fact.span), "model": fact.model, "fact": fact.text, "ok": fact.holds, "actual": fact.actual}
            for fact in facts
        ]
        print_json({**findings(found), "passed": passed, "failed": len(facts) - passed, "facts": rows})
    else:
        report(found)
        for fact in facts:
            but = "" if fact.holds else f": it is {fact.actual}"
            click.echo(f"{_verdict(fact.holds)} {fact.span} {fact.model}: {fact.text}{but}")
        click.echo(f"{plural(len(facts), 'fact')}, {passed} passed, {len(facts) - passed} failed")
    if not findings(found)["ok"]:
        return CnncError(tuple(found)).exit_status
    return FAILED if passed < len(facts) else 0


def _verdict(ok: bool) -> str:
    word, colour = ("pass", "green") if ok else ("FAIL", "red")
    return click.style(word, fg=colour) if coloured(sys.stdout) else word
