"""From what the command line says to a graph."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cnnc.cli.console import note, report
from cnnc.cli.files import Place
from cnnc.cli.options import Settings, WeightSource
from cnnc.diagnostics import Diagnostic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnnc.driver import WeightsOf
    from cnnc.ir.graph import Graph
    from cnnc.verification import Case


def load(place: Place, settings: Settings) -> Graph:
    """The graph of a model, bound and pruned as the settings say. Its warnings are printed."""
    from cnnc.driver import finish, open_module
    from cnnc.frontend.model import choose, elaborate, parse_value

    module = open_module(place.source())
    args = {name: parse_value(text, module) for name, text in settings.args.items()}
    model = elaborate(module, choose(module, place.model), args)
    report(model.warnings)
    return finish(model, dims=settings.dims, outputs=settings.outputs, dtype=settings.dtype)


def weights_for(graph: Graph, source: WeightSource) -> WeightsOf:
    """The weights asked for; that they are random, or what is odd about those in a file, is printed."""
    from cnnc import weights

    if source.weights is None:
        if source.seed is None and graph.params:
            note("note: the weights are random (seed 0); --weights gives others")
        return source.seed or 0
    if source.seed is not None:
        raise click.UsageError("--weights and --seed exclude each other")
    odd: list[Diagnostic] = []
    arrays = weights.load(source.weights, graph, strict=source.strict, warn=odd.append)
    report(odd)
    return arrays


def case_of(graph: Graph, source: WeightSource) -> Case:
    """The graph on random inputs, with the weights asked for or random ones that hide nothing. What is odd about those
    in a file is printed."""
    from cnnc import weights
    from cnnc.verification import random_case

    given = None
    if source.weights is not None:
        given = weights.load(source.weights, graph, strict=source.strict, warn=lambda odd: report([odd]))
    return random_case(graph, given, source.seed or 0)


@contextmanager
def told_already() -> Iterator[None]:
    """Python's warnings about weights are not shown: `weights_for` printed what is odd about them. Others are printed
    as diagnostics are."""

    def show(message: Warning | str, *place: object, **more: object) -> None:
        note(f"{message}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", r"warning\[E0407\]")
        warnings.showwarning = show
        yield
