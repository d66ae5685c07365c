"""Remove channels that every reader multiplies by zero.

A channel all of whose weights in the convolutions and linear layers that read it are 0 adds 0 * x to their sums. Where
no reader has another weight for it (one that slices it off does not read it), the layer that makes the channel loses
it as in `dead_channels`, and the readers lose those columns. This is what is left of a network from which channels were
pruned by zeroing their weights. It assumes that the channel is finite: 0 * Inf and 0 * NaN are NaN.

Not done for readers with groups, whose groups would have different sizes.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.dead_channels import SELECTING, Kept, narrow, rows, select, selected
from cnnc.passes.engine import Pass, Sweep


def unweighted(node: Node, sweep: Sweep) -> Value | None:
    """A layer without the columns of the channels that it and all other readers multiply by zero."""
    return narrow(node, sweep, _weighted, _without)


def _weighted(node: Node, sweep: Sweep) -> set[int] | None:
    """The channels for which a layer has a weight that is not zero."""
    import numpy as np

    axis = _axis(node)
    if axis is None:
        return selected(node, sweep)
    if not all(map(sweep.owned, node.params.values())):
        return None
    weight = sweep.weights[node.params["weight"].name]
    if np.count_nonzero(weight) == weight.size:
        return set(range(weight.shape[axis]))
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return set((weight != 0).any(others).nonzero()[0].tolist())


def _without(node: Node, x: Value, kept: Kept, sweep: Sweep) -> Value:
    axis = _axis(node)
    if axis is None:
        return select(node, x, kept, sweep)
    params = {**node.params, "weight": rows(node, "weight", kept, sweep, axis)}
    return Node(node.op, (x,), params, node.name, node.origin)


def _axis(node: Node) -> int | None:
    """The axis of a layer's weights that counts its input channels."""
    match node.op:
        case ops.Conv(groups=1) | ops.Linear():
            return 1
        case ops.Deconv(groups=1):
            return 0
        case _:
            return None


ZERO_CHANNELS = Pass(
    "zero_channels", __doc__ or "", (unweighted,), level=3,
    of=(*SELECTING, ops.Conv, ops.Deconv, ops.Linear),
)
