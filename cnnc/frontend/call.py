"""Arguments: matched to parameters, for defs and ops alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from cnnc.diagnostics import Diagnostic, Help, Label, Span
from cnnc.frontend.scope import Given, describe
from cnnc.ir.attrs import AttrError, Kind
from cnnc.ir.graph import Input, Node
from cnnc.ir.op import Op, attributes, operands_of

_ELSEWHERE = {
    "avgpooling": "avgpool", "averagepool": "avgpool", "averagepooling": "avgpool", "maxpooling": "maxpool",
    "globalavgpool": "gap", "globalaveragepool": "gap", "globalmaxpool": "gmp", "maxunpool": "unpool",
    "batchnorm": "bn", "batchnormalization": "bn", "localresponsenorm": "lrn",
    "convtranspose": "deconv", "transposedconv": "deconv", "convtransposed": "deconv", "convolution": "conv",
    "depthwiseconv": "depthwise", "separableconv": "separable", "locallyconnected": "local",
    "dense": "linear", "fc": "linear", "fullyconnected": "linear",
    "swish": "silu", "identity": "id", "cat": "concat", "sum": "add", "mean": "reduce_mean", "interpolate": "resize",
    "kernelsize": "k", "outchannels": "c", "filters": "c", "strides": "s",
}  # fmt: skip
"""What other frameworks call blocks and arguments of ours: their names in lower case, without `_` and `2d`."""


class CallError(Exception):
    """An argument list does not fit; carries the diagnostics, without path."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(diagnostics)
        self.diagnostics = diagnostics


def match(
    callee: str, names: Sequence[str], required: Sequence[str], args: Sequence[Given], span: Span,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Given]:  # fmt: skip
    """Arguments by parameter name. CallError: E0206 for unknown, doubled, missing and too many arguments. `aliases` are
    wrong names whose right one is known."""
    found: dict[str, Given] = {}
    problems: list[Diagnostic] = []
    signature = f"{callee}({', '.join(names)})"
    known = frozenset(names)
    for position, arg in enumerate(args):
        if arg.name is None and position >= len(names):
            takes = f"{len(names)} argument{'s' * (len(names) != 1)}" if names else "no arguments"
            problems.append(_problem(f"`{callee}` takes {takes}: `{signature}`", arg.span))
            continue
        name = names[position] if arg.name is None else arg.name
        if name not in known:
            help = f"did you mean `{aliases[name]}`?" if aliases and name in aliases else suggest(name, names)
            problems.append(_problem(f"`{callee}` has no argument `{name}`", arg.span, help or f"it is `{signature}`"))
        elif name in found:
            first = Label(found[name].span, "first given here")
            problems.append(_problem(f"`{callee}` gets `{name}` twice", arg.span, also=first))
        else:
            found[name] = arg
    if not problems and (missing := [name for name in required if name not in found]):
        listed = ", ".join(f"`{name}`" for name in missing)
        problems.append(_problem(f"`{callee}` needs {listed}: `{signature}`", span))
    if problems:
        raise CallError(*problems)
    return found


def make_op(cls: type[Op], args: Sequence[Given], span: Span) -> Op:
    """The op called with these arguments. CallError as `match`, and E0207 for values an attribute does not take."""
    fields = attributes(cls)
    names = {field.metadata["name"]: field.name for field in fields}
    if any(map(_has_tensors, args)):
        raise CallError(_as_arguments(cls, args))
    if fields and fields[0].metadata["variadic"]:
        found = _match_variadic(cls, args, span)
    else:
        aliases = {field.name: field.metadata["name"] for field in fields}
        required = [f.metadata["name"] for f in fields if f.default is dataclasses.MISSING]
        found = {k: (g.value, g.span) for k, g in match(cls.name, list(names), required, args, span, aliases).items()}
    problems, values = [], {}
    for field in fields:
        if (name := field.metadata["name"]) in found:
            value, at = found[name]
            try:
                values[field.name] = _coerced(field.metadata["kind"], value)
            except AttrError as e:
                problems.append(Diagnostic("E0207", f"`{name}` of `{cls.name}` {e}", (Label(at, primary=True),)))
    if problems:
        raise CallError(*problems)
    try:
        return cls(**values)
    except AttrError as e:
        raise CallError(Diagnostic("E0207", str(e), (Label(span, primary=True),))) from None


def _has_tensors(arg: Given) -> bool:
    """Whether an argument is a tensor, or a list of some."""
    return isinstance(arg.value, Input | Node) or (
        isinstance(arg.value, list) and any(isinstance(x, Input | Node) for x in arg.value)
    )


def _as_arguments(cls: type[Op], args: Sequence[Given]) -> Diagnostic:
    """E0207 for tensors among the arguments of an op."""
    tensors = [arg for arg in args if _has_tensors(arg)]
    others = ", ".join(arg.span.text for arg in args if arg not in tensors)
    call = f"{cls.name}({others})" if others else cls.name
    operands = [arg.span.text for arg in tensors]
    if any(isinstance(arg.value, list) for arg in tensors):
        help = f"`{call} {{ a | b }}`"
    elif len(operands) == 1 and operands_of(cls).most != 1:
        help = f"`{call} {{ id | {operands[0]} }}`"
    else:
        help = f"`{call} {{ {' | '.join(operands)} }}`" if len(operands) > 1 else f"`{operands[0]} -> {call}`"
    first, *rest = (arg.span for arg in tensors)
    labels = (Label(first, primary=True), *map(Label, rest))
    return Diagnostic("E0207", f"a tensor is no argument of `{cls.name}` but flows into it", labels, help=Help(help))


def suggest(name: str, names: Sequence[str]) -> str | None:
    """ "did you mean ...?", where something is close: but for case and underscores, by another framework's word for it,
    or by its letters."""
    if name in ("True", "False"):
        return f"did you mean `{name.lower()}`?"
    plain = _letters(name)
    same = [x for x in names if _letters(x) == plain]
    known = [x for x in names if x == _ELSEWHERE.get(plain)]
    close = same or known or get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None


def _letters(name: str) -> str:
    return name.lower().replace("_", "").removesuffix("2d")


def _match_variadic(cls: type[Op], args: Sequence[Given], span: Span) -> dict[str, tuple[object, Span]]:
    """The first attribute takes every positional argument, or one list; the others go by keyword."""
    first, *rest = (field.metadata["name"] for field in attributes(cls))
    positional = [arg for arg in args if arg.name is None]
    named = match(cls.name, [first, *rest], [], [arg for arg in args if arg.name is not None], span)
    found = {name: (arg.value, arg.span) for name, arg in named.items()}
    if len(positional) == 1 and isinstance(positional[0].value, list):
        found[first] = (positional[0].value, positional[0].span)
    elif positional:
        found[first] = ([arg.value for arg in positional], positional[0].span.to(positional[-1].span))
    if first not in found:
        raise CallError(_problem(f"`{cls.name}` needs `{first}`: `{cls.name}({first}, ...)`", span))
    return found


def _coerced(kind: Kind, value: object) -> object:
    if not _plain(value):
        raise AttrError(f"expects {kind.text}, not {describe(value)}")
    return kind.coerce(value)


def _plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_plain, value))
    return isinstance(value, int | float | str | bool)


def _problem(message: str, span: Span, help: str | None = None, also: Label | None = None) -> Diagnostic:
    labels = (Label(span, primary=True), also) if also else (Label(span, primary=True),)
    return Diagnostic("E0206", message, labels, help=Help(help) if help else None)
