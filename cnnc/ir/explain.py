"""From an op's refusal to a diagnostic: where, which shapes, through which calls, and where the number came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cnnc.diagnostics import Diagnostic, Help, Label, Span
from cnnc.ir.graph import Input, Node, Origin, Value
from cnnc.ir.op import Op, OpError

_AXES = {1: ("elements",), 2: ("samples", "features"), 4: ("batch", "channels", "height", "width")}


def diagnose(
    error: OpError, op: Op, operands: Sequence[Value], origin: Origin | None, spans: Sequence[Span] = (),
    dims: Mapping[str, int] = MappingProxyType({}),
) -> Diagnostic:  # fmt: skip
    """The diagnostic for an op that refuses its operands.

    `spans` are the places of the operands where they were written out, as the arms of a merge; otherwise an operand is
    shown where it was made. `dims` are sizes of symbolic dims, to show shapes as numbers.
    """
    labels = []
    at_fault = error.operand if error.operand < len(operands) else None
    primary = origin.span if origin else None
    if at_fault is not None and len(spans) == len(operands):
        primary = spans[at_fault]
        shown = [Label(span, str(x.type.bind(dims))) for span, x in zip(spans, operands, strict=True)]
        labels += [label for i, label in enumerate(shown) if i != at_fault]
    elif at_fault is not None and (made := operands[at_fault].origin) and (not primary or made.span != primary):
        labels.append(Label(made.span, str(operands[at_fault].type.bind(dims))))
    if primary:
        text = str(operands[at_fault].type.bind(dims)) if at_fault is not None and spans else ""
        labels.insert(0, Label(primary, text, primary=True))
    why = None
    if at_fault is not None and error.axis is not None and error.axis < operands[at_fault].type.rank:
        why = provenance(operands[at_fault], error.axis)
    path = origin.frame.path() if origin and origin.frame else ()
    return Diagnostic(error.code, error.message, tuple(labels), path, why, Help(error.help) if error.help else None)


def provenance(value: Value, axis: int) -> str:
    """Where a dim came from: "64 was set by `stem: cbr(64, 7)`; `maxpool` kept it"."""
    dim, rank = value.type.shape[axis], value.type.rank
    keepers: list[str] = []
    while isinstance(value, Node) and value.inputs:
        before = value.inputs[0]
        if before.type.rank != rank or before.type.shape[axis] != dim or value.op.name == "concat":
            break
        keepers.append(value.op.name)
        value = before
    what = f"{dim} ({axis_name(rank, axis)})"
    if isinstance(value, Input):
        text = f"{what} is that of input `{value.name}`: {value.type}"
    elif value.op.name == "concat" and value.type.rank == rank:
        parts = " + ".join(str(x.type.shape[axis]) for x in value.inputs)
        text = f"{what} was made by `concat` at {_place(value)} of {parts}"
    else:
        text = f"{what} was set by {_place(value)}"
    names = list(dict.fromkeys(reversed(keepers)))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text += f"; {', '.join(f'`{n}`' for n in names[:3])}{more} kept it"
    return text


def axis_name(rank: int, axis: int) -> str:
    names = _AXES.get(rank, ())
    return names[axis] if axis < len(names) else f"dimension {axis}"


def _place(node: Node) -> str:
    """A node as its author knows it: its text and line, and the call it stands in."""
    if node.origin is None:
        return f"`{node.name}`, {node.op}"
    text = " ".join(node.origin.span.text.split())
    text = text if len(text) <= 60 else text[:57] + "..."
    frame = node.origin.frame
    inside = f", in `{frame.call}`" if frame and frame.parent else ""
    return f"`{text}` ({node.origin.span}{inside})"
