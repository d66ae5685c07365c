"""Diagnostics: what went wrong, where, why, and what would mend it.

Everything a user can get wrong ends in a `CnncError` that carries one or more `Diagnostic`s. A diagnostic is data; the
text a person reads (`render`) and the JSON a tool reads (`to_json`) are two views of it. The family of a code (its
first two digits) fixes the exit status, so that a script can tell a typo from a refused file.
"""

from __future__ import annotations

import traceback
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final

EXIT_STATUS: Final = {
    "E01": 3,  # syntax
    "E02": 4,  # names, arguments, evaluation
    "E03": 4,  # shapes and types
    "E04": 5,  # a bad model or weight file
    "E05": 6,  # a limit
    "E06": 7,  # not supported by this target
    "E07": 8,  # refused for security
    "E08": 9,  # verification mismatch
}
EXIT_STATUS_OF: Final = {"E0901": 74, "E0902": 2, "E0999": 70}  # I/O, usage, internal


@dataclass(frozen=True, eq=False)
class Source:
    """A text that spans point into; `name` is what is shown of it, usually its path."""

    name: str
    text: str

    @cached_property
    def line_starts(self) -> list[int]:
        starts = [0]
        starts.extend(i + 1 for i, char in enumerate(self.text) if char == "\n")
        return starts

    def position(self, offset: int) -> tuple[int, int]:
        """The 1-based line and column of a character offset."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a 1-based line, without its end."""
        start = self.line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (exclusive) of a source."""

    source: Source
    start: int
    end: int

    def to(self, other: Span) -> Span:
        return Span(self.source, self.start, other.end)

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    def __str__(self) -> str:
        line, column = self.source.position(self.start)
        return f"{self.source.name}:{line}:{column}"


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Label:
    """A piece of source underlined with a short text; the primary one says where the fault is."""

    span: Span
    text: str = ""
    primary: bool = False


@dataclass(frozen=True, slots=True)
class Help:
    """A way to mend it. With `span` and `replacement` a tool can apply it as it stands."""

    text: str
    span: Span | None = None
    replacement: str | None = None


@dataclass(frozen=True)
class Diagnostic:
    """One finding. `path` is the chain of calls that led there, outermost first; `why` says where a size came from"""

    code: str
    message: str
    labels: tuple[Label, ...] = ()
    path: tuple[str, ...] = ()
    why: str | None = None
    help: Help | None = None
    notes: tuple[str, ...] = ()
    severity: Severity = Severity.ERROR

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS_OF.get(self.code) or EXIT_STATUS[self.code[:3]]

    @property
    def primary(self) -> Label | None:
        return next((label for label in self.labels if label.primary), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": str(self.severity),
            "message": self.message,
            "labels": [{**_span_json(x.span), "text": x.text, "primary": x.primary} for x in self.labels],
            "in": list(self.path),
            "why": self.why,
            "help": self.help
            and {
                "text": self.help.text,
                "at": self.help.span and _span_json(self.help.span),
                "replacement": self.help.replacement,
            },
            "notes": list(self.notes),
        }


def _span_json(span: Span) -> dict[str, Any]:
    line, column = span.source.position(span.start)
    end_line, end_column = span.source.position(span.end)
    return {"file": span.source.name, "line": line, "column": column, "end_line": end_line, "end_column": end_column}


@dataclass
class CnncError(Exception):
    """What every part of cnnc raises when the user's input is at fault."""

    diagnostics: tuple[Diagnostic, ...] = field(default=())

    def __post_init__(self) -> None:
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(render(d) for d in self.diagnostics)

    @property
    def exit_status(self) -> int:
        """The status of the first error: the others may follow from it."""
        return next((d.exit_status for d in self.diagnostics if d.severity is Severity.ERROR), 70)


def error(code: str, message: str, *, help: str | None = None, notes: Iterable[str] = ()) -> CnncError:
    """An error that belongs to no place in a source: a file, an argument, a machine."""
    return CnncError((Diagnostic(code, message, help=Help(help) if help else None, notes=tuple(notes)),))


