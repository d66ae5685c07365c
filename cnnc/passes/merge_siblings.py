"""Make one layer of convolutions, or linear layers, that read the same tensor.

With weights W1, W2, ... of the same kernel stacked along the output channels, one convolution gives the channels of all
of them, and each is a slice: channels c to c + c1 of W*x. The sums are the same. Slices cost nothing: targets read
them where they lie. Where each sibling is followed by the same activation and nothing else, that is applied once too,
before the slices, so that it stays in the layer's epilogue. Slices that a concat joins again vanish.

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


def merge(node: Node, sweep: Sweep) -> Value | None:
    """A layer, or the activation after it, as a slice of the one that it became a part of.

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
    merged: list[Node] = []
    for node in family:
        if isinstance(node.op, ops.Conv) and node.op.groups > 1:
            sweep.memo[node] = Refusal("the groups of siblings would have to be interleaved")
        elif not all(map(sweep.owned, node.params.values())):
            sweep.memo[node] = Refusal(f"the weights of `{node.name}` are shared")
        else:
            merged.append(node)
    if len(merged) < 2:
        return
    if nominal(x.type.size) < min(nominal(node.params["weight"].type.size) for node in merged):
        saves_little = Refusal(f"`{x.name}` is smaller than the weights of each layer that reads it")
        sweep.memo.update(dict.fromkeys(merged, saves_little))
        return
    layer = _stacked(merged, x, sweep)
    _slice(merged, layer, sweep)
    after = [_activation(node, sweep) for node in merged]
    if (first := after[0]) and all(each and each.op == first.op for each in after):
        activation = Node(first.op, (layer,), {}, sweep.name(f"{layer.name}.{first.op.name}"), first.origin)
        _slice([each for each in after if each], activation, sweep)


def _stacked(family: list[Node], x: Value, sweep: Sweep) -> Node:
    """The layer on x with the weights of all."""
    import numpy as np

    first = family[0]
    name = sweep.name(f"{first.name}.merged")
    params = {}
    channels = 0
    for role, like in first.params.items():
        stacked = np.concatenate([sweep.weights[node.params[role].name] for node in family])
        params[role] = sweep.param(f"{name}.{role}", stacked, like)
        channels = len(stacked)
    assert isinstance(first.op, ops.Conv | ops.Linear)
    return Node(replace(first.op, channels=channels), (x,), params, name, first.origin)


def _slice(nodes: list[Node], whole: Node, sweep: Sweep) -> None:
    """Each of the nodes is to become a slice of `whole`, one after the other."""
    start = 0
    for node in nodes:
        channels = node.type.shape[1]
        assert isinstance(channels, int)
        op = ops.Slice(start, start + channels)
        sweep.memo[node] = Node(op, (whole,), {}, node.name, node.origin)
        start += channels


def _activation(node: Node, sweep: Sweep) -> Node | None:
    """The only reader of a layer, if it works place by place and has no parameters."""
    if not sweep.used_once(node) or not sweep.graph.users[node]:
        return None
    (reader,) = sweep.graph.users[node]
    return reader if isinstance(reader.op, Pointwise) and not reader.params else None


MERGE_SIBLINGS = Pass(
    "merge_siblings", __doc__ or "", (merge, joining), level=2,
    of=(ops.Conv, ops.Linear, Pointwise, ops.Concat, ops.Slice),
)
