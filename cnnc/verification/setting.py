"""Ways to compile: which target, after which passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cnnc.passes import LEVELS, PASSES
from cnnc.target import target

ALL = LEVELS[max(LEVELS)]


@dataclass(frozen=True)
class Setting:
    """A target, and the passes that run before it."""

    target: str
    passes: tuple[str, ...] = ()

    @property
    def optimiser(self) -> str:
        """`off`, `on`, or the passes."""
        return {(): "off", ALL: "on"}.get(self.passes) or ", ".join(self.passes)

    def __str__(self) -> str:
        return f"{self.target}, optimiser {self.optimiser}"


def settings(targets: Iterable[str], supports: Callable[[Setting], bool] = lambda setting: True) -> list[Setting]:
    """Each target with the optimiser off and on; and for the first that takes optimised graphs, and `supports` the
    network at all, each pass alone.

    What a pass makes of a graph does not depend on the target. CnncError E0602 for a target that is not installed.
    """
    found: list[Setting] = []
    for name in targets:
        off, on = Setting(name), Setting(name, ALL)
        if not target(name).passes:
            found.append(off)
        elif any(x.passes not in ((), ALL) for x in found) or not supports(off):
            found += [off, on]
        else:
            found += [off, *(Setting(name, (each,)) for each in PASSES), on]
    return found