def internal(e: Exception) -> Diagnostic:
    """E0999 for what cnnc should never raise: the place in it and the kind of the exception. Its text may be a page of
    C++ and is kept for --debug."""
    root = Path(__file__).parent
    frames = [frame for frame in traceback.extract_tb(e.__traceback__) if root in Path(frame.filename).parents]
    place = f" at {Path(frames[-1].filename).relative_to(root.parent).as_posix()}:{frames[-1].lineno}" if frames else ""
    return Diagnostic(
        "E0999",
        f"internal error: {type(e).__name__}{place}",
        notes=("this is a fault in cnnc, not in your input",),
        help=Help("run it again with `--debug` and send the trace with your report"),
    )


_MAX_WIDTH: Final = 160


def render(diagnostic: Diagnostic, *, colour: bool = False) -> str:
    """The diagnostic as people read it, in the form rustc made familiar."""
    paint = _Paint(colour)
    head = paint.bad if diagnostic.severity is Severity.ERROR else paint.warn
    lines = [head(f"{diagnostic.severity}[{diagnostic.code}]") + paint.bold(f": {diagnostic.message}")]
    notes = [("in", " > ".join(diagnostic.path))] if diagnostic.path else []
    notes += [("why", diagnostic.why)] if diagnostic.why else []
    notes += [("note", note) for note in diagnostic.notes]
    notes += [("help", diagnostic.help.text)] if diagnostic.help else []
    gutter = _gutter(diagnostic.labels)
    lines += _snippets(diagnostic.labels, gutter, paint, head)
    key_width = max((len(key) for key, _ in notes), default=0) + 1
    for key, text in notes:
        first, *rest = text.split("\n")
        lines.append(f"{' ' * gutter} {paint.dim('=')} {paint.bold((key + ':').ljust(key_width))} {first}")
        lines += [f"{' ' * gutter}   {' ' * key_width} {line}" for line in rest]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Paint:
    on: bool

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text

    def bad(self, text: str) -> str:
        return self._wrap("1;31", text)

    def warn(self, text: str) -> str:
        return self._wrap("1;33", text)

    def bold(self, text: str) -> str:
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        return self._wrap("34", text)


def _gutter(labels: Iterable[Label]) -> int:
    return max((len(str(label.span.line)) for label in labels), default=1)


def _snippets(labels: tuple[Label, ...], gutter: int, paint: _Paint, head: Any) -> list[str]:
    """The source lines that labels point at, each with its underlines, grouped by source, the primary's first."""
    if not labels:
        return []
    primary = next((label for label in labels if label.primary), labels[0])
    sources = [primary.span.source, *(x.span.source for x in labels)]
    lines: list[str] = []
    for index, source in enumerate(dict.fromkeys(sources)):
        here = [x for x in labels if x.span.source is source]
        lead = next((x for x in here if x.primary), here[0])
        arrow = "-->" if index == 0 else ":::"
        lines.append(f"{' ' * gutter}{paint.dim(arrow)} {lead.span}")
        lines.append(f"{' ' * gutter} {paint.dim('|')}")
        shown = 0
        for number in sorted({x.span.line for x in here}):
            if shown and number > shown + 1:
                lines.append(paint.dim("..."))
            shown = number
            lines += _line(source, number, [x for x in here if x.span.line == number], gutter, paint, head)
    return lines


def _line(source: Source, number: int, labels: list[Label], gutter: int, paint: _Paint, head: Any) -> list[str]:
    text = source.line(number)
    start = source.line_starts[number - 1]
    window = _window(len(text), min(x.span.start - start for x in labels))
    shown = "".join(c if c.isprintable() else " " if c == "\t" else "�" for c in text[window : window + _MAX_WIDTH])
    bar = paint.dim("|")
    out = [f"{paint.dim(str(number).rjust(gutter))} {bar} {shown}".rstrip()]
    for label in sorted(labels, key=lambda x: (not x.primary, x.span.start)):
        column = label.span.start - start - window
        width = max(1, min(label.span.end - start - window, len(shown)) - column)
        mark = head("^" * width) if label.primary else paint.dim("-" * width)
        out.append(f"{' ' * gutter} {bar} {' ' * column}{mark} {label.text}".rstrip())
    return out


def _window(length: int, column: int) -> int:
    return 0 if length <= _MAX_WIDTH else max(0, min(column - 20, length - _MAX_WIDTH))
