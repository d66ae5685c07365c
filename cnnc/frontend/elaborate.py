"""Elaboration: from the syntax tree to the graph.

One function does it, `run(expr, x)`: the value of an expression on what flows into it. A chain runs its first step on x
and each next one on the result; a value ignores x. Blocks are templates until something flows into them. What fails is
reported once and becomes poison, which flows on in silence, so that one run reports every independent mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from cnnc.diagnostics import CnncError, Diagnostic, Help, Label, Severity, Span
from cnnc.frontend import numbers
from cnnc.frontend import syntax as s
from cnnc.frontend.call import CallError, make_op, match, suggest
from cnnc.frontend.scope import (
    BLOCKS, POISON, Binding, Block, Builtin, Called, Closure, DefBlock, Env, Given, ModelBlock, OpBlock, Poison, Scope,
    SharedBlock, Step, describe, join,
)  # fmt: skip
from cnnc.ir.attrs import show_value
from cnnc.ir.dim import Dim, solve, substitute
from cnnc.ir.explain import diagnose
from cnnc.ir.graph import Frame, Input, Node, Origin, Param, Value
from cnnc.ir.op import Op, OpError
from cnnc.ir.types import DType, TensorType
from cnnc.ops import Constant, Slice

MAX_CALLS = 64
MAX_NODES = 100_000
MAX_STEPS = 200_000
_ATTRIBUTES = {"n": 0, "c": 1, "h": 2, "w": 3}


class Elaborator:
    """Runs expressions. Holds what all of a model shares: diagnostics, parameters, budgets."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.params: dict[str, Param] = {}
        self.nodes = 0
        self.steps = 0
        self.calls: list[str] = []
        self.repeats = 1  # how many times what is written here runs, counted before it does
        self._reported: set[tuple[str, int, int, int]] = set()
        self._constants: set[int] = set()  # constants of files being evaluated, to see cycles
        self._run: dict[type, Callable[..., object]] = {
            s.Use: self._use, s.Number: self._literal, s.String: self._literal, s.Boolean: self._literal, s.In: self._in,
            s.ListOf: self._list, s.Arms: self._arms, s.Loop: self._loop, s.Chain: self._chain,
            s.Labelled: self._labelled, s.Cond: self._cond, s.Logic: self._logic, s.Compare: self._compare,
            s.Arith: self._arith, s.Minus: self._minus,
        }  # fmt: skip

    # Reporting.

    def report(self, diagnostic: Diagnostic) -> Poison:
        """Keep a diagnostic, one for each fault and place: a block used ten times is wrong once."""
        span = diagnostic.primary.span if diagnostic.primary else None
        key = (diagnostic.code, id(span.source) if span else 0, span.start if span else 0, span.end if span else 0)
        if key not in self._reported:
            self._reported.add(key)
            self.diagnostics.append(diagnostic)
        return POISON

    def error(
        self, code: str, message: str, span: Span, scope: Scope | None = None, *, help: str | None = None,
        also: Sequence[Label] = (), severity: Severity = Severity.ERROR,
    ) -> Poison:  # fmt: skip
        path = scope.frame.path() if scope and scope.frame else ()
        labels = (Label(span, primary=True), *also)
        return self.report(Diagnostic(code, message, labels, path, None, Help(help) if help else None, (), severity))

    def stop(self, code: str, message: str, span: Span, scope: Scope | None, help: str | None = None) -> NoReturn:
        """Report and end elaboration: a limit is not something to go on from."""
        self.error(code, message, span, scope, help=help)
        raise CnncError(tuple(self.diagnostics))

    def tick(self, span: Span, scope: Scope) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            self.stop("E0505", f"elaboration takes more than {MAX_STEPS:,} steps", span, scope)

    # Expressions.

    def run(self, expr: s.Expr, x: object, env: Env, scope: Scope, *, head: bool = True) -> object:
        """The value of `expr` on `x`. `head`: whether `expr` begins a chain or arm, where a value may stand."""
        return self._run[type(expr)](expr, x, env, scope, head)

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
            return self.error("E0208", "there is no `in` here", expr.span, scope, help="a model starts from its inputs by name")
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

    def chosen(self, expr: s.Cond, env: Env, scope: Scope) -> s.Expr | None:
        """The branch that the test picks; None where the test is at fault."""
        truth = self.truth(expr.test, env, scope)
        return None if truth is None else expr.then if truth else expr.other

    def truth(self, expr: s.Expr, env: Env, scope: Scope) -> bool | None:
        value = self.run(expr, None, env, scope)
        if isinstance(value, bool):
            return value
        if value is not POISON:
            self.error("E0212", f"a condition is true or false, not {describe(value)}", expr.span, scope)
        return None

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
        except numbers.TooLarge as e:
            return self.error("E0504", str(e), span, scope)
        except ValueError as e:
            return self.error("E0212", str(e), span, scope)

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
                self.tick(expr.span, scope)
                value = self.run(expr.left, value, env, scope, head=head)
        return value

    @contextmanager
    def repeated(self, count: int, span: Span, scope: Scope) -> Iterator[None]:
        """Refuse, before it is expanded, what would take more steps than there are."""
        outer = self.repeats
        self.repeats = max(1, outer * count)
        if self.repeats > MAX_STEPS:
            self.stop("E0505", f"this expands {self.repeats:,} times; the limit is {MAX_STEPS:,} steps", span, scope)
        try:
            yield
        finally:
            self.repeats = outer

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
                self.tick(loop.span, scope)
                inner = Env(env)
                self.unpack(loop.names, item, loop.over.span, inner, scope, "loop")
                yield inner

    def unpack(self, names: Sequence[s.Name], value: object, span: Span, env: Env, scope: Scope, kind: str) -> None:
        """Bind one name to the value, or several to the items of a list."""
        values = [value]
        if len(names) > 1:
            if isinstance(value, list) and len(value) == len(names):
                values = value
            else:
                if value is not POISON:
                    listed = ", ".join(name.text for name in names)
                    got = f"a list of {len(value)}" if isinstance(value, list) else describe(value)
                    self.error("E0214", f"`{listed}` takes a list of {len(names)}, not {got}", span, scope)
                values = [POISON] * len(names)
        for name, item in zip(names, values, strict=True):
            self.bind(env, name.text, Binding(item, name.span, kind), scope)

    def bind(self, env: Env, name: str, binding: Binding, scope: Scope) -> None:
        """Bind a name; E0202 where this level has it already."""
        if (before := env.names.get(name)) is not None:
            also = [Label(before.span, f"{before.kind} `{name}`")]
            self.error("E0202", f"`{name}` is already the name of a {before.kind}", binding.span, scope, also=also)
            return
        env.names[name] = binding

    # Blocks and values.

    def is_block(self, expr: s.Expr, env: Env, scope: Scope) -> bool:
        """Whether an argument stays a block: whether it begins with a block and not with a value."""
        match expr:
            case s.Use(name=name, args=args, operands=None) if args is None:
                if len(name.parts) == 1 and (found := env.find(name.text)):
                    return isinstance(found.value, BLOCKS) and not _is_function(found.value)
                found = env.find_block(name.text)
                return found is not None and not _is_function(found.value)
            case s.Use(name=name):
                found = env.find_block(name.text)
                return found is not None and not _is_function(found.value) and not self._has_values(expr, env, scope)
            case s.Chain(steps=(first, *_)) | s.Labelled(body=first):
                return self.is_block(first, env, scope)
            case s.Cond():
                branch = self.chosen(expr, env, scope)
                return branch is not None and self.is_block(branch, env, scope)
            case s.Arms(items=items):
                return any(self.is_block(item, env, scope) for item in items)
            case s.Arith(op="*", left=left):
                return self.is_block(left, env, scope)
            case s.Loop():
                return True
            case _:
                return False

    def _has_values(self, use: s.Use, env: Env, scope: Scope) -> bool:
        """Whether every operand written out is a value, so that the use needs nothing to flow in."""
        match use.operands:
            case s.Arms(items=items):
                return not any(self.is_block(item, env, scope) for item in items)
            case _:
                return False

    def argument(self, expr: s.Expr, env: Env, scope: Scope) -> object:
        """An argument or list item: a value is run, a block stays a block."""
        if not self.is_block(expr, env, scope):
            return self.run(expr, None, env, scope)
        if isinstance(expr, s.Cond):
            chosen = self.chosen(expr, env, scope)
            return POISON if chosen is None else self.argument(chosen, env, scope)
        if isinstance(expr, s.Use) and expr.operands is None:
            return self.block(expr, env, scope)
        return Closure(expr, env, " ".join(expr.span.text.split())[:40])

    def arguments(self, args: Sequence[s.Argument], env: Env, scope: Scope) -> tuple[Given, ...]:
        return tuple(Given(arg.name, self.argument(arg.value, env, scope), arg.span) for arg in args)

    def block(self, use: s.Use, env: Env, scope: Scope) -> object:
        """The block a use names, with its arguments where it has any."""
        found = env.find_block(use.name.text)
        if found is None:
            return self._no_block(use, env, scope)
        block: Any = found.value
        if use.args is None:
            return block
        if not isinstance(block, OpBlock | DefBlock | ModelBlock | Builtin):
            message = f"`{use.name.text}` has its arguments already"
            also = [Label(found.span, f"{found.kind} `{use.name.text}`")] if found.kind != "library" else []
            return self.error("E0211", message, use.span, scope, help="use it without parentheses", also=also)
        return Called(block, self.arguments(use.args, env, scope), use.span)

    def _no_block(self, use: s.Use, env: Env, scope: Scope) -> Poison:
        name = use.name.text
        value = self.path(use.name, env)
        if value is POISON:
            return POISON
        if value is not None:
            message = f"`{name}` is {describe(value)}: only a block can take arguments, operands or what flows"
            return self.error("E0209", message, use.span, scope)
        help = suggest(name, env.known())
        return self.error("E0201", f"nothing is named `{name}`", use.name.span, scope, help=help)

    def _use(self, use: s.Use, x: object, env: Env, scope: Scope, head: bool) -> object:
        self.tick(use.span, scope)
        if use.args is None and use.operands is None and head:
            value = self._bare(use, env, scope)
            if not isinstance(value, BLOCKS):
                return value
            return self.apply(value, x, scope, use.span)
        block = self.block(use, env, scope)
        if isinstance(block, Poison):
            return POISON
        if _is_function(block):
            return self._value_here(self._function(block, use.span, scope), use.span, scope, head)
        operands = None
        if use.operands is not None:
            operands = self.operands(use.operands, x, env, scope)
        return self.apply(block, x, scope, use.span, operands=operands)

    def _bare(self, use: s.Use, env: Env, scope: Scope) -> object:
        """A bare name at the head of a chain or arm: the value or the block it names, an error if it is both."""
        name = use.name
        value = self.path(name, env)
        if value is None:
            return self.block(use, env, scope)
        found = env.find(name.text)
        also_block = env.find_block(name.text)
        if found is not None and found.kind == "label" and also_block is not None:
            help = f"write `{name.text}()` for the block, or name the step otherwise"
            return self.error("E0210", f"`{name.text}` is both a label and a block", name.span, scope, help=help)
        return value

    def path(self, name: s.Name, env: Env) -> object | None:
        """The value of a name, dotted or not; None where there is no such value."""
        parts = name.parts
        for length in range(len(parts), 0, -1):
            prefix = ".".join(parts[:length])
            if prefix == "in":
                value = env.flowing_in()
                return None if value is None else self._attribute(value, parts[1:], name)
            found = env.find(prefix)
            if found is None or isinstance(found.value, BLOCKS):
                continue
            self.force(found)
            if isinstance(found.value, Step):
                return self._member(found.value, parts[length:], name)
            return self._attribute(found.value, parts[length:], name)
        return None

    def force(self, binding: Binding) -> None:
        """Evaluate a file's constant the first time it is used."""
        if not isinstance(binding.value, LazyConst):
            return
        lazy = binding.value
        if id(lazy) in self._constants:
            binding.value = self.error("E0208", "this constant is defined by itself", binding.span)
            return
        self._constants.add(id(lazy))
        value = self.argument(lazy.expr, lazy.env, Scope("", "", None))
        binding.value = value

    def _member(self, step: Step, parts: list[str], name: s.Name) -> object:
        """What a path names inside a step: a step in it, by name or by op where that is unique, or an attribute."""
        while parts and step.inner is not None:
            steps = step.inner.steps
            for length in range(len(parts), 0, -1):
                if (found := steps.get(".".join(parts[:length]))) is not None:
                    step, parts = found, parts[length:]
                    break
            else:
                alike = [inner for inner in steps.values() if inner.kind == parts[0]]
                if len(alike) != 1:
                    break
                step, parts = alike[0], parts[1:]
        if parts and step.inner is not None and parts != parts[:1] or parts and parts[0] not in _ATTRIBUTES:
            known = list(step.inner.steps) if step.inner else []
            help = suggest(parts[0], known) or (f"its steps are {', '.join(known[:12])}" if known else None)
            return self.error("E0201", f"`{step.name}` has no step `{'.'.join(parts)}`", name.span, help=help)
        return self._attribute(step.value, parts, name)

    def _attribute(self, value: object, parts: list[str], name: s.Name) -> object:
        """`.n`, `.c`, `.h` or `.w` of a tensor."""
        if not parts or value is POISON:
            return value
        shown = name.text.removesuffix("." + ".".join(parts))
        if not isinstance(value, Input | Node):
            message = f"`{shown}` is {describe(value)}, which has no `.{'.'.join(parts)}`"
            return self.error("E0201", message, name.span)
        if len(parts) != 1 or parts[0] not in _ATTRIBUTES:
            message = f"a tensor has `.c`, `.h`, `.w` and `.n`, not `.{'.'.join(parts)}`"
            return self.error("E0201", message, name.span)
        axis, type = _ATTRIBUTES[parts[0]], value.type
        if axis >= type.rank:
            return self.error("E0215", f"`{name.text}`: {type} has no such dimension", name.span)
        dim = type.shape[axis]
        if isinstance(dim, int):
            return dim
        message = f"`{name.text}` is {dim}, which is known only when the model is used"
        return self.error("E0215", message, name.span, help="to match another tensor's size use `crop { x | y }` or `resize { x | y }`")

    def operands(self, written: s.Arms | s.Loop, x: object, env: Env, scope: Scope) -> list[tuple[object, Span]]:
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
        body = expr.body
        if isinstance(body, s.Cond):
            chosen = self.chosen(body, env, scope)
            if chosen is None:
                return POISON
            body = chosen
        if isinstance(body, s.Use) and body.operands is None:
            value = self._labelled_use(body, x, env, scope, label, expr.label.span, head)
        else:
            value = self._group(body, x, env, scope, label, expr.label.span, head)
        if (step := scope.steps.get(label)) is not None:
            self._bind_label(env, label, step, expr.label.span, scope)
        return value

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
            self.error("E0205", f'"{text}" is no label: letters, digits, `_` and `.` only', label.span, scope)
            return None
        return text

    def _labelled_use(
        self, use: s.Use, x: object, env: Env, scope: Scope, label: str, span: Span, head: bool
    ) -> object:
        """A label on an op or a def call names that step; on a value it names the value."""
        self.tick(use.span, scope)
        block: object = None
        if use.args is None and head:
            block = self._bare(use, env, scope)
            if not isinstance(block, BLOCKS):
                return self.record(scope, label, block, "value", span)
        else:
            block = self.block(use, env, scope)
        if not isinstance(block, BLOCKS):
            return self.record(scope, label, POISON, "error", span)
        if isinstance(block, Closure):
            return self._group(block.expr, x, block.env, scope, label, span, head=False)
        value = self.apply(block, x, scope, use.span, label=label, label_span=span)
        if label not in scope.steps:  # `code: id` names what flows
            return self.record(scope, label, value, "value", span)
        return value

    def _group(self, body: s.Expr, x: object, env: Env, scope: Scope, label: str, span: Span, head: bool) -> object:
        """A label on anything composite opens a group: the steps in it are named inside it."""
        name = scope.next_name(label)
        inner = scope.inside(name, Frame(label, scope.frame))
        value = self.run(body, x, Env(env, body=True, input=env.flowing_in()), inner, head=head)
        return self.record(scope, label, value, "group", span, inner, counted=True)

    def record(
        self, scope: Scope, name: str, value: object, kind: str, span: Span, inner: Scope | None = None,
        *, counted: bool = False, shared: SharedBlock | None = None,
    ) -> object:  # fmt: skip
        """Enter a step that has run into its scope; E0202 where the scope has one of that name."""
        if not counted:
            scope.count += 1
        if (before := scope.steps.get(name)) is not None:
            also = [Label(before.span, "first used here")]
            self.error("E0202", f"the label `{name}` is used twice here", span, scope, also=also)
        scope.steps[name] = Step(name, value, kind, span, inner, shared)
        return value

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

    # Application.

    def apply(
        self, block: Block, x: object, scope: Scope, span: Span, *, operands: list[tuple[object, Span]] | None = None,
        label: str | None = None, label_span: Span | None = None, shared: SharedBlock | None = None,
    ) -> object:  # fmt: skip
        """Run a block on what flows, or on operands written out."""
        place = label_span or span
        match block:
            case Called(block=template, args=args):
                pass
            case SharedBlock():
                block.uses += 1
                return self.apply(
                    block.block, x, scope, span, operands=operands, label=label, label_span=label_span, shared=block
                )
            case Closure(expr=expr, env=env):
                if shared is None:
                    return self.run(expr, x, env, scope, head=False)
                name = scope.next_name(label)
                inner = scope.inside(name, Frame(label or shared.name, scope.frame), shared)
                value = self.run(expr, x, Env(env, body=True, input=env.flowing_in()), inner, head=False)
                return self.record(scope, name, value, shared.name, place, inner, counted=True, shared=shared)
            case _:
                template, args = block, ()
        if template is _IDENTITY or (isinstance(template, Builtin) and template.name == "id"):
            if args:
                return self.error("E0206", "`id` takes no arguments", span, scope)
            return x if operands is None else operands[0][0] if len(operands) == 1 else [v for v, _ in operands]
        match template:
            case OpBlock(op=cls):
                return self._apply_op(cls, args, x, scope, span, operands, label, place, shared)
            case Builtin(name="split"):
                return self._split(args, x, scope, span, operands)
            case DefBlock() | ModelBlock():
                return self._apply_def(template, args, x, scope, span, operands, label, place, shared)
            case _:
                return self.error("E0209", f"`{template.name}` is a function, not a block", span, scope)

    def _apply_op(
        self, cls: type[Op], args: Sequence[Given], x: object, scope: Scope, span: Span,
        operands: list[tuple[object, Span]] | None, label: str | None, place: Span, shared: SharedBlock | None,
    ) -> object:  # fmt: skip
        name = scope.next_name(label)
        value = POISON if POISON in [arg.value for arg in args] else self._node(
            cls, args, x, scope, span, operands, name, shared
        )  # fmt: skip
        return self.record(scope, name, value, cls.name, place, counted=True, shared=shared)

    def _node(
        self, cls: type[Op], args: Sequence[Given], x: object, scope: Scope, span: Span,
        operands: list[tuple[object, Span]] | None, name: str, shared: SharedBlock | None,
    ) -> object:  # fmt: skip
        try:
            op = make_op(cls, args, span)
        except CallError as e:
            return self._refused(e, scope)
        origin = Origin(span, scope.frame)
        spans: tuple[Span, ...] = ()
        if operands is None:
            flowing = [] if cls is Constant else x if isinstance(x, list) else [x]
            operands = [(value, span) for value in flowing]
        else:
            spans = tuple(place for _, place in operands)
        path = join(scope.path, name)
        values: list[Value] = []
        poisoned = False
        for i, (value, place) in enumerate(operands):
            if isinstance(value, int | float) and not isinstance(value, bool) and spans:
                value = Node.make(Constant((float(value),)), name=f"{path}.arm{i}", origin=Origin(place, scope.frame))
            if isinstance(value, Input | Node):
                values.append(value)
            elif value is POISON:
                poisoned = True
            elif value is None:
                poisoned = True
                self.error("E0208", f"nothing flows into `{op.name}`", span, scope, help="start the chain with a value")
            else:
                poisoned = True
                self.error("E0212", f"`{op.name}` works on tensors, not on {describe(value)}", place, scope)
        if poisoned:
            return POISON
        try:
            weights = shared.path if shared else join(scope.weights, name)
            op.result(*(v.type for v in values))
            params = self._params(op, values, weights, shared or scope.shared, span, scope)
            node = Node(op, tuple(values), params, path, origin)
        except OpError as e:
            return self.report(diagnose(e, op, values, origin, spans))
        except _Mismatch:
            return POISON
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop("E0505", f"the network has more than {MAX_NODES:,} nodes", span, scope)
        return node

    def _params(
        self, op: Op, values: list[Value], prefix: str, shared: SharedBlock | None, span: Span, scope: Scope
    ) -> dict[str, Param]:
        """The parameters of a node: fresh ones, or in a shared block those of its first use."""
        dtype = values[0].type.dtype if values else DType.F32
        params = {}
        for role, spec in op.params(*(v.type for v in values)).items():
            name, type = f"{prefix}.{role}", TensorType(spec.shape, dtype)
            before = self.params.get(name)
            if before is None:
                before = self.params[name] = Param(name, type, spec.init, spec.trainable)
            elif shared is None:
                self.error("E0202", f"two steps have a weight named `{name}`", span, scope)
                raise _Mismatch
            elif before.type != type:
                message = f"shared `{shared.name}`: its first use made `{name}` {before.type}, this use needs {type}"
                also = [Label(shared.span, "shared here")]
                self.error("E0316", message, span, scope, also=also)
                raise _Mismatch
            params[role] = before
        return params

    def _refused(self, e: CallError, scope: Scope) -> Poison:
        path = scope.frame.path() if scope.frame else ()
        for d in e.diagnostics:
            self.report(Diagnostic(d.code, d.message, d.labels, path, d.why, d.help, d.notes, d.severity))
        return POISON

    def _split(
        self, args: Sequence[Given], x: object, scope: Scope, span: Span, operands: list[tuple[object, Span]] | None
    ) -> object:
        """`split(n, axis=1)`: a list of n equal slices."""
        value = operands[0][0] if operands and len(operands) == 1 else x
        try:
            found = match("split", ["n", "axis"], ["n"], args, span)
        except CallError as e:
            return self._refused(e, scope)
        n, axis = found["n"].value, found["axis"].value if "axis" in found else 1
        if POISON in (value, n, axis):
            return POISON
        if not isinstance(n, int) or not isinstance(axis, int) or n < 1 or not isinstance(value, Input | Node):
            return self.error("E0207", "`split(n, axis=1)` takes integers and works on one tensor", span, scope)
        size = value.type.shape[axis] if -value.type.rank <= axis < value.type.rank else None
        if not isinstance(size, int) or size % n:
            return self.error("E0317", f"`split({n})` needs a dimension {axis} that {n} divides, not {size} of {value.type}", span, scope)
        part = size // n
        given = [
            [Given("start", i * part, span), Given("stop", (i + 1) * part, span), Given("axis", axis, span)] for i in range(n)
        ]
        return [self._apply_op(Slice, slice_args, value, scope, span, None, None, span, None) for slice_args in given]

    # Defs.

    def _apply_def(
        self, block: DefBlock | ModelBlock, args: Sequence[Given], x: object, scope: Scope, span: Span,
        operands: list[tuple[object, Span]] | None, label: str | None, place: Span, shared: SharedBlock | None,
    ) -> object:  # fmt: skip
        given = x if operands is None else operands[0][0] if len(operands) == 1 else [value for value, _ in operands]
        env = self.parameters(block, args, span, scope)
        if env is None:
            return POISON if label is None else self.record(scope, label, POISON, "error", place)
        env.input, env.body = given, True
        frame = Frame(self._call_text(block, args, label), scope.frame)
        body = block.node.body
        with self.called(block.name, span, scope):
            if isinstance(body, s.Use) and body.operands is None:  # only renames the call it consists of
                return self._renamed(body, given, env, scope, frame, span, label, place, shared)
            name = scope.next_name(label)
            inner = scope.inside(name, frame, shared)
            if isinstance(block, ModelBlock):
                assert isinstance(body, s.Block)
                value = self.model_body(body, given, env, inner, span)
            else:
                value = self.body(body, given, env, inner)
        return self.record(scope, name, value, block.name, place, inner, counted=True, shared=shared)

    def _renamed(
        self, body: s.Use, x: object, env: Env, scope: Scope, frame: Frame, span: Span, label: str | None, place: Span,
        shared: SharedBlock | None,
    ) -> object:  # fmt: skip
        outer, scope.frame = scope.frame, frame
        try:
            block = self.block(body, env, scope)
            if not isinstance(block, BLOCKS):
                return POISON
            if isinstance(block, Closure) and label is not None and shared is None:
                return self._group(block.expr, x, block.env, scope, label, place, head=False)
            return self.apply(block, x, scope, body.span, label=label, label_span=place, shared=shared)
        finally:
            scope.frame = outer

    @contextmanager
    def called(self, name: str, span: Span, scope: Scope) -> Iterator[None]:
        self.calls.append(name)
        if len(self.calls) > MAX_CALLS:
            cycle = self.calls[-1 - self.calls[-2::-1].index(name) - 1 :] if name in self.calls[:-1] else self.calls[-4:]
            message = f"calls nest deeper than {MAX_CALLS}: {' > '.join(cycle)} > ..."
            self.stop("E0218", message, span, None, "recursion ends where a static `if` stops it")
        try:
            yield
        finally:
            self.calls.pop()

    def parameters(self, block: DefBlock | ModelBlock, args: Sequence[Given], span: Span, scope: Scope) -> Env | None:
        """A new environment with the parameters of a def or model bound; None where the arguments do not fit."""
        params = block.node.params
        required = [p.name.text for p in params if p.default is None]
        try:
            found = match(block.name, [p.name.text for p in params], required, args, span)
        except CallError as e:
            self._refused(e, scope)
            return None
        env = Env(block.env)
        for param in params:
            name = param.name.text
            if name in found:
                value = found[name].value
            else:
                assert param.default is not None  # or it were required
                value = self.argument(param.default, env, scope)
            self.bind(env, name, Binding(value, param.name.span, "parameter"), scope)
        return env

    def _call_text(self, block: DefBlock | ModelBlock, args: Sequence[Given], label: str | None) -> str:
        names = [p.name.text for p in block.node.params]
        shown = []
        for i, arg in enumerate(args):
            name = arg.name or names[i]
            value = arg.value.name if isinstance(arg.value, BLOCKS) else _short(arg.value)
            shown.append(f"{name}={value}")
        call = f"{block.name}({', '.join(shown)})" if shown else block.name
        return f"{label}: {call}" if label else call

    def _function(self, block: Any, span: Span, scope: Scope) -> object:
        """The value of a function: one of the language's, or a def whose body is a number or a list."""
        template, args = (block.block, block.args) if isinstance(block, Called) else (block, ())
        if any(arg.value is POISON for arg in args):
            return POISON
        if isinstance(template, Builtin):
            if any(arg.name for arg in args):
                return self.error("E0206", f"`{template.name}` takes no named arguments", span, scope)
            try:
                return numbers.call(template.name, [arg.value for arg in args])
            except numbers.TooLarge as e:
                return self.error("E0504", str(e), span, scope)
            except ValueError as e:
                return self.error("E0212", str(e), span, scope)
        assert isinstance(template, DefBlock)
        env = self.parameters(template, args, span, scope)
        if env is None:
            return POISON
        env.body = True
        with self.called(template.name, span, scope):
            return self.body(template.node.body, None, env, scope)

    def body(self, body: s.Expr | s.Block, x: object, env: Env, scope: Scope) -> object:
        """The value of a def's body."""
        if not isinstance(body, s.Block):
            return self.run(body, x, env, scope)
        for statement in body.statements:
            if isinstance(statement, s.Return):
                if statement is not body.statements[-1]:
                    self.error("E0217", "nothing is run after `return`", statement.span, scope)
                return self.run(statement.value, x, env, scope)
            self.statement(statement, x, env, scope)
        return self.error("E0217", "a def with braces ends in `return`", body.span, scope)

    def statement(self, statement: s.Statement, x: object, env: Env, scope: Scope) -> None:
        match statement:
            case s.Bind(names=names, value=expr):
                value = self.run(expr, x, env, scope)
                if isinstance(value, BLOCKS):
                    message = f"`=` names a value, and `{value.name}` is a block"
                    value = self.error("E0209", message, expr.span, scope, help="name a block with `def` or `shared`")
                self.unpack(names, value, expr.span, env, scope, "binding")
            case s.Share(name=name, value=expr):
                block = self.argument(expr, env, scope)
                if isinstance(block, BLOCKS):
                    block = SharedBlock(name.text, join(scope.weights, name.text), block, name.span)
                elif block is not POISON:
                    message = f"`shared` names a block, not {describe(block)}"
                    block = self.error("E0209", message, expr.span, scope)
                self.bind(env, name.text, Binding(block, name.span, "shared"), scope)
            case s.Flow(chain=chain):
                self.run(chain, x, env, scope)
            case s.InputStmt() | s.OutputStmt():
                self.error("E0217", "inputs and outputs belong to a model, not to a def", statement.span, scope)
            case s.Return():
                self.error("E0217", "a model has outputs, not `return`", statement.span, scope)

    def model_body(self, body: s.Block, given: object, env: Env, scope: Scope, span: Span) -> object:
        """A model used as a block: inputs bind in order, dims unify, the outputs are its value."""
        env.input = None
        values = given if isinstance(given, list) else [given]
        inputs = [(st, name) for st in body.statements if isinstance(st, s.InputStmt) for name in st.names]
        if given is None or len(values) != len(inputs):
            count = 0 if given is None else len(values)
            return self.error("E0302", f"the model takes {len(inputs)} inputs, not {count}", span, scope)
        dims: dict[str, Dim] = {}
        for (statement, name), value in zip(inputs, values, strict=True):
            declared = self.input_type(statement, env, scope)
            bound = value
            if isinstance(value, Input | Node) and declared is not None and not _unify(declared, value.type, dims):
                message = f"input `{name.text}` is {declared.bind(dims)}, and it gets {value.type}"
                bound = self.error("E0318", message, span, scope, also=[Label(name.span, "declared here")])
            self.bind(env, name.text, Binding(bound, name.span, "input"), scope)
        for statement in body.statements:
            if not isinstance(statement, s.InputStmt | s.OutputStmt):
                self.statement(statement, None, env, scope)
        outputs = [value for _, value in self.outputs(body, env, scope)]
        return outputs[0] if len(outputs) == 1 else outputs

    def outputs(self, body: s.Block, env: Env, scope: Scope) -> list[tuple[s.Name, object]]:
        """The outputs of a model by name, in order."""
        found: list[tuple[s.Name, object]] = []
        for name in [n for st in body.statements if isinstance(st, s.OutputStmt) for n in st.names]:
            binding = env.names.get(name.text)
            value = self.path(name, env) if binding is not None else None
            if value is None:
                help = suggest(name.text, [k for k, b in env.names.items() if not isinstance(b.value, BLOCKS)])
                value = self.error("E0201", f"output `{name.text}` is not defined in the model", name.span, scope, help=help)
            elif not isinstance(value, Input | Node) and value is not POISON:
                value = self.error("E0212", f"output `{name.text}` is {describe(value)}, not a tensor", name.span, scope)
            if any(name.text == other.text for other, _ in found):
                self.error("E0202", f"output `{name.text}` is declared twice", name.span, scope)
            found.append((name, value))
        return found

    def input_type(self, statement: s.InputStmt, env: Env, scope: Scope) -> TensorType | None:
        """The declared type of an input, its dims symbolic; None where it is at fault."""
        if statement.dtype.text not in list(DType):
            help = suggest(statement.dtype.text, list(DType)) or "element types are f32, f16 and bf16"
            self.error("E0307", f"`{statement.dtype.text}` is no element type", statement.dtype.span, scope, help=help)
            return None
        dims = [self.dim(dim.size, env, scope) for dim in statement.dims]
        known = [dim for dim in dims if dim is not None]
        return TensorType(tuple(known), DType(statement.dtype.text)) if len(known) == len(dims) else None

    def dim(self, expr: s.Expr, env: Env, scope: Scope) -> Dim | None:
        """A dim of an input: names that are not numbers here are symbols."""
        from cnnc.frontend.dims import DimError, dim_of

        try:
            dim = dim_of(expr, lambda name: self._size(name, env))
        except DimError as e:
            if e.message:
                self.error(e.code, e.message, e.span, scope)
            return None
        if isinstance(dim, int) and not 1 <= dim < 2**31:
            code = "E0308" if dim < 1 else "E0502"
            self.error(code, f"a dimension is from 1 to 2^31 - 1, not {dim}", expr.span, scope)
            return None
        return dim

    def _size(self, name: s.Name, env: Env) -> object | None:
        found = env.find(name.text)
        if found is None or found.kind == "input" or isinstance(found.value, BLOCKS):
            return None
        self.force(found)
        return found.value


