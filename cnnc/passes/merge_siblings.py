"""Make one layer of convolutions, or linear layers, that read the same tensor.

With weights W1, W2, ... of the same kernel stacked along the output channels, one convolution gives the channels of all
of them, and each is a slice: channels c to c + c1 of W*x. The sums are the same. Slices cost nothing: targets read
them where they lie. What follows each sibling and nothing else reads (activations, and batch norm that could not be
folded) is applied once too, before the slices, so that it stays in the layer's epilogue. Slices that a concat joins
again vanish.

Siblings that other ops follow could be merged too, but these would read and write the slices, one after the other. So
they are merged by themselves, unless what those ops would move is less than what reading x again does.

Cheaper because x is read (and its windows gathered) once, and because narrow layers fill vector lanes badly: where x
has at least as many elements as the smallest of the siblings has weights. A linear layer on one sample, say, spends its
time on reading weights. Siblings have the same attributes but for the channels. Not merged: grouped ones, whose groups
would have to be taken apart and interleaved, and those whose weights are shared.

Source: Jia et al. 2019 (TASO), figure 2; the modules of Szegedy et al. 2014 have three 1x1 convolutions of one tensor.
"""

from __future__ import annotations

from dataclasses import replace

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ir.op import Init, Op
from cnnc.ops.activation import Pointwise
from cnnc.passes.canonical import joining
from cnnc.passes.cost import nominal
from cnnc.passes.engine import Pass, Refusal, Sweep

_BY_CHANNEL = (Pointwise, ops.BatchNorm, ops.Scale)
"""Ops that take each place by itself, with parameters that have one number for each channel."""


def merge(node: Node, sweep: Sweep) -> Value | None:
    """A layer, or an op after it, as a slice of the one that it became a part of.

    All layers on a value are dealt with when the first of them is met, so each value is looked at once.
    """
    if sweep.written in sweep.memo:
        found: Value | Refusal = sweep.memo.pop(sweep.written)
        if isinstance(found, Refusal):
            raise found
        return found
    if not isinstance(sweep.written.op, ops.Conv | ops.Linear):  # what is written as a concat may be a layer by now
        return None
    source = sweep.written.inputs[0]
    if source in sweep.memo:
        return None
    sweep.memo[source] = source
    families: dict[Op, list[Node]] = {}
    if len(readers := sweep.readers(source)) > 1:
        for reader in readers:
            if isinstance(reader.op, ops.Conv | ops.Linear):
                families.setdefault(_form(reader.op), []).append(reader)
    for family in families.values():
        _merge(family, node.inputs[0], sweep)
    return merge(node, sweep) if sweep.written in sweep.memo else None


def _form(op: ops.Conv | ops.Linear) -> Op:
    """What siblings have in common: the attributes, whatever the channels and how weights start."""
    least = op.groups if isinstance(op, ops.Conv) else 1
    return replace(op, channels=least, init=Init("he_normal"))


def _merge(family: list[Node], x: Value, sweep: Sweep) -> None:
    """Put the slices that become of these layers on x into the memo, or why they stay."""
    if len(family) == 1:
        return
    free: list[Node] = []
    for node in family:
        if isinstance(node.op, ops.Conv) and node.op.groups > 1:
            sweep.memo[node] = Refusal("the groups of siblings would have to be interleaved")
        elif not all(map(sweep.owned, node.params.values())):
            sweep.memo[node] = Refusal(f"the weights of `{node.name}` are shared")
        else:
            free.append(node)
    for siblings in _alike(free, x, sweep):
        if len(siblings) == 1:
            if len(free) > 1:
                sweep.memo[siblings[0][0]] = Refusal("other ops follow the layers beside it")
        elif nominal(x.type.size) < min(nominal(layer.params["weight"].type.size) for layer, *_ in siblings):
            saves_little = Refusal(f"`{x.name}` is smaller than the weights of each layer that reads it")
            sweep.memo.update(dict.fromkeys((layer for layer, *_ in siblings), saves_little))
        else:
            _stack(siblings, x, sweep)


def _alike(layers: list[Node], x: Value, sweep: Sweep) -> list[list[list[Node]]]:
    """Those of the layers on x that are to be merged with each other, each with the ops after it that are so too."""
    by_ops: dict[tuple[Op, ...], list[list[Node]]] = {}
    for layer in layers:
        after = _after(layer, sweep)
        by_ops.setdefault(tuple(node.op for node in after), []).append([layer, *after])
    groups = [*by_ops.values()]
    moved = sum(2 * nominal(layer.type.size) for siblings in groups for layer, *after in siblings if after)
    if len(groups) > 1 and moved < (len(groups) - 1) * nominal(x.type.size):
        return [[[layer] for layer in layers]]
    return groups


def _after(node: Node, sweep: Sweep) -> list[Node]:
    """The ops after a layer that take each channel by itself, each the only reader of the one before."""
    after: list[Node] = []
    while sweep.used_once(node) and sweep.graph.users[node]:
        (node,) = sweep.graph.users[node]
        if not isinstance(node.op, _BY_CHANNEL) or not all(map(sweep.owned, node.params.values())):
            break
        after.append(node)
    return after


def _stack(siblings: list[list[Node]], x: Value, sweep: Sweep) -> None:
    """Each of the siblings, and of the ops after them, is to become a slice of what does the work of all."""
    import numpy as np

    prefix = ""
    for nodes in zip(*siblings, strict=True):
        first, start, slices = nodes[0], 0, []
        for node in nodes:
            channels = node.type.shape[1]
            assert isinstance(channels, int)
            slices.append(ops.Slice(start, start + channels))
            start += channels
        name = sweep.name(f"{prefix}.{first.op.name}" if prefix else f"{first.name}.merged")
        prefix = prefix or name
        op = replace(first.op, channels=start) if isinstance(first.op, ops.Conv | ops.Linear) else first.op
        params = {}
        for role, like in first.params.items():  # of one number or filter for each channel
            stacked = np.concatenate([sweep.weights[node.params[role].name] for node in nodes])
            params[role] = sweep.param(f"{name}.{role}", stacked, like)
        x = Node(op, (x,), params, name, first.origin)
        for node, part in zip(nodes, slices, strict=True):
            sweep.memo[node] = Node(part, (x,), {}, node.name, node.origin)


MERGE_SIBLINGS = Pass(
    "merge_siblings", __doc__ or "", (merge, joining), level=2,
    of=(ops.Conv, ops.Linear, *_BY_CHANNEL, ops.Concat, ops.Slice),
)
