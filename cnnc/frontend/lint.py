"""Warnings: what is right to the letter and probably not meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cnnc.diagnostics import Diagnostic, Help, Label, Severity
from cnnc.frontend import syntax as s
from cnnc.frontend.project import Module


def lint(module: Module, found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """The warnings of a file, after those already found."""
    warnings = list(found)
    assert module.tree is not None
    for item in module.tree.items:
        if isinstance(item, s.Def | s.Model):
            warnings += _unused(item)
        for node in s.walk(item):
            warnings += _half_labelled(node)
            warnings += _depthwise_after_arrow(node)
    return warnings


def _unused(item: s.Def | s.Model) -> Iterator[Diagnostic]:
    """Bindings and parameters that nothing reads; a name that begins with `_` is meant to be unused."""
    if not isinstance(item.body, s.Block):
        return
    bound = [name for st in item.body.statements if isinstance(st, s.Bind) for name in st.names]
    used: set[str] = set()
    for statement in item.body.statements:
        skip = {id(name) for name in statement.names} if isinstance(statement, s.Bind) else set()
        for node in s.walk(statement):
            if isinstance(node, s.Name) and id(node) not in skip:
                used |= {node.text, node.parts[0], node.text.rpartition(".")[0]}
            elif isinstance(node, s.String):
                used |= {part.split("}")[0] for part in node.value.split("{")[1:]}
    for name in bound:
        if name.text not in used and not name.text.startswith("_"):
            help = Help(f"remove it, or call it `_{name.text}`")
            labels = (Label(name.span, primary=True),)
            yield Diagnostic("W0201", f"`{name.text}` is never used", labels, help=help, severity=Severity.WARNING)


def _half_labelled(node: object) -> Iterator[Diagnostic]:
    """`left: a -> b if c else d`: the label holds `a` alone, the condition holds the whole chain."""
    if isinstance(node, s.Cond) and isinstance(node.then, s.Chain) and isinstance(node.then.steps[0], s.Labelled):
        first = node.then.steps[0]
        labels = (Label(first.span, primary=True),)
        text = "the label names this step alone, and the condition decides on the whole chain"
        help = Help("put parentheses around what the label is to hold: `label: (a -> b)`")
        yield Diagnostic("W0202", text, labels, help=help, severity=Severity.WARNING)


def _depthwise_after_arrow(node: object) -> Iterator[Diagnostic]:
    """`x -> conv(32) -> conv(in.c, 3, groups=in.c)`: `in` is the def's input, not what flows here."""
    if not isinstance(node, s.Chain):
        return
    for before, step in zip(node.steps, node.steps[1:], strict=False):
        use = step.body if isinstance(step, s.Labelled) else step
        if not isinstance(use, s.Use) or use.name.text != "conv" or not use.args:
            continue
        groups = [a for a in use.args if a.name == "groups" and isinstance(a.value, s.Use)]
        grouped = [a for a in groups if isinstance(a.value, s.Use) and a.value.name.text == "in.c"]
        changed = before.body if isinstance(before, s.Labelled) else before
        if grouped and isinstance(changed, s.Use) and changed.name.text in ("conv", "deconv"):
            labels = (Label(grouped[0].span, "channels of the def's input, not of what flows here", primary=True),)
            help = Help("`depthwise(k, s)` of the library takes the channels that flow in")
            message = "`in.c` after a convolution"
            yield Diagnostic("W0203", message, labels, help=help, severity=Severity.WARNING)