class LazyConst:
    """A constant of a file before its first use."""

    def __init__(self, expr: s.Expr, env: Env) -> None:
        self.expr, self.env = expr, env


class _Mismatch(Exception):
    """A parameter does not fit; already reported."""


_IDENTITY = Builtin("id")


def _unify(declared: TensorType, actual: TensorType, dims: dict[str, Dim]) -> bool:
    """Bind the symbols of a declared type so that it is the actual one; False where none do."""
    if declared.rank != actual.rank or declared.dtype != actual.dtype:
        return False
    for want, have in zip(declared.shape, actual.shape, strict=True):
        found = solve(substitute(want, dims), have)
        if found is None:
            return False
        dims.update(found)
    return declared.bind(dims).shape == actual.shape


def _short(value: object) -> str:
    text = show_value(value) if isinstance(value, int | float | str) else "[...]" if isinstance(value, list) else "..."
    return text if len(text) <= 24 else text[:21] + "..."


def _is_function(value: object) -> bool:
    """Whether a block is a function: one of the language's, or a def whose body is a number or a list."""
    if isinstance(value, Called):
        value = value.block
    if isinstance(value, Builtin):
        return value.name in numbers.FUNCTIONS
    return isinstance(value, DefBlock) and _gives_value(value.node.body, value.env, {}, 0)


def _gives_value(body: s.Expr | s.Block, env: Env, local: dict[str, s.Expr], depth: int) -> bool:
    match body:
        case s.Block(statements=statements):
            local = {name.text: st.value for st in statements if isinstance(st, s.Bind) for name in st.names}
            last = statements[-1] if statements else None
            return isinstance(last, s.Return) and _gives_value(last.value, env, local, depth)
        case s.Number() | s.String() | s.Boolean() | s.ListOf() | s.Compare() | s.Logic() | s.Minus():
            return True
        case s.Arith(op=op, left=left):
            return op != "*" or _gives_value(left, env, local, depth)
        case s.Cond(then=then):
            return _gives_value(then, env, local, depth)
        case s.Use(name=name, operands=None):
            if name.text in local:
                return depth < MAX_CALLS and _gives_value(local[name.text], env, {}, depth + 1)
            found = env.find(name.text)
            if found is None or depth >= MAX_CALLS:
                return False
            if isinstance(found.value, DefBlock):
                return _gives_value(found.value.node.body, found.value.env, {}, depth + 1)
            return isinstance(found.value, Builtin) and found.value.name in numbers.FUNCTIONS
        case _:
            return False
