"""`check` blocks: the facts a file claims of its models, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from cnnc import analysis
from cnnc.diagnostics import CnncError, Diagnostic, Help, Label, Span
from cnnc.frontend import syntax as s
from cnnc.frontend.call import suggest
from cnnc.frontend.dims import DimError, dim_of
from cnnc.frontend.model import Elaborated, argument, elaborate
from cnnc.frontend.numbers import compare
from cnnc.frontend.project import Module
from cnnc.frontend.scope import BLOCKS, Given
from cnnc.ir.bind import bind
from cnnc.ir.dim import Dim, substitute
from cnnc.ir.graph import Graph
from cnnc.ir.types import shape_text

Measured: TypeAlias = "int | float | Dim | tuple[Dim, ...]"


@dataclass(frozen=True)
class FactResult:
    """A fact, whether it holds, and what was measured."""

    model: str
    text: str
    span: Span
    holds: bool
    actual: str


def run_check(module: Module, check: s.Check) -> tuple[list[FactResult], list[Diagnostic]]:
    """Every fact of a check block, measured, and what is wrong with those that cannot be. CnncError where the model is
    at fault."""
    model = module.models.get(check.name.text)
    if model is None:
        close = suggest(check.name.text, list(module.models))
        raise _fault("E0219", f"{module.source.name} has no model `{check.name.text}`", check.name.span, close)
    args = tuple(Given(a.name, argument(a.value, module.env), a.span) for a in check.args)
    elaborated = elaborate(module, model, args)
    shown = " ".join(module.source.text[check.name.span.start : _end_of_head(check)].split())
    found: list[FactResult] = []
    faults: list[Diagnostic] = []
    for fact in check.facts:
        try:
            found.append(_run(fact, shown, elaborated))
        except CnncError as e:
            faults += [_placed(d, fact.span) for d in e.diagnostics]
    return found, faults


def _run(fact: s.Fact, model: str, elaborated: Elaborated) -> FactResult:
    measure = _MEASURES.get(fact.measure.text)
    if measure is None:
        known = ", ".join(_MEASURES)
        help = suggest(fact.measure.text, list(_MEASURES)) or f"what can be measured: {known}"
        raise _fault("E0220", f"nothing measures `{fact.measure.text}`", fact.measure.span, help)
    request = _Request(fact, elaborated)
    actual = measure(request)
    values = [actual, *map(request.bound, fact.bounds)]
    holds = all(_holds(op, a, b, fact) for op, a, b in zip(fact.ops, values, values[1:], strict=False))
    text = " ".join(fact.span.text.split())
    return FactResult(model, text, fact.span, holds, _shown(actual))


class _Request:
    """The arguments of a fact: labels, sizes of dims, and `to=`."""

    def __init__(self, fact: s.Fact, elaborated: Elaborated) -> None:
        self.fact, self.elaborated = fact, elaborated
        self.names: list[s.Name] = []
        self.sizes: dict[str, int] = {}
        self.to: str | None = None
        for arg in fact.args:
            if arg.name == "to" and isinstance(arg.value, s.Use):
                self.to = arg.value.name.text
            elif arg.name is not None:
                size = argument(arg.value, elaborated.module.env)
                if isinstance(size, bool) or not isinstance(size, int):
                    raise _fault("E0220", f"`{arg.name}` is the size of a dim, a number", arg.span)
                self.sizes[arg.name] = size
            elif isinstance(arg.value, s.Use) and arg.value.args is None and arg.value.operands is None:
                self.names.append(arg.value.name)
            else:
                raise _fault("E0220", "a fact is asked of labels, as in `shape(conv1, H=281)`", arg.span)

    @property
    def dims(self) -> Mapping[str, int]:
        return {**self.elaborated.defaults, **self.sizes}

    def one_name(self) -> str:
        if len(self.names) != 1:
            raise _fault("E0220", f"`{self.fact.measure.text}` is asked of one label", self.fact.span)
        return self.names[0].text

    def graph(self, *taps: str) -> Graph:
        """The bound graph, pruned to some taps or to `to=`."""
        graph = self.elaborated.graph
        names = taps or ((self.to,) if self.to else ())
        if names:
            graph = graph.with_outputs({name: self.elaborated.tap(name) for name in names})
        return bind(graph, {k: v for k, v in self.dims.items() if k in graph.symbols or k in self.sizes})

    def part(self) -> Graph:
        """The nodes under the label asked for, or the whole graph: a graph whose outputs are those nodes."""
        graph = self.graph()
        if not self.names:
            return graph
        label = self.one_name()
        self.elaborated.tap(label)
        inside = {x.name: x for x in graph.nodes if x.name == label or x.name.startswith(label + ".")}
        if not inside:
            help = f"`{self.fact.measure.text}(to={label})` is of all that leads to it"
            raise _fault("E0220", f"`{label}` is the name of a value, not the label of a layer", self.fact.span, help)
        return graph.with_outputs(inside)

    def bound(self, expr: s.Expr) -> Measured:
        """The right side of a comparison: a number, a size or a shape."""
        env = self.elaborated.module.env

        def lookup(name: s.Name) -> object | None:
            found = env.find(name.text)
            if found is None or isinstance(found.value, BLOCKS):
                return None
            return argument(s.Use(name.span, name), env)

        try:
            if isinstance(expr, s.Number):
                return expr.value
            if isinstance(expr, s.ListOf):
                return tuple(substitute(dim_of(item, lookup), self.dims) for item in expr.items)
            return substitute(dim_of(expr, lookup), self.dims)
        except DimError as e:
            raise _fault(e.code, e.message, e.span) from None


def _shape(request: _Request) -> Measured:
    name = request.one_name()
    return request.graph(name).outputs[name].type.shape


def _params(request: _Request) -> Measured:
    if not request.names:
        return analysis.params(request.graph())
    part = request.part()
    own = {p.name: p for x in part.outputs.values() for p in getattr(x, "params", {}).values()}
    return sum(_known(p.type.size) for p in own.values() if p.trainable)


def _macs(request: _Request) -> Measured:
    if not request.names:
        return analysis.macs(request.graph())
    total: Dim = 0
    for node in request.part().outputs.values():
        total = total + getattr(node, "macs", 0)
    return total


def _memory(request: _Request) -> Measured:
    kind = request.one_name() if request.names else "weights"
    graph = request.graph()
    if kind == "weights":
        return analysis.weight_bytes(graph)
    if kind == "activations":
        return analysis.activation_bytes(graph)
    raise _fault("E0220", f"`memory` is of weights or activations, not of `{kind}`", request.fact.span)


def _count(request: _Request) -> Measured:
    """Nodes of these ops, calls of these defs, uses of these shared blocks."""
    if not request.names:
        raise _fault("E0220", "`count` is of ops, defs or shared blocks", request.fact.span)
    graph, total = request.graph(), 0
    for name in request.names:
        text = name.text
        if text in request.elaborated.shared:
            total += request.elaborated.shared[text]
        elif request.elaborated.module.env.find_block(text) is not None:
            ops = sum(node.op.name == text for node in graph.nodes)
            total += ops or sum(step.kind == text for step in request.elaborated.steps.values())
        else:
            raise _fault("E0220", f"`{text}` is no op, def or shared block", name.span)
    return total


def _receptive_field(request: _Request) -> Measured:
    name = request.one_name()
    graph = request.graph(name)
    field = analysis.receptive_fields(graph)[graph.outputs[name]]
    if field is None:
        raise _fault("E0220", f"`{name}` has no receptive field: it sees the whole image", request.fact.span)
    return field.size[0] if field.size[0] == field.size[1] else field.size


def _units(request: _Request) -> Measured:
    """Neurons for one sample, as the literature counts them."""
    if request.names:
        raise _fault("E0220", "`units` is of the whole network", request.fact.span)
    graph = request.graph()
    return analysis.units(bind(graph, dict.fromkeys(graph.symbols, 1)))


_MEASURES: Mapping[str, Callable[[_Request], Measured]] = {
    "shape": _shape, "params": _params, "macs": _macs, "memory": _memory, "count": _count,
    "units": _units, "receptive_field": _receptive_field,
}  # fmt: skip


def _holds(op: str, left: Measured, right: Measured, fact: s.Fact) -> bool:
    if op == "==":
        return left == right
    if op == "!=":
        return left != right
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        help = "give the sizes that are open, as in `macs(N=1)`"
        raise _fault("E0220", f"cannot order {_shown(left)} and {_shown(right)}", fact.span, help)
    return compare(op, left, right)


def _shown(value: Measured) -> str:
    if isinstance(value, tuple):
        return shape_text(value)
    return f"{value:_}" if isinstance(value, int) else str(value)


def _known(dim: Dim) -> int:
    assert isinstance(dim, int)  # the shapes of parameters are static
    return dim


def _end_of_head(check: s.Check) -> int:
    return check.args[-1].span.end + 1 if check.args else check.name.span.end


def _fault(code: str, message: str, span: Span, help: str | None = None) -> CnncError:
    return CnncError((Diagnostic(code, message, (Label(span, primary=True),), help=Help(help) if help else None),))


def _placed(d: Diagnostic, span: Span) -> Diagnostic:
    """A diagnostic that has no place of its own gets the fact's."""
    return d if d.labels else replace(d, labels=(Label(span, primary=True),))


