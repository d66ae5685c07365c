"""Average before a 1x1 convolution instead of after it, or after it instead of before, where that costs less.

A 1x1 convolution is y = W*x + b at each place, and an average is a weighted sum over places whose weights a sum to 1:
sum of a*(W*x + b) = W*(sum of a*x) + b. The convolution is left with the fewer places of the average; the average has
the maps of the input instead of those of the output. Cheaper where the multiply-accumulates of the one and the
additions of the other come to fewer. The bound is that of the convolution and of the average, one after the other.

Where padding is counted (`count_include_pad`), its zeros are averages of no b, so the weights sum to less than 1 at
the border and the convolution must have no bias. Not moved: in f16 and bf16, where the first of the two would be
rounded before the second; and an average to after a convolution that has an epilogue, which would be none any more (see
`fuse_epilogue`). A convolution with padding of its own has b alone there, and with a stride skips places.

Averages of whole maps get one form first, gap: avgpool with a window as large as the map, adaptive_avgpool(1), and
reduce_mean over both axes. An average of single places is dropped.
"""

from __future__ import annotations

from math import prod

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ir.types import DType
from cnnc.passes.cost import nominal
from cnnc.passes.engine import Pass, Refusal, Sweep
from cnnc.passes.fuse_epilogue import EPILOGUE

MOVED = (ops.AvgPool, ops.AdaptiveAvgPool, ops.GlobalAvgPool)
AVERAGES = (*MOVED, ops.ReduceMean)


def whole_map(node: Node, sweep: Sweep) -> Value | None:
    """An average over whole maps as gap; over single places as nothing."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.type.rank != 4:
        return None
    size = x.type.shape[2:]
    match node.op:
        case ops.AdaptiveAvgPool() | ops.GlobalAvgPool() if x.type == node.type:
            return x
        case ops.AdaptiveAvgPool(size=(1, 1)) | ops.ReduceMean(axes=(2, 3), keep=True):
            pass
        case ops.AvgPool(kernel=kernel) if kernel == size and not any(node.op.pads(x.type)):
            pass
        case _:
            return None
    return Node(ops.GlobalAvgPool(), (x,), {}, node.name, node.origin)


def before_conv(node: Node, sweep: Sweep) -> Value | None:
    """conv(c, 1) -> average as average -> conv(c, 1)."""
    conv = node.inputs[0] if isinstance(node.op, MOVED) else None
    if not isinstance(conv, Node) or not _pointwise(conv):
        return None
    if not sweep.used_once(conv):
        raise Refusal(f"the result of `{conv.name}` is read elsewhere too")
    _check(node, conv, f"the averages would be rounded to {node.type.dtype} before `{conv.name}` sums them")
    average = Node(node.op, conv.inputs, {}, node.name, node.origin)
    result = Node(conv.op, (average,), conv.params, conv.name, conv.origin)
    if nominal(result.macs) + _additions(average) >= nominal(conv.macs) + _additions(node):
        raise Refusal(f"averaging the maps before `{conv.name}` costs more than those after it")
    return result


def after_conv(node: Node, sweep: Sweep) -> Value | None:
    """average -> conv(c, 1) as conv(c, 1) -> average."""
    average = node.inputs[0] if _pointwise(node) else None
    if not isinstance(average, Node) or not isinstance(average.op, MOVED):
        return None
    conv = Node(node.op, average.inputs, node.params, node.name, node.origin)
    result = Node(average.op, (conv,), {}, average.name, average.origin)
    if nominal(conv.macs) + _additions(result) >= nominal(node.macs) + _additions(average):
        return None
    if not sweep.used_once(average):
        raise Refusal(f"the result of `{average.name}` is read elsewhere too")
    _check(average, node, f"the sums of `{node.name}` would be rounded to {node.type.dtype} before they are averaged")
    readers = sweep.graph.users[sweep.written]
    if len(readers) == 1 and isinstance(readers[0].op, EPILOGUE):
        raise Refusal(f"`{readers[0].name}` would no longer be the epilogue of `{node.name}`")
    return result


def _pointwise(node: Node) -> bool:
    op = node.op
    return isinstance(op, ops.Conv) and (op.kernel, op.stride, op.pad) == ((1, 1), (1, 1), (0, 0, 0, 0))


def _check(average: Node, conv: Node, rounded: str) -> None:
    """Refusal where the two do not give the same in the other order; `rounded` says why not in f16 and bf16."""
    if conv.type.dtype is not DType.F32:
        raise Refusal(rounded)
    pool = average.op
    counts_padding = isinstance(pool, ops.AvgPool) and pool.count_include_pad and any(pool.pads(average.inputs[0].type))
    assert isinstance(conv.op, ops.Conv)
    if counts_padding and conv.op.bias:
        raise Refusal(f"the average counts padding, which has no bias of `{conv.name}`")


def _additions(average: Node) -> int:
    if isinstance(average.op, ops.AvgPool):
        return prod(average.op.kernel) * nominal(average.type.size)
    return nominal(average.inputs[0].type.size)


COMMUTE_POOL = Pass(
    "commute_pool", __doc__ or "", (whole_map, before_conv, after_conv), level=2, of=(*AVERAGES, ops.Conv),
)
