"""What names and arguments mean: values, blocks, paths, and which expressions stay blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from cnnc.diagnostics import Label, Span
from cnnc.frontend import numbers
from cnnc.frontend import syntax as s
from cnnc.frontend.call import suggest
from cnnc.frontend.scope import (
    BLOCKS,
    POISON,
    Binding,
    Builtin,
    Called,
    Closure,
    DefBlock,
    Env,
    Given,
    LazyConst,
    ModelBlock,
    OpBlock,
    Poison,
    Scope,
    Step,
    describe,
)  # fmt: skip
from cnnc.frontend.session import MAX_CALLS, Session
from cnnc.ir.graph import Input, Node

_BARE_SAME = "padding is explicit: `half`, `same_upper`, `same_lower`, `valid` or numbers"
_ATTRIBUTES = {"n": 0, "c": 1, "h": 2, "w": 3}


class Lookup(Session, ABC):
    """Resolves names in environments. A name is a value or a block; a dotted one leads into the steps that have run."""

    def __init__(self) -> None:
        super().__init__()
        self._evaluating: set[int] = set()  # constants of files being evaluated, to see cycles

    @abstractmethod
    def run(self, expr: s.Expr, x: object, env: Env, scope: Scope, *, head: bool = True) -> object:
        """The value of `expr` on `x`."""

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

    def is_block(self, expr: s.Expr, env: Env, scope: Scope) -> bool:
        """Whether an argument stays a block: whether it begins with a block and not with a value."""
        match expr:
            case s.Use(name=name, args=args, operands=None) if args is None:
                if len(name.parts) == 1 and (found := env.find(name.text)):
                    return isinstance(found.value, BLOCKS) and not is_function(found.value)
                found = env.find_block(name.text)
                return found is not None and not is_function(found.value)
            case s.Use(name=name):
                found = env.find_block(name.text)
                return found is not None and not is_function(found.value) and not self._has_values(expr, env, scope)
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
        if self.told("E0201", use.name.span):  # to look for a similar name takes a while
            return POISON
        name = use.name.text
        value = self.path(use.name, env)
        if value is POISON:
            return POISON
        if value is not None:
            message = f"`{name}` is {describe(value)}: only a block can take arguments, operands or what flows"
            return self.error("E0209", message, use.span, scope)
        help = _BARE_SAME if name == "same" else suggest(name, env.known())
        return self.error("E0201", f"nothing is named `{name}`", use.name.span, scope, help=help)

    def bare(self, use: s.Use, env: Env, scope: Scope) -> object:
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
                return self.no_input(name.span) if value is None else self._attribute(value, parts[1:], name)
            found = env.find(prefix)
            if found is None or isinstance(found.value, BLOCKS):
                continue
            self.force(found)
            if isinstance(found.value, Step):
                return self._member(found.value, parts[length:], name)
            return self._attribute(found.value, parts[length:], name)
        return None

    def no_input(self, span: Span, scope: Scope | None = None) -> Poison:
        return self.error("E0208", "there is no `in` here", span, scope, help="a model starts from its inputs by name")

    def force(self, binding: Binding) -> None:
        """Evaluate a file's constant the first time it is used."""
        if not isinstance(binding.value, LazyConst):
            return
        lazy = binding.value
        if id(lazy) in self._evaluating:
            binding.value = self.error("E0223", "this constant is defined by itself", binding.span)
            return
        self._evaluating.add(id(lazy))
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
        if (parts and step.inner is not None and parts != parts[:1]) or (parts and parts[0] not in _ATTRIBUTES):
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
            return self.error("E0315", f"`{name.text}`: {type} has no such dimension", name.span)
        dim = type.shape[axis]
        if isinstance(dim, int):
            return dim
        message = f"`{name.text}` is {dim}, which is known only when the model is used"
        help = "to match another tensor's size use `crop { x | y }` or `resize { x | y }`"
        return self.error("E0215", message, name.span, help=help)


def is_function(value: object) -> bool:
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
