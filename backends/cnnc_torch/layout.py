"""Lines of the generated source: constructions of modules and long statements, broken where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from cnnc_torch.blocks import access, safe
from cnnc_torch.classes import Chain, Group, Part
from cnnc_torch.written import Make, quoted

WIDTH: Final = 110
INDENT: Final = "    "


def construct(part: Part, before: str, after: str, indent: str) -> list[str]:
    """The lines of `{before}{part}{after}`."""
    line = f"{indent}{before}{_in_line(part)}{after}"
    if len(line) <= WIDTH and _short(part):
        return [line]
    opening, items, closing = _opened(part)
    return listed(before + opening, items, closing + after, indent)


def listed(opening: str, items: Sequence[tuple[str, Part | None]], closing: str, indent: str) -> list[str]:
    """The lines of items between brackets, each on its own line, with the text before it."""
    inner = indent + INDENT
    runs = list(_runs(items))
    if len(runs) == 1 and runs[0][1] is None and len(line := f"{indent}{opening}{runs[0][0]}{closing}") <= WIDTH:
        return [line]
    lines = [indent + opening]
    for text, item in runs:
        lines += construct(item, text, ",", inner) if item is not None else [f"{inner}{text},"]
    return [*lines, indent + closing]


def additions(part: Part, target: str, indent: str) -> Iterator[str]:
    """Statements that add to a module at `target` what its construction cannot take: modules inside a module's name."""
    if not isinstance(part, Group):
        return
    for name, item in part.parts.items():
        place = target + access(name, part.style)
        if part.style == "attribute":
            yield from construct(item, f"{place} = ", "", indent)
        yield from additions(item, place, indent)


def mapping(parts: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
    """Modules as the items of a dict."""
    return ((f"{quoted(name)}: ", part) for name, part in parts.items())


def _in_line(part: Part) -> str:
    if isinstance(part, Make):
        return str(part)
    opening, items, closing = _opened(part)
    return opening + ", ".join(text + _in_line(item) for text, item in items if item is not None) + closing


def _short(part: Part) -> bool:
    return isinstance(part, Make) or (len(part.parts) <= 2 and all(isinstance(x, Make) for x in part.parts.values()))


def _opened(part: Part) -> tuple[str, Sequence[tuple[str, Part | None]], str]:
    """A construction as what stands before its items, each item with the text before it, and what stands after."""
    if isinstance(part, Make):
        return f"{part.callee}(", [(arg.text, None) for arg in part.args if arg.text], ")"
    if isinstance(part, Chain):
        if part.numbered:
            return "nn.Sequential(", [("", x) for x in part.parts.values()], ")"
        if all(map(safe, part.parts)):
            return "nn.Sequential(OrderedDict(", [(f"{name}=", x) for name, x in part.parts.items()], "))"
        return "nn.Sequential(OrderedDict({", list(mapping(part.parts)), "}))"
    if part.style == "index":
        return "nn.ModuleList([", [("", part.parts[str(i)]) for i in range(len(part.parts))], "])"
    if part.style == "key":
        return "nn.ModuleDict({", list(mapping(part.parts)), "})"
    if part.module is None:
        return "nn.Module(", [], ")"
    return _opened(part.module)


def _runs(items: Sequence[tuple[str, Part | None]]) -> Iterator[tuple[str, Part | None]]:
    """The items, three or more equal ones without names as one comprehension."""
    start = 0
    while start < len(items):
        text, item = items[start]
        stop = start + 1
        while stop < len(items) and items[stop] == (text, item):
            stop += 1
        if stop - start >= 3 and not text and isinstance(item, Make):
            yield f"*({item} for _ in range({stop - start}))", None
        else:
            yield from items[start:stop]
        start = stop


def statement(line: str, indent: str) -> list[str]:
    """A statement, broken at the commas of its longest bracket, or those of a `return`, where it does not fit."""
    brackets = list(_brackets(line))
    if len(indent + line) <= WIDTH or not (brackets or "," in line):
        return [indent + line]
    if not brackets:
        return statement(f"return ({line.removeprefix('return ')})", indent)
    start, stop, commas = max(brackets, key=lambda x: x[1] - x[0])
    cuts = [start, *commas, stop]
    items = [line[a + 1 : b].strip() for a, b in pairwise(cuts)]
    return [
        indent + line[: start + 1],
        *(f"{indent}{INDENT}{item}," for item in items),
        indent + line[stop:],
    ]


def _brackets(line: str) -> Iterator[tuple[int, int, list[int]]]:
    """The brackets with commas in a line of source, each with the positions of its own commas."""
    stack: list[tuple[int, list[int]]] = []
    quote = ""
    previous = ""
    for i, char in enumerate(line):
        if quote:
            quote = "" if char == quote and previous != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            stack.append((i, []))
        elif char in ")]}":
            start, commas = stack.pop()
            if commas:
                yield start, i, commas
        elif char == "," and stack:
            stack[-1][1].append(i)
        previous = char
