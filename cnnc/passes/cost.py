"""Sizes for decisions of cost, where a rewrite is right whatever they are but pays for some only."""

from __future__ import annotations

from cnnc.ir.dim import Dim, evaluate, symbols

NOMINAL = 64
"""What a symbol is taken as."""


def nominal(dim: Dim) -> int:
    """The size, every symbol in it taken as `NOMINAL`."""
    return evaluate(dim, dict.fromkeys(symbols(dim), NOMINAL))
