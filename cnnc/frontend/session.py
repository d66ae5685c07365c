"""What the elaboration of a model shares: its diagnostics, its parameters and its budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from cnnc.diagnostics import CnncError, Diagnostic, Help, Label, Severity, Span
from cnnc.frontend.call import CallError
from cnnc.frontend.scope import POISON, Poison, Scope, SharedBlock
from cnnc.ir.graph import Param

MAX_CALLS = 64
MAX_NODES = 8_000
MAX_STEPS = 60_000
MAX_ERRORS = 100
CALL_STEPS = 4  # what a call of a def takes besides its body and parameters, in steps: expressions evaluated
MODEL_STEPS = 80  # what a model used as a block takes besides: its inputs' types are matched


def _key(code: str, span: Span | None) -> tuple[str, int, int, int]:
    return (code, id(span.source), span.start, span.end) if span else (code, 0, 0, 0)


class Session:
    """Collects diagnostics and parameters, and counts what must stay within limits."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.params: dict[str, Param] = {}
        self.owners: dict[str, SharedBlock | None] = {}
        """The shared block whose parameter one of that name is, None where it is a single layer's."""
        self.defaults: Mapping[str, int] = {}  # of the symbolic dims, to show sizes as numbers
        self.nodes = 0
        self.steps = 0
        self.calls: list[str] = []
        self.repeats = 1  # how many times what is written here runs, counted before it does
        self._reported: set[tuple[str, int, int, int]] = set()

    def report(self, diagnostic: Diagnostic) -> Poison:
        """Keep a diagnostic, one for each fault and place: a block used ten times is wrong once.

        After `MAX_ERRORS` there are no more: CnncError.
        """
        span = diagnostic.primary.span if diagnostic.primary else None
        if not self.told(diagnostic.code, span):
            self._reported.add(_key(diagnostic.code, span))
            self.diagnostics.append(diagnostic)
            if len(self.diagnostics) == MAX_ERRORS:
                raise CnncError(tuple(self.diagnostics))
        return POISON

    def told(self, code: str, span: Span | None) -> bool:
        """Whether that fault of that place is reported already."""
        return _key(code, span) in self._reported

    def error(
        self, code: str, message: str, span: Span, scope: Scope | None = None, *, help: str | None = None,
        also: Sequence[Label] = (), severity: Severity = Severity.ERROR,
    ) -> Poison:  # fmt: skip
        path = scope.frame.path() if scope and scope.frame else ()
        labels = (Label(span, primary=True), *also)
        return self.report(Diagnostic(code, message, labels, path, None, Help(help) if help else None, (), severity))

    def stop(self, code: str, message: str, span: Span, scope: Scope | None, help: str | None = None) -> NoReturn:
        """Report and end elaboration: a limit is not something to go on from."""
        self.error(code, message, span, scope, help=help)
        raise CnncError(tuple(self.diagnostics))

    def tick(self, steps: int, span: Span, scope: Scope) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            self.stop("E0505", f"elaboration takes more than {MAX_STEPS:,} steps", span, scope)

    def refused(self, e: CallError, scope: Scope) -> Poison:
        """Report arguments that do not fit, with the calls that led there."""
        for d in e.diagnostics:
            self.report(replace(d, path=scope.frame.path() if scope.frame else ()))
        return POISON

    @contextmanager
    def repeated(self, count: int, span: Span, scope: Scope) -> Iterator[None]:
        """Refuse, before it is expanded, what would take more steps than there are."""
        outer = self.repeats
        self.repeats = max(1, outer * count)
        if self.repeats > MAX_NODES:
            self.stop("E0505", f"this expands {self.repeats:,} times; the limit is {MAX_NODES:,}", span, scope)
        try:
            yield
        finally:
            self.repeats = outer

    @contextmanager
    def called(self, name: str, span: Span, scope: Scope) -> Iterator[None]:
        self.calls.append(name)
        if len(self.calls) > MAX_CALLS:
            before = self.calls[:-1]
            start = len(before) - 1 - before[::-1].index(name) if name in before else -4
            cycle = self.calls[start:]
            message = f"calls nest deeper than {MAX_CALLS}: {' > '.join(cycle)} > ..."
            self.stop("E0218", message, span, None, "recursion ends where a static `if` stops it")
        try:
            yield
        finally:
            self.calls.pop()
