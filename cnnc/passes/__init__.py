"""The optimiser: every pass by name, and what runs at the levels -O0 to -O3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cnnc.diagnostics import error
from cnnc.passes.canonical import CANONICAL
from cnnc.passes.engine import Network, Note, Optimised, Pass, Pipeline, Refusal, Rule, Sweep
from cnnc.passes.fold_batch_norm import FOLD_BATCH_NORM
from cnnc.passes.fuse_epilogue import FUSE_EPILOGUE
from cnnc.passes.remove_identity import REMOVE_IDENTITY
from cnnc.passes.share_common import SHARE_COMMON

PASSES: Mapping[str, Pass] = MappingProxyType(
    {each.name: each for each in (REMOVE_IDENTITY, CANONICAL, SHARE_COMMON, FOLD_BATCH_NORM, FUSE_EPILOGUE)}
)
"""Every pass, in the order in which they run."""

LEVELS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {level: tuple(name for name, each in PASSES.items() if each.level <= level) for level in range(4)}
)
"""The passes of the levels: -O0 none, -O1 those that keep every bit, -O2 those within the derived bound, -O3 all."""


def choose(level: int, changes: str = "") -> tuple[str, ...]:
    """The passes of a level with `changes`: names to add, and with a `-` to leave out. E0902 for unknown ones."""
    if level not in LEVELS:
        known = ", ".join(map(str, LEVELS))
        raise error("E0902", f"there is no optimisation level {level}", notes=[f"the levels: {known}"])
    chosen = set(LEVELS[level])
    for change in filter(None, (part.strip() for part in changes.split(","))):
        name = change.removeprefix("-")
        if name not in PASSES:
            raise error("E0902", f"there is no pass `{name}`", notes=[f"the passes: {', '.join(PASSES)}"])
        if change.startswith("-"):
            chosen.discard(name)
        else:
            chosen.add(name)
    return tuple(name for name in PASSES if name in chosen)


def optimise(network: Network, names: Sequence[str]) -> Optimised:
    """The network after the passes of these names, in their order, verified after each one."""
    return Pipeline(tuple(PASSES[name] for name in names)).run(network)

__all__ = [
    "LEVELS", "PASSES", "Network", "Note", "Optimised", "Pass", "Pipeline", "Refusal", "Rule", "Sweep", "choose",
    "optimise",
]  # fmt: skip
