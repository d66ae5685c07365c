"""Names of classes: those of the definitions in the model's source, else those of the labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, count, takewhile

from cnnc.ir.graph import Frame
from cnnc_torch.blocks import Block
from cnnc_torch.regions import Region


class Naming:
    """Names for the blocks of a network. `taken` are names that the source uses for something else."""

    def __init__(self, network: str, root: Region, taken: Iterable[str]) -> None:
        self.network, self.root, self.taken = network, root, {*taken, "None", "True", "False"}
        self._frames: dict[Region, Frame | None] = {}
        self._around: dict[Region, Region] = {}
        for region in reversed(list(root.walk())):  # the outermost first
            self._frames[region] = self._frame(region)
            for item in region.items:
                if isinstance(item, Region):
                    self._around[item] = region

    def definition(self, region: Region) -> str | None:
        """The `def` that the region is a call of; None if it is a part of one, or if the source is unknown."""
        frame, around = self._frames[region], self._around.get(region)
        if frame is None or (around is not None and self._frames[around] is frame):
            return None
        if region.path and frame.call == region.path[-1]:  # a labelled part of a chain
            return None
        match = re.match(r"(?:[^(]*: )?(\w+)(?:\(|$)", frame.call)
        return match[1] if match else None

    def _frame(self, region: Region) -> Frame | None:
        """The call that the region is: the innermost that all its nodes come from, but for those of what is in it."""
        frames = _common(region)
        while len(region.items) == 1 and isinstance(region.items[0], Region):
            region = region.items[0]
            frames = frames[:-1]
        return frames[-1] if frames else None

    def classes(self, groups: Sequence[Sequence[Block]]) -> list[str]:
        """A name for each group of blocks that are one class, all different."""
        bases = [self._base([block.region for block in group]) for group in groups]
        members = [set(group[0].children) for group in groups]
        names: list[str] = []
        for base, own in zip(bases, members, strict=True):
            # Of classes for one definition, those that hold something more are named by it.
            alike = [x for x, other in zip(members, bases, strict=True) if other == base]
            rest = own - alike[0].intersection(*alike)
            more = "".join(camel(name) for name in sorted(rest)) if len(rest) == 1 else ""
            numbers = (f"{base}{i}" for i in count(2))
            name = next(name for name in chain([base + more], numbers) if name not in self.taken)
            self.taken.add(name)
            names.append(name)
        return names

    def _base(self, group: Sequence[Region]) -> str:
        region = group[0]
        if region is self.root:
            return camel(self.network) or "Network"
        label = region.path[-1]
        if label.isdecimal() and (around := self._around.get(region)) and around.path:
            label = f"{around.path[-1]}_block"
        if len(group) > 1:
            label = re.sub(r"\d+(_block)?$", r"\1", label)
        return camel(self.definition(region) or label) or "Block"


def camel(name: str) -> str:
    """A name as classes are written: `basic_block` becomes `BasicBlock`; "" if nothing usable is left."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    text = "".join(word[0].upper() + word[1:] for word in words).lstrip("0123456789")
    return text[:1].upper() + text[1:]


def _common(region: Region) -> list[Frame]:
    """The calls that all nodes of a region come from, the outermost first."""
    common: list[Frame] | None = None
    for node in region.nodes:
        frames = _frames(node.origin.frame if node.origin else None)
        if common is None:
            common = frames
        else:
            common = [a for a, _ in takewhile(lambda pair: pair[0] is pair[1], zip(common, frames, strict=False))]
    return common or []


def _frames(frame: Frame | None) -> list[Frame]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.parent
    return frames[::-1]
