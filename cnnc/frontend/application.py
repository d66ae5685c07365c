"""Application: what happens when something flows into a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cnnc.diagnostics import Help, Label, Span
from cnnc.frontend import numbers
from cnnc.frontend import syntax as s
from cnnc.frontend.call import CallError, make_op, match, suggest
from cnnc.frontend.dims import DimError, dim_of
from cnnc.frontend.lookup import Lookup
from cnnc.frontend.scope import (
    BLOCKS,
    POISON,
    Binding,
    Block,
    Builtin,
    Called,
    Closure,
    DefBlock,
    Env,
    Given,
    ModelBlock,
    OpBlock,
    Poison,
    Scope,
    SharedBlock,
    Step,
    Template,
    describe,
    join,
)  # fmt: skip
from cnnc.frontend.session import CALL_STEPS, MAX_NODES, MODEL_STEPS
from cnnc.ir.attrs import show_value
from cnnc.ir.dim import Dim, solve, substitute
from cnnc.ir.explain import diagnose
from cnnc.ir.graph import Frame, Input, Node, Origin, Param, Value, fresh_params
from cnnc.ir.op import Op, OpError
from cnnc.ir.types import DType, TensorType
from cnnc.ops import Constant, Slice

Operands = list[tuple[object, Span]]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """Where a block is applied: what flows in, or the operands written out; and how the step is named."""

    scope: Scope
    span: Span
    flowing: object
    operands: Operands | None = None
    label: str | None = None
    label_span: Span | None = None
    shared: SharedBlock | None = None

    @property
    def place(self) -> Span:
        return self.label_span or self.span

    @property
    def given(self) -> object:
        """The value the block gets: what flows, the one operand, or the list of operands."""
        if self.operands is None:
            return self.flowing
        values = [value for value, _ in self.operands]
        return values[0] if len(values) == 1 else values


class Application(Lookup):
    """Runs blocks: ops make nodes, defs run their bodies in a scope of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._ops: dict[object, Op] = {}

    def apply(self, block: Block, site: Site) -> object:
        """The value of a block applied at a site; the step enters the scope of the site."""
        match block:
            case SharedBlock():
                block.uses += 1
                return self.apply(block.block, replace(site, shared=block))
            case Closure():
                return self._apply_closure(block, site)
            case Called(block=template, args=args):
                return self._apply_template(template, args, site)
            case _:
                return self._apply_template(block, (), site)

    def _apply_closure(self, block: Closure, site: Site) -> object:
        if site.label is None and site.shared is None:
            return self.run(block.expr, site.flowing, block.env, site.scope, head=False)
        return self.group(block.expr, block.env, site, head=False)

    def _apply_template(self, template: Template, args: Sequence[Given], site: Site) -> object:
        match template:
            case OpBlock(op=cls):
                return self._apply_op(cls, args, site)
            case DefBlock() | ModelBlock():
                return self._apply_def(template, args, site)
            case Builtin(name="split"):
                return self._split(args, site)
            case Builtin(name="id") if not args:
                return site.given
            case _:
                what = "takes no arguments" if template.name == "id" else "is a function, not a block"
                return self.error("E0209", f"`{template.name}` {what}", site.span, site.scope)

    def group(self, body: s.Expr, env: Env, site: Site, *, head: bool) -> object:
        """Run a composite expression as one step: the steps in it are named inside it."""
        name = site.scope.next_name(site.label)
        frame = Frame(name if site.label or not site.shared else site.shared.name, site.scope.frame)
        inner = site.scope.inside(name, frame, site.shared)
        value = self.run(body, site.flowing, Env(env, body=True, input=env.flowing_in()), inner, head=head)
        return self.record(site, name, value, "group", inner)

    def record(self, site: Site, name: str, value: object, kind: str, inner: Scope | None = None) -> object:
        """Enter a step that has run into its scope; E0202 where the scope has one of that name."""
        if (before := site.scope.steps.get(name)) is not None:
            also = [Label(before.span, "first used here")]
            self.error("E0202", f"the label `{name}` is used twice here", site.place, site.scope, also=also)
        site.scope.steps[name] = Step(name, value, kind, site.place, inner, site.shared)
        return value

    def record_value(self, site: Site, value: object) -> object:
        """A label on a value, or on `id`: a step that computes nothing."""
        return self.record(site, site.scope.next_name(site.label), value, "value")

    # Ops.

    def _apply_op(self, cls: type[Op], args: Sequence[Given], site: Site) -> object:
        name = site.scope.next_name(site.label)
        value = POISON if any(arg.value is POISON for arg in args) else self._node(cls, args, name, site)
        return self.record(site, name, value, cls.name)

    def _node(self, cls: type[Op], args: Sequence[Given], name: str, site: Site) -> Node | Poison:
        scope = site.scope
        try:
            op = self._op(cls, args, site.span)
        except CallError as e:
            return self.refused(e, scope)
        origin, path = Origin(site.span, scope.frame), join(scope.path, name)
        values = self._tensors(op, path, site)
        if values is None:
            return POISON
        weights = site.shared.path if site.shared else join(scope.weights, name)
        try:
            params = self._params(op, values, weights, site)
            node = None if params is None else Node(op, tuple(values), params, path, origin)
        except OpError as e:
            spans = [span for _, span in site.operands] if site.operands else []
            found = diagnose(e, op, values, origin, spans, self.defaults)
            return self.report(replace(found, help=self._projection(e, values, spans) or found.help))
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop("E0505", f"the network has more than {MAX_NODES:,} nodes", site.span, scope)
        return POISON if node is None else node

    def _op(self, cls: type[Op], args: Sequence[Given], span: Span) -> Op:
        """The op called with these arguments; ops are immutable, so a call that is run often makes one."""
        key = (cls, tuple((arg.name, type(arg.value), arg.value) for arg in args))
        if any(isinstance(arg.value, list) for arg in args):
            return make_op(cls, args, span)
        if key not in self._ops:
            self._ops[key] = make_op(cls, args, span)
        return self._ops[key]

    def _projection(self, e: OpError, values: Sequence[Value], spans: Sequence[Span]) -> Help | None:
        """How to mend a residual addition whose shortcut is the identity: project it to the other branch's shape."""
        if e.code not in ("E0312", "E0313") or len(spans) != len(values) or len(values) != 2:
            return None
        plain = next((i for i, span in enumerate(spans) if span.text.strip() in ("id", "in")), None)
        if plain is None or any(v.type.rank != 4 for v in values):
            return None
        have, want = (values[i].type.bind(self.defaults).shape for i in (plain, 1 - plain))
        places = [(a, b) for a, b in zip(have[2:], want[2:], strict=True) if isinstance(a, int) and isinstance(b, int)]
        strides = {-(-a // b) for a, b in places}
        if any(-(-a // stride) != b for a, b in places for stride in strides):
            lost = {a - b for a, b in places}
            more = max(lost) // 2
            return Help(f"pad the other branch by {more} more to keep the size") if lost == {2 * more} else None
        stride = f", s={max(strides)}" if max(strides, default=1) > 1 else ""
        projection = f"conv({want[1]}, 1{stride})"
        return Help(f"project the shortcut: `{projection}`", spans[plain], projection)

    def _tensors(self, op: Op, path: str, site: Site) -> list[Value] | None:
        """The operands of an op as tensors, numbers among written operands as constants; None where one is at fault."""
        written = site.operands
        if written is None:
            flowing = site.flowing if isinstance(site.flowing, list) else [site.flowing]
            written = [] if isinstance(op, Constant) else [(value, site.span) for value in flowing]
        values: list[Value] = []
        for i, (value, span) in enumerate(written):
            if isinstance(value, Input | Node):
                values.append(value)
            elif isinstance(value, int | float) and not isinstance(value, bool) and site.operands:
                origin = Origin(span, site.scope.frame)
                values.append(Node.make(Constant((float(value),)), name=f"{path}.arm{i}", origin=origin))
            elif value is None:
                help = "start the chain with a value"
                self.error("E0208", f"nothing flows into `{op.name}`", site.span, site.scope, help=help)
            elif value is not POISON:
                self.error("E0212", f"`{op.name}` works on tensors, not on {describe(value)}", span, site.scope)
        return values if len(values) == len(written) else None

    def _params(self, op: Op, values: list[Value], prefix: str, site: Site) -> dict[str, Param] | None:
        """The parameters of a node: fresh ones, or in a shared block those of its first use; None where they clash."""
        shared = site.shared or site.scope.shared
        params = fresh_params(op, values, prefix)
        for role, param in params.items():
            params[role] = before = self.params.setdefault(param.name, param)
            owner = self.owners.setdefault(param.name, shared)
            if before is not param and (owner is None or owner is not shared):
                message = f"`{param.name}` is already the name of weights of {'a shared block' if owner else 'a layer'}"
                also = [Label(each.span, "shared here") for each in (owner, shared) if each]
                self.error("E0202", message, site.place, site.scope, also=also)
                return None
            if before.type != param.type and shared is not None:
                needs = f"its first use made `{param.name}` {before.type}, this use needs {param.type}"
                message = f"shared `{shared.name}`: {needs}"
                self.error("E0321", message, site.span, site.scope, also=[Label(shared.span, "shared here")])
                return None
        return params

    def _split(self, args: Sequence[Given], site: Site) -> object:
        """`split(n, axis=1)`: a list of n equal slices."""
        try:
            found = match("split", ["n", "axis"], ["n"], args, site.span)
        except CallError as e:
            return self.refused(e, site.scope)
        value, n, axis = site.given, found["n"].value, found["axis"].value if "axis" in found else 1
        if POISON in (value, n, axis):
            return POISON
        if not isinstance(n, int) or not isinstance(axis, int) or n < 1 or not isinstance(value, Input | Node):
            message = "`split(n, axis=1)` takes integers and works on one tensor"
            return self.error("E0207", message, site.span, site.scope)
        size = value.type.shape[axis] if -value.type.rank <= axis < value.type.rank else None
        if not isinstance(size, int) or size % n:
            message = f"`split({n})` needs a known size that {n} divides along axis {axis}, not that of {value.type}"
            return self.error("E0322", message, site.span, site.scope)
        part = size // n
        each = replace(site, flowing=value, operands=None, label=None, label_span=None)
        with self.repeated(n, site.span, site.scope):
            bounds = [{"start": i * part, "stop": (i + 1) * part, "axis": axis} for i in range(n)]
            slices = [[Given(k, v, site.span) for k, v in bound.items()] for bound in bounds]
            return [self._apply_op(Slice, given, each) for given in slices]

    # Defs and models.

    def _apply_def(self, block: DefBlock | ModelBlock, args: Sequence[Given], site: Site) -> object:
        env = self.parameters(block, args, site.span, site.scope)
        if env is None:
            return POISON if site.label is None else self.record_value(site, POISON)
        env.input = site.given
        frame = Frame(_call_text(block, args, site.label), site.scope.frame)
        body = block.node.body
        with self.called(block.name, site.span, site.scope):
            if isinstance(body, s.Use) and body.operands is None:
                place = site.label_span or body.span
                inside = replace(site, span=body.span, flowing=site.given, operands=None, label_span=place)
                return self._rename(body, env, inside, frame)
            name = site.scope.next_name(site.label)
            inner = site.scope.inside(name, frame, site.shared)
            if isinstance(block, ModelBlock):
                assert isinstance(body, s.Block)  # the other form is a Use
                value = self.model_body(body, env, inner, site)
            else:
                value = self.body(body, site.given, env, inner)
        return self.record(site, name, value, block.name, inner)

    def _rename(self, body: s.Use, env: Env, site: Site, frame: Frame) -> object:
        """A def whose whole body is one call: it only renames that call, which takes the step's name."""
        outer, site.scope.frame = site.scope.frame, frame
        try:
            block = self.block(body, env, site.scope)
            if not isinstance(block, BLOCKS):
                return POISON if site.label is None else self.record_value(site, POISON)
            return self.apply(block, site)
        finally:
            site.scope.frame = outer

    def parameters(self, block: DefBlock | ModelBlock, args: Sequence[Given], span: Span, scope: Scope) -> Env | None:
        """A new environment with the parameters of a def or model bound; None where the arguments do not fit."""
        params = block.node.params
        self.tick(CALL_STEPS + len(params), span, scope)
        if not params and not args:
            return Env(block.env, body=True)
        required = [p.name.text for p in params if p.default is None]
        try:
            found = match(block.name, [p.name.text for p in params], required, args, span)
        except CallError as e:
            self.refused(e, scope)
            return None
        env = Env(block.env, body=True)
        for param in params:
            name = param.name.text
            if name in found:
                value = found[name].value
            else:
                assert param.default is not None  # or `match` had refused
                value = self.argument(param.default, env, scope)
            self.bind(env, name, Binding(value, param.name.span, "parameter"), scope)
        return env

    def call_function(self, block: Any, span: Span, scope: Scope) -> object:
        """The value of a function: one of the language's, or a def whose body is a number or a list."""
        template, args = (block.block, block.args) if isinstance(block, Called) else (block, ())
        if any(arg.value is POISON for arg in args):
            return POISON
        if isinstance(template, Builtin):
            if any(arg.name for arg in args):
                return self.error("E0206", f"`{template.name}` takes no named arguments", span, scope)
            try:
                return numbers.call(template.name, [arg.value for arg in args])
            except ValueError as e:
                return self.error(numbers.code(e), str(e), span, scope)
        assert isinstance(template, DefBlock)
        env = self.parameters(template, args, span, scope)
        if env is None:
            return POISON
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

    def model_body(self, body: s.Block, env: Env, scope: Scope, site: Site) -> object:
        """A model used as a block: inputs bind in order, dims unify, the outputs are its value."""
        self.tick(MODEL_STEPS, site.span, scope)
        given, env.input = site.given, None
        values = given if isinstance(given, list) else [given]
        inputs = [(st, name) for st in body.statements if isinstance(st, s.InputStmt) for name in st.names]
        if given is None or len(values) != len(inputs):
            count = 0 if given is None else len(values)
            return self.error("E0302", f"the model takes {len(inputs)} inputs, not {count}", site.span, scope)
        dims: dict[str, Dim] = {}
        for (declaration, name), value in zip(inputs, values, strict=True):
            declared = self.input_type(declaration, env, scope)
            if isinstance(value, Input | Node) and declared is not None and not _unify(declared, value.type, dims):
                message = f"input `{name.text}` is {declared.bind(dims)}, and it gets {value.type}"
                value = self.error("E0323", message, site.span, scope, also=[Label(name.span, "declared here")])
            self.bind(env, name.text, Binding(value, name.span, "input"), scope)
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
                message = f"output `{name.text}` is not defined in the model"
                value = self.error("E0201", message, name.span, scope, help=help)
            elif not isinstance(value, Input | Node) and value is not POISON:
                message = f"output `{name.text}` is {describe(value)}, not a tensor"
                value = self.error("E0212", message, name.span, scope)
            if any(name.text == other.text for other, _ in found):
                self.error("E0202", f"output `{name.text}` is declared twice", name.span, scope)
            found.append((name, value))
        return found

    def input_type(self, statement: s.InputStmt, env: Env, scope: Scope) -> TensorType | None:
        """The declared type of an input, its dims symbolic; None where it is at fault."""
        if statement.dtype.text not in list(DType):
            help = suggest(statement.dtype.text, list(DType)) or "element types are f32, f16 and bf16"
            self.error("E0221", f"`{statement.dtype.text}` is no element type", statement.dtype.span, scope, help=help)
            return None
        dims = [self.dim(dim.size, env, scope) for dim in statement.dims]
        known = [dim for dim in dims if dim is not None]
        return TensorType(tuple(known), DType(statement.dtype.text)) if len(known) == len(dims) else None

    def dim(self, expr: s.Expr, env: Env, scope: Scope) -> Dim | None:
        """A dim of an input: names that are not numbers here are symbols."""
        try:
            dim = dim_of(expr, lambda name: self._size(name, env))
        except DimError as e:
            if e.message:
                self.error(e.code, e.message, e.span, scope)
            return None
        if isinstance(dim, int) and not 1 <= dim < 2**31:
            code = "E0222" if dim < 1 else "E0502"
            self.error(code, f"a dimension is from 1 to 2^31 - 1, not {dim}", expr.span, scope)
            return None
        return dim

    def _size(self, name: s.Name, env: Env) -> object | None:
        found = env.find(name.text)
        if found is None or found.kind == "input" or isinstance(found.value, BLOCKS):
            return None
        self.force(found)
        return found.value


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


def _call_text(block: DefBlock | ModelBlock, args: Sequence[Given], label: str | None) -> str:
    """A call as diagnostics show it: `layer1: stage(c=64, n=3)`."""
    shown = []
    for i, arg in enumerate(args):
        value = arg.value.name if isinstance(arg.value, BLOCKS) else _short(arg.value)
        shown.append(f"{arg.name or block.node.params[i].name.text}={value}")
    call = f"{block.name}({', '.join(shown)})" if shown else block.name
    return f"{label}: {call}" if label else call


def _short(value: object) -> str:
    text = show_value(value) if isinstance(value, int | float | str) else "[...]" if isinstance(value, list) else "..."
    return text if len(text) <= 24 else text[:21] + "..."
