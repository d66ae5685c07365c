"""The graph as text: one line a node, in running order, each with its type; what is printed parses back equal.

    graph "Tiny" (%image: f32[N, 3, 32, 32] "an RGB picture") {
      %stem = conv(16, 3, pad=1)(%image) : f32[N, 16, 32, 32]
      %relu1 = relu(%stem) : f32[N, 16, 32, 32]
      return features = %relu1
    }

An op is written as in the language. Its parameters are named `{node}.{role}` and start as the op says; where they do
not, as for shared weights, the line says so: `conv(16, 3)(%x) {weight=@stem.weight, bias=@b constant(1) fixed}`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable

from cnnc.diagnostics import CnncError, Diagnostic, Label, Source, Span
from cnnc.ir.assemble import Assembly, Named, make_op, named_params
from cnnc.ir.graph import Graph, Node, Origin
from cnnc.ir.op import Init, Op

_STRING = r'"(?:[^"\\]|\\.)*"'
_NAME = rf"(?:[\w.]+|{_STRING})"
_TYPE = r"\w+\[[^\]]*\]"
_INIT = r"\w+(?:\([^()]*\))?"

_INPUT = re.compile(rf"%(?P<name>{_NAME}): (?P<type>{_TYPE})(?: (?P<doc>{_STRING}))?")
_HEAD = re.compile(rf"graph (?P<name>{_STRING})(?: (?P<doc>{_STRING}))? \((?P<inputs>.*)\) {{")
_PARAM = re.compile(rf"(?P<role>\w+)=@(?P<name>{_NAME})(?: (?P<init>{_INIT}) (?P<use>trained|fixed))?")
_NODE = re.compile(
    rf"%(?P<name>{_NAME}) = (?P<op>.*?)\((?P<operands>(?:%{_NAME}(?:, %{_NAME})*)?)\)"
    rf"(?: {{(?P<params>.*)}})? : (?P<type>{_TYPE})"
)
_OUTPUT = re.compile(rf"(?P<name>{_NAME}) = %(?P<value>{_NAME})")
_OPERAND = re.compile(rf"%(?P<name>{_NAME})")


def to_text(graph: Graph) -> str:
    """The canonical text of a graph: two graphs have the same text exactly if they are equal but for their origins."""
    inputs = (f"%{_quoted(x.name)}: {x.type}" + (f" {json.dumps(x.doc)}" if x.doc else "") for x in graph.inputs)
    doc = f" {json.dumps(graph.doc)}" if graph.doc else ""
    outputs = (f"{_quoted(name)} = %{_quoted(x.name)}" for name, x in graph.outputs.items())
    return "\n".join(
        [
            f"graph {json.dumps(graph.name)}{doc} ({', '.join(inputs)}) {{",
            *(f"  {_node_text(node)}" for node in graph.nodes),
            f"  return {', '.join(outputs)}",
            "}\n",
        ]
    )


def structurally_equal(left: Graph, right: Graph) -> bool:
    """Whether two graphs are the same but for their origins: names, ops, types, parameters, wiring and docs."""
    return to_text(left) == to_text(right)


def from_text(text: str, name: str = "<graph>") -> Graph:
    """The graph of a text; CnncError E0105 at the first line that is wrong. `name` is what messages call the text."""
    source = Source(name, text)
    assembly = Assembly()
    head: re.Match[str] | None = None
    outputs: dict[str, str] | None = None
    closed = False
    start = 0
    for line in text.splitlines(keepends=True):
        content = line.strip()
        begin = start + line.find(content)
        span = Span(source, begin, begin + len(content))
        start += len(line)
        try:
            if not content:
                continue
            if closed:
                raise ValueError("there is text after the graph")
            if head is None:
                head = _head(content, assembly, Origin(span))
            elif outputs is not None:
                closed = _expect(content == "}", "`}` after the outputs")
            elif content.startswith("return "):
                outputs = _outputs(content.removeprefix("return "), assembly)
            else:
                _node(content, assembly, Origin(span))
        except (ValueError, RecursionError, MemoryError) as e:  # the latter two from `ast`, on deep nesting
            message = str(e) or "the line nests too deep"
            raise CnncError((Diagnostic("E0105", message, (Label(span, primary=True),)),)) from None
    if head is None or outputs is None or not closed:
        raise CnncError((Diagnostic("E0105", f"the text of the graph is incomplete: {name}"),))
    return assembly.graph(_unquoted(head["name"]), outputs, _unquoted(head["doc"] or ""))


def _node_text(node: Node) -> str:
    operands = ", ".join(f"%{_quoted(x.name)}" for x in node.inputs)
    named = ", ".join(f"{role}={_param_text(param)}" for role, param in named_params(node).items())
    return f"%{_quoted(node.name)} = {node.op}({operands})" + (f" {{{named}}}" if named else "") + f" : {node.type}"


def _param_text(param: Named) -> str:
    start = f" {param.init} {'trained' if param.trainable else 'fixed'}" if param.init else ""
    return f"@{_quoted(param.name)}{start}"


def _head(line: str, assembly: Assembly, origin: Origin) -> re.Match[str]:
    match = _HEAD.fullmatch(line)
    if match is None:
        raise ValueError('expected `graph "name" (%input: type, ...) {`')
    for x in _items(_INPUT, match["inputs"], "inputs"):
        assembly.input(_unquoted(x["name"]), x["type"], _unquoted(x["doc"] or ""), origin)
    return match


def _node(line: str, assembly: Assembly, origin: Origin) -> None:
    match = _NODE.fullmatch(line)
    if match is None:
        raise ValueError("expected `%name = op(...)(%operand, ...) : type` or `return name = %value`")
    operands = [_unquoted(x["name"]) for x in _items(_OPERAND, match["operands"], "operands")]
    named = {x["role"]: _named(x) for x in _items(_PARAM, match["params"] or "", "parameters")}
    assembly.node(_unquoted(match["name"]), parse_op(match["op"]), operands, named, match["type"], origin)


def _named(match: re.Match[str]) -> Named:
    if not match["init"]:
        return Named(_unquoted(match["name"]))
    return Named(_unquoted(match["name"]), Init.parse(match["init"]), match["use"] == "trained")


def _outputs(line: str, assembly: Assembly) -> dict[str, str]:
    found = [(_unquoted(x["name"]), _unquoted(x["value"])) for x in _items(_OUTPUT, line, "outputs")]
    for _, value in found:
        assembly.value(value)
    _expect(0 < len(found) == len(dict(found)), "outputs of different names")
    return dict(found)


def parse_op(text: str) -> Op:
    """The op of a call as the language writes it, which is a call in Python too; ValueError for other texts."""
    try:
        return _op(ast.parse(text, mode="eval").body)
    except SyntaxError:
        raise ValueError(f"`{text}` is not the call of an op") from None


def _op(call: ast.expr) -> Op:
    match call:
        case ast.Name(id=name):
            return make_op(name, [], {})
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return make_op(name, [_value(x) for x in args], {str(x.arg): _value(x.value) for x in keywords})
        case _:
            raise ValueError(f"`{ast.unparse(call)}` is not the call of an op")


def _value(node: ast.expr) -> object:
    match node:
        case ast.Name(id="true" | "false" as word):
            return word == "true"
        case ast.Name(id=word):
            return word
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items):
            return [_value(x) for x in items]
        case ast.Call():
            return _op(node)
        case _:
            raise ValueError(f"`{ast.unparse(node)}` is not the value of an attribute")


def _items(pattern: re.Pattern[str], text: str, what: str) -> Iterable[re.Match[str]]:
    """The matches of a pattern that, with `, ` between them, make up the whole text."""
    at, found = 0, []
    while at < len(text):
        match = pattern.match(text, at)
        if match is None or not text.startswith((", ", ""), match.end()):
            raise ValueError(f"{what} expected, not `{text[at : at + 40]}`")
        found.append(match)
        at = match.end()
        if at < len(text):
            _expect(text.startswith(", ", at), f"`, ` between {what}")
            at += 2
    return found


def _expect(right: bool, what: str) -> bool:
    if not right:
        raise ValueError(f"expected {what}")
    return True


def _quoted(name: str) -> str:
    """A name as it is, in quotes where it has characters of the syntax."""
    return name if re.fullmatch(r"[\w.]+", name) else json.dumps(name)


def _unquoted(name: str) -> str:
    return str(json.loads(name)) if name.startswith('"') else name
