"""A model of a file, elaborated: its graph, its taps, its default dims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnnc.diagnostics import CnncError, Diagnostic, Label, Severity, Source, Span, error
from cnnc.frontend import syntax as s
from cnnc.frontend.call import suggest
from cnnc.frontend.elaborate import Elaborator
from cnnc.frontend.lint import lint
from cnnc.frontend.parser import parse_expression
from cnnc.frontend.project import TEXT, Module, library
from cnnc.frontend.scope import BLOCKS, POISON, Binding, Called, Env, Given, ModelBlock, Scope, SharedBlock, Step
from cnnc.ir.dim import solve
from cnnc.ir.graph import Frame, Graph, Input, Node, Origin, Value
from cnnc.ir.op import MAX_ELEMENTS, known_size


@dataclass(frozen=True)
class Elaborated:
    """A model with its arguments applied.

    `graph` has symbolic dims; `defaults` has the default of each that has one. `labels` are the taps: every step by its
    full name. `shared` counts the uses of each shared block.
    """

    graph: Graph
    labels: Mapping[str, Value]
    defaults: Mapping[str, int]
    shared: Mapping[str, int]
    module: Module
    warnings: tuple[Diagnostic, ...] = ()
    steps: Mapping[str, Step] = field(default_factory=dict)

    def tap(self, name: str) -> Value:
        """The value of an output, label or input by name; CnncError E0201 where there is none."""
        for found in (self.graph.outputs.get(name), self.labels.get(name)):
            if found is not None:
                return found
        known = [*self.graph.outputs, *self.labels]
        close = suggest(name, known)
        raise error("E0201", f"model `{self.graph.name}` has no step or output `{name}`", help=close)


def choose(module: Module, name: str | None) -> s.Model:
    """The model of that name; without one the file's only model, or the one named like the file."""
    models = module.models
    if name is not None:
        if name not in models:
            raise error("E0219", f"{module.source.name} has no model `{name}`", help=suggest(name, list(models)),
                        notes=[f"its models: {', '.join(models) or 'none'}"])  # fmt: skip
        return models[name]
    if len(models) == 1:
        return next(iter(models.values()))
    stem = _plain(module.source.name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".cnn"))
    alike = [model for key, model in models.items() if _plain(key) == stem]
    if len(alike) == 1:
        return alike[0]
    if not models:
        raise error("E0219", f"{module.source.name} has no model")
    listed, first = ", ".join(models), next(iter(models))
    one = f"`{module.source.name}:{first}`"
    if module.source.name == TEXT:
        one = f'`cnnc.load(text, "{first}")`, or of standard input `-- -:{first}`'
    raise error("E0219", f"{module.source.name} has several models: {listed}", help=f"choose one: {one}")


def parse_value(text: str, module: Module | None = None) -> object:
    """The value of an expression given from outside, as in `--set depths=[2, 2]`; names are those of the file."""
    source = Source("--set", text)
    expr = parse_expression(source)
    return argument(expr, module.env if module else library())


def argument(expr: s.Expr, env: Env) -> object:
    elaborator = Elaborator()
    with _bounded(expr.span):
        value = elaborator.argument(expr, env, Scope("", "", None))
    if elaborator.diagnostics:
        raise CnncError(tuple(elaborator.diagnostics))
    return value


def elaborate(module: Module, model: s.Model, args: Sequence[Given] | Mapping[str, object] = ()) -> Elaborated:
    """The graph of a model for these arguments. CnncError carries every independent error."""
    with _bounded(model.name.span):
        if isinstance(args, Mapping):
            args = tuple(Given(name, _of_python(name, value), model.name.span) for name, value in args.items())
        return _Root(module).elaborate(model, args)


def _of_python(name: str, value: object) -> object:
    """An argument of Python's as the language has it: numbers and arrays of NumPy, tuples and ranges too. E0902."""
    if hasattr(value, "dtype") and not isinstance(value, type):  # NumPy's, and PyTorch's
        value = getattr(value, "tolist", lambda: value)()
    if isinstance(value, list | tuple | range):
        return [_of_python(name, each) for each in value]
    if isinstance(value, (bool, int, float, str, *BLOCKS)):  # a block is what `parse_value` gives
        return value
    message = f"`{name}` is a number, a word, a truth value or a list of them, not of type {type(value).__name__}"
    raise error("E0902", message)


@contextmanager
def _bounded(span: Span) -> Iterator[None]:
    """E0501 where depths that are each within their limit multiply to more than Python's stack."""
    try:
        yield
    except RecursionError:
        message = "calls and the expressions in them nest too deep together"
        raise CnncError((Diagnostic("E0501", message, (Label(span, primary=True),)),)) from None


