"""Ways to compile: which target, after which passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cnnc.passes import LEVELS, PASSES
from cnnc.target import target

USUAL, ALL = LEVELS[2], LEVELS[max(LEVELS)]


@dataclass(frozen=True)
class Setting:
    """A target, and the passes that run before it."""

    target: str
    passes: tuple[str, ...] = ()

    @property
    def optimiser(self) -> str:
        """A level, one without a pass, or the passes."""
        known = {_without(name): f"-O{max(LEVELS)} without {name}" for name in ALL}
        known |= {names: f"-O{level}" for level, names in LEVELS.items()}
        return known.get(self.passes) or ", ".join(self.passes)

    def __str__(self) -> str:
        return f"{self.target}, {self.optimiser}"


def _without(name: str) -> tuple[str, ...]:
    return tuple(each for each in ALL if each != name)


def settings(targets: Iterable[str], supports: Callable[[Setting], bool] = lambda setting: True) -> list[Setting]:
    """Each target without the optimiser, at its usual level and at its highest; and for the first that takes optimised
    graphs, and `supports` the network at all, each pass alone and each left out.

    What a pass makes of a graph does not depend on the target. CnncError E0602 for a target that is not installed.
    """
    found: list[Setting] = []
    by_pass: list[Setting] = []
    for name in targets:
        off, on = Setting(name), [Setting(name, USUAL), Setting(name, ALL)]
        found.append(off)
        if not target(name).passes:
            continue
        if not by_pass and supports(off):
            by_pass = [Setting(name, (each,)) for each in PASSES] + [Setting(name, _without(each)) for each in ALL]
            found += by_pass
        found += on
    return list(dict.fromkeys(found))
