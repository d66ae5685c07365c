"""From what the command line says to a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnc.cli.console import report
from cnnc.cli.files import Place
from cnnc.cli.options import Settings

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph


def load(place: Place, settings: Settings) -> Graph:
    """The graph of a model, bound and pruned as the settings say. Its warnings are printed."""
    from cnnc.driver import finish, open_module
    from cnnc.frontend.model import choose, elaborate, parse_value

    module = open_module(place.source())
    args = {name: parse_value(text, module) for name, text in settings.args.items()}
    model = elaborate(module, choose(module, place.model), args)
    report(model.warnings)
    return finish(model, dims=settings.dims, outputs=settings.outputs, dtype=settings.dtype)
