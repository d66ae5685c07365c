"""One `scale` for a batch norm, and for two affines per channel in a row.

Batch norm alone is y = s*x + t (`fold_batch_norm` has s and t): two parameters remain of four, and one multiplication
and one addition. Of two affines, s2*(s1*x + t1) + t2 = (s1*s2)*x + (s2*t1 + t2). Two of which neither adds anything
need no bias. The parameters are computed in float64 and rounded once: the bound is
7u*(|s2|*(|s1||x| + |t1|) + |t2|), |t1| being |s1*running_mean| + |bias| for a batch norm.

Not so for an addition of a constant as the first of two: x - m is exact where x is near m, and s*x - s*m loses the
digits that cancel. Not done either with parameters that are shared, which others need as they are, or in f16 and bf16.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ir.types import DType
from cnnc.passes.affine import AFFINES, affine, bias_name, check_finite, has_offset, operand
from cnnc.passes.engine import Pass, Refusal, Sweep


def into_scale(node: Node, sweep: Sweep) -> Value | None:
    """A batch norm, or an affine after an affine, as a `scale`."""
    x = operand(node)
    if x is None:
        return None
    chain = [node]
    if isinstance(x, Node) and not isinstance(x.op, ops.Add | ops.Sub) and sweep.used_once(x):
        inner = operand(x)
        if inner is not None:
            chain, x = [node, x], inner
    owners = [each for each in chain if each.params]
    if not owners or (len(chain) == 1 and not isinstance(node.op, ops.BatchNorm)):
        return None
    if node.type.dtype is not DType.F32:
        raise Refusal(f"new parameters would be rounded to {node.type.dtype} again")
    owner = next((each for each in owners if all(map(sweep.owned, each.params.values()))), None)
    if owner is None:
        raise Refusal(f"the parameters of `{owners[0].name}` are shared")
    scale, shift = affine(node, sweep)
    for first in chain[1:]:
        s, t = affine(first, sweep)
        scale, shift = scale * s, scale * t + shift
    check_finite(node, scale, shift)
    like = owner.params["weight"]
    params = {"weight": sweep.param(like.name, scale, like)}
    op = ops.Scale(bias=any(map(has_offset, chain)))
    if op.bias:
        params["bias"] = sweep.param(bias_name(owner), shift, like)
    return Node(op, (x,), params, node.name, node.origin)


FOLD_SCALE = Pass("fold_scale", __doc__ or "", (into_scale,), level=2, of=AFFINES)
