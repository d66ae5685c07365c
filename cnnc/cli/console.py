"""What commands print: diagnostics and notes on standard error, results on standard output, colour on terminals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

import click

from cnnc.diagnostics import Diagnostic, Severity, render

if TYPE_CHECKING:
    from rich.status import Status
    from rich.table import Table


def coloured(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: a capable terminal, and NO_COLOR not set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def report(diagnostics: Sequence[Diagnostic], *, as_json: bool = False) -> None:
    """Print diagnostics and how many there are: as text on standard error, or as the JSON of a failed command."""
    if as_json:
        print_json(findings(diagnostics))
        return
    for diagnostic in diagnostics:
        click.echo(render(diagnostic, colour=coloured(sys.stderr)) + "\n", err=True, color=True)
    if diagnostics and (len(diagnostics) > 1 or diagnostics[0].severity is Severity.WARNING):
        note(count_line(diagnostics))


def count_line(diagnostics: Iterable[Diagnostic]) -> str:
    """`2 errors, 1 warning`."""
    severities = [d.severity for d in diagnostics]
    counts = [(severity, severities.count(severity)) for severity in (Severity.ERROR, Severity.WARNING)]
    return ", ".join(plural(n, str(severity)) for severity, n in counts if n)


def findings(diagnostics: Iterable[Diagnostic]) -> dict[str, Any]:
    """Diagnostics as the JSON output of every command has them."""
    found = list(diagnostics)
    errors = sum(d.severity is Severity.ERROR for d in found)
    return {
        "ok": not errors,
        "errors": errors,
        "warnings": len(found) - errors,
        "diagnostics": [d.to_json() for d in found],
    }


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def note(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(table: Table) -> None:
    """A rich table: as wide as a terminal, or as wide as it needs where the output is no terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(no_color=not coloured(sys.stdout)).print(table)
    else:
        page = StringIO()
        Console(file=page, width=400, no_color=True).print(table)
        click.echo("\n".join(line.rstrip() for line in page.getvalue().splitlines()))


def working(text: str, *, per_second: float = 12.5) -> AbstractContextManager[Status | None]:
    """Shows `text` with a spinner on standard error while the work lasts; nothing, and None, where that is no terminal.

    The spinner moves so often `per_second`; what is timed is disturbed less by a slow one.
    """
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True, no_color=not coloured(sys.stderr)).status(text, refresh_per_second=per_second)


def size_text(size: int) -> str:
    """Bytes for people: `97.8 MB` (decimal, as disks and papers count)."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def count_text(count: int) -> str:
    """A large count for people: `4.09 G`."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return str(count)
