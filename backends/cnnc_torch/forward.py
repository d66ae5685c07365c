"""Writing `forward`: the items of a region as statements.

A value that is used once is written inside its user's expression as long as a statement stays easy to read: at most
three calls deep, one convolution or block in it, a line long. Other values get a variable. A variable whose value is
no longer needed is written over, so that a chain reads `x = ...`, `x = ...`; a value that is used again later and has a
label is called by it.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Final

from cnnc.ir.graph import Node, Value
from cnnc.ir.types import shape_text
from cnnc_torch.regions import Item, Region, path_of
from cnnc_torch.written import Written, text

DEPTH: Final = 3
WIDTH: Final = 96
SHORT: Final = ("x", "y", "z", "u", "v", "w")
"""Names of values that are not named, which may be written over."""
RESERVED: Final = frozenset({"self", "torch", "nn", "F", "Tensor"})


def identifier(name: str) -> str | None:
    """The name where it can be a variable or an attribute of a generated source; labels are checked, not trusted."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None
    return name if plain and not keyword.iskeyword(name) and name not in RESERVED else None


@dataclass
class Statement:
    """A line of `forward`; `shape` is that of its value."""

    text: str
    shape: str = ""


@dataclass
class Expr:
    """A value's text.

    `reads` are the values whose variables are in it, `calls` is how deep it nests. It is `heavy` with a convolution or
    a block in it, a `block` if it calls one, and `plain` if it is made of what keeps shapes, such as activations.
    """

    text: str
    reads: list[Value]
    calls: int = 0
    heavy: bool = False
    block: bool = False
    plain: bool = True
    infix: bool = False


@dataclass
class Forward:
    """A written `forward`: its parameters, its statements, the last being the return."""

    parameters: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    returns: int = 1

    @property
    def key(self) -> tuple[object, ...]:
        return (*self.parameters, *(statement.text for statement in self.statements))


class Writer:
    """Writes one region. `member` has the text of each item's module, `written` how a node's op is written."""

    def __init__(
        self, region: Region, written: Mapping[Node, Written], member: Mapping[Item, str], reserved: Set[str]
    ) -> None:
        self.region, self.written, self.member, self.reserved = region, written, member, reserved
        self.uses = Counter(x for item in region.items for x in item.inputs)
        self.uses.update(region.outputs)
        self.names: dict[Value, str] = {}
        self.pending: dict[Value, Expr] = {}
        self.forward = Forward(returns=len(region.outputs))

    def write(self, outputs: Sequence[str] | None) -> Forward:
        """The region's forward; a whole network with several `outputs` returns a dict with these keys."""
        for x in self.region.inputs:
            # Only a network's own inputs keep their names: two blocks that differ in names alone are one class.
            self.names[x] = self._new(identifier(x.name) if not self.region.path else None)
            self.forward.parameters.append(self.names[x])
        for item in self.region.items:
            self._item(item)
        results = [self._operand(x).text for x in self.region.outputs]
        if outputs is not None and len(outputs) > 1:
            pairs = ", ".join(f"{text(name)}: {result}" for name, result in zip(outputs, results, strict=True))
            self.forward.statements.append(Statement(f"return {{{pairs}}}"))
        else:
            self.forward.statements.append(Statement(f"return {', '.join(results)}"))
        return self.forward

    def _item(self, item: Item) -> None:
        member = self.member.get(item)
        if member is not None:
            written = Written(expr=f"{{member}}({', '.join(f'{{{i}}}' for i in range(len(item.inputs)))})")
        else:
            assert isinstance(item, Node)
            written = self.written[item]
        expr = self._expr(written, item, member)
        outputs = item.outputs if isinstance(item, Region) else (item,)
        if len(outputs) == 1 and self.uses[outputs[0]] == 1:
            self.pending[outputs[0]] = expr
        else:
            self._assign(outputs, expr, label=item.path[-1] if isinstance(item, Region) and len(outputs) == 1 else None)

    def _expr(self, written: Written, item: Item, member: str | None) -> Expr:
        template = written.expr
        assert template is not None
        block = isinstance(item, Region)
        heavy = isinstance(item, Region) or item.macs != 0
        plain = isinstance(item, Node) and any(item.type.shape == x.type.shape for x in item.inputs)
        calls = 0 if template.startswith(("{0} ", "{0}[", "-")) or "(" not in template else 1

        def fits(part: Expr) -> bool:
            """Whether an operand's expression reads well inside this one."""
            if heavy:
                return not part.heavy and (part.plain or not part.calls) and part.calls < DEPTH
            return part.calls + calls <= DEPTH and (plain or len(item.inputs) > 1 or not part.block)

        parts = []
        for i, x in enumerate(item.inputs):
            once = template.count(f"{{{i}}}") == 1
            parts.append(self._operand(x, written.binds) if once and fits(self._peek(x)) else self._variable(x))
        while len(line := template.format(*(part.text for part in parts), member=member)) > WIDTH:
            longest = max(range(len(parts)), key=lambda i: (parts[i].calls > 0, len(parts[i].text)))
            if not parts[longest].calls:
                break
            self.pending[item.inputs[longest]] = parts[longest]
            parts[longest] = self._variable(item.inputs[longest])
        return Expr(
            line,
            [x for part in parts for x in part.reads],
            calls + max((part.calls for part in parts), default=0),
            heavy or any(part.heavy for part in parts),
            block,
            plain and all(part.plain for part in parts),
            written.infix,
        )

    def _peek(self, x: Value) -> Expr:
        return self.pending.get(x) or Expr(self.names[x], [x])

    def _operand(self, x: Value, binds: bool = False) -> Expr:
        """The operand's text where it may be an expression."""
        expr = self._peek(x)
        self.pending.pop(x, None)
        return replace(expr, text=f"({expr.text})") if expr.infix and binds else expr

    def _variable(self, x: Value) -> Expr:
        if x in self.pending:
            self._assign((x,), self.pending.pop(x))
        return Expr(self.names[x], [x])

    def _assign(self, values: tuple[Value, ...], expr: Expr, label: str | None = None) -> None:
        """A statement that gives values their variables."""
        freed = []
        for x in expr.reads:
            self.uses[x] -= 1
            if not self.uses[x]:
                name = self.names.pop(x)
                freed += [name] if name in SHORT else []
        for x in values:
            known = identifier(label or path_of(x.name)[-1])
            if self.uses[x] > 1 and known and known not in (*self.reserved, *self.names.values()):
                self.names[x] = known
            else:
                self.names[x] = freed.pop(0) if freed else self._new()
        names = ", ".join(self.names[x] for x in values)
        shape = shape_text(values[0].type.shape) if len(values) == 1 else ""
        self.forward.statements.append(Statement(f"{names} = {expr.text}", shape))

    def _new(self, wanted: str | None = None) -> str:
        """A name that no live value has."""
        taken = {*self.names.values(), *self.reserved}
        names = chain([wanted] if wanted else [], SHORT, (f"x{i}" for i in count(1)))
        return next(name for name in names if name not in taken)
