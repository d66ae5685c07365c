"""From what the command line says to a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnc.cli.files import Place
from cnnc.cli.options import Settings

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph


def load(place: Place, settings: Settings) -> Graph:
    """The graph of a model, bound and pruned as the settings say."""
    import cnnc
    from cnnc.frontend import parse_value

    args = {name: parse_value(text) for name, text in settings.args.items()}
    return cnnc.load(
        place.source(), place.model, dims=settings.dims, outputs=settings.outputs, dtype=settings.dtype, **args
    )