class _Root:
    """The elaboration of one model as the whole network."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.run = Elaborator()
        self.scope = Scope("", "", None)  # its frame is set once the model is known
        self.defaults: dict[str, int] = {}
        self.run.defaults = self.defaults
        self.default_spans: dict[str, Span] = {}

    def check_names(self, graph: Graph) -> None:
        """E0202 for a layer named as an input, another layer or weights: those names are of the whole network."""
        taken: dict[str, tuple[str, Origin | None]] = {x.name: ("an input", x.origin) for x in graph.inputs}
        for node in graph.nodes:
            taken |= {param.name: ("weights", node.origin) for param in node.params.values()}
        for node in graph.nodes:
            if node.name in taken and node.origin is not None:
                what, origin = taken[node.name]
                also = [Label(origin.span, f"{what} of that name")] if origin else []
                self.run.error("E0202", f"`{node.name}` is already the name of {what}", node.origin.span, also=also)
            taken[node.name] = ("another layer", node.origin)

    def elaborate(self, model: s.Model, args: Sequence[Given]) -> Elaborated:
        self.scope.frame = Frame(model.name.text)
        target, env = self.resolve(model, args)
        body = target.body
        assert isinstance(body, s.Block)
        inputs = self.inputs(body, env)
        for statement in body.statements:
            if not isinstance(statement, s.InputStmt | s.OutputStmt):
                self.run.statement(statement, None, env, self.scope)
        outputs = self.run.outputs(body, env, self.scope)
        if not outputs:
            self.run.error("E0217", f"model `{target.name.text}` has no `output`", target.name.span)
        self.stop_on_errors()
        values = {name.text: value for name, value in outputs if isinstance(value, Input | Node)}
        graph = Graph(model.name.text, tuple(inputs), values, model.doc or target.doc)
        self.check_names(graph)
        self.stop_on_errors()
        steps = dict(self.scope.taps())
        named = [(k, b.value) for k, b in env.names.items() if b.kind in ("binding", "input")]
        labels = {name: step.value for name, step in steps.items() if isinstance(step.value, Input | Node)}
        labels |= {name: value for name, value in named if isinstance(value, Input | Node)}
        shared = [b.value for b in env.names.values() if isinstance(b.value, SharedBlock)]
        warnings = lint(self.module, [*self.run.diagnostics])
        return Elaborated(
            graph, labels, self.defaults, {x.name: x.uses for x in shared}, self.module, tuple(warnings), steps
        )

    def stop_on_errors(self) -> None:
        if any(d.severity is Severity.ERROR for d in self.run.diagnostics):
            raise CnncError(tuple(self.run.diagnostics))

    def resolve(self, model: s.Model, args: Sequence[Given]) -> tuple[s.Model, Env]:
        """The model that a variant names, and its parameters bound."""
        block = ModelBlock(model, self.module.env)
        seen = {model}
        while True:
            env = self.run.parameters(block, args, args[0].span if args else block.node.name.span, self.scope)
            self.stop_on_errors()
            assert env is not None
            env.body = True
            body = block.node.body
            if isinstance(body, s.Block):
                return block.node, env
            if not isinstance(body, s.Use) or body.operands is not None:
                self.run.error("E0219", "a variant is a model with arguments: `model A(n=10) = B(n)`", body.span)
                self.stop_on_errors()
            assert isinstance(body, s.Use)
            found = self.run.block(body, env, self.scope)
            self.stop_on_errors()
            template, args = (found.block, found.args) if isinstance(found, Called) else (found, ())
            if not isinstance(template, ModelBlock) or template.node in seen:
                what = "a variant of itself" if isinstance(template, ModelBlock) else f"no model: `{body.name.text}`"
                self.run.error("E0219", f"`{model.name.text}` is {what}", body.span)
                self.stop_on_errors()
            assert isinstance(template, ModelBlock)
            seen.add(template.node)
            block = template

    def inputs(self, body: s.Block, env: Env) -> list[Input]:
        inputs = []
        for statement in body.statements:
            if not isinstance(statement, s.InputStmt):
                continue
            type = self.run.input_type(statement, env, self.scope)
            if type is not None and known_size(type) >= MAX_ELEMENTS:
                self.run.error("E0502", f"{type} has too many elements: the limit is {MAX_ELEMENTS:,}", statement.span)
                type = None
            for dim in statement.dims:
                self.default(dim, env)
            for name in statement.names:
                value: object = Input(name.text, type, statement.doc, Origin(name.span)) if type else POISON
                if isinstance(value, Input):
                    inputs.append(value)
                self.run.bind(env, name.text, Binding(value, name.span, "input"), self.scope)
        if not any(isinstance(st, s.InputStmt) for st in body.statements):
            self.run.error("E0217", "a model has at least one `input`", body.span)
        return inputs

    def default(self, dim: s.InputDim, env: Env) -> None:
        """Note what the default of a dim makes its symbol."""
        if dim.default is None:
            return
        size = self.run.dim(dim.size, env, self.scope)
        default = self.run.dim(dim.default, env, self.scope)
        if size is None or default is None:
            return
        found = solve(size, default)
        if found is None or not isinstance(default, int) or not all(isinstance(v, int) for v in found.values()):
            self.run.error("E0309", f"{size} cannot be {default}", dim.span)
            return
        for name, value in found.items():
            assert isinstance(value, int)
            if self.defaults.setdefault(name, value) != value:
                also = [Label(self.default_spans[name], f"{name}={self.defaults[name]} here")]
                self.run.error("E0309", f"`{name}` has two defaults", dim.span, also=also)
            self.default_spans.setdefault(name, dim.span)


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
