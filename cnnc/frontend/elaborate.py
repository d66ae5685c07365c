"""Elaboration: from the syntax tree to the graph.

One function does it, `run(expr, x)`: the value of an expression on what flows into it. A chain runs its first step on x
and each next one on the result; a value ignores x. Blocks are templates until something flows into them. What fails is
reported once and becomes poison, which flows on in silence, so that one run reports every independent mistake.

The layers, each a class on the one before: `Session` (diagnostics, budgets), `Lookup` (names), `Application` (blocks),
`Elaborator` (expressions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from cnnc.diagnostics import Label, Span
from cnnc.frontend import numbers
from cnnc.frontend import syntax as s
from cnnc.frontend.application import Application, Operands, Site
from cnnc.frontend.lookup import is_function
from cnnc.frontend.scope import BLOCKS, POISON, Binding, Env, Poison, Scope, Step, describe
from cnnc.ir.graph import Input, Node


class Elaborator(Application):
    """Runs expressions."""

    def __init__(self) -> None:
        super().__init__()
        self._run: dict[type, Callable[..., object]] = {
            s.Use: self._use, s.Number: self._literal, s.String: self._literal, s.Boolean: self._literal,
            s.In: self._in, s.ListOf: self._list, s.Arms: self._arms, s.Loop: self._loop, s.Chain: self._chain,
            s.Labelled: self._labelled, s.Cond: self._cond, s.Logic: self._logic, s.Compare: self._compare,
            s.Arith: self._arith, s.Minus: self._minus,
        }  # fmt: skip

    def run(self, expr: s.Expr, x: object, env: Env, scope: Scope, *, head: bool = True) -> object:
        """The value of `expr` on `x`. `head`: whether `expr` begins a chain or arm, where a value may stand.

        Every expression is a step, and so is every item of a list it gives, since whoever gets the list walks it.
        """
        self.tick(1, expr.span, scope)
        value = self._run[type(expr)](expr, x, env, scope, head)
        if isinstance(value, list):
            self.tick(numbers.size(value), expr.span, scope)
        return value

    def _literal(self, expr: s.Number | s.String | s.Boolean, x: object, env: Env, scope: Scope, head: bool) -> object:
        return self._value_here(expr.value, expr.span, scope, head)

    def _value_here(self, value: object, span: Span, scope: Scope, head: bool) -> object:
        """A value, which may stand only at the head of a chain or arm."""
        if head or value is POISON:
            return value
        return self.error("E0209", f"{describe(value)} cannot follow `->`: only a block can", span, scope)

    def _in(self, expr: s.In, x: object, env: Env, scope: Scope, head: bool) -> object:
        value = env.flowing_in()
        if value is None:
            return self.no_input(expr.span, scope)
        return self._value_here(value, expr.span, scope, head)

    def _list(self, expr: s.ListOf, x: object, env: Env, scope: Scope, head: bool) -> object:
        return self._value_here([self.argument(item, env, scope) for item in expr.items], expr.span, scope, head)

    def _chain(self, expr: s.Chain, x: object, env: Env, scope: Scope, head: bool) -> object:
        first, *rest = expr.steps
        value = self.run(first, x, env, scope, head=head)
        for step in rest:
            if isinstance(value, BLOCKS):
                return self.error("E0208", f"nothing flows into `{value.name}`", first.span, scope)
            value = self.run(step, value, env, scope, head=False)
        return value

    def _cond(self, expr: s.Cond, x: object, env: Env, scope: Scope, head: bool) -> object:
        chosen = self.chosen(expr, env, scope)
        return POISON if chosen is None else self.run(chosen, x, env, scope, head=head)

    def _logic(self, expr: s.Logic, x: object, env: Env, scope: Scope, head: bool) -> object:
        for item in expr.items:
            truth = self.truth(item, env, scope)
            if truth is None:
                return POISON
            if expr.op == "not":
                return not truth
            if truth == (expr.op == "or"):
                return truth
        return expr.op == "and"

    def _compare(self, expr: s.Compare, x: object, env: Env, scope: Scope, head: bool) -> object:
        values = [self.run(item, None, env, scope) for item in expr.items]
        if POISON in values:
            return POISON
        try:
            return all(numbers.compare(op, a, b) for op, a, b in zip(expr.ops, values, values[1:], strict=False))
        except ValueError as e:
            return self.error("E0212", str(e), expr.span, scope)

    def _minus(self, expr: s.Minus, x: object, env: Env, scope: Scope, head: bool) -> object:
        return self._numbers("-", expr.span, 0, self.run(expr.item, None, env, scope), scope)

    def _arith(self, expr: s.Arith, x: object, env: Env, scope: Scope, head: bool) -> object:
        if expr.op == "*" and self.is_block(expr.left, env, scope):
            return self._repeat(expr, x, env, scope, head)
        left, right = self.run(expr.left, None, env, scope), self.run(expr.right, None, env, scope)
        return self._numbers(expr.op, expr.span, left, right, scope)

    def _numbers(self, op: str, span: Span, left: object, right: object, scope: Scope) -> object:
        if left is POISON or right is POISON:
            return POISON
        if isinstance(left, Input | Node) or isinstance(right, Input | Node):
            name = {"+": "add", "-": "sub", "*": "mul", "/": "div"}.get(op)
            help = f"combine tensors with `{name} {{ a | b }}`" if name else None
            return self.error("E0212", f"`{op}` is arithmetic on numbers, not on tensors", span, scope, help=help)
        try:
            return numbers.arithmetic(op, left, right)
        except ValueError as e:
            return self.error(numbers.code(e), str(e), span, scope)

    # Repetition.

    def _repeat(self, expr: s.Arith, x: object, env: Env, scope: Scope, head: bool) -> object:
        count = self.run(expr.right, None, env, scope)
        if count is POISON:
            return POISON
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            message = f"a block is repeated a whole number of times, not {describe(count)}"
            return self.error("E0213", message, expr.right.span, scope)
        if count == 0 and isinstance(expr.right, s.Number):
            return self.error("E0213", "a block repeated 0 times is not there: leave it out", expr.span, scope)
        value = x
        with self.repeated(count, expr.span, scope):
            for _ in range(count):
                value = self.run(expr.left, value, env, scope, head=head)
        return value

    def _loop(self, expr: s.Loop, x: object, env: Env, scope: Scope, head: bool) -> object:
        if len(expr.body.items) != 1:
            message = "a `for` in a chain has one body; arms belong to a merge: `concat for ... { a | b }`"
            return self.error("E0209", message, expr.body.span, scope)
        value = x
        for inner in self.iterations(expr, env, scope):
            value = self.run(expr.body.items[0], value, inner, scope, head=head and value is x)
        return value

    def iterations(self, loop: s.Loop, env: Env, scope: Scope) -> Iterator[Env]:
        """An environment for each item of the loop, with its names bound."""
        items = self.run(loop.over, None, env, scope)
        if not isinstance(items, list):
            if items is not POISON:
                self.error("E0214", f"`for` runs over a list, not over {describe(items)}", loop.over.span, scope)
            return
        with self.repeated(len(items), loop.span, scope):
            for item in items:
                inner = Env(env)
                self.unpack(loop.names, item, loop.over.span, inner, scope, "loop")
                yield inner

    # Names and operands.

    def _use(self, use: s.Use, x: object, env: Env, scope: Scope, head: bool) -> object:
        block = self._applied(use, env, scope, head)
        if isinstance(block, Poison):
            return POISON
        if not isinstance(block, BLOCKS):
            return block
        if is_function(block):
            return self._value_here(self.call_function(block, use.span, scope), use.span, scope, head)
        operands = None if use.operands is None else self.operands(use.operands, x, env, scope)
        return self.apply(block, Site(scope, use.span, x, operands))

    def _applied(self, use: s.Use, env: Env, scope: Scope, head: bool) -> object:
        """The block a use applies; a bare name at the head may also be a value."""
        bare = use.args is None and use.operands is None and head
        return self.bare(use, env, scope) if bare else self.block(use, env, scope)

    def operands(self, written: s.Arms | s.Loop, x: object, env: Env, scope: Scope) -> Operands:
        """The values of arms, or of the arms of each iteration, with their places."""
        if isinstance(written, s.Arms):
            return [(self.run(arm, x, env, scope), arm.span) for arm in written.items]
        return [
            (self.run(arm, x, inner, scope), arm.span)
            for inner in self.iterations(written, env, scope)
            for arm in written.body.items
        ]

    def _arms(self, expr: s.Arms, x: object, env: Env, scope: Scope, head: bool) -> object:
        return [value for value, _ in self.operands(expr, x, env, scope)]

    # Labels.

    def _labelled(self, expr: s.Labelled, x: object, env: Env, scope: Scope, head: bool) -> object:
        label = self._label(expr.label, env, scope)
        if label is None:
            return POISON
        site = Site(scope, expr.body.span, x, label=label, label_span=expr.label.span)
        if isinstance(expr.body, s.Use) and expr.body.operands is None:
            value = self._labelled_use(expr.body, env, site, head)
        else:
            value = self.group(expr.body, env, site, head=head)
        if (step := scope.steps.get(label)) is not None:
            self._bind_label(env, label, step, expr.label.span, scope)
        return value

    def _labelled_use(self, use: s.Use, env: Env, site: Site, head: bool) -> object:
        """A label on an op or a def call names that step; on a value it names the value."""
        block = self._applied(use, env, site.scope, head)
        if not isinstance(block, BLOCKS) or is_function(block):
            return self.record_value(site, block)
        assert site.label is not None
        value = self.apply(block, site)
        return value if site.label in site.scope.steps else self.record_value(site, value)  # the latter for `code: id`

    def _label(self, label: s.Name | s.String, env: Env, scope: Scope) -> str | None:
        """The text of a label, `{name}`s replaced."""
        if isinstance(label, s.Name):
            return label.text
        text = label.value
        for name in re.findall(r"\{(\w+)\}", text):
            found = env.find(name)
            if found is None or isinstance(found.value, bool) or not isinstance(found.value, int | str):
                self.error("E0201", f"`{{{name}}}` in a label is no number or word", label.span, scope)
                return None
            text = text.replace(f"{{{name}}}", str(found.value))
        if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", text):
            self.error("E0224", f'"{text}" is no label: letters, digits, `_` and `.` only', label.span, scope)
            return None
        return text

    def _bind_label(self, env: Env, label: str, step: Step, span: Span, scope: Scope) -> None:
        body = env.label_env()
        level: Env | None = env
        while level is not None:
            before = level.names.get(label)
            if before is not None and before.kind == "parameter":
                also = [Label(before.span, "the parameter")]
                self.error("E0202", f"the label `{label}` is also a parameter", span, scope, also=also)
                return
            if level is body:
                break
            level = level.parent
        if label not in body.names or body.names[label].kind == "label":
            body.names[label] = Binding(step, span, "label")
