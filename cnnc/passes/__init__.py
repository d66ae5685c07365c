"""The optimiser: every pass by name, and what runs at the levels -O0 to -O3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

from cnnc.diagnostics import error
from cnnc.passes.canonical import CANONICAL
from cnnc.passes.commute_pool import COMMUTE_POOL
from cnnc.passes.constant_folding import CONSTANT_FOLDING
from cnnc.passes.constant_neutral import CONSTANT_NEUTRAL
from cnnc.passes.dead_channels import DEAD_CHANNELS
from cnnc.passes.engine import Network, Note, Optimised, Pass, Pipeline, Refusal, Rule, Sweep
from cnnc.passes.fold_batch_norm import FOLD_BATCH_NORM
from cnnc.passes.fold_into_next import FOLD_INTO_NEXT
from cnnc.passes.fold_normalize import FOLD_NORMALIZE
from cnnc.passes.fold_scale import FOLD_SCALE
from cnnc.passes.fully_convolutional import FULLY_CONVOLUTIONAL
from cnnc.passes.fuse_epilogue import FUSE_EPILOGUE
from cnnc.passes.merge_pools import MERGE_POOLS
from cnnc.passes.merge_siblings import MERGE_SIBLINGS
from cnnc.passes.pointwise_linear import POINTWISE_LINEAR
from cnnc.passes.remove_identity import REMOVE_IDENTITY
from cnnc.passes.reorder_pool import REORDER_POOL
from cnnc.passes.round_once import ROUND_ONCE
from cnnc.passes.share_common import SHARE_COMMON
from cnnc.passes.zero_channels import ZERO_CHANNELS

_ORDER = (
    REMOVE_IDENTITY, CONSTANT_NEUTRAL, CONSTANT_FOLDING, CANONICAL, SHARE_COMMON,
    FOLD_BATCH_NORM, FOLD_NORMALIZE, FOLD_INTO_NEXT, FOLD_SCALE,
    MERGE_POOLS, REORDER_POOL, COMMUTE_POOL, DEAD_CHANNELS, ZERO_CHANNELS,
    POINTWISE_LINEAR, FULLY_CONVOLUTIONAL, MERGE_SIBLINGS,
    FUSE_EPILOGUE, ROUND_ONCE,
)  # fmt: skip

PASSES: Mapping[str, Pass] = MappingProxyType({each.name: each for each in _ORDER})
"""Every pass, in the order in which they run."""

LEVELS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {level: tuple(name for name, each in PASSES.items() if each.level <= level) for level in range(4)}
)
"""The passes of the levels: -O0 none, -O1 those that keep every bit, -O2 those within the derived bound, -O3 those that
assume finite values too. A pass of level 4 does what not everybody wants and runs only by name."""


def find(name: str) -> Pass:
    """The pass of that name; CnncError E0902 if there is none."""
    if name not in PASSES:
        near = get_close_matches(name, PASSES, n=1)
        help = f"did you mean `{near[0]}`?" if near else "`cnnc passes` lists them"
        raise error("E0902", f"there is no pass `{name}`", help=help)
    return PASSES[name]


def choose(level: int, changes: str = "") -> tuple[str, ...]:
    """The passes of a level with `changes`: names to add, with a `+` or none before them, and with a `-` to leave out.
    E0902 for unknown ones."""
    if not isinstance(level, int) or level not in LEVELS:
        known = ", ".join(map(str, LEVELS))
        raise error("E0902", f"there is no optimisation level {level!r}", notes=[f"the levels: {known}"])
    if not isinstance(changes, str):
        raise error("E0902", f'`passes` is a text, as "-fold_batch_norm,+round_once", not {changes!r}')
    chosen = set(LEVELS[level])
    for change in filter(None, (part.strip() for part in changes.split(","))):
        name = find(change[1:] if change[0] in "+-" else change).name
        if change.startswith("-"):
            chosen.discard(name)
        else:
            chosen.add(name)
    return tuple(name for name in PASSES if name in chosen)


def optimise(
    network: Network, names: Sequence[str], after: Callable[[Pass, Network], None] | None = None
) -> Optimised:
    """The network after the passes of these names, in their order, verified after each one.

    `after` is called with each pass and its result.
    """
    return Pipeline(tuple(PASSES[name] for name in names)).run(network, after)

__all__ = [
    "LEVELS", "PASSES", "Network", "Note", "Optimised", "Pass", "Pipeline", "Refusal", "Rule", "Sweep", "choose",
    "find", "optimise",
]  # fmt: skip
