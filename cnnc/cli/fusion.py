"""`cnnc explain fusion`: what the optimiser did with a model, line by line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from cnnc.cli.console import print_json
from cnnc.cli.files import Place
from cnnc.cli.load import load
from cnnc.cli.options import Settings
from cnnc.diagnostics import error

if TYPE_CHECKING:
    from cnnc.diagnostics import Span
    from cnnc.passes import Note

_ROWS = 8
"""How many notes of a kind are printed at a line; a block that is used often has more."""


def explain_fusion(place: Place, settings: Settings, label: str | None, as_json: bool) -> None:
    """Print the notes of all passes on a model, or those on the nodes at `label` and below, and on the nodes after them
    that became part of one or could not; CnncError E0902 if no node is at `label`."""
    from cnnc.driver import optimise
    from cnnc.passes import LEVELS

    graph = load(place, settings)
    before = [node.name for node in graph.nodes]
    if label is not None and not any(_within(name, label) for name in before):
        raise error("E0902", f"no node of `{graph.name}` is labelled `{label}`", help="`cnnc ir` lists them")
    result = optimise(graph, level=max(LEVELS))
    notes = [x for x in result.notes if label is None or _concerns(x, label)]
    if as_json:
        print_json([_json(x) for x in notes])
        return
    for span, there in _by_line(notes):
        if span is not None:
            click.echo(f"{span.source.name}:{span.line}: {span.source.line(span.line).strip()}")
        _print(there)
    if label is None:
        click.echo(f"{len(before)} nodes before, {len(result.network.graph.nodes)} after")
    elif not notes:
        click.echo(f"no pass found anything to do at `{label}`")


def _within(name: str, label: str) -> bool:
    return name == label or name.startswith(f"{label}.")


def _concerns(note: Note, label: str) -> bool:
    return any(_within(name, label) for name in (note.node, *note.near))


def _by_line(notes: Iterable[Note]) -> list[tuple[Span | None, list[Note]]]:
    """The notes by the line of their node, in the order of the text; a block that is used often has one line."""
    lines: dict[tuple[str, int], tuple[Span | None, list[Note]]] = {}
    for note in notes:
        span = note.origin.span if note.origin else None
        key = (span.source.name, span.line) if span else ("", 0)
        lines.setdefault(key, (span, []))[1].append(note)
    return [lines[key] for key in sorted(lines)]


def _print(notes: list[Note]) -> None:
    """Notes of one line: those of a pass together, the refused ones first."""
    kinds: dict[tuple[bool, str], list[Note]] = {}
    for note in notes:
        kinds.setdefault((note.applied, note.passed), []).append(note)
    for key in sorted(kinds):
        same = kinds[key]
        for note in same[:_ROWS]:
            click.echo(f"    {note.node}: {note}")
        if len(same) > _ROWS:
            click.echo(f"    ... and {len(same) - _ROWS} more like these; LABEL picks one")


def _json(note: Note) -> dict[str, object]:
    span = note.origin.span if note.origin else None
    return {
        "node": note.node,
        "pass": note.passed,
        "applied": note.applied,
        "text": str(note),
        "at": str(span) if span else None,
    }
